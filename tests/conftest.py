"""Inputs that tests share: labels, annotation files, a drawn data set, small configurations. No data is shipped."""

import logging
import os
import random
import shutil
import zlib
from pathlib import Path

import cerberus_plugin  # noqa: F401  adapts the host before any test imports it

import numpy as np
import pytest
import torch
from scipy.io import savemat

# Threads of busy processes wait for one another: one thread in each of several test processes, and in those they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def seed_by_name(name: str) -> None:
    """Seed every global generator, so that a test draws the same numbers alone, in any order and beside others."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    seed_by_name(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    seed_by_name(item.name)


REAL_DATA = Path(os.environ.get("CERBERUS_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

# What a program in a process of its own begins with to run as where torch is not installed.
WITHOUT_TORCH = """
import sys
class Hidden:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "fastreid"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
sys.modules["torch"] = None
"""

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    """The browser that is installed, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # containers have none
        yield started
        started.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the published annotation files, which this project does not ship."""
    if not (REAL_DATA / "market_attribute.mat").is_file():
        pytest.skip(f"published annotation files not found in {REAL_DATA}; name their folder by CERBERUS_SHARED_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def market(real_data):
    from cerberus_plugin.attributes import MARKET1501, read_annotations

    return read_annotations(real_data / "market_attribute.mat", MARKET1501)


@pytest.fixture(scope="session")
def duke(real_data):
    from cerberus_plugin.attributes import DUKEMTMC, read_annotations

    return read_annotations(real_data / "duke_attribute.mat", DUKEMTMC)


def random_labels(schema, count: int, seed: int = 0) -> torch.Tensor:
    """Valid labels int64 (count, A): at most one colour a garment and one thing carried."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(field.values) for field in schema.fields]
    labels = torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)
    exclusive = [column.fields for column in schema.columns if column.is_colour]
    exclusive += [tuple(schema.index(name) for name in names) for names in schema.exclusive]
    for fields in exclusive:
        choice = torch.randint(len(fields) + 1, (count,), generator=generator)  # the last: none
        labels[:, list(fields)] = (choice[:, None] == torch.arange(len(fields))).long()
    return labels


def write_annotations(path: Path, schema, train: dict, test: dict, root: str = "market_attribute", **changes) -> Path:
    """An annotation file in the published form; `changes` replace fields of train, None removes one."""

    def split(labels: dict) -> dict:
        fields = {"image_index": np.array([f"{pid:04d}" for pid in labels], dtype=object)}
        for i, field in enumerate(schema.fields):
            fields[field.name] = np.array([int(row[i]) + 1 for row in labels.values()], dtype=np.uint8)
        return fields

    first = split(train)
    for name, value in changes.items():
        first.pop(name) if value is None else first.__setitem__(name, value)
    savemat(path, {root: {"train": first, "test": split(test)}})
    return path


def write_market_folder(root: Path, train: dict, test: dict, images: int = 4) -> Path:
    """Market-1501's folder form with pictures of noise around a colour of each identity, and its annotations.

    Identities are seen by cameras 1 to `images`; the first picture of a test identity is its query. One distractor.
    """
    from cerberus_plugin.attributes import MARKET1501

    from PIL import Image

    folder = root / "Market-1501-v15.09.15"
    for name in ("bounding_box_train", "bounding_box_test", "query"):
        (folder / name).mkdir(parents=True)

    def write(name: str, pid: int, camera: int) -> None:
        rng = np.random.default_rng([pid, camera])
        colour = np.random.default_rng(pid).integers(40, 216, (4, 1, 3)).repeat(6, axis=0)
        pixels = (colour + rng.integers(-30, 30, (24, 12, 3))).clip(0, 255).astype(np.uint8)
        path = folder / name / f"{pid:04d}_c{camera}s1_{camera:06d}_00.jpg"
        Image.fromarray(pixels).resize((24, 48)).save(path)

    for pid in train:
        for camera in range(1, images + 1):
            write("bounding_box_train", pid, camera)
    for pid in test:
        for camera in range(1, images + 1):
            write("query" if camera == 1 else "bounding_box_test", pid, camera)
    write("bounding_box_test", 0, 2)
    write_annotations(folder / "market_attribute.mat", MARKET1501, train, test)
    return root


@pytest.fixture(scope="session")
def market_people() -> tuple[dict, dict]:
    """Labels of 8 training and 6 test identities; training ids in an order that is not that of their strings."""
    from cerberus_plugin.attributes import MARKET1501

    labels = random_labels(MARKET1501, 14, seed=3)
    return dict(zip((2, 7, 10, 11, 23, 100, 101, 700), labels)), dict(zip((1, 3, 4, 5, 6, 1500), labels[8:]))


