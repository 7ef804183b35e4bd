"""Several seeds of one figure: mean and spread, and the orders that the spread allows to claim."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

from . import report

CONFIDENCE = 0.95
_ORDER = " above "  # of a sentence that tells two variants apart, and of no other
FEWEST = 3  # paired seeds: with two the interval is thirteen deviations wide to each side

# Figures by variant, seed and key of results.json, percent.
Figures = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Difference:
    """Of two variants, paired by seed: its mean, half the width of its 95 % interval (NaN below two seeds), the seeds.
    """

    mean: float
    half_width: float
    seeds: int

    @property
    def told_apart(self) -> bool:
        return self.seeds >= FEWEST and abs(self.mean) > self.half_width


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of the values that are defined, NaN of none; and their sample deviation, where there are two or more."""
    values = [value for value in values if not math.isnan(value)]
    return (statistics.fmean(values) if values else math.nan), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float]) -> str:
    """"89.83 ± 0.12", percent; the mean alone of one value, "undefined" of none."""
    mean, deviation = mean_and_deviation(values)
    return report.percent(mean) if deviation is None else f"{report.percent(mean)} ± {report.percent(deviation)}"


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """First minus second over the seeds that both have."""
    pairs = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    pairs = [value for value in pairs if not math.isnan(value)]
    if not pairs:
        return Difference(math.nan, math.nan, 0)
    mean, deviation = mean_and_deviation(pairs)
    if deviation is None:
        return Difference(mean, math.nan, 1)
    quantile = t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1)
    return Difference(mean, float(quantile) * deviation / math.sqrt(len(pairs)), len(pairs))


def tells_apart(sentence: str) -> bool:
    """Whether a sentence of `claims` is an order, neither the lack of one nor a caution."""
    return _ORDER in sentence


def claims(figures: Figures, pairs: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> list[str]:
    """A sentence a pair of variants and figure: which is above, or that they are not told apart.

    Args:
        pairs: of names of variants.
        headers: what to call each figure that is compared, by key of results.json.
    """
    sentences, made, most = [], 0, 0
    for key, header in headers.items():
        for first, second in pairs:
            found = difference(_of(figures, first, key), _of(figures, second, key))
            if found.seeds:
                sentences.append(f"{header}: {_sentence(first, second, found)}")
                made += found.seeds >= FEWEST
                most = max(most, found.seeds)
    if sentences and not made:
        return [f"{most} seed{'s' if most > 1 else ''}: too few seeds to claim an order ({FEWEST} are needed)"]
    if made > 1:
        sentences.append(f"{made} comparisons, each at {CONFIDENCE:.0%}: of twenty between equals, one would be told "
                         "apart by chance")
    return sentences


def _sentence(first: str, second: str, found: Difference) -> str:
    if found.seeds < FEWEST:
        return f"{first} and {second}: too few seeds to claim an order ({found.seeds} of {FEWEST} that both have)"
    interval = f"{abs(found.mean):.2f} ± {found.half_width:.2f} ({CONFIDENCE:.0%} of {found.seeds} paired seeds)"
    if found.told_apart:
        above, below = (first, second) if found.mean > 0 else (second, first)
        return f"{above}{_ORDER}{below} by {interval}"
    return f"{first} and {second} are not told apart (difference {interval})"


def _of(figures: Figures, name: str, key: str) -> dict[int, float]:
    return {seed: row[key] for seed, row in figures.get(name, {}).items() if row.get(key) is not None}
