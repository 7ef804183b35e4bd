"""A calibration as it is kept: RUN/calibration/calibration.json, and what a user of the run takes from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..portable.verification import Verification

FORMAT = 2  # of the file; 1 did not keep the settings, and vouched for less


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
