"""Result tables and records: selection and display of the best evaluated epoch, and contents of the tables."""

import json
import math

from cerberus_plugin.evaluation import report
from cerberus_plugin.evaluation.report import best_rows, results_table

import pytest

REID = {key: 10.0 + i for i, key in enumerate(report.REID)}
PAR = {"PAR/images": 9, **{f"PAR/mA_{rule}": 50.0 for rule in report.MEANS},
       **{f"PAR/{rule}/hat": 40.0 for rule in report.MEANS}}
APS = {"APS/mAP": 30.0, "APS/mAP_trapezoid": 29.0, "APS/Rank-1": 31.0, "APS/Rank-20": 99.5, "APS/queries": 4,
       "APS/images": 9,
       "APS/seen/mAP": 1.0, "APS/seen/Rank-1": 2.0, "APS/seen/queries": 3, "APS/upper/mAP_given": 1.0,
       "APS/upper/Rank-1_given": 2.0, "APS/upper/mAP_full": 3.0, "APS/upper/Rank-1_full": 4.0}
CLOTHES = {"cloth-changing/mAP": 20.0, "cloth-changing/queries": 5, "single-shot/draws": 10,
           "single-shot/cloth-changing/Rank-1": 21.0, "single-shot/cloth-changing/Rank-1_deviation": 1.0}
NAME = "epoch 4 of 6, the best on this test set by reID"


@pytest.mark.parametrize(("metrics", "best"), [
    ({2: 10.0, 4: 30.0, 6: 20.0}, 4),
    ({6: 30.0, 4: 30.0, 2: 10.0}, 4),  # the earliest among equals, in any order
    ({2: math.nan, 4: 1.0, 6: math.nan}, 4),
    ({2: 10.0, 6: 30.0}, 6),  # the last
    ({6: 0.0}, 6),  # the only one
])
def test_the_best_epoch_has_the_highest_metric_and_is_the_earliest_among_equals(metrics, best):
    name, figures = best_rows({epoch: {"metric": metric, "mAP": epoch} for epoch, metric in metrics.items()})[0]
    assert name == f"epoch {best} of 6, the best on this test set by reID" and figures["mAP"] == best


@pytest.mark.parametrize("evaluations", [{}, {1: {"metric": math.nan}}, {1: {"mAP": 5.0}}])
def test_an_epoch_whose_metric_is_undefined_never_wins(evaluations):
    assert best_rows(evaluations) == []


def test_metrics_stored_for_each_epoch_are_all_but_those_of_single_attributes():
    figures = {**REID, **PAR, **APS, **CLOTHES, "metric": 1, "PAR-majority/mA_official": 1.0, "TPR@FPR=1e-04": 0.5}
    kept = report.summary(figures)
    assert set(kept) == {"metric", *REID, *CLOTHES, "APS/mAP", "APS/mAP_trapezoid", "APS/Rank-1",
                         "APS/Rank-20", *(f"PAR/mA_{r}" for r in report.MEANS)}
    assert all(type(value) is float for value in kept.values())


def test_the_best_epoch_is_shown_between_the_last_epoch_and_the_baseline():
    results = {**REID, **PAR, **APS}
    best = report.summary({**results, "mAP": 77.0, "PAR/mA_binary": 66.0, "APS/mAP": 55.0})
    reid, par, aps = results_table(results, results, [(NAME, best)]).split("\n\n")
    assert [line.split("  ")[0].strip() for line in map(str.strip, reid.splitlines()[3:])] == [
        "this model, last epoch", NAME, "before training"]
    assert "77.00" in reid.splitlines()[4]
    assert [line.split()[-1] for line in par.splitlines() if NAME in line] == ["50.00", "66.00", "50.00"]  # mA only
    lines = [line for line in aps.splitlines() if NAME in line]
    assert len(lines) == 1 and "55.00" in lines[0]  # only the row of all categories
    plain = results_table(results, results)
    assert "this model" in plain and "last epoch" not in plain and "best" not in plain


def test_the_best_epoch_is_shown_under_every_setting_of_outfits():
    results = {**REID, **CLOTHES}
    best = report.summary({**results, "cloth-changing/mAP": 88.0})
    lines = [line.strip() for line in results_table(results, None, [(NAME, best)]).splitlines() if NAME in line]
    settings = "cloth-changing", "standard, all queries", "single-shot, cloth-changing"
    assert len(lines) == 3
    assert all(line.removeprefix(NAME).strip().startswith(name) for line, name in zip(lines, settings))
    assert "88.00" in lines[0] and "21.00 +- 1.00" in lines[2]


def test_each_test_set_has_its_own_best_epoch(tmp_path):
    results = {"A": REID, "B": REID}
    best = {"A": best_rows({1: {"metric": 2.0}, 2: {"metric": 1.0}}), "B": best_rows({1: {"metric": 1.0}})}
    text = report.write_results(str(tmp_path), results, {"evaluations": {"A": {1: {"metric": math.nan}}}}, best)
    assert (tmp_path / "results.txt").read_text() == text
    first, second = text.split("\nB\n")
    assert "epoch 1 of 2, the best" in first and "epoch 1 of 1, the best" in second
    assert json.loads((tmp_path / "results.json").read_text())["evaluations"] == {"A": {"1": {"metric": None}}}


