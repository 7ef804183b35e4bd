"""Plots of the report, legible on a light and on a dark page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...evaluation.spread import mean_and_deviation
from .records import StudyRecord
from .tables import figures_of, heading, over_seeds

GREY = "#808790"  # contrast of about 4:1 with the light and with the dark page
COLOURS = ("#3987d6", "#d9772b", "#2b9f77", "#b564c4", "#c9a227", "#d2504f", "#5aa9b8", "#8b8f3a")
STYLE = {"text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY,
         "ytick.color": GREY, "legend.labelcolor": GREY, "figure.facecolor": "none", "axes.facecolor": "none",
         "savefig.facecolor": "none", "legend.frameon": False, "legend.fontsize": 9, "font.size": 10,
         "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
         "text.parse_math": False,  # a "$" in the name of a variant is plain text
         "svg.hashsalt": "cerberus"}  # the same data give the same file
Curves = dict[str, dict[str, float]]  # by curve: variants and their positions on it
UNSEEN = "unseen"  # the study with all curves in one panel
MOST_PANELS = 6
RATIO = 50  # of the largest to the smallest value of an option; from this ratio on, its axis is logarithmic


def draw(study: StudyRecord, data: str) -> tuple[str, str] | None:
    """Plot the metrics of a study on a test dataset.

    Returns:
        SVG and caption; None if nothing was measured.
    """
    # Single attributes are only in the table; a page has space for six panels.
    measured = {key for run in study.runs for key in run.results.get(data, {})}
    keys = [key for key in figures_of(study, data) if key in measured and key.count("/") < 2][:MOST_PANELS]
    if not keys:
        return None
    with matplotlib.rc_context(STYLE):
        lines = curves(study)
        if lines and study.name == UNSEEN:
            return _svg(_against(study, data, keys, lines)), (
                "Mean over seeds against the number of semantic IDs excluded from training; bars are one sample "
                "standard deviation.")
        if lines:
            return _svg(_grids(study, data, keys[:3], lines)), (
                "One option at a time, the others at their default values; mean over seeds, bars are one sample "
                "standard deviation.")
        return _svg(_marks(study, data, keys)), (
            "Mean over seeds with one sample standard deviation; small dots are single runs, hollow diamonds published "
            "results. The axes do not start at 0.")


def curves(study: StudyRecord) -> Curves:
    """Return the curves of a study with their variants."""
    lines: Curves = {}
    for variant in study.variants:
        if variant.curve and variant.x is not None:
            lines.setdefault(variant.curve, {})[variant.name] = variant.x
    return lines


def _marks(study: StudyRecord, data: str, keys: Sequence[str]) -> Figure:
    """Draw one panel per metric and one line per variant, the first at the top."""
    figures = over_seeds(study, data)
    shown = [variant for variant in study.variants
             if any(key in row for key in keys
                    for row in (variant.published.get(data, {}), *(run.results.get(data, {}) for run in variant.runs)))]
    figure, axes = _panels(len(keys), 0.8 + 0.3 * len(shown), sharey=True)
    for axis, key in zip(axes, keys):
        for place, variant in enumerate(shown):
            colour = COLOURS[place % len(COLOURS)]
            if values := figures.get((variant.name, key)):
                axis.plot(values, [place + 0.22] * len(values), ".", color=colour, markersize=4, alpha=0.7)
                mean, deviation = mean_and_deviation(values)
                axis.errorbar(mean, place, xerr=deviation or 0, fmt="o", color=colour, capsize=3, markersize=6)
            if (figure_of_paper := variant.published.get(data, {}).get(key)) is not None:
                axis.plot(figure_of_paper, place - 0.22, "D", markerfacecolor="none", color=GREY, markersize=6)
        axis.set(xlabel=f"{heading(key)} (%)", yticks=range(len(shown)), ylim=(len(shown) - 0.4, -0.6))
        axis.set_yticklabels([_shortened(variant.name) for variant in shown])
        axis.grid(axis="x", color=GREY, alpha=0.25)
        axis.margins(x=0.1)
    return figure


def _against(study: StudyRecord, data: str, keys: Sequence[str], lines: Curves) -> Figure:
    """Draw one panel per metric, each with all curves."""
    figures = over_seeds(study, data)
    figure, axes = _panels(len(keys), 2.9)
    for axis, key in zip(axes, keys):
        for place, (label, points) in enumerate(lines.items()):
            _curve(axis, figures, key, points, COLOURS[place % len(COLOURS)], label)
        axis.set(xlabel="semantic IDs excluded", ylabel=f"{heading(key)} (%)",
                 xticks=sorted({x for points in lines.values() for x in points.values()}))
        axis.grid(color=GREY, alpha=0.25)
    if len(lines) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _grids(study: StudyRecord, data: str, keys: Sequence[str], lines: Curves) -> Figure:
    """Draw one panel per metric (rows) and curve (columns)."""
    figures = over_seeds(study, data)
    figure = Figure((2.5 * len(lines), 2.2 * len(keys)), layout="constrained")
    axes = figure.subplots(len(keys), len(lines), squeeze=False, sharey="row", sharex="col")
    for column, (name, points) in enumerate(lines.items()):
        ticks = sorted(set(points.values()))
        for line, key in enumerate(keys):
            axis = axes[line][column]
            _curve(axis, figures, key, points, COLOURS[line % len(COLOURS)], name)
            if ticks and ticks[0] > 0 and ticks[-1] / ticks[0] >= RATIO:
                axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axis.minorticks_off()
            axis.grid(color=GREY, alpha=0.25)
            if not column:
                axis.set_ylabel(f"{heading(key)} (%)")
        axes[-1][column].set_xlabel(name)
    return figure


def _curve(axis: Axes, figures: dict[tuple[str, str], list[float]], key: str, along: dict[str, float], colour: str,
           label: str) -> None:
    points = sorted((x, *mean_and_deviation(figures[name, key])) for name, x in along.items() if (name, key) in figures)
    axis.errorbar([x for x, *_ in points], [mean for _, mean, _ in points],
                  yerr=[deviation or 0 for *_, deviation in points], marker="o", markersize=4, capsize=3, color=colour,
                  label=label)


def _panels(count: int, height: float, **options) -> tuple[Figure, list[Axes]]:
    """Create panels, at most three per row."""
    columns = min(count, 3)
    lines = -(-count // columns)
    figure = Figure((3.4 * columns + 1, height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **options)
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, list(axes.flat[:count])


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _shortened(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"
