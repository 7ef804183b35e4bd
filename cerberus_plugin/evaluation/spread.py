"""Statistics over several seeds: means, standard deviations and significant differences between variants."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

from . import report

CONFIDENCE = 0.95
FEWEST = 3  # paired seeds; with two, the half-width of the interval is about thirteen standard deviations
_ORDER = " above "  # only in sentences about a significant difference

# Metrics by variant, seed and key of results.json, in percent.
Figures = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True)
class Difference:
    """Difference between two variants, paired by seed.

    Args:
        mean: mean of the differences; NaN without pairs.
        half_width: half the width of the 95 % confidence interval of the mean; NaN for fewer than two pairs.
        seeds: number of pairs.
    """

    mean: float
    half_width: float
    seeds: int

    @property
    def significant(self) -> bool:
        """Whether there are at least `FEWEST` pairs and the confidence interval does not contain zero."""
        return self.seeds >= FEWEST and abs(self.mean) > self.half_width

    told_apart = significant  # the name in earlier versions


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Compute the mean and the sample standard deviation of the values that are not NaN.

    Returns:
        the mean, NaN without values; and the standard deviation, None for fewer than two values.

    Examples:
        >>> mean_and_deviation([1.0, 2.0, 3.0, float("nan")])
        (2.0, 1.0)
        >>> mean_and_deviation([4.0])
        (4.0, None)
    """
    values = [value for value in values if not math.isnan(value)]
    return (statistics.fmean(values) if values else math.nan), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float]) -> str:
    """Format the mean and the standard deviation of percentages.

    Returns:
        mean ± standard deviation; the mean only for one value, "undefined" for none.

    Examples:
        >>> spread([89.71, 89.95])
        '89.83 ± 0.17'
        >>> spread([89.71])
        '89.71'
    """
    mean, deviation = mean_and_deviation(values)
    return report.percent(mean) if deviation is None else f"{report.percent(mean)} ± {report.percent(deviation)}"


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Compute the mean difference between two variants and its confidence interval (paired t-test).

    Args:
        first: a metric of one variant by seed.
        second: the same metric of the other variant by seed.

    Returns:
        first minus second, over the seeds that both contain.

    Examples:
        >>> found = difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
        >>> found.mean, round(found.half_width, 4), found.significant
        (2.0, 2.4841, False)
    """
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
    """Whether a sentence of `claims` states a significant difference."""
    return _ORDER in sentence


def claims(figures: Figures, pairs: Sequence[tuple[str, str]], headers: Mapping[str, str]) -> list[str]:
    """Describe which variants differ significantly, in one sentence per metric and pair of variants.

    Args:
        figures: metrics by variant, seed and key of results.json, in percent.
        pairs: names of the variants to compare.
        headers: display names of the metrics to compare, by key of results.json.

    Returns:
        the sentences; with several comparisons, the last one is a caution about chance results.
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
        return [f"{most} seed{'s' if most > 1 else ''}: too few to compare variants ({FEWEST} are needed)"]
    if made > 1:
        sentences.append(f"{made} comparisons, each at {CONFIDENCE:.0%} confidence: between equal variants, about one "
                         f"comparison in {1 / (1 - CONFIDENCE):.0f} is significant by chance")
    return sentences


def _sentence(first: str, second: str, found: Difference) -> str:
    if found.seeds < FEWEST:
        return f"{first} and {second}: too few seeds to compare ({found.seeds} in common, {FEWEST} are needed)"
    interval = f"{abs(found.mean):.2f} ± {found.half_width:.2f}"
    basis = f"{CONFIDENCE:.0%} confidence interval, {found.seeds} paired seeds"
    if found.significant:
        above, below = (first, second) if found.mean > 0 else (second, first)
        return f"{above} is{_ORDER}{below} by {interval} ({basis})"
    return f"no significant difference between {first} and {second} ({interval}; {basis})"


def _of(figures: Figures, name: str, key: str) -> dict[int, float]:
    return {seed: row[key] for seed, row in figures.get(name, {}).items() if row.get(key) is not None}