def test_best_mAP_and_best_rank_1_may_come_from_different_epochs():
    """As in the code of CSSC: no evaluated epoch has both values."""
    epochs = {5: {"metric": 40.0, "mAP": 50.0, "Rank-1": 30.0, "cloth-changing/mAP": 9.0, "cloth-changing/Rank-1": 8.0},
              10: {"metric": 45.0, "mAP": 45.0, "Rank-1": 45.0, "cloth-changing/mAP": 7.0},
              15: {"metric": math.nan, "mAP": 20.0, "Rank-1": 60.0, "cloth-changing/mAP": math.nan}}
    (name, best), (other, own) = best_rows(epochs)
    assert "epoch 10 of 15" in name and best is epochs[10]
    assert own == {"mAP": 50.0, "Rank-1": 60.0, "cloth-changing/mAP": 9.0, "cloth-changing/Rank-1": 8.0}
    results = {**REID, **CLOTHES, **PAR, **APS}
    lines = [line for line in results_table(results, None, [(name, best), (other, own)]).splitlines() if other in line]
    assert len(lines) == 2 and "cloth-changing" in lines[0]  # reID only: this row has no PAR and no APS
    assert [line.split()[-2:] for line in lines] == [["9.00", "8.00"], ["50.00", "60.00"]]


def test_attribute_search_shows_the_rectangle_and_the_trapezoid_mAP():
    results = {**REID, **APS, "APS/seen/mAP_trapezoid": 0.5, "APS/upper/mAP_trapezoid_given": 0.25, "APS/unmatched": 2}
    table = results_table(results).split("\n\n")[1].splitlines()
    assert "2 queries have no relevant image" in table[0]
    assert table[1].index("mAP (rectangle)") < table[1].index("mAP (trapezoid)") < table[1].index("Rank-1")
    rows = [line.split()[-4:] for line in table[3:]]
    assert rows[0] == ["30.00", "29.00", "31.00", "99.50"]
    assert [row[-3:] for row in rows[1:3]] == [["1.00", "0.50", "2.00"], ["1.00", "0.25", "2.00"]]


def test_attribute_search_shows_rank_1_to_20_within_160_characters():
    ranks = {f"APS/Rank-{k}": 30.0 + k for k in (1, 5, 10, 20)}
    results = {**REID, **APS, **ranks, "APS/unseen semantic ID/queries": 3, "APS/unseen semantic ID/mAP": 9.0}
    header, rule, line = results_table(results, results).split("\n\n")[1].splitlines()[1:4]
    assert header.split()[-4:] == ["Rank-1", "Rank-5", "Rank-10", "Rank-20"]
    assert line.split()[-4:] == ["31.00", "35.00", "40.00", "50.00"]
    assert max(map(len, (header, rule, line))) <= 160


def test_labels_excluded_from_balanced_accuracy_are_counted():
    results = {**REID, **PAR, "PAR/questions": 30, "PAR/undefined_questions": 1}
    assert "balanced excludes 1 of 30 yes/no labels" in results_table(results)
    assert "balanced excludes" not in results_table({**results, "PAR/undefined_questions": 0})
    assert "balanced excludes" not in results_table({**REID, **PAR})  # records of versions without the count


LABELS = {"PAR/questions": 30, "PAR/label/undefined_F1": 0, "PAR/label/accuracy": 92.0, "PAR/label/mA": 74.0,
          "PAR/label/F1": 59.0, "PAR/instance/accuracy": 72.0, "PAR/instance/precision": 81.0,
          "PAR/instance/recall": 84.0, "PAR/instance/F1": 82.5, "PAR/instance/without_yes": 0,
          "PAR/instance/without_answer": 0, "PAR/instance/without_either": 0}


def test_labels_have_a_table_with_the_threshold_and_the_excluded_labels():
    results = {**REID, **PAR, **LABELS, "PAR (probability)/label/mA": 75.0, "PAR/person/label/mA": 76.0,
               "PAR-majority/label/mA": 50.0}
    _, _, labels = results_table(results, results).split("\n\n")
    title, header, _, *lines = labels.splitlines()
    assert "30 yes/no labels" in title and "threshold of 0.5" in title and "excluded" not in labels
    assert [line.split("  ")[0] for line in map(str.strip, lines)] == [
        "this model, nearest prototype", "this model, nearest prototype, by person", "this model, by probability",
        "majority class", "before training"]
    assert lines[0].split()[-7:] == ["92.00", "74.00", "59.00", "72.00", "81.00", "84.00", "82.50"]
    assert len(header) <= 140
    counted = results_table({**results, "PAR/instance/without_yes": 4, "PAR/label/undefined_F1": 1})
    assert "labels without F1 (never yes, never predicted): 1; images without recall (no label is yes): 4" in counted


def test_each_prediction_method_has_rows_by_image_and_by_person():
    person = {f"PAR/person/{key.removeprefix('PAR/')}": 70.0 for key in PAR if key != "PAR/images"}
    person |= {"PAR/person/persons": 3, "APS/person/mAP": 80.0, "APS/person/queries": 4, "APS/person/persons": 5}
    own = {**PAR, **APS, **person}
    other = {key.replace("/", " (nearest)/", 1): value + 1 for key, value in own.items()}
    _, par, aps = results_table({**REID, **own, **other}).split("\n\n")
    assert "of each of 3 persons" in par and "5 persons are ranked" in aps
    rows = [(line.split("  ")[0], line.split()[-1]) for line in map(str.strip, par.splitlines()) if "by person" in line]
    assert rows[1:] == [(f"{rule}, {words}, by person", value) for words, value in (
        ("by probability", "70.00"), ("nearest prototype", "71.00")) for rule in report.MEANS]
    assert [line.split()[-1] for line in aps.splitlines()[3:] if "by person" in line] == ["80.00", "81.00"]
    assert "by person" not in results_table({**REID, **PAR, **APS})
