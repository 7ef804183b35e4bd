"""Shared fixtures: labels, a synthetic dataset, small configurations and a training run. No data files are included."""

import logging
import os
import random
import zlib
from pathlib import Path

import cerberus_plugin  # noqa: F401  adapts FastReID before a test imports it

import numpy as np
import pytest
import torch
from support.data import market_labels, write_market_folder
from support.own_data import forgotten_schemas
from support.processes import BROWSER
from support.training import read_config, trained

# Several test processes, and the processes that they start, use one thread each, because threads would compete.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def seed_by_name(name: str) -> None:
    """Seed all global generators, so that a test does not depend on the other tests and their order."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pytest_runtest_setup(item):
    marker = item.get_closest_marker("gpu")
    wanted = marker.kwargs.get("devices", 1) if marker else 0
    if torch.cuda.device_count() < wanted:
        pytest.skip(f"needs {wanted} CUDA device{'s' if wanted > 1 else ''}")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    seed_by_name(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    seed_by_name(item.name)


REAL_DATA = Path(os.environ.get("CERBERUS_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def browser():
    """Return the installed browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # containers have no sandbox
        yield started
        started.close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the published annotation files, which are not part of this project."""
    if not (REAL_DATA / "market_attribute.mat").is_file():
        pytest.skip(f"published annotation files not found in {REAL_DATA}; set CERBERUS_SHARED_DATA to their folder")
    return REAL_DATA


@pytest.fixture(scope="session")
def market(real_data):
    from cerberus_plugin.attributes import MARKET1501, read_annotations

    return read_annotations(real_data / "market_attribute.mat", MARKET1501)


@pytest.fixture(scope="session")
def duke(real_data):
    from cerberus_plugin.attributes import DUKEMTMC, read_annotations

    return read_annotations(real_data / "duke_attribute.mat", DUKEMTMC)


@pytest.fixture(scope="session")
def market_people() -> tuple[dict, dict]:
    return market_labels()


@pytest.fixture(scope="session")
def market_root(tmp_path_factory, market_people) -> Path:
    """Return the root of a small Market-1501 that tests must not change."""
    return write_market_folder(tmp_path_factory.mktemp("data"), *market_people)


@pytest.fixture
def use_root(monkeypatch):
    """Return a function that sets FastReID's dataset folder, like FASTREID_DATASETS before the import."""
    def use(root: Path) -> None:
        monkeypatch.setattr("fastreid.data.build._root", str(root))

    return use


@pytest.fixture
def own_schemas():
    """Unregister the schemas of own datasets after the test."""
    with forgotten_schemas():
        yield


@pytest.fixture
def small_config(market_root, use_root, tmp_path):
    """Return `read_config` for the shared dataset, with an output folder in `tmp_path`."""
    use_root(market_root)
    return lambda *options, **kwargs: read_config("OUTPUT_DIR", str(tmp_path / "run"), *options, **kwargs)


@pytest.fixture(scope="session")
def run(tmp_path_factory, market_root):
    """Return a small training run of Cerberus that tests must not change."""
    patch = pytest.MonkeyPatch()
    patch.setattr("fastreid.data.build._root", str(market_root))
    folder = tmp_path_factory.mktemp("trained") / "run"
    yield trained(read_config("OUTPUT_DIR", str(folder), "TEST.EVAL_PERIOD", 1, "TEST.UNTRAINED_FLOOR", True,
                              "TEST.APS.GROUPS", ["upper+lower"]))
    patch.undo()


@pytest.fixture
def log(caplog):
    """Return the records of the package's logger, also after FastReID's setup_logger has disabled propagation."""
    logger = logging.getLogger("fastreid.cerberus")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)
