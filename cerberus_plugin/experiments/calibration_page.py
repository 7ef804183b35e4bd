"""Tables and reliability plots of `experiments.calibrate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor

from ..evaluation.report import aligned
from ..search import calibration
from ..utils.files import write_figure

Answers = tuple[Tensor, Tensor, Tensor]  # probability, whether right, identity: (N,) each
Curves = dict[str, tuple[Answers, Answers]]  # by attribute: before and after calibration
COLOURS = {"before": "#7f7f7f", "after": "#1f77b4"}
SHOWN_BINS = 8
ACROSS = 4


def table(record: Mapping) -> str:
    """Format the table of attributes and the table of false-match rates."""
    parts = [f"{record['dataset']}: fitted on {record['fitted on']}, measured on {record['measured on']} (other "
             f"people); ± is the standard error over identities"]
    if record["columns"]:
        parts += [_columns_table(record), _columns_notes(record)]
    return "\n\n".join([*parts, *_pairs_tables(record["same person"], record["confidence"])]) + "\n"


def _columns_table(record: Mapping) -> str:
    lines = []
    for name, row in record["columns"].items():
        before, after, given = row["before"], row["after"], row["answered"]
        never = not math.isfinite(row["withhold below"])
        lines.append([name, f"{row['temperature']:.2f}" + ("*" if row["at bound"] else ""),
                      *(f"{100 * part['accuracy']:.1f}" for part in (before, after)),
                      *(f"{100 * part['ECE']:.1f} ± {100 * part['ECE error']:.1f}" for part in (before, after)),
                      f"{100 * after['ECE by chance']:.1f}",
                      *(f"{part['Brier']:.3f} ± {part['Brier error']:.3f}" for part in (before, after)),
                      *(_or_dash(part["NLL"], "{:.2f}") for part in (before, after)),
                      "always" if never else f"{row['withhold below']:.3f}", f"{100 * given['share']:.1f}",
                      "-" if not given["share"] else f"{100 * given['accuracy']:.1f} ± "
                                                     f"{100 * given['accuracy error']:.1f}"])
    mean = ["mean", ""]
    rows = list(record["columns"].values())
    for key, scale, digits in (("accuracy", 100, 1), ("ECE", 100, 1), ("Brier", 1, 3), ("NLL", 1, 2)):
        for when in ("before", "after"):
            known = [scale * row[when][key] for row in rows if row[when][key] is not None]
            mean.append(f"{sum(known) / len(known):.{digits}f}" if known else "-")
        if key == "ECE":
            mean.append(f"{sum(100 * row['after']['ECE by chance'] for row in rows) / len(rows):.1f}")
    mean += ["", f"{sum(100 * row['answered']['share'] for row in rows) / len(rows):.1f}", ""]
    headers = ["attribute", "temperature", "right % before", "after", "ECE % before", "after", "by chance",
               "Brier before", "after", "NLL before", "after", "uncertain below", "certain %", "right of these %"]
    return aligned([*lines, mean], headers)


def _columns_notes(record: Mapping) -> str:
    notes = ("Before: plain softmax. After: softmax of the scores divided by the temperature. ECE: expected "
             f"calibration error in {calibration.BINS} bins of equal mass; by chance: the expected ECE of perfectly "
             "calibrated probabilities on this number of people.\nUncertain: a prediction below this probability is "
             f"reported as \"uncertain\". With a confidence of {100 * record['confidence']:g} %, for each attribute "
             f"separately, at least {100 * record['wanted accuracy']:g} % of the certain predictions are right on "
             "other people of the same kind (mean over identities). \"always\": the people to fit on are too few, or "
             "have too many wrong predictions, for this guarantee; fit on more people, or lower --accuracy or "
             "--confidence.")
    if any(row["at bound"] for row in record["columns"].values()):
        notes += "\n* at the limit of the search: no temperature calibrates these scores."
    return notes


def _pairs_tables(pairs: Mapping, confidence: float) -> list[str]:
    counted = pairs["measured on"]
    intro = (f"Same person, for two images of different cameras: log odds = {pairs['slope']:.3f} x score "
             f"{pairs['intercept']:+.3f} + log odds of the prior (default {pairs['prior']:g}). Measured with equal "
             f"weight of {counted['pairs of one person']:,} pairs of the same person and "
             f"{counted['pairs of two persons']:,} pairs of different people: ECE {100 * pairs['ECE']:.2f} ± "
             f"{100 * pairs['ECE error']:.2f} % (by chance {100 * pairs['ECE by chance']:.2f}), Cllr "
             f"{pairs['Cllr']:.3f} bits (1 bit: no information).")
    lines = []
    for row in pairs["false-match rates"]:
        if "threshold" not in row:
            refused = f"rejected: {row['people']:,} people, needs {row['people needed']:,}"
            lines.append([f"{row['rate']:g}", refused, "", ""])
            continue
        lines.append([f"{row['rate']:g}", f"{row['threshold']:.4f}",
                      "{share:.2g} ({low:.2g} to {high:.2g})".format(**row["false matches"]),
                      "{:.1f} ({:.1f} to {:.1f})".format(*(100 * row["true matches"][key]
                                                           for key in ("share", "low", "high")))])
    headers = ["wanted false-match rate", "threshold", "measured (95 % interval)", "true matches % (95 % interval)"]
    note = (f"Threshold: with a confidence of about {100 * confidence:g} %, at most the wanted share of pairs of "
            "different people scores above it. The threshold is higher if it was fitted on fewer people, or if a few "
            "people cause most of their false matches.")
    return [intro, tabulate(lines, headers, disable_numparse=True, stralign="right"), note]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def plot(record: Mapping, curves: Curves, pairs: calibration.ScoredPairs, path: Path) -> None:
    """Plot the reliability of each attribute, of all attributes and of "same person", and the scores of pairs."""
    panels = dict(curves)
    if curves:
        panels["all attributes"] = tuple(tuple(map(torch.cat, zip(*side))) for side in zip(*curves.values()))
    down = math.ceil((len(panels) + 2) / ACROSS)
    figure = Figure((3.1 * ACROSS, 3 * down), layout="constrained")  # pyplot would use the backend of a notebook
    axes = figure.subplots(down, ACROSS).flatten()
    for ax, (name, sides) in zip(axes, panels.items()):
        for side, answers in zip(COLOURS, sides):
            _curve(ax, calibration.reliability(*answers, bins=SHOWN_BINS), side)
        _reliability_axes(ax, name)
    _same_person(axes[len(panels)], record["same person"], pairs)
    _scores(axes[len(panels) + 1], record["same person"], pairs)
    for ax in axes[len(panels) + 2:]:
        ax.set_axis_off()
    axes[0].legend(fontsize=8, loc="upper left")
    figure.suptitle(f"{record['dataset']}: share of right predictions by predicted probability, "
                    f"{record['measured on']} (larger dots: more predictions)")
    write_figure(path, figure, 100)


def _curve(ax, curve: calibration.Reliability, side: str) -> None:
    ax.plot(curve.probability, curve.accuracy, "-", color=COLOURS[side], linewidth=1)
    ax.scatter(curve.probability, curve.accuracy, s=(curve.share * 250).clamp(min=6), color=COLOURS[side], label=side)


def _reliability_axes(ax, name: str) -> None:
    ax.plot([0, 1], [0, 1], "k:", linewidth=1)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=name, xlabel="predicted probability", ylabel="share right")


def _same_person(ax, record: Mapping, pairs: calibration.ScoredPairs) -> None:
    """Plot the reliability of "same person", with equal weight of both kinds of pairs."""
    scores = torch.cat([pairs.same, pairs.different]).double()
    weights = torch.cat([torch.full((len(s),), 0.5 / len(s)) for s in (pairs.same, pairs.different)])
    p = torch.sigmoid(record["slope"] * scores + record["intercept"])
    curve = calibration.reliability(p, torch.arange(len(p)) < len(pairs.same),
                                    torch.cat([pairs.owner, pairs.owners[:, 0]]), weights=weights)
    _curve(ax, curve, "after")
    _reliability_axes(ax, "same person, equal weights")


def _scores(ax, record: Mapping, pairs: calibration.ScoredPairs) -> None:
    for scores, colour, label in ((pairs.same, "#2ca02c", "same person"),
                                  (pairs.different, "#d62728", "different people")):
        ax.hist(scores.numpy(), bins=60, density=True, histtype="step", color=colour, label=label)
    for i, row in enumerate(record["false-match rates"]):
        if "threshold" in row:
            ax.axvline(row["threshold"], color="k", linewidth=0.8, linestyle=":")
            ax.annotate(f"{row['rate']:g}", (row["threshold"], 0.97 - 0.2 * (i % 4)), fontsize=7, rotation=90,
                        xycoords=("data", "axes fraction"), va="top", ha="right")
    ax.set(xlabel="score", ylabel="density", title="scores of pairs, and thresholds")
    ax.legend(fontsize=8, loc="center left")
