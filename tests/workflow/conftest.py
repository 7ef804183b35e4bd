"""Two runs of `cerberus train`: with attributes and enough people for calibration, and with identities only."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from support.own_data import write_people
from support.own_runs import train_own

PEOPLE = 184  # half of the test people are the 46 that calibration with abstention needs


@pytest.fixture(scope="session")
def crops(tmp_path_factory):
    """Crops in a folder whose name must be escaped in HTML; images of a person are similar, for informative pairs."""
    folder = write_people(tmp_path_factory.mktemp("own") / "crops <b>", people=PEOPLE, cameras=2)
    for path in (folder / "img").iterdir():
        person, camera = map(int, path.stem.split("_"))
        blocks = np.random.default_rng(person).integers(20, 235, (6, 3, 3))
        noise = np.random.default_rng((person, camera)).integers(-20, 20, (48, 24, 3))
        Image.fromarray((blocks.repeat(8, 0).repeat(8, 1) + noise).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="session")
def printed_run(crops, tmp_path_factory):
    """A run, and the output of the command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run = train_own(crops, tmp_path_factory.mktemp("run") / "run", "DATALOADER.NUM_INSTANCE", 2, model="")
    return run, printed.getvalue()


@pytest.fixture(scope="session")
def run(printed_run):
    return printed_run[0]


@pytest.fixture(scope="session")
def plain_crops(tmp_path_factory):
    """Crops without attributes and cameras."""
    folder = write_people(tmp_path_factory.mktemp("own") / "plain", people=8, attributes=False)
    lines = [line.rsplit(",", 1)[0] for line in (folder / "metadata.csv").read_text().splitlines()]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def plain_run(plain_crops, tmp_path_factory):
    return train_own(plain_crops, tmp_path_factory.mktemp("run") / "plain", model="bot", epochs=1)
