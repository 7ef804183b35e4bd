"""Whether two pictures show the same person: a probability from their score, and the scores from which on they match.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

METRICS = ("cosine", "euclidean")  # TEST.METRIC


@dataclass(frozen=True)
class Verification:
    """What `experiments.calibrate` has fitted on pairs of pictures.

    Attributes:
        slope, intercept: of the log likelihood ratio in the score.   prior: of the probability, where none is given.
        metric, groups: of the score: TEST.METRIC, TEST.GROUPS.
        thresholds: scores from which on two images match, by false-match rate.
    """

    slope: float
    intercept: float
    prior: float
    metric: str
    groups: tuple[str, ...]
    thresholds: Mapping[float, float]

    def __post_init__(self) -> None:
        for name, value in (("slope", self.slope), ("intercept", self.intercept), ("prior", self.prior),
                            *(("false-match rate", rate) for rate in self.thresholds),
                            *(("threshold", score) for score in self.thresholds.values())):
            finite_number(name, value)
        if self.metric not in METRICS or not all(isinstance(group, str) for group in self.groups):
            raise ValueError(f"'metric' is {self.metric!r:.60} and 'groups' {self.groups!r:.60}, expected one of "
                             f"{', '.join(METRICS)} and names")
        if not 0 < self.prior < 1:
            raise ValueError(f"'prior' is {self.prior}, expected a probability between 0 and 1, without both")

    def probability(self, score: float, prior: float | None = None) -> float:
        """That a pair of this score is of one person."""
        return same_person_probability(score, self.slope, self.intercept, self.prior if prior is None else prior)

    def threshold(self, rate: float) -> float:
        """The score from which on two images match, at a false-match rate that was calibrated."""
        if rate not in self.thresholds:
            known = ", ".join(f"{known:g}" for known in self.thresholds) or "none"
            raise ValueError(f"false-match rate {rate:g}: not calibrated, there are {known}; name it by "
                             "--false-match-rate of cerberus_plugin.experiments.calibrate")
        return self.thresholds[rate]

    def to_dict(self) -> dict:
        """A record of plain values, for JSON."""
        return {"slope": self.slope, "intercept": self.intercept, "prior": self.prior, "metric": self.metric,
                "groups": list(self.groups), "thresholds": [[rate, score] for rate, score in self.thresholds.items()]}

    @classmethod
    def from_dict(cls, record: Mapping) -> Verification:
        """The inverse of `to_dict`."""
        return cls(**(dict(record) | {"groups": tuple(record["groups"]), "thresholds": dict(record["thresholds"])}))


def finite_number(name: str, value: object) -> float:
    """A number that a file holds, as float; ValueError for NaN, infinity and text."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"'{name}' is {value!r:.60}, expected a finite number")
    return float(value)


def same_person_probability(score: float, slope: float, intercept: float, prior: float = 0.5) -> float:
    """The probability that a pair of this score is of one person.

    Args:
        prior: the probability before looking: 0.5 for "as likely as not"; among 1,000 candidates of whom one is the
            person it is 0.001.
    """
    if not 0 < prior < 1:
        raise ValueError(f"same person: the prior is {prior}, expected a probability between 0 and 1, without both")
    log_odds = slope * score + intercept + math.log(prior / (1 - prior))
    return 1 / (1 + math.exp(-log_odds)) if log_odds > 0 else math.exp(log_odds) / (1 + math.exp(log_odds))