@pytest.fixture(scope="session")
def market_root(tmp_path_factory, market_people) -> Path:
    """A data root that tests only read."""
    return write_market_folder(tmp_path_factory.mktemp("data"), *market_people)


@pytest.fixture
def use_root(monkeypatch):
    """Point the host at a data root, as FASTREID_DATASETS does when the host is imported."""
    def use(root: Path) -> None:
        monkeypatch.setattr("fastreid.data.build._root", str(root))

    return use


def read_config(*options, file: str = "configs/Market1501/cerberus_demo.yml"):
    """A configuration file with ResNet-18 on 48x24 pictures and 2 steps an epoch; options as on the command line."""
    from cerberus_plugin import add_cerberus_config

    from fastreid.config import get_cfg

    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(Path(__file__).parents[1] / file))
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False, "MODEL.BACKBONE.DEPTH", "18x",
        "MODEL.BACKBONE.FEAT_DIM", 512, "INPUT.SIZE_TRAIN", [48, 24], "INPUT.SIZE_TEST", [48, 24],
        "SOLVER.AMP.ENABLED", False, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_EPOCH", 2, "SOLVER.WARMUP_ITERS", 0,
        "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 2, "TEST.UNTRAINED_FLOOR", False,
        "DATALOADER.NUM_WORKERS", 0, "MODEL.COMPILE", False, "SEED", 1, *options])
    cfg.freeze()
    return cfg


@pytest.fixture
def small_config(market_root, use_root, tmp_path):
    """`read_config` on the shared data, writing to `tmp_path`."""
    use_root(market_root)
    return lambda *options, **kwargs: read_config("OUTPUT_DIR", str(tmp_path / "run"), *options, **kwargs)


def trained(cfg):
    """A trainer after its run; `start` holds the parameters before it, `results` the figures after it."""
    from cerberus_plugin import CerberusTrainer

    from fastreid.utils.env import seed_all_rng

    seed_all_rng(1)
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.results = trainer.train()
    return trainer


@pytest.fixture(scope="session")
def run(tmp_path_factory, market_root):
    """One small training run of Cerberus that tests only look at."""
    patch = pytest.MonkeyPatch()
    patch.setattr("fastreid.data.build._root", str(market_root))
    folder = tmp_path_factory.mktemp("trained") / "run"
    yield trained(read_config("OUTPUT_DIR", str(folder), "TEST.EVAL_PERIOD", 1, "TEST.UNTRAINED_FLOOR", True,
                              "TEST.APS.GROUPS", ["upper+lower"]))
    patch.undo()


def write_duke_folder(root: Path, train: dict, test: dict) -> Path:
    """DukeMTMC-reID's folder form; the first test identity queries, the last stands in the gallery alone."""
    from cerberus_plugin.attributes import DUKEMTMC

    from PIL import Image

    folder = root / "DukeMTMC-reID"
    rng = np.random.default_rng(0)
    for name, pids in (("bounding_box_train", train), ("bounding_box_test", test), ("query", list(test)[:-1])):
        (folder / name).mkdir(parents=True)
        for pid in pids:
            for camera in (1,) if name == "query" else (2, 3, 4, 5):
                pixels = rng.integers(0, 255, (48, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{pid:04d}_c{camera}_f{camera:07d}.jpg")
    write_annotations(folder / "duke_attribute.mat", DUKEMTMC, train, test, root="duke_attribute")
    return root


@pytest.fixture
def log(caplog):
    """The records of the package's logger, also where the host's setup_logger has cut propagation."""
    logger = logging.getLogger("fastreid.cerberus")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


class Killed(BaseException):
    """What ends a run that `kill_at_file` has stopped."""


def kill_at_file(patch: pytest.MonkeyPatch, module, number: int) -> None:
    """Until undone, stop before the file of this number, from 1, gets its name: `module` renames with `os.replace`."""
    whole, calls = module.os.replace, []

    def replace_some(source, target):
        calls.append(target)
        if len(calls) == number:
            patch.setattr(module.os, "unlink", lambda path: None)  # a killed process removes nothing
            raise Killed
        whole(source, target)

    patch.setattr(module.os, "replace", replace_some)


def solver_cfg(**solver):
    """The host's defaults with these keys of SOLVER."""
    from fastreid.config import get_cfg

    cfg = get_cfg()
    for key, value in {"BASE_LR": 0.1, "HEADS_LR_FACTOR": 0.5, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg
