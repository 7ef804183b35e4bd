"""Tests of the comparison of finished runs."""

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
    """Function that writes the folder of a finished run; `changes` are entries of its record."""
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


def test_metrics_of_outfits_are_shown_first(write):
    figures = REID | {"cloth-changing/mAP": 12.5, "cloth-changing/Rank-1": 25.0, "cloth-changing/queries": 3873}
    runs = [FinishedRun.read(write(name, {"LTCC": figures}, model="Baseline")) for name in ("one", "two")]
    header, line = (cells(table(runs, "github").splitlines()[i]) for i in (0, 2))
    assert header[:4] == ["model (folder)", "cloth-changing mAP", "cloth-changing Rank-1", "reID mAP"]
    assert line[:4] == ["Baseline (one)", "12.50", "25.00", "70.12"]


def test_each_run_has_a_row_with_empty_cells_for_tasks_it_does_not_support(write, tmp_path, capsys):
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


def test_a_table_for_a_terminal_has_at_most_220_characters_per_line(write):
    lines = table([FinishedRun.read(write("cerberus_R50"))]).splitlines()
    assert all(len(line) <= 220 for line in lines)
    assert lines[-1].split()[-4:] == ["50.00", "98.00", "undefined", "90.0"]


def test_a_run_with_two_readings_of_attributes_has_two_rows(write):
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
    ("protocol__reid__flip", True, "reID flip is True, but False in"),
    ("protocol__reid__re-ranking", True, "reID re-ranking is True"),
    ("protocol__reid__re-ranking", "paper, k1 20, k2 6, lambda 0.3", "reID re-ranking is paper, k1 20"),
    ("protocol__reid__query expansion", True, "reID query expansion is True"),
    ("protocol__reid__ap", "trapezoid", "reID ap is trapezoid, but rectangle in"),
    ("protocol__par__force colour", True, "PAR force colour is True"),
    ("protocol__aps__protocol", "sal", "APS protocol is sal, but asmr in"),
    ("results__Market1501Attributes__PAR/images", 360, "PAR/images of Market1501 is 360, but 13115 in"),
    ("results__Market1501Attributes__APS/queries", 59, "APS/queries of Market1501 is 59, but 484 in"),
    ("results", {"Other": FIGURES}, r"test datasets is \['Other'\], but \['Market1501'\] in"),
])
def test_runs_tested_by_other_rules_or_on_other_data_are_rejected(write, place, value, message):
    folders = [write("first"), write("second", **{place: value})]
    with pytest.raises(ValueError, match=f"second: cannot be compared.*{message}.*first"):
        main([str(folder) for folder in folders])


def test_a_dataset_with_attributes_is_compared_with_the_one_without(write):
    runs = [FinishedRun.read(write("first")), FinishedRun.read(write("second", {"Market1501": REID}))]
    check_comparable(runs)
    assert len(table(runs, "github").splitlines()) == 4


def test_the_numbers_of_queries_of_an_outfit_setting_must_agree(write):
    figures = [REID | {"cloth-changing/mAP": 1.0, "cloth-changing/queries": count} for count in (3873, 12)]
    runs = [FinishedRun.read(write(name, {"PRCC": row})) for name, row in zip(("first", "second"), figures)]
    with pytest.raises(ValueError, match="cloth-changing/queries of PRCC is 12, but 3873 in"):
        check_comparable(runs)


def test_rules_of_a_task_apply_only_to_runs_with_this_task(write):
    folders = [write("first", {"Market1501Attributes": REID}),
               write("second", **{"protocol__par__force colour": True}), write("third")]
    runs = [FinishedRun.read(folder) for folder in folders]
    check_comparable(runs[:2])
    with pytest.raises(ValueError, match="third: .*PAR force colour is False, but True in .*second"):
        check_comparable(runs)


