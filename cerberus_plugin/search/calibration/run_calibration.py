"""The calibration of a run: load it, check that it fits the checkpoint, and apply it to predictions."""

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
    """Read the calibration of a run, and check that it belongs to the checkpoint and the settings.

    Args:
        run_folder: folder of the run.
        weights: checkpoint to use the calibration with; if None, the file in the run folder with the name of the
            calibrated checkpoint.
        settings: `CerberusPredictor.settings` to use the calibration with; not compared if None.

    Raises:
        FileNotFoundError: if the calibration or the checkpoint does not exist.
        ValueError: if the calibration is damaged, or was fitted with another checkpoint or other settings.
    """
    path = Path(run_folder) / CALIBRATION_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, this run is not calibrated; calibrate with {COMMAND} {run_folder}")
    calibration = Calibration.read(path)
    checkpoint = Path(weights or Path(run_folder) / calibration.record["checkpoint"])
    wanted, found = calibration.record["checkpoint sha256"], file_sha256(str(checkpoint))
    if found is None:
        raise FileNotFoundError(f"{checkpoint}: cannot be read; {path} was fitted with a checkpoint of this name")
    if found != wanted:
        raise ValueError(f"{path}: was fitted with another checkpoint (sha256 {wanted[:16]}) than {checkpoint} "
                         f"({found[:16]}), so its probabilities do not apply. Calibrate again with {COMMAND} "
                         f"{run_folder}, or delete the file")
    fitted = calibration.record.get("settings", {})
    differ = [f"{name} is {value}, but was {fitted.get(name)}" for name, value in (settings or {}).items()
              if fitted.get(name) != value]
    if differ:
        raise ValueError(f"{path}: was fitted with other settings ({'; '.join(differ)}), so its probabilities do not "
                         f"apply. Restore the settings in config.yaml, or calibrate again with {COMMAND} {run_folder}")
    return calibration


def answers_of(reader: ConfidentReader, embeddings: Tensor, calibration: Calibration | None) -> list[dict[str, Answer]]:
    """Predict the attributes of embeddings, with probabilities.

    Args:
        reader: predicts classes and probabilities from embeddings.
        embeddings: float (N, E).
        calibration: to apply; without it, or for attributes that it does not contain, the probabilities are those of
            the reader and `Answer.calibrated` is False.

    Returns:
        N dictionaries from attribute to `Answer`.
    """
    temperatures = calibration.temperatures if calibration else {}
    if temperatures:
        reader = reader.calibrated(temperatures)
    classes, probabilities = (part.cpu().tolist() for part in reader.confidences(embeddings))
    below = calibration.withhold_below if temperatures else {}
    return [{column.name: Answer.of(column.classes[k] if k >= 0 else NONE, p, below.get(column.name))
             for column, k, p in zip(reader.schema.columns, row, shares)}
            for row, shares in zip(classes, probabilities)]
