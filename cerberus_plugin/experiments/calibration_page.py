"""What `experiments.calibrate` shows: its tables, and reliability before and after in a picture."""

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

Answers = tuple[Tensor, Tensor, Tensor]  # probability, whether right, whose: (N,) each
Curves = dict[str, tuple[Answers, Answers]]  # by column: before and after
COLOURS = {"before": "#7f7f7f", "after": "#1f77b4"}
SHOWN_BINS = 8
ACROSS = 4


def table(record: Mapping) -> str:
    """Columns before and after, then pairs of pictures."""
    parts = [f"{record['dataset']}: fitted on {record['fitted on']}, measured on {record['measured on']} who were not; "
             f"± is the standard error by identities"]
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
    mean = ["mean of columns", ""]
    rows = list(record["columns"].values())
    for key, scale, digits in (("accuracy", 100, 1), ("ECE", 100, 1), ("Brier", 1, 3), ("NLL", 1, 2)):
        for when in ("before", "after"):
            known = [scale * row[when][key] for row in rows if row[when][key] is not None]
            mean.append(f"{sum(known) / len(known):.{digits}f}" if known else "-")
        if key == "ECE":
            mean.append(f"{sum(100 * row['after']['ECE by chance'] for row in rows) / len(rows):.1f}")
    mean += ["", f"{sum(100 * row['answered']['share'] for row in rows) / len(rows):.1f}", ""]
    headers = ["attribute", "temperature", "right % before", "after", "ECE % before", "after", "by chance",
               "Brier before", "after", "NLL before", "after", "withheld below", "answered %", "right of those %"]
    return aligned([*lines, mean], headers)


def _columns_notes(record: Mapping) -> str:
    notes = ("Before: the bare softmax; after: its scores divided by the temperature. ECE: expected calibration error "
             f"in {calibration.BINS} bins of equal mass; by chance: what true probabilities "
             "would show on so few people.\nWithheld: below this probability an answer is \"cannot tell\". With a "
             f"confidence of {100 * record['confidence']:g} %, for each attribute by itself, at least "
             f"{100 * record['wanted accuracy']:g} % of those given are right on other people like those it was fitted "
             "on (a mean over identities); \"always\" where these are too few, or err too often, to vouch for it: fit "
             "on more, or ask for less by --accuracy or --confidence.")
    if any(row["at bound"] for row in record["columns"].values()):
        notes += "\n* at the end of what is tried: no temperature makes these scores tell how often they are right."
    return notes


def _pairs_tables(pairs: Mapping, confidence: float) -> list[str]:
    counted = pairs["measured on"]
    intro = (f"Same person, two pictures under different cameras: log odds = {pairs['slope']:.3f} x score "
             f"{pairs['intercept']:+.3f} + log odds of the prior, {pairs['prior']:g} unless another is given. Measured "
             f"at equal odds on {counted['pairs of one person']:,} pairs of one person and "
             f"{counted['pairs of two persons']:,} of two: ECE {100 * pairs['ECE']:.2f} ± "
             f"{100 * pairs['ECE error']:.2f} % (by chance {100 * pairs['ECE by chance']:.2f}), Cllr "
             f"{pairs['Cllr']:.3f} bits (1 tells nothing).")
    lines = []
    for row in pairs["false-match rates"]:
        if "threshold" not in row:
            refused = f"refused: {row['people']:,} people, it takes {row['people needed']:,}"
            lines.append([f"{row['rate']:g}", refused, "", ""])
            continue
        lines.append([f"{row['rate']:g}", f"{row['threshold']:.4f}",
                      "{share:.2g} ({low:.2g} to {high:.2g})".format(**row["false matches"]),
                      "{:.1f} ({:.1f} to {:.1f})".format(*(100 * row["true matches"][key]
                                                           for key in ("share", "low", "high")))])
    headers = ["false-match rate wanted", "threshold", "measured (95 % interval)", "true matches % (95 % interval)"]
    note = (f"Threshold: with a confidence of about {100 * confidence:g} %, at most the wanted share of pairs of two "
            "other people scores as high. The fewer people it was fitted on, and the more of their false matches a few "
            "of them are behind, the further it lies above the score that this share of their own pairs reaches.")
    return [intro, tabulate(lines, headers, disable_numparse=True, stralign="right"), note]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def plot(record: Mapping, curves: Curves, pairs: calibration.ScoredPairs, path: Path) -> None:
    """Reliability of each column, of all together, and of "same person"; then the scores of pairs with thresholds."""
    panels = dict(curves)
    if curves:
        panels["all attributes"] = tuple(tuple(map(torch.cat, zip(*side))) for side in zip(*curves.values()))
    down = math.ceil((len(panels) + 2) / ACROSS)
    figure = Figure((3.1 * ACROSS, 3 * down), layout="constrained")  # not pyplot's: its backend is a notebook's
    axes = figure.subplots(down, ACROSS).flatten()
    for ax, (name, sides) in zip(axes, panels.items()):
        for side, answers in zip(COLOURS, sides):
            _curve(ax, calibration.reliability(*answers, bins=SHOWN_BINS), side)
        _dress(ax, name)
    _same_person(axes[len(panels)], record["same person"], pairs)
    _scores(axes[len(panels) + 1], record["same person"], pairs)
    for ax in axes[len(panels) + 2:]:
        ax.set_axis_off()
    axes[0].legend(fontsize=8, loc="upper left")
    figure.suptitle(f"{record['dataset']}: how often answers of a probability are right, {record['measured on']} "
                    "(larger dots: more answers)")
    write_figure(path, figure, 100)


def _curve(ax, curve: calibration.Reliability, side: str) -> None:
    ax.plot(curve.probability, curve.accuracy, "-", color=COLOURS[side], linewidth=1)
    ax.scatter(curve.probability, curve.accuracy, s=(curve.share * 250).clamp(min=6), color=COLOURS[side], label=side)


def _dress(ax, name: str) -> None:
    ax.plot([0, 1], [0, 1], "k:", linewidth=1)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), title=name, xlabel="probability", ylabel="right")


def _same_person(ax, record: Mapping, pairs: calibration.ScoredPairs) -> None:
    """At equal odds: the two kinds of pairs weigh the same."""
    scores = torch.cat([pairs.same, pairs.different]).double()
    weights = torch.cat([torch.full((len(s),), 0.5 / len(s)) for s in (pairs.same, pairs.different)])
    p = torch.sigmoid(record["slope"] * scores + record["intercept"])
    curve = calibration.reliability(p, torch.arange(len(p)) < len(pairs.same),
                                    torch.cat([pairs.owner, pairs.owners[:, 0]]), weights=weights)
    _curve(ax, curve, "after")
    _dress(ax, "same person, at equal odds")


def _scores(ax, record: Mapping, pairs: calibration.ScoredPairs) -> None:
    for scores, colour, label in ((pairs.same, "#2ca02c", "one person"), (pairs.different, "#d62728", "two persons")):
        ax.hist(scores.numpy(), bins=60, density=True, histtype="step", color=colour, label=label)
    for i, row in enumerate(record["false-match rates"]):
        if "threshold" in row:
            ax.axvline(row["threshold"], color="k", linewidth=0.8, linestyle=":")
            ax.annotate(f"{row['rate']:g}", (row["threshold"], 0.97 - 0.2 * (i % 4)), fontsize=7, rotation=90,
                        xycoords=("data", "axes fraction"), va="top", ha="right")
    ax.set(xlabel="score", ylabel="density", title="pairs of pictures, and thresholds")
    ax.legend(fontsize=8, loc="center left")
