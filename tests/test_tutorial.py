"""The tutorial notebooks: what is kept of their runs, the page of one, and the runs themselves."""

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
FIGURES = {"tutorial": 8, "own_data": 2}
WORDS = {"tutorial": "search serve export".split(),
         "own_data": "check check check train audit index search search search serve check train".split()}


NOTEBOOKS = TUTORIAL["NOTEBOOKS"]


@pytest.fixture(scope="module", params=NOTEBOOKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def kept(name) -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """What the cells of a notebook have printed."""
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "")
                     for cell in notebook.cells for output in cell.get("outputs", []))


def figures_of(notebook: nbformat.NotebookNode) -> list[Image.Image]:
    return [Image.open(BytesIO(base64.b64decode(output.data["image/jpeg"]))) for cell in notebook.cells
            for output in cell.get("outputs", []) if "image/jpeg" in output.get("data", {})]


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text)[1])


def test_the_notebook_is_whole_and_kept_as_its_tool_keeps_it(kept):
    nbformat.validate(kept)
    assert [cell.execution_count for cell in kept.cells if cell.cell_type == "code"] == \
        list(range(1, 1 + sum(cell.cell_type == "code" for cell in kept.cells))), "run it again from the beginning"
    written = nbformat.writes(kept)
    assert nbformat.writes(TUTORIAL["tidy"](nbformat.from_dict(json.loads(written)))) == written


def test_its_outputs_are_small_and_of_no_machine(kept, name):
    assert NOTEBOOKS[name].stat().st_size < 400_000
    assert len(figures_of(kept)) == FIGURES[name]
    shown = text_of(kept)
    assert not re.search(r"(^|[\s'\"(=])/\w|[A-Z]:\\|Warning|it/s", shown)
    assert socket.gethostname() not in shown.split()


def test_tidying_takes_bars_warnings_logs_versions_and_names_of_cells():
    code = nbformat.v4.new_code_cell("draw()", id="8f3a")
    out = nbformat.v4.new_output
    log = "[11/29 08:01:20 fastreid.cerberus]: FastReID 1.4.0\nWARNING [11/29 08:01:20 fastreid.x]: w\n"
    code.outputs = [out("stream", name="stderr", text="50%|##   | 3/6"),
                    out("stream", name="stdout", text=f"{log}epoch 1\n"),
                    out("stream", name="stderr", text="UserWarning"), out("stream", name="stdout", text="epoch 2\n"),
                    out("display_data", {"image/jpeg": "AAAA", "text/plain": "<Figure>"})]
    notebook = nbformat.v4.new_notebook(cells=[code], metadata={"language_info": {"name": "python", "version": "3.99"}})
    tidied = TUTORIAL["tidy"](notebook)
    assert [dict(output.get("data", {})) or output.text for output in tidied.cells[0].outputs] == \
        ["epoch 1\nepoch 2\n", {"image/jpeg": "AAAA"}]
    assert tidied.cells[0].id == "01" and "3.99" not in nbformat.writes(tidied)


def test_its_links_lead_somewhere_and_its_commands_are_known(kept, name):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(
            cell.source for cell in kept.cells if cell.cell_type == "markdown")):
        assert (NOTEBOOKS[name].parent / link).exists(), link
    commands = re.findall(r"(?:^|\|\| |`)cerberus ([^|`\n]+)$", "\n".join(
        cell.source for cell in kept.cells if cell.cell_type == "markdown" or cell.source.startswith("%%bash")),
        flags=re.M)
    assert [command.split()[0] for command in commands] == WORDS[name]
    for command in commands:
        assert callable(cli.parse(shlex.split(command, comments=True)).job), command


def test_the_page_is_what_its_tool_writes_of_the_notebook():
    for name, page in TUTORIAL["PAGES"].items():
        files = TUTORIAL["page_of"](name, nbformat.read(NOTEBOOKS[name], as_version=4))
        assert {path: path.read_bytes() for path in [page, *page.with_suffix("").glob("*")]} == files, (
            "run tools/tutorial.py, or call its page_of")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


