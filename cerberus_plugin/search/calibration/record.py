"""The file of a calibration, RUN/calibration/calibration.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...utils.files import read_json
from ..portable.verification import Verification, finite_number

CALIBRATION_FORMAT = 2  # of the file; format 1 had no settings and weaker guarantees
REMEDY = "write it again with python -m cerberus_plugin.experiments.calibrate RUN, or delete it"


@dataclass(frozen=True)
class Calibration:
    """The contents of calibration.json.

    Attributes:
        temperatures: temperature of each attribute, by name; divides the scores before the softmax. Empty for a run
            without attributes.
        withhold_below: by attribute, the probability below which the prediction is "uncertain"; infinity: always.
        verification: of image pairs.
        record: all contents of the file.
    """

    temperatures: Mapping[str, float]
    withhold_below: Mapping[str, float]
    verification: Verification
    record: Mapping

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Read a calibration file written by `experiments.calibrate`.

        Args:
            path: of calibration.json.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is damaged or has another format.
        """
        record = read_json(path, REMEDY)
        try:
            if record["format"] != CALIBRATION_FORMAT:
                raise ValueError(f"its format is {record['format']}, expected {CALIBRATION_FORMAT}")
            columns, pairs = record["columns"], record["same person"]
            temperatures = {name: finite_number("temperature", column["temperature"])
                            for name, column in columns.items()}
            below = {name: math.inf if column["withhold below"] is None else
                     finite_number("withhold below", column["withhold below"]) for name, column in columns.items()}
            if min([*temperatures.values(), 1]) <= 0 or min([*below.values(), 0]) < 0:
                raise ValueError("a 'temperature' is not greater than 0, or a 'withhold below' is less than 0")
            if not all(isinstance(record[key], str) for key in ("checkpoint", "checkpoint sha256")) or not isinstance(
                    record.get("settings", {}), Mapping):
                raise ValueError("'checkpoint', 'checkpoint sha256' or 'settings' has the wrong type")
            thresholds = {row["rate"]: row["threshold"] for row in pairs["false-match rates"] if "threshold" in row}
            verification = Verification(*(pairs[name] for name in ("slope", "intercept", "prior", "metric")),
                                        tuple(pairs["groups"]), thresholds)
            return cls(temperatures, below, verification, record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path}: not a valid calibration file ({reason}); {REMEDY}") from error