def test_other_held_out_identities_are_rejected(write):
    config = "DATASETS: {{HOLD_OUT: 100, HOLD_OUT_SEED: {}}}"
    folders = [write(f"seed{seed}", {"held-out": FIGURES}, config.format(seed)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="DATASETS.HOLD_OUT_SEED is 1, but 0 in"):
        main([str(folder) for folder in folders])


def test_older_results_without_training_and_hardware_are_read(write):
    old = FinishedRun.read(write("old", config="SOLVER: {MAX_EPOCH: 60}\nSEED: -1", training=None, hardware=None))
    assert old.description() == "60 epochs; 384x128; cosine distance; seed not recorded; torch 2.13.0"
    new = FinishedRun.read(write("new"))
    check_comparable([old, new])
    lines = table([old, new], "github").splitlines()
    assert cells(lines[2])[-1] == "" and cells(lines[3])[-1] == "90.0"


def account(images: str = "a" * 64, labels: str | None = "b" * 64, left_out: int = 0) -> dict:
    """Entries of the test datasets of a manifest that a comparison uses."""
    return {"Market1501Attributes": {"left out": left_out, "list sha256": images,
                                     "labels": labels and {"file": "market_attribute.mat", "sha256": labels}}}


@pytest.mark.parametrize(("other", "message"), [
    (account(images="c" * 64), "list of images of Market1501 .sha256. is c{16}, but a{16} in"),
    (account(labels="c" * 64), "labels of Market1501 .sha256. is c{16}, but b{16} in"),
    (account(left_out=3), "unreadable images of Market1501 is 3, but 0 in")])
def test_different_datasets_with_the_same_name_and_size_are_rejected(write, other, message):
    folders = [write(name, manifest={"tests": tests}) for name, tests in (("first", account()), ("second", other))]
    with pytest.raises(ValueError, match=message):
        main([str(folder) for folder in folders])


def test_labels_must_agree_only_for_runs_that_depend_on_them(write):
    results = {"Market1501Attributes": REID}
    check_comparable([FinishedRun.read(write("first", manifest={"tests": account()})),
                      FinishedRun.read(write("second", results, manifest={"tests": account(labels="c" * 64)})),
                      FinishedRun.read(write("third", results, manifest={"tests": account(labels=None)}))])


def test_a_record_without_a_manifest_is_compared_with_one_with_it(write, capsys):
    folders = [write("old"), write("new", manifest={"tests": account()})]
    (write("none") / "results.json").write_text(json.dumps(json.loads((folders[0] / "results.json").read_text())
                                                           | {"manifest": None}))
    main([*map(str, folders), str(folders[0].parent / "none")])
    assert capsys.readouterr().out.count("70.12") == 3


def test_an_evaluation_has_no_training_minutes_and_the_name_of_its_run(write):
    evaluation = write("cerberus_R50/evaluation")
    record = json.loads((evaluation / "results.json").read_text()) | {"training": None}
    (evaluation / "results.json").write_text(json.dumps(record))
    run = FinishedRun.read(evaluation)
    assert run.name == "Cerberus (cerberus_R50/evaluation)"
    assert cells(table([run], "github").splitlines()[2])[-1] == ""


def test_each_test_dataset_has_a_table(write):
    run = FinishedRun.read(write("run", {"Market1501Attributes": FIGURES, "held-out": FIGURES | {"mAP": 12.0}}))
    assert math.isnan(run.record["results"]["held-out"]["APS/unseen/mAP"])
    first, second = table([run]).split("held-out\n")
    assert "70.12" in first and "12.00" in second


def test_the_description_has_processors_and_processes(write):
    machine = {"processor": "AMD EPYC", "cores": 2}
    assert "; AMD EPYC, 2 core(s); " in FinishedRun.read(write("cpu", hardware=machine)).description()
    assert "; 4 x NVIDIA H100; " in FinishedRun.read(write("four", training__processes=4)).description()


def test_an_unfinished_run_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json: not found; .* Finish the run in this folder"):
        main([str(tmp_path)])


def test_a_run_of_the_trainer_can_be_shown(run, capsys):
    main([run.cfg.OUTPUT_DIR])
    assert f"{run.results['mAP']:.2f}" in capsys.readouterr().out
