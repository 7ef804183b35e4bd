"""`cerberus evaluate`: runs on other datasets, with the attributes that both have."""

import json
import shutil

from cerberus_plugin import cli
from cerberus_plugin.evaluation.report import percent
from cerberus_plugin.workflow.evaluating import names_of, split_arguments

import pytest
from support.own_data import write_people
from support.own_runs import figures


@pytest.fixture
def other(tmp_path):
    """Another dataset: "hat" in another case, a helmet instead of the vest, and fewer people."""
    folder = write_people(tmp_path / "other", people=8)
    lines = (folder / "metadata.csv").read_text().replace("hat,vest", "Hat,helmet").replace(",yes,", ",Yes,")
    (folder / "metadata.csv").write_text(lines)
    return folder


def summary(run) -> list[dict]:
    return json.loads((run / "evaluation/summary.json").read_text())


def test_a_run_is_scored_on_other_data_by_the_attributes_that_both_have(run, crops, other, capsys):
    cli.main(["evaluate", str(run), str(other)])
    printed = capsys.readouterr().out
    own, found = summary(run)
    assert own["own test set"] and own["data"] == str(crops) and own["figures"]["reID mAP"] == figures(run)["mAP"]
    assert (found["attributes known"], found["attributes"]) == (1, 2)
    assert f"{percent(found['figures']['reID mAP'])}" in printed and "1 of 2" in printed
    assert any("vest" in line for line in found["left out"]) and any("helmet" in line for line in found["left out"])
    whole = figures(run / "evaluation/other")
    assert whole["PAR/official/vest"] is None and whole["PAR/mA_official"] == whole["PAR/official/hat"]
    assert found["figures"]["PAR accuracy"] == whole["PAR/mA_official"]
    assert found["figures"]["APS mAP"] == whole["APS/mAP"]
    assert (run / "evaluation/other/results.txt").is_file() and (run / "results.json").is_file()


def test_the_split_file_of_the_run_does_not_apply_to_other_data(run, other, tmp_path):
    moved = shutil.copytree(run, tmp_path / "run")
    text = (moved / "config.yaml").read_text()
    assert "SPLIT_FILE: ''" in text
    (moved / "config.yaml").write_text(text.replace("SPLIT_FILE: ''", "SPLIT_FILE: folds.csv"))
    cli.main(["evaluate", str(moved), str(other)])
    assert summary(moved)[1]["figures"]["reID mAP"] > 0


def test_data_without_the_attributes_has_only_reid_metrics(run, plain_crops, capsys):
    cli.main(["evaluate", str(run), str(plain_crops)])
    _, found = summary(run)
    assert found["attributes known"] == 0 and set(found["figures"]) == {"reID mAP", "Rank-1"}
    assert "has no labels of the run's attributes" in capsys.readouterr().out


def test_several_runs_give_a_table_of_runs_and_datasets(run, crops, plain_run, plain_crops, other, capsys):
    cli.main(["evaluate", str(run), str(plain_run), str(plain_crops), str(crops), str(other)])
    printed = capsys.readouterr().out
    found = summary(run)
    assert found == summary(plain_run)
    assert {(each["run"], each["data"]) for each in found} == {
        (str(own), str(data)) for own in (run, plain_run) for data in (crops, plain_crops, other)}
    assert sum(each["own test set"] for each in found) == 2
    rows = [line.split() for line in printed.splitlines() if line.startswith((str(run), str(plain_run)))]
    assert [" ".join(row[1:3]) for row in rows if row[2] in ("mAP", "accuracy")] == [
        "reID mAP", "PAR accuracy", "APS mAP", "reID mAP"]  # the second run has no attributes


def test_wrong_runs_and_datasets_are_rejected_before_the_first_evaluation(run, crops, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run, since it has no config.yaml"):
        split_arguments([str(crops)])
    with pytest.raises(ValueError, match="no dataset is given"):
        split_arguments([str(run), str(run)])
    with pytest.raises(SystemExit, match="'NoSuchSet'"):
        cli.main(["evaluate", str(run), "NoSuchSet"])
    few = write_people(tmp_path / "few", people=2)
    with pytest.raises(SystemExit, match="has no query images"):
        cli.main(["evaluate", str(run), str(few)])
    assert not (run / "evaluation/few").exists()


def test_datasets_of_the_same_name_get_different_folders(tmp_path):
    table = tmp_path / "a/crops/metadata.csv"
    table.parent.mkdir(parents=True)
    table.touch()
    assert names_of([str(table), "/b/crops", "DukeMTMCAttributes", "/c/crops"]) == {
        str(table): "crops", "/b/crops": "crops-2", "DukeMTMCAttributes": "DukeMTMCAttributes", "/c/crops": "crops-3"}


def test_a_registered_dataset_is_read_by_its_name(run, market_root, monkeypatch, capsys):
    from fastreid.data import build

    monkeypatch.setattr(build, "_root", str(market_root))
    cli.main(["evaluate", str(run), "Market1501Attributes"])
    _, found = summary(run)
    assert found["data"] == "Market1501Attributes" and found["attributes known"] == 1  # hat
    assert found["figures"]["reID mAP"] > 0 and "PAR accuracy" in found["figures"]
