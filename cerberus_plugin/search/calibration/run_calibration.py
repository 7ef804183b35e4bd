"""A run's calibration at hand: read for its own checkpoint alone, and put to answers in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...attributes.schema import NONE
from ...inference import ConfidentReader
from ...utils.files import file_sha256
from ..portable import Answer
from . import Calibration

CALIBRATION_FILE = "calibration/calibration.json"  # in the run folder, written by `experiments.calibrate`
COMMAND = "python -m cerberus_plugin.experiments.calibrate"


def read_calibration(run_folder: str | Path, weights: str | Path | None = None,
                     settings: Mapping | None = None) -> Calibration:
    """The calibration of a run; refuses that of another checkpoint, or of other settings.

    Args:
        weights: the checkpoint it is to be used with; the run's file of the name it was fitted on, if None.
        settings: `CerberusPredictor.settings` it is to be used with; not compared if None.
    """
    path = Path(run_folder) / CALIBRATION_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, this run is not calibrated; write it by {COMMAND} {run_folder}")
    calibration = Calibration.read(path)
    checkpoint = Path(weights or Path(run_folder) / calibration.record["checkpoint"])
    wanted, found = calibration.record["checkpoint sha256"], file_sha256(str(checkpoint))
    if found is None:
        raise FileNotFoundError(f"{checkpoint}: cannot be read; {path} was fitted on a checkpoint of this name")
    if found != wanted:
        raise ValueError(f"{path}: was fitted on another checkpoint (sha256 {wanted[:16]}) than {checkpoint} "
                         f"({found[:16]}); its probabilities mean nothing there. Calibrate again by {COMMAND} "
                         f"{run_folder}, or delete it")
    fitted = calibration.record.get("settings", {})
    differ = [f"{name} is {value}, and was {fitted.get(name)} then" for name, value in (settings or {}).items()
              if fitted.get(name) != value]
    if differ:
        raise ValueError(f"{path}: was fitted under other settings ({'; '.join(differ)}); its probabilities mean "
                         "nothing under these. Set them back in config.yaml, or calibrate again by "
                         f"{COMMAND} {run_folder}")
    return calibration


def answers_of(reader: ConfidentReader, embeddings: Tensor, calibration: Calibration | None) -> list[dict[str, Answer]]:
    """Attributes of images with their probabilities, by column: embeddings (N, E) -> N dictionaries.

    Columns that the calibration does not know are answered by the reader's own probabilities, and say so.
    """
    temperatures = calibration.temperatures if calibration else {}
    if temperatures:
        reader = reader.calibrated(temperatures)
    classes, probabilities = (part.cpu().tolist() for part in reader.confidences(embeddings))
    below = calibration.withhold_below if temperatures else {}
    return [{column.name: Answer.of(column.classes[k] if k >= 0 else NONE, p, below.get(column.name))
             for column, k, p in zip(reader.schema.columns, row, shares)}
            for row, shares in zip(classes, probabilities)]
