"""The code, commands and published results on the pages of the documentation."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from cerberus_plugin import cli
from cerberus_plugin.experiments import catalogue
from cerberus_plugin.search.export.onnx import export

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("search", "galleries", "calibration", "export", "reproduce", "results", "clothes", "apr", "own_data", "audit",
         "converters", "several_sets")


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.S)


def command_lines(page: str) -> Iterator[str]:
    """Lines of code that call `cerberus`."""
    for block in re.findall(r"```\n(.*?)```", (DOCS / f"{page}.md").read_text(), flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("cerberus "):
                yield line


@pytest.fixture
def folder(run, market_root, tmp_path, monkeypatch):
    """A folder with a small run and its crops under the names that the pages use."""
    (tmp_path / "logs/market1501").mkdir(parents=True)
    (tmp_path / "logs/market1501/cerberus_R50").symlink_to(run.cfg.OUTPUT_DIR)
    (tmp_path / "crops").mkdir()
    for n, image in enumerate(sorted((market_root / "Market-1501-v15.09.15/query").glob("*.jpg")), start=1):
        (tmp_path / f"crops/{n:04d}.jpg").write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_search_in_python_runs(folder):
    names: dict = {}
    exec(python_blocks("search")[0], names)
    assert names["person"].shape == (names["encoder"].dim,)
    assert len(names["index"].search(names["Query"](names["person"]), top=5)) == 5


def test_the_example_for_an_exported_model_embeds_an_image(folder):
    export(folder / "logs/market1501/cerberus_R50", folder / "model.onnx", folder / "crops")
    names: dict = {}
    exec(python_blocks("export")[0], names)
    assert len(names["embeddings"]) == 1


def test_a_gallery_is_opened_with_a_compressed_engine(folder):
    exec(python_blocks("search")[0], {})
    names: dict = {}
    code, _, last = python_blocks("galleries")[0].rstrip().rpartition("\n")
    assert last == 'index = GalleryIndex.open("gallery", engine=milvus)'  # needs a server
    exec(code, names)
    assert len(names["index"]) == 6 and names["milvus"].token == "user:password"


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_pages_are_valid(page):
    for line in command_lines(page):
        assert callable(cli.parse(shlex.split(line, comments=True)[1:]).job), line


def test_the_page_lists_every_study():
    table = re.search(r"^\| study \|.*?\n\n", (DOCS / "reproduce.md").read_text(), flags=re.M | re.S)[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.M)) == set(catalogue.STUDIES)


@pytest.mark.parametrize("row, results, rule", [
    ("Cerberus, Market-1501", catalogue.OURS["Market1501"], "binary"),
    ("Cerberus, DukeMTMC-reID", catalogue.OURS["DukeMTMC"], "binary"),
    ("APR, Market-1501, ResNet-50", catalogue.APR["Market1501"], "official"),
    ("ARN, Market-1501, ResNet-50", catalogue.ARN["Market1501"], "official")])
def test_published_results_are_those_of_the_studies(row, results, rule):
    cells = re.search(rf"^\| {row} \|(.*)\|$", (DOCS / "results.md").read_text(), flags=re.M)[1].split("|")
    shown = [float(number) for cell in cells for number in re.findall(r"\d+\.\d", cell)]
    keys = ("mAP", "Rank-1", f"PAR/mA_{rule}", "APS/mAP", "APS/Rank-1")
    expected = [results[key] for key in keys if key in results]
    assert shown == pytest.approx(expected, abs=0.051)


def test_the_search_for_changed_clothes_runs(folder):
    (folder / "runs/clothes").mkdir(parents=True)
    (folder / "runs/clothes/cerberus").symlink_to(folder / "logs/market1501/cerberus_R50")
    names: dict = {}
    exec(python_blocks("clothes")[0], names)
    assert names["predictor"].groups_for_changed_clothes == ("head", "identity")