@pytest.fixture(scope="module")
def ran(folder) -> nbformat.NotebookNode:
    """The notebook after its run from nothing; a cell that fails fails every test of it."""
    return TUTORIAL["execute"](folder)


@pytest.mark.slow
def test_everything_is_written_below_one_folder(ran, folder):
    assert [path.name for path in folder.iterdir()] == ["runs"]
    assert [path.name for path in (folder / "runs").iterdir()] == ["tutorial"]
    assert len(figures_of(ran)) == FIGURES["tutorial"], "calibration and rank lists leave the notebook's plots alone"


@pytest.mark.slow
def test_training_beats_the_network_it_began_with_on_people_it_has_never_seen(ran, folder):
    run = folder / "runs/tutorial/run"
    floor = json.loads((run / "before_training.json").read_text())["Market1501Attributes"]
    record = json.loads((run / "results.json").read_text())
    figures = record["results"]["Market1501Attributes"]
    assert figures["Rank-1"] > 50 > 2 * floor["Rank-1"]
    assert figures["PAR/mA_balanced"] > floor["PAR/mA_balanced"] + 5
    assert figures["APS/mAP"] > 3 * floor["APS/mAP"]


@pytest.mark.slow
def test_a_partial_search_finds_who_is_described_more_often_than_chance(ran, folder):
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
def test_what_the_notebook_says_of_its_figures_holds(ran):
    shown = text_of(ran)
    same, other = (np.array(re.search(rf"{who} +(.+)", shown)[1].split(), dtype=float)
                   for who in ("the same person", "somebody else"))
    assert (same > other).all(), "the nearest pictures of a person are nearer than those of others, group by group"
    for words in ("upper colour", "lower colour"):
        line = re.search(rf"{words}.*", shown[shown.index("without words") - 60:])[0]
        without, *weighted = (float(share) for share in re.findall(r"(\d+)%", line))
        assert weighted == sorted(weighted) and weighted[-1] > without + 20, "weight helps where the model can read"
    everything, given = number(r"all answers: (\d+)%", shown), number(r"those that are given, \d+%: (\d+)%", shown)
    assert given > everything + 5, "what is withheld was less sure"
    for who, low, high in (("the same person", 50, 100), ("least alike", 0, 5)):
        probable, rare = (float(share) for share in re.search(rf"{who}: +([\d.]+)%.* ([\d.]+)%", shown).groups())
        assert low <= probable <= high and rare <= probable, "a probability that two pictures show one person"


@pytest.mark.slow
def test_run_again_it_keeps_what_is_there(ran, folder):
    run = folder / "runs/tutorial/run"
    before = {path: path.stat().st_mtime_ns for path in run.glob("*.pth")}
    again = TUTORIAL["execute"](folder)
    assert before and {path: path.stat().st_mtime_ns for path in run.glob("*.pth")} == before
    assert "Summary(new=0, changed=0, deleted=0, unreadable=0, rows=240)" in text_of(again)
    assert "epoch 1 of" in text_of(ran) and "epoch 1 of" not in text_of(again)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> tuple[Path, str]:
    """Where the notebook of own data has run, and what it has printed."""
    folder = tmp_path_factory.mktemp("own_data")
    return folder / "runs/own", text_of(TUTORIAL["execute"](folder, "own_data"))


@pytest.mark.slow
def test_from_a_spreadsheet_to_a_search_that_finds_who_is_described_more_often_than_chance(site):
    folder, shown = site
    told = re.search(r"best eight (\d+)% fit, of all people (\d+)%", shown)
    best, everybody = (float(share) for share in told.groups())
    assert best > 4 * everybody > 0
    figures, = json.loads((folder / "run/results.json").read_text())["results"].values()
    assert figures["Rank-1"] > 30 and figures["PAR/mA_balanced"] > 60
    assert all((folder / name).is_file() for name in ("check.html", "run/report.html", "audit/audit.html", "hits.html"))


@pytest.mark.slow
def test_a_slip_in_the_spreadsheet_is_named_with_its_place(site):
    assert "exit code 1" in site[1]
    assert (site[0] / "site/people.csv").read_text().count("yelow") == 0
