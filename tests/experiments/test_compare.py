"""Runs side by side: every figure where it belongs, and no two that were tested differently."""

import json
import math
from pathlib import Path

from cerberus_plugin.experiments.compare import FinishedRun, check_comparable, main, table, to_json

import pytest

FIGURES = {"mAP": 70.125, "Rank-1": 88.0, "mINP": 40.0, "metric": 79.0, "PAR/mA_official": 86.5, "PAR/mA_binary": 92.0,
           "PAR/mA_balanced": 80.0, "PAR/images": 13115, "APS/mAP": 30.0, "APS/Rank-1": 50.0, "APS/Rank-20": 98.0,
           "APS/queries": 484, "APS/unseen/mAP": None}
REID = {key: FIGURES[key] for key in ("mAP", "Rank-1", "mINP", "metric")}
RECORD = {
    "protocol": {"reid": {"ap": "rectangle", "same camera": "ignored", "metric": "cosine", "flip": False,
                          "re-ranking": False, "query expansion": False},
                 "par": {"force colour": False, "query identities only": False},
                 "aps": {"protocol": "asmr", "pool": "query and gallery", "ap": "rectangle"}},
    "model": "Cerberus", "image size": [384, 128], "versions": {"torch": "2.13.0"},
    "training": {"seconds": 5400.0, "epochs": 120, "seed": 1, "processes": 1},
    "hardware": {"processor": "AMD EPYC", "cores": 16, "memory_gib": 128.0, "gpu": "NVIDIA H100"}}


@pytest.fixture
def write(tmp_path):
    """A folder of a finished run with these results by test data set; changes name places in the record."""
    def write(name: str, results=None, config: str = "", **changes) -> Path:
        record = json.loads(json.dumps(RECORD | {"results": results or {"Market1501Attributes": FIGURES}}))
        for place, value in changes.items():
            *parts, last = place.split("__")
            node = record
            for part in parts:
                node = node[part]
            node.pop(last) if value is None else node.__setitem__(last, value)
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(record))
        if config:
            (folder / "config.yaml").write_text(config)
        return folder

    return write


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_that_were_tested_by_outfits_show_these_figures_first(write):
    figures = REID | {"cloth-changing/mAP": 12.5, "cloth-changing/Rank-1": 25.0, "cloth-changing/queries": 3873}
    runs = [FinishedRun.read(write(name, {"LTCC": figures}, model="Baseline")) for name in ("one", "two")]
    header, line = (cells(table(runs, "github").splitlines()[i]) for i in (0, 2))
    assert header[:4] == ["model (folder)", "cloth-changing mAP", "cloth-changing Rank-1", "reID mAP"]
    assert line[:4] == ["Baseline (one)", "12.50", "25.00", "70.12"]


