"""The tutorial notebooks: stored outputs, the page of one notebook, and complete runs."""

import base64
import json
import re
import runpy
import shlex
import socket
from io import BytesIO
from pathlib import Path

from cerberus_plugin import cli
from cerberus_plugin.attributes import MARKET1501, read_annotations
from cerberus_plugin.search.gallery import GalleryIndex, Query

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TUTORIAL = runpy.run_path(str(ROOT / "tools" / "tutorial.py"), run_name="tools")
PLOTS = {"tutorial": 8, "own_data": 2}
COMMANDS = {"tutorial": "search serve export".split(),
            "own_data": "check check check train audit check index search search search serve check train".split()}
NOTEBOOKS = TUTORIAL["NOTEBOOKS"]


@pytest.fixture(scope="module", params=NOTEBOOKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stored(name) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """The printed output of all cells."""
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "")
                     for cell in notebook.cells for output in cell.get("outputs", []))


def plots_of(notebook: nbformat.NotebookNode) -> list[Image.Image]:
    return [Image.open(BytesIO(base64.b64decode(output.data["image/jpeg"]))) for cell in notebook.cells
            for output in cell.get("outputs", []) if "image/jpeg" in output.get("data", {})]


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1])


def test_the_notebook_was_run_in_order_and_stored_by_the_tool(stored):
    nbformat.validate(stored)
    assert [cell.execution_count for cell in stored.cells if cell.cell_type == "code"] == \
        list(range(1, 1 + sum(cell.cell_type == "code" for cell in stored.cells))), "run it again from the beginning"
    written = nbformat.writes(stored)
    assert nbformat.writes(TUTORIAL["tidy"](nbformat.from_dict(json.loads(written)))) == written


def test_its_outputs_are_small_and_independent_of_the_machine(stored, name):
    assert NOTEBOOKS[name].stat().st_size < 400_000
    assert len(plots_of(stored)) == PLOTS[name]
    shown = text_of(stored)
    assert not re.search(r"(^|[\s'\"(=])/\w|[A-Z]:\\|Warning|it/s", shown)
    assert socket.gethostname() not in shown.split()


def test_tidying_removes_progress_bars_warnings_logs_versions_and_names_of_cells():
    code = nbformat.v4.new_code_cell("draw()", id="8f3a")
    out = nbformat.v4.new_output
    log = "\x1b[32m[11/29 08:01:20 fastreid.cerberus]: \x1b[0mFastReID\nWARNING [11/29 08:01:20 fastreid.x]: w\n"
    code.outputs = [out("stream", name="stderr", text="50%|##   | 3/6"),
                    out("stream", name="stdout", text=f"{log}epoch 1\n"),
                    out("stream", name="stderr", text="UserWarning"), out("stream", name="stdout", text="epoch 2\n"),
                    out("display_data", {"image/jpeg": "AAAA", "text/plain": "<Figure>"})]
    notebook = nbformat.v4.new_notebook(cells=[code], metadata={"language_info": {"name": "python", "version": "3.99"}})
    tidied = TUTORIAL["tidy"](notebook)
    assert [dict(output.get("data", {})) or output.text for output in tidied.cells[0].outputs] == \
        ["epoch 1\nepoch 2\n", {"image/jpeg": "AAAA"}]
    assert tidied.cells[0].id == "01" and "3.99" not in nbformat.writes(tidied)


def test_its_links_and_commands_are_valid(stored, name):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(
            cell.source for cell in stored.cells if cell.cell_type == "markdown")):
        assert (NOTEBOOKS[name].parent / link).exists(), link
    commands = re.findall(r"(?:^|\|\| |^\d\. `)cerberus ([^|`\n>\\]+)", "\n".join(
        cell.source for cell in stored.cells if cell.cell_type == "markdown" or cell.source.startswith("%%bash")),
        flags=re.M)
    assert [command.split()[0] for command in commands] == COMMANDS[name]
    for command in commands:
        assert callable(cli.parse(shlex.split(command.removesuffix("2"), comments=True)).job), command


def test_the_page_is_up_to_date_with_the_notebook():
    for name, page in TUTORIAL["PAGES"].items():
        files = TUTORIAL["page_of"](name, nbformat.read(NOTEBOOKS[name], as_version=4))
        assert {path: path.read_bytes() for path in [page, *page.with_suffix("").glob("*")]} == files, (
            "run tools/tutorial.py, or call its page_of")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def ran(folder) -> nbformat.NotebookNode:
    """The notebook after its run in an empty folder; if a cell fails, so do all tests with it."""
    return TUTORIAL["execute"](folder)


@pytest.mark.slow
def test_all_files_are_written_to_one_folder(ran, folder):
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["tutorial"]
    assert len(plots_of(ran)) == PLOTS["tutorial"], "calibration and rank lists must not close the notebook's plots"


