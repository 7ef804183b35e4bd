"""The pictures of the report: the numbers that are drawn, along the options that vary."""

import math

from cerberus_plugin.experiments.page import plots
from cerberus_plugin.experiments.page.plots import draw, number, varied
from cerberus_plugin.experiments.page.records import read_folder

import pytest
from experiment_records import parts, run, study, variant, write

K, REG = "DATASETS.LEAVE_OUT_SIDS", "MODEL.CERBERUS.LAMBDA_REG"
SIGMA, SEM = "MODEL.CERBERUS.SIGMA", "MODEL.CERBERUS.LAMBDA_SEM"


@pytest.fixture
def axes(monkeypatch, tmp_path):
    """Draw a record, and give the axes of the picture in place of its SVG."""
    def axes(record: dict, data: str = "Market1501", config=None):
        monkeypatch.setattr(plots, "_svg", lambda figure: figure)
        figure, caption = draw(read_folder(write(tmp_path, record, config=config)).studies[0], data)
        plots.plt.close(figure)
        return figure.axes, caption

    return axes


def curves(axis) -> dict[str, list[tuple[float, float]]]:
    """Points of every curve by its label."""
    return {bars.get_label(): [tuple(point) for point in bars.lines[0].get_xydata()] for bars in axis.containers}


def unseen() -> dict:
    variants = [variant(f"{k} left out, regulariser {reg}", [run(f"{k}-{reg}", seed, Rank_1=90.0 - k + reg + seed)
                                                             for seed in range(3)], options={K: k, REG: reg})
                for reg in (0, 0.001) for k in (4, 0)]
    return study("unseen", variants, figures=["Rank-1"])


def test_unseen_semantic_ids_are_a_curve_a_setting_of_the_regulariser(axes):
    (axis,), caption = axes(unseen())
    assert curves(axis) == {"LAMBDA_REG 0": [(0, 91.0), (4, 87.0)],
                            "LAMBDA_REG 0.001": [(0, pytest.approx(91.001)), (4, pytest.approx(87.001))]}
    assert axis.get_xlabel() == "semantic IDs left out" and axis.get_ylabel() == "reID Rank-1 (%)"
    assert caption.startswith("Mean over seeds against the number of semantic IDs")


def test_each_option_of_the_sensitivity_study_has_a_panel_of_its_own(axes):
    variants = [variant(f"sigma {value}", [run(f"sigma{value}", 0, data="held-out", mAP=80.0 + value)],
                        options={SIGMA: value}) for value in (2, 5, 10)]
    variants += [variant(f"lambda {value}", [run(f"lambda{value}", 0, data="held-out", mAP=70.0 + value)],
                         options={SEM: value}) for value in (1, 100)]
    (sigma, sem), _ = axes(study("sensitivity", variants, figures=["mAP"]), "held-out", config={})
    # config.yaml says sigma 5 and lambda 1, where the two grids cross.
    assert list(curves(sigma).values()) == [[(2, 82.0), (5, 85.0), (10, 90.0)]]
    assert list(curves(sem).values()) == [[(1, 71.0), (100, 170.0)]]
    assert (sigma.get_xscale(), sem.get_xscale()) == ("linear", "log")


def test_curves_that_the_study_names_are_taken_as_they_are(axes):
    record = unseen()
    for place, item in enumerate(record["variants"]):
        item |= {"curve": "with" if place < 2 else "without", "x": 7 * (place % 2)}
    (axis,), _ = axes(record)
    assert {name: [x for x, _ in points] for name, points in curves(axis).items()} == {
        "with": [0, 7], "without": [0, 7]}


def test_variants_are_marks_with_the_published_figure_beside_them(axes):
    drawn, caption = axes(parts())
    first = drawn[0]
    assert [axis.get_xlabel() for axis in drawn] == ["reID mAP (%)", "reID Rank-1 (%)", "PAR mA (official) (%)",
                                                     "APS mAP (%)"]
    assert [bars.lines[0].get_xdata()[0] for bars in first.containers] == [89.0, 89.75]
    diamonds = [line.get_xdata()[0] for line in first.lines if line.get_marker() == "D"]
    assert diamonds == [88.34, 89.83] and "do not start at 0" in caption


def test_an_undefined_figure_leaves_no_mark(axes):
    record = study("one", [variant("a", [run("a", 0, mAP=None)]), variant("b", [run("b", 0, mAP=2.0)])])
    (axis,), _ = axes(record)
    marks = [bars.lines[0].get_xdata()[0] for bars in axis.containers]
    assert math.isnan(marks[0]) and marks[1] == 2.0


def test_a_study_without_finished_runs_has_no_picture(tmp_path):
    record = study("one", [variant("a", published={"Market1501": {"mAP": 1.0}})])
    assert draw(read_folder(write(tmp_path, record)).studies[0], "Market1501") is None


def test_a_picture_is_the_same_each_time_and_legible_on_any_background(tmp_path):
    found = read_folder(write(tmp_path, study("one", [variant("$a_1$ <b>", [run("a", 0, mAP=1.0)])]))).studies[0]
    svg, _ = draw(found, "Market1501")
    assert svg == draw(found, "Market1501")[0]
    assert "#ffffff" not in svg and "#000000" not in svg and plots.GREY in svg


@pytest.mark.parametrize(("value", "expected"), [(2, 2.0), ("0.5", 0.5), (True, None), ("adaptive", None), ([1], None)])
def test_numbers_among_options(value, expected):
    assert number(value) == expected


def test_options_that_never_change_are_not_varied(tmp_path):
    record = study("one", [variant(name, options={K: k, "DATASETS.HOLD_OUT": 100}) for name, k in (("a", 0), ("b", 4))])
    assert varied(read_folder(write(tmp_path, record)).studies[0]) == {K: {"a": 0.0, "b": 4.0}}
