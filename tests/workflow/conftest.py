"""Two runs of `cerberus train`: with attributes and enough people to calibrate, and of people alone."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from support.own_data import write_people
from support.own_runs import train_own

PEOPLE = 184  # half of the test people are as many as choosing what a model abstains from takes


@pytest.fixture(scope="session")
def crops(tmp_path_factory):
    """With a name that a page must not take for its own. Pictures of one person are alike, so that pairs tell people.
    """
    folder = write_people(tmp_path_factory.mktemp("own") / "crops <b>", people=PEOPLE, cameras=2)
    for path in (folder / "img").iterdir():
        person, camera = map(int, path.stem.split("_"))
        blocks = np.random.default_rng(person).integers(20, 235, (6, 3, 3))
        noise = np.random.default_rng((person, camera)).integers(-20, 20, (48, 24, 3))
        Image.fromarray((blocks.repeat(8, 0).repeat(8, 1) + noise).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def said_run(crops, tmp_path_factory):
    """A run, and what the command has printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        run = train_own(crops, tmp_path_factory.mktemp("run") / "run", "DATALOADER.NUM_INSTANCE", 2, model="")
    return run, said.getvalue()


@pytest.fixture(scope="session")
def run(said_run):
    return said_run[0]


@pytest.fixture(scope="session")
def plain_crops(tmp_path_factory):
    """Without attributes and cameras."""
    folder = write_people(tmp_path_factory.mktemp("own") / "plain", people=8, attributes=False)
    lines = [line.rsplit(",", 1)[0] for line in (folder / "metadata.csv").read_text().splitlines()]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def plain_run(plain_crops, tmp_path_factory):
    return train_own(plain_crops, tmp_path_factory.mktemp("run") / "plain", model="bot", epochs=1)
