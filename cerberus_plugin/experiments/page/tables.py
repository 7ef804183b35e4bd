"""The tables of the report: mean and deviation over seeds, and published figures in rows of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...evaluation import report
from ...evaluation.spread import mean_and_deviation, spread, tells_apart
from .records import StudyRecord, VariantRecord

HEADINGS = {"mAP": "reID mAP", "mINP": "reID mINP", "mAP_trapezoid": "reID mAP (trapezoid)"}
MINUTES = "minutes of training"


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # what the column is sorted by; None for text and for nothing


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[Cell]
    mark: str = ""
    anchor: str = ""  # of the runs behind it


@dataclass(frozen=True)
class Table:
    headers: list[str]
    rows: list[Row]
    published: list[Row] = field(default_factory=list)

    @property
    def all_rows(self) -> list[Row]:
        return self.rows + self.published

    def numeric(self, place: int) -> bool:
        """Whether a column, counted behind the names, holds numbers."""
        return any(row.cells[place].value is not None for row in self.all_rows)

    def text(self) -> str:
        """The table for a terminal."""
        rows = [[f"{row.name} ({row.mark})" if row.mark else row.name, *(cell.text for cell in row.cells)]
                for row in self.all_rows]
        return report.aligned(rows, self.headers)


def heading(key: str) -> str:
    """A figure's name over its column: 'reID Rank-1', 'PAR mA (binary)', 'APS unseen mAP (rectangle)'."""
    if key in HEADINGS:
        return HEADINGS[key]
    if key.startswith("Rank-"):
        return f"reID {key}"
    task, *parts = key.split("/")
    person = "person " if parts[:1] == ["person"] else ""
    parts = parts[1:] if task == "PAR" and person else parts
    if task == "PAR" and parts:
        rule, name = ((parts[0].removeprefix("mA_"), "mA") if parts[0].startswith("mA_") else
                      (parts[0], "/".join(parts[1:])))
        return f"PAR {person}{name} ({rule})" if name else f"PAR {person}{rule}"
    if task == "APS" and parts and parts[-1].startswith("mAP"):
        rule, _, reading = parts[-1].removeprefix("mAP").strip("_").partition("_")  # "", "trapezoid", "given", ...
        rule, reading = (rule, reading) if rule == "trapezoid" else ("rectangle", rule)
        parts[-1] = " ".join(["mAP", *filter(None, [reading]), f"({rule})"])
    return " ".join([task, *parts])


def over_seeds(study: StudyRecord, data: str) -> dict[tuple[str, str], list[float]]:
    """Measured figures of all seeds, by variant and figure; NaN where a run has it undefined."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in study.runs:
        for key, value in run.results.get(data, {}).items():
            found.setdefault((run.variant, key), []).append(value)
    return found


def figures_of(study: StudyRecord, data: str) -> list[str]:
    """The study's figures, in its order, and those that are published besides; none that is nowhere."""
    known = {key for run in study.runs for key in run.results.get(data, {})}
    published = dict.fromkeys(key for variant in study.variants for key in variant.published.get(data, {}))
    return [key for key in dict.fromkeys([*study.figures, *published]) if key in known or key in published]


def table(study: StudyRecord, data: str, attributes: bool = True) -> Table:
    """A row a variant with means over its seeds; published rows apart, marked with their rule.

    Args:
        attributes: with the columns of single attributes.
    """
    keys, figures = figures_of(study, data), over_seeds(study, data)
    keys = [key for key in keys if attributes or not any(f"/{rule}/" in key for rule in report.MEANS)]
    rows = []
    for variant in study.variants:
        runs = [run for run in variant.runs if data in run.results]
        if not runs:
            continue
        cells = [_measured(figures.get((variant.name, key), [])) for key in keys]
        planned = max(len(study.seeds), len(variant.runs))
        cells.append(Cell(f"{len(runs)} of {planned}" if len(runs) < planned else str(len(runs)), len(runs)))
        cells.append(_minutes(mean_and_deviation([run.minutes for run in runs])[0]))
        rows.append(Row(variant.name, cells, anchor=runs[0].anchor))
    published = [_published(variant, data, keys) for variant in study.variants if variant.published.get(data)]
    return Table(["variant", *map(heading, keys), "runs", MINUTES], rows, published)


def elsewhere(study: StudyRecord) -> list[str]:
    """Data sets of published figures that nothing was measured on."""
    names = dict.fromkeys(name for variant in study.variants for name in variant.published)
    return [name for name in names if name not in study.datasets]


def costs(study: StudyRecord) -> Table | None:
    """Parameters, operations and times by variant, where the study counted them."""
    counted = [variant for variant in study.variants if variant.costs]
    keys = list(dict.fromkeys(key for variant in counted for key in variant.costs))
    return Table(["variant", *keys], [Row(variant.name, [_counted(variant.costs.get(key)) for key in keys])
                                      for variant in counted]) if counted else None


def summary(studies: Sequence[StudyRecord]) -> Table:
    """A row a study: on what, how many runs, of which seeds."""
    rows = []
    for study in studies:
        done, missing = len(study.runs), len(study.missing)
        seeds = ", ".join(dict.fromkeys(str(run.seed) for run in study.runs)) or "none yet"
        minutes = [run.minutes for run in study.runs if not math.isnan(run.minutes)]
        told = sum(map(tells_apart, sum(study.claims.values(), [])))
        rows.append(Row(study.title, [Cell(study.question), Cell(", ".join(study.datasets)),
                                      Cell(f"{done} of {done + missing}" if missing else str(done), done), Cell(seeds),
                                      Cell("refused" if study.refused else str(told), None if study.refused else told),
                                      _minutes(sum(minutes) if minutes else math.nan)], anchor=study.anchor))
    return Table(["study", "question", "tested on", "runs", "seeds", "orders told apart", MINUTES], rows)


def _minutes(minutes: float) -> Cell:
    return Cell("") if math.isnan(minutes) else Cell(f"{minutes:.1f}", minutes)


def _measured(values: Sequence[float]) -> Cell:
    """Mean and deviation over seeds, and of how many runs where some have it undefined."""
    if not values:
        return Cell("")
    defined, (mean, _) = sum(not math.isnan(value) for value in values), mean_and_deviation(values)
    if not defined:
        return Cell(spread(values))
    return Cell(spread(values) + (f" ({defined} of {len(values)})" if defined < len(values) else ""), mean)


def _published(variant: VariantRecord, data: str, keys: Sequence[str]) -> Row:
    figures = variant.published[data]
    shown = [heading(key) for key in figures if key.startswith("PAR/")]
    rules = dict.fromkeys(variant.rule or name.rpartition("(")[2].rstrip(")") for name in shown)
    cells = [Cell(report.percent(figures.get(key)), figures.get(key)) for key in keys]
    return Row(variant.name, [*cells, Cell(""), Cell("")], ", ".join(["published", *(f"PAR {rule}" for rule in rules)]))


def _counted(text: str | None) -> Cell:
    """A count or a time as it was recorded, with thousands set apart."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return Cell(text or "")
    return Cell(f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}",
                value)
