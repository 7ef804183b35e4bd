"""Tables of the report: mean and deviation over seeds, and published results in separate rows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...evaluation import report
from ...evaluation.spread import mean_and_deviation, spread, tells_apart
from .records import StudyRecord, VariantRecord

HEADINGS = {"mAP": "reID mAP", "mINP": "reID mINP", "mAP_trapezoid": "reID mAP (trapezoid)"}
MINUTES = "training minutes"


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    value: float | None = None  # to sort the column by; None for text and for empty cells


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str
    cells: list[Cell]
    mark: str = ""
    anchor: str = ""  # of its runs in the report


@dataclass(frozen=True)
class Table:
    """A table with measured and published rows."""

    headers: list[str]
    rows: list[Row]
    published: list[Row] = field(default_factory=list)

    @property
    def all_rows(self) -> list[Row]:
        """Measured rows, then published ones."""
        return self.rows + self.published

    def numeric(self, place: int) -> bool:
        """Whether a column has numbers; `place` does not count the column of names."""
        return any(row.cells[place].value is not None for row in self.all_rows)

    def text(self) -> str:
        """Format the table for a terminal."""
        rows = [[f"{row.name} ({row.mark})" if row.mark else row.name, *(cell.text for cell in row.cells)]
                for row in self.all_rows]
        return report.aligned(rows, self.headers)


def heading(key: str) -> str:
    """Return the column header of a metric.

    Args:
        key: of results.json.

    Examples:
        >>> heading("Rank-1"), heading("PAR/mA_binary"), heading("APS/unseen/mAP")
        ('reID Rank-1', 'PAR mA (binary)', 'APS unseen mAP (rectangle)')
    """
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
    """Collect the values of all seeds by variant and metric; NaN if undefined for a run."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in study.runs:
        for key, value in run.results.get(data, {}).items():
            found.setdefault((run.variant, key), []).append(value)
    return found


def figures_of(study: StudyRecord, data: str) -> list[str]:
    """Return the keys to show: those of the study, then other published ones; only those with a value."""
    known = {key for run in study.runs for key in run.results.get(data, {})}
    published = dict.fromkeys(key for variant in study.variants for key in variant.published.get(data, {}))
    return [key for key in dict.fromkeys([*study.figures, *published]) if key in known or key in published]


def table(study: StudyRecord, data: str, attributes: bool = True) -> Table:
    """Create the table of a study: one row per variant with means over seeds, and published rows with their rule.

    Args:
        study: to show.
        data: name of the test dataset.
        attributes: include the columns of single attributes.
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
    """Return the datasets that only have published results."""
    names = dict.fromkeys(name for variant in study.variants for name in variant.published)
    return [name for name in names if name not in study.datasets]


def costs(study: StudyRecord) -> Table | None:
    """Create the table of parameters, operations and times by variant; None if the study did not measure them."""
    counted = [variant for variant in study.variants if variant.costs]
    keys = list(dict.fromkeys(key for variant in counted for key in variant.costs))
    return Table(["variant", *map(_per, keys)], [Row(variant.name, [_counted(variant.costs.get(key)) for key in keys])
                                      for variant in counted]) if counted else None


def _per(key: str) -> str:
    """Header of a cost, "values per embedding" for the key "values an embedding" of costs.json."""
    return re.sub(r" an? ", " per ", key)


def summary(studies: Sequence[StudyRecord]) -> Table:
    """Create the table of all studies: question, test datasets, numbers of runs, seeds."""
    rows = []
    for study in studies:
        done, missing = len(study.runs), len(study.missing)
        seeds = ", ".join(dict.fromkeys(str(run.seed) for run in study.runs)) or "none yet"
        minutes = [run.minutes for run in study.runs if not math.isnan(run.minutes)]
        told = sum(map(tells_apart, sum(study.claims.values(), [])))
        rows.append(Row(study.title, [Cell(study.question), Cell(", ".join(study.datasets)),
                                      Cell(f"{done} of {done + missing}" if missing else str(done), done), Cell(seeds),
                                      Cell("not comparable") if study.refused else Cell(str(told), told),
                                      _minutes(sum(minutes) if minutes else math.nan)], anchor=study.anchor))
    return Table(["study", "question", "tested on", "runs", "seeds", "significant differences", MINUTES], rows)


def _minutes(minutes: float) -> Cell:
    return Cell("") if math.isnan(minutes) else Cell(f"{minutes:.1f}", minutes)


def _measured(values: Sequence[float]) -> Cell:
    """Format mean and deviation over seeds, with the number of defined values if some are undefined."""
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
    """Format a count or a time with thousands separators."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return Cell(text or "")
    return Cell(f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}",
                value)