@pytest.mark.slow
def test_a_trained_network_is_better_than_an_untrained_one_on_held_out_people(ran, folder):
    run = folder / "runs/tutorial/run"
    untrained = json.loads((run / "before_training.json").read_text())["Market1501Attributes"]
    record = json.loads((run / "results.json").read_text())
    results = record["results"]["Market1501Attributes"]
    assert results["Rank-1"] > 50 > 2 * untrained["Rank-1"]
    assert results["PAR/mA_balanced"] > untrained["PAR/mA_balanced"] + 5
    assert results["APS/mAP"] > 3 * untrained["APS/mAP"]


@pytest.mark.slow
def test_a_search_by_a_partial_description_is_better_than_chance(ran, folder):
    drawn = folder / "runs/tutorial/data/Market-1501-v15.09.15"
    index = GalleryIndex.open(folder / "runs/tutorial/index")
    pictures = list((drawn / "bounding_box_test").glob("*.jpg"))
    assert len(index) == len(pictures) == 240
    labels = read_annotations(drawn / "market_attribute.mat", MARKET1501).test
    people = {f"{pid:04d}": MARKET1501.describe(row) for pid, row in labels.items()}
    asked = [{name: words[name] for name in ("hair", "upper colour", "backpack")} for words in people.values()]
    fit = [{pid for pid, own in people.items() if words.items() <= own.items()} for words in asked]
    hits = index.search_many([Query(words=words) for words in asked], top=8)
    found = np.mean([hit.identity in right for right, own in zip(fit, hits) for hit in own])
    chance = np.mean([path.name[:4] in right for right in fit for path in pictures])
    assert found > 2.5 * chance > 0
    shown = text_of(ran)
    told = [number(pattern, shown) for pattern in (r"best pictures (\d+)% fit", r"whole gallery (\d+)%")]
    assert told[0] > 2.5 * told[1] > 0


@pytest.mark.slow
def test_the_statements_about_the_results_are_true(ran):
    shown = text_of(ran)
    same, other = (np.array(re.search(rf"{who} +(.+)", shown)[1].split(), dtype=float)
                   for who in ("the same person", "somebody else"))
    assert (same > other).all(), "in each group, images of the same person are closer than others"
    for words in ("upper colour", "lower colour"):
        line = re.search(rf"{words}.*", shown[shown.index("without words") - 60:])[0]
        without, *weighted = (float(share) for share in re.findall(r"(\d+)%", line))
        assert weighted == sorted(weighted) and weighted[-1] > without + 20, "a higher weight must give more matches"
    all_values, certain = number(r"all answers: (\d+)%", shown), number(r"those that are given, \d+%: (\d+)%", shown)
    assert certain > all_values + 5, "predictions above the threshold must be more accurate"
    for who, low, high in (("the same person", 50, 100), ("least alike", 0, 5)):
        probable, rare = (float(share) for share in re.search(rf"{who}: +([\d.]+)%.* ([\d.]+)%", shown).groups())
        assert low <= probable <= high and rare <= probable, "probability that two images show the same person"


@pytest.mark.slow
def test_a_second_run_reuses_all_files(ran, folder):
    run = folder / "runs/tutorial/run"
    before = {path: path.stat().st_mtime_ns for path in run.glob("*.pth")}
    again = TUTORIAL["execute"](folder)
    assert before and {path: path.stat().st_mtime_ns for path in run.glob("*.pth")} == before
    assert "Summary(new=0, changed=0, deleted=0, unreadable=0, rows=240)" in text_of(again)
    assert "epoch 1 of" in text_of(ran) and "epoch 1 of" not in text_of(again)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> tuple[Path, str]:
    """The folder where the notebook of own data has run, and its printed output."""
    folder = tmp_path_factory.mktemp("own_data")
    return folder / "runs/own", text_of(TUTORIAL["tidy"](TUTORIAL["execute"](folder, "own_data")))


@pytest.mark.slow
def test_own_data_from_a_spreadsheet_to_a_search_that_is_better_than_chance(site):
    folder, shown = site
    told = re.search(r"best eight (\d+)% fit, of all people (\d+)%", shown)
    best, all_people = (float(share) for share in told.groups())
    assert best > 4 * all_people > 0
    results, = json.loads((folder / "run/results.json").read_text())["results"].values()
    untrained, = json.loads((folder / "run/before_training.json").read_text()).values()
    assert results["Rank-1"] > 3 * untrained["Rank-1"]
    assert results["PAR/mA_balanced"] > untrained["PAR/mA_balanced"] + 8
    assert all((folder / name).is_file() for name in ("check.html", "run/report.html", "audit/audit.html", "hits.html"))


@pytest.mark.slow
def test_the_audit_finds_most_of_the_planted_errors(site):
    assert len(re.findall(r"^w\d+: \d+ of \d+$", site[1], flags=re.M)) >= 3
    assert not (site[0] / "site/labels_overlay.csv").exists(), "the dataset must not be changed"


@pytest.mark.slow
def test_an_error_in_the_spreadsheet_is_reported_with_its_line(site):
    assert re.search(r"people.csv, line 6: 'helmet' is 'yelow'.*did you mean 'yellow'.*\n+exit code 1", site[1])
    assert (site[0] / "site/people.csv").read_text().count("yelow") == 0
