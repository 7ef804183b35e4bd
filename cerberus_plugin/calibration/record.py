"""A calibration as it is kept: RUN/calibration/calibration.json, and what a user of the run takes from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .verification import same_person_probability

FORMAT = 1  # of the file


@dataclass(frozen=True)
class Verification:
    """Whether two images show the same person, from their score.

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


@dataclass(frozen=True)
class Calibration:
    """What calibration.json holds.

    Attributes:
        temperatures: of each recognition column, by its name; they divide scores. Empty for a run without attributes.
        withhold_below: the probability below which a column's answer is withheld; infinite: always.
        verification: of pairs of images.
        record: everything in the file.
    """

    temperatures: Mapping[str, float]
    withhold_below: Mapping[str, float]
    verification: Verification
    record: Mapping

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """The calibration of a file that `experiments.calibrate` wrote."""
        try:
            record = json.loads(Path(path).read_text())
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']}, expected {FORMAT}")
            columns, pairs = record["columns"], record["same person"]
            return cls(
                {name: float(column["temperature"]) for name, column in columns.items()},
                {name: math.inf if column["withhold below"] is None else float(column["withhold below"])
                 for name, column in columns.items()},
                Verification(float(pairs["slope"]), float(pairs["intercept"]), float(pairs["prior"]), pairs["metric"],
                             tuple(pairs["groups"]), {float(row["rate"]): float(row["threshold"])
                                                      for row in pairs["false-match rates"] if "threshold" in row}),
                record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: no calibration that can be read ({reason}); write it again by python -m "
                             "cerberus_plugin.experiments.calibrate RUN") from error
