"""Tests of the plots of the report."""

import math

from cerberus_plugin.experiments.page import plots
from cerberus_plugin.experiments.page.plots import draw
from cerberus_plugin.experiments.page.records import read_folder

import pytest
from support.experiment_records import parts, run, study, variant, write


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """Function that plots a record and returns the axes instead of SVG."""
    def axes(record: dict, data: str = "Market1501"):
        monkeypatch.setattr(plots, "_svg", lambda figure: figure)
        figure, caption = draw(read_folder(write(tmp_path, record)).studies[0], data)
        return figure.axes, caption

    return axes


def curves(axis) -> dict[str, list[tuple[float, float]]]:
    """Points of each curve, by label."""
    return {bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()] for bars in axis.containers}


def test_the_study_of_unseen_semantic_ids_has_one_curve_per_kind_of_training(axes):
    variants = [variant(f"{k} excluded, {kind}", [run(f"{k}-{kind}", seed, Rank_1=90.0 - k + shift + seed)
                                                  for seed in range(3)], curve=kind, x=k)
                for kind, shift in (("with", 0.5), ("without", 0)) for k in (4, 0)]
    (axis,), caption = axes(study("unseen", variants, figures=["Rank-1"]))
    assert curves(axis) == {"with": [(0, 91.5), (4, 87.5)], "without": [(0, 91.0), (4, 87.0)]}
    assert axis.get_xlabel() == "semantic IDs excluded" and axis.get_ylabel() == "reID Rank-1 (%)"
    assert caption.startswith("Mean over seeds against the number of semantic IDs")


def test_each_numeric_option_has_a_separate_panel(axes):
    variants = [variant(f"{name} = {value}", [run(f"{name}{value}", 0, data="held-out", mAP=80.0 + value)], curve=name,
                        x=value) for name, values in (("sigma", (2, 5, 10)), ("lambda", (1, 100))) for value in values]
    (sigma, sem), _ = axes(study("any", variants, figures=["mAP"]), "held-out")
    assert list(curves(sigma).values()) == [[(2, 82.0), (5, 85.0), (10, 90.0)]]
    assert list(curves(sem).values()) == [[(1, 81.0), (100, 180.0)]]
    assert (sigma.get_xscale(), sem.get_xscale()) == ("linear", "log")


def test_variants_are_marks_next_to_their_published_results(axes):
    drawn, caption = axes(parts())
    first = drawn[0]
    assert [axis.get_xlabel() for axis in drawn] == ["reID mAP (%)", "reID Rank-1 (%)", "PAR mA (official) (%)",
                                                     "APS mAP (rectangle) (%)"]
    assert [bars.lines[0].get_xdata()[0] for bars in first.containers] == [89.0, 89.75]
    diamonds = [line.get_xdata()[0] for line in first.lines if line.get_marker() == "D"]
    assert diamonds == [88.34, 89.83] and "do not start at 0" in caption


def test_an_undefined_metric_has_no_mark(axes):
    record = study("one", [variant("a", [run("a", 0, mAP=None)]), variant("b", [run("b", 0, mAP=2.0)])])
    (axis,), _ = axes(record)
    marks = [bars.lines[0].get_xdata()[0] for bars in axis.containers]
    assert math.isnan(marks[0]) and marks[1] == 2.0


def test_a_study_without_finished_runs_has_no_plot(tmp_path):
    record = study("one", [variant("a", published={"Market1501": {"mAP": 1.0}})])
    assert draw(read_folder(write(tmp_path, record)).studies[0], "Market1501") is None


def test_a_plot_is_reproducible_and_legible_on_any_background(tmp_path):
    found = read_folder(write(tmp_path, study("one", [variant("$a_1$ <b>", [run("a", 0, mAP=1.0)])]))).studies[0]
    svg, _ = draw(found, "Market1501")
    assert svg == draw(found, "Market1501")[0]
    assert "#ffffff" not in svg and "#000000" not in svg and plots.GREY in svg