def test_a_row_a_run_with_empty_cells_for_tasks_it_does_not_serve(write, tmp_path, capsys):
    folders = [write("cerberus_R50"), write("bot_R50", {"Market1501Attributes": REID}, model="Baseline",
                                            protocol__reid__metric="euclidean")]
    main([*map(str, folders), "--output", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert cells(lines[0]) == ["model (folder)", "reID mAP", "Rank-1", "mINP", "PAR mA official", "binary", "balanced",
                               "binary by person", "instance F1", "APS mAP (rectangle)", "APS mAP (trapezoid)",
                               "APS Rank-1", "APS Rank-5", "APS Rank-10", "APS Rank-20", "APS mAP by person",
                               "APS unseen mAP (rectangle)", "training minutes"]
    assert cells(lines[2]) == ["Cerberus (cerberus_R50)", "70.12", "88.00", "40.00", "86.50", "92.00", "80.00",
                               "", "", "30.00", "", "50.00", "", "", "98.00", "", "undefined", "90.0"]
    assert cells(lines[3]) == ["Baseline (bot_R50)", "70.12", "88.00", "40.00", *[""] * 13, "90.0"]
    assert lines[-2] == (f"- Cerberus (cerberus_R50), `{folders[0]}`: 120 epochs; 384x128; cosine distance; seed 1; "
                         "NVIDIA H100; torch 2.13.0")
    assert "euclidean distance" in lines[-1] and lines[-1] in capsys.readouterr().out
    first, second = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert first["results"]["Market1501"]["mAP"] == 70.125 and first["training"]["seconds"] == 5400.0
    assert first["results"]["Market1501"]["APS/unseen/mAP"] is None
    assert set(second["results"]["Market1501"]) == {"mAP", "Rank-1", "mINP"}


def test_a_table_for_a_terminal_breaks_its_headers_to_220_characters(write):
    lines = table([FinishedRun.read(write("cerberus_R50"))]).splitlines()
    assert all(len(line) <= 220 for line in lines)
    assert lines[-1].split()[-4:] == ["50.00", "98.00", "undefined", "90.0"]


def test_a_run_that_reads_attributes_in_two_ways_has_a_row_of_each(write):
    other = {"PAR (probability)/mA_binary": 95.0, "PAR (probability)/images": 13115, "APS (probability)/mAP": 45.0,
             "APS (probability)/person/mAP": 65.0}
    run = FinishedRun.read(write("cerberus_R50", {"Market1501Attributes": FIGURES | other}))
    nearest, probability = (dict(zip(cells(table([run], "github").splitlines()[0]), cells(line)))
                            for line in table([run], "github").splitlines()[2:])
    assert nearest["model (folder)"] == "Cerberus (cerberus_R50), nearest prototype"
    assert (nearest["reID mAP"], nearest["binary"], nearest["APS mAP (rectangle)"]) == ("70.12", "92.00", "30.00")
    assert (nearest["APS mAP by person"], probability["APS mAP by person"]) == ("", "65.00")
    assert probability["model (folder)"] == "Cerberus (cerberus_R50), by probability"
    assert (probability["reID mAP"], probability["binary"], probability["APS mAP (rectangle)"],
            probability["PAR mA official"]) == ("70.12", "95.00", "45.00", "")
    found, = to_json([run])
    assert found["results"]["Market1501"]["PAR/mA_binary"] == 92.0
    by_reading = {reading: row["Market1501"]["APS/mAP"] for reading, row in found["results by reading"].items()}
    assert by_reading == {"nearest": 30.0, "probability": 45.0}


@pytest.mark.parametrize(("place", "value", "message"), [
    ("protocol__reid__flip", True, "reID flip is True here and False in"),
    ("protocol__reid__re-ranking", True, "reID re-ranking is True"),
    ("protocol__reid__re-ranking", "paper, k1 20, k2 6, lambda 0.3", "reID re-ranking is paper, k1 20"),
    ("protocol__reid__query expansion", True, "reID query expansion is True"),
    ("protocol__reid__ap", "trapezoid", "reID ap is trapezoid here and rectangle in"),
    ("protocol__par__force colour", True, "PAR force colour is True"),
    ("protocol__aps__protocol", "sal", "APS protocol is sal here and asmr in"),
    ("results__Market1501Attributes__PAR/images", 360, "PAR/images of Market1501 is 360 here and 13115 in"),
    ("results__Market1501Attributes__APS/queries", 59, "APS/queries of Market1501 is 59 here and 484 in"),
    ("results", {"Other": FIGURES}, r"test data sets is \['Other'\] here and \['Market1501'\] in"),
])
def test_figures_by_other_rules_or_of_other_data_are_refused(write, place, value, message):
    folders = [write("first"), write("second", **{place: value})]
    with pytest.raises(ValueError, match=f"second: cannot stand in one table.*{message}.*first"):
        main([str(folder) for folder in folders])


def test_a_data_set_with_attributes_is_the_one_without(write):
    runs = [FinishedRun.read(write("first")), FinishedRun.read(write("second", {"Market1501": REID}))]
    check_comparable(runs)
    assert len(table(runs, "github").splitlines()) == 4


def test_as_many_queries_must_have_been_asked_under_a_setting_of_outfits(write):
    figures = [REID | {"cloth-changing/mAP": 1.0, "cloth-changing/queries": count} for count in (3873, 12)]
    runs = [FinishedRun.read(write(name, {"PRCC": row})) for name, row in zip(("first", "second"), figures)]
    with pytest.raises(ValueError, match="cloth-changing/queries of PRCC is 12 here and 3873 in"):
        check_comparable(runs)


def test_rules_of_a_task_bind_only_the_runs_that_serve_it(write):
    folders = [write("first", {"Market1501Attributes": REID}),
               write("second", **{"protocol__par__force colour": True}), write("third")]
    runs = [FinishedRun.read(folder) for folder in folders]
    check_comparable(runs[:2])
    with pytest.raises(ValueError, match="third: .*PAR force colour is False here and True in .*second"):
        check_comparable(runs)


def test_other_held_out_identities_are_refused(write):
    config = "DATASETS: {{HOLD_OUT: 100, HOLD_OUT_SEED: {}}}"
    folders = [write(f"seed{seed}", {"held-out": FIGURES}, config.format(seed)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="DATASETS.HOLD_OUT_SEED is 1 here and 0 in"):
        main([str(folder) for folder in folders])


def test_results_from_before_training_was_recorded_are_read(write):
    old = FinishedRun.read(write("old", config="SOLVER: {MAX_EPOCH: 60}\nSEED: -1", training=None, hardware=None))
    assert old.description() == "60 epochs; 384x128; cosine distance; seed not recorded; torch 2.13.0"
    new = FinishedRun.read(write("new"))
    check_comparable([old, new])
    lines = table([old, new], "github").splitlines()
    assert cells(lines[2])[-1] == "" and cells(lines[3])[-1] == "90.0"


def account(images: str = "a" * 64, labels: str | None = "b" * 64, left_out: int = 0) -> dict:
    """What a manifest says of its test data sets, as far as a comparison reads it."""
    return {"Market1501Attributes": {"left out": left_out, "list sha256": images,
                                     "labels": labels and {"file": "market_attribute.mat", "sha256": labels}}}


@pytest.mark.parametrize(("other", "message"), [
    (account(images="c" * 64), "list of images of Market1501 .sha256. is c{16} here and a{16} in"),
    (account(labels="c" * 64), "labels of Market1501 .sha256. is c{16} here and b{16} in"),
    (account(left_out=3), "unreadable images of Market1501 is 3 here and 0 in")])
def test_two_data_sets_of_one_name_and_size_are_told_apart(write, other, message):
    folders = [write(name, manifest={"tests": tests}) for name, tests in (("first", account()), ("second", other))]
    with pytest.raises(ValueError, match=message):
        main([str(folder) for folder in folders])


def test_labels_bind_only_the_runs_that_are_measured_by_them(write):
    results = {"Market1501Attributes": REID}
    check_comparable([FinishedRun.read(write("first", manifest={"tests": account()})),
                      FinishedRun.read(write("second", results, manifest={"tests": account(labels="c" * 64)})),
                      FinishedRun.read(write("third", results, manifest={"tests": account(labels=None)}))])


def test_a_record_without_a_manifest_stands_beside_one_with_it(write, capsys):
    folders = [write("old"), write("new", manifest={"tests": account()})]
    (write("none") / "results.json").write_text(json.dumps(json.loads((folders[0] / "results.json").read_text())
                                                           | {"manifest": None}))
    main([*map(str, folders), str(folders[0].parent / "none")])
    assert capsys.readouterr().out.count("70.12") == 3


def test_an_evaluation_alone_has_no_minutes_and_is_named_with_its_run(write):
    evaluation = write("cerberus_R50/evaluation")
    record = json.loads((evaluation / "results.json").read_text()) | {"training": None}
    (evaluation / "results.json").write_text(json.dumps(record))
    run = FinishedRun.read(evaluation)
    assert run.name == "Cerberus (cerberus_R50/evaluation)"
    assert cells(table([run], "github").splitlines()[2])[-1] == ""


def test_several_test_data_sets_have_a_table_each(write):
    run = FinishedRun.read(write("run", {"Market1501Attributes": FIGURES, "held-out": FIGURES | {"mAP": 12.0}}))
    assert math.isnan(run.record["results"]["held-out"]["APS/unseen/mAP"])
    first, second = table([run]).split("held-out\n")
    assert "70.12" in first and "12.00" in second


def test_processors_and_processes_are_told(write):
    machine = {"processor": "AMD EPYC", "cores": 2}
    assert "; AMD EPYC, 2 core(s); " in FinishedRun.read(write("cpu", hardware=machine)).description()
    assert "; 4 x NVIDIA H100; " in FinishedRun.read(write("four", training__processes=4)).description()


def test_an_unfinished_run_is_to_be_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json: not found; .* Finish the run in this folder"):
        main([str(tmp_path)])


def test_a_run_of_the_trainer_stands_beside_itself(run, capsys):
    main([run.cfg.OUTPUT_DIR])
    assert f"{run.results['mAP']:.2f}" in capsys.readouterr().out
