"""Verification of image pairs: the probability that two images show the same person, and match thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

METRICS = ("cosine", "euclidean")  # TEST.METRIC


@dataclass(frozen=True)
class Verification:
    """Calibration fitted on image pairs by `experiments.calibrate`.

    Attributes:
        slope, intercept: of the log-likelihood ratio as a linear function of the score.
        prior: default prior probability of the same person.
        metric, groups: TEST.METRIC and TEST.GROUPS of the scores.
        thresholds: by false-match rate, the lowest score of a match.

    Raises:
        ValueError: if a number is not finite, or the metric, the groups or the prior are invalid.

    Examples:
        >>> fitted = Verification(20.0, -10.0, 0.5, "cosine", (), {0.001: 0.8})
        >>> fitted.probability(0.5), fitted.threshold(0.001)
        (0.5, 0.8)
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
            raise ValueError(f"'prior' is {self.prior}, expected a probability greater than 0 and less than 1")

    def probability(self, score: float, prior: float | None = None) -> float:
        """Return the probability that two images with this score show the same person.

        Args:
            score: of the images, with `metric` and `groups`.
            prior: prior probability; `self.prior` if None.

        Raises:
            ValueError: if the prior is not between 0 and 1.
        """
        return same_person_probability(score, self.slope, self.intercept, self.prior if prior is None else prior)

    def threshold(self, rate: float) -> float:
        """Return the lowest score of a match for a calibrated false-match rate.

        Raises:
            ValueError: if there is no threshold for this rate.
        """
        if rate not in self.thresholds:
            known = ", ".join(f"{known:g}" for known in self.thresholds) or "none"
            raise ValueError(f"false-match rate {rate:g}: not calibrated; calibrated rates: {known}. Add it with "
                             "--false-match-rate of cerberus_plugin.experiments.calibrate")
        return self.thresholds[rate]

    def to_dict(self) -> dict:
        """Return the fields as plain values, for JSON."""
        return {"slope": self.slope, "intercept": self.intercept, "prior": self.prior, "metric": self.metric,
                "groups": list(self.groups), "thresholds": [[rate, score] for rate, score in self.thresholds.items()]}

    @classmethod
    def from_dict(cls, record: Mapping) -> Verification:
        """Create it from the result of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: if the record is not one of `to_dict`.
        """
        return cls(**(dict(record) | {"groups": tuple(record["groups"]), "thresholds": dict(record["thresholds"])}))


def finite_number(name: str, value: object) -> float:
    """Check that a value read from a file is a finite number.

    Args:
        name: of the value, for the error message.
        value: to check.

    Returns:
        the value as float.

    Raises:
        ValueError: for NaN, infinity and values of other types.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"'{name}' is {value!r:.60}, expected a finite number")
    return float(value)


def same_person_probability(score: float, slope: float, intercept: float, prior: float = 0.5) -> float:
    """Compute the probability that two images with this score show the same person.

    Args:
        score: of the images.
        slope, intercept: of the log-likelihood ratio as a linear function of the score.
        prior: prior probability, such as 0.001 for each of 1,000 candidates of whom one is the person.

    Returns:
        the posterior probability, 0 to 1.

    Raises:
        ValueError: if the prior is not between 0 and 1.

    Examples:
        >>> same_person_probability(0.5, slope=20.0, intercept=-10.0)
        0.5
    """
    if not 0 < prior < 1:
        raise ValueError(f"same person: the prior is {prior}, expected a probability greater than 0 and less than 1")
    log_odds = slope * score + intercept + math.log(prior / (1 - prior))
    return 1 / (1 + math.exp(-log_odds)) if log_odds > 0 else math.exp(log_odds) / (1 + math.exp(log_odds))
