"""Train on own data: detect the hardware, record the options, train, calibrate, and write the report.

    RUN/train.json    options and chosen configuration, written before the first step; --resume reads it
"""

from __future__ import annotations

import argparse
import logging
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from fastreid.engine.train_loop import HookBase
from tabulate import tabulate
from torchvision.models import MobileNet_V2_Weights, ResNet18_Weights, ResNet50_Weights

from .. import pretrained
from ..config import configuration
from ..engine.trainer import CerberusTrainer, read_config, setup
from ..evaluation import model_card
from ..evaluation.report import aligned, read_results
from ..experiments import calibrate
from ..host import read_pretrained
from ..own_data.recipe import Recipe, Wish
from ..predictor import CerberusPredictor
from ..utils.files import read_json, write_json
from .log import short_log
from .page import sections_of, write_page

RECORD = "train.json"
IMAGENET = {"tiny": MobileNet_V2_Weights.IMAGENET1K_V1.url, "small": ResNet18_Weights.IMAGENET1K_V1.url,
            "base": ResNet50_Weights.IMAGENET1K_V1.url}  # by --size
logger = logging.getLogger("fastreid.cerberus")


class LastCheckpoint(HookBase):
    """Hook that keeps only the last checkpoint to resume from; register it after the hook that saves checkpoints.

    Each checkpoint takes hundreds of megabytes.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_epoch(self) -> None:
        last = self.folder / "last_checkpoint"
        named = last.read_text() if last.is_file() else ""
        for path in self.folder.glob("model_[0-9]*.pth"):
            if named and path.name != os.path.basename(named):
                path.unlink()


def has_gpu(given: Mapping[str, str]) -> bool:
    """Return whether to train on a GPU: there is one, and MODEL.DEVICE is not "cpu"."""
    return torch.cuda.is_available() and not given.get("MODEL.DEVICE", "cuda").startswith("cpu")


def pretrained_weights(file: str, gpu: bool, given: Mapping[str, str], size: str = "") -> tuple[str, dict[str, str]]:
    """Return the file of weights to initialise the backbone with, "" for none, and the backbone that it belongs to.

    On a GPU without a file: torchvision's for ImageNet, from torch's cache or downloaded into it.

    Args:
        file: path as given by --weights; empty for none.
        gpu: whether the run trains on a GPU.
        given: KEY value of the configuration.
        size: --size; empty for the default, ResNet-50.

    Returns:
        the path, and keys of MODEL.BACKBONE as of `pretrained.backbone_of`.

    Raises:
        FileNotFoundError, ValueError: if there are none, with a remedy.
    """
    url = IMAGENET[size or "base"]
    remedy = (f"Give a file by --weights, such as {url} (torchvision's for ImageNet), or train from scratch with "
              "MODEL.BACKBONE.PRETRAIN False.")
    key = "MODEL.BACKBONE.PRETRAIN"
    if file and f"{key}_PATH" in given:
        raise ValueError(f"--weights {file} and {key}_PATH {given[f'{key}_PATH']} conflict; give one of them.")
    path = file or given.get(f"{key}_PATH", "")
    if given.get(key, "").lower() == "false":
        if path:
            raise ValueError(f"{key} False trains from scratch, but {path} is a file of weights; omit one of the two")
        return "", {}
    if path and not os.path.isfile(path):
        raise FileNotFoundError(f"--weights {path}: no such file. {remedy}")
    if not path and (gpu or given.get(key, "").lower() == "true"):
        name = os.path.basename(url)
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        path = str(folder / name)
        if not os.path.isfile(path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(url, path, hash_prefix=Path(name).stem.split("-")[1])
            except (OSError, RuntimeError) as error:
                raise ValueError(f"weights of ImageNet for the backbone could not be downloaded ({error}). "
                                 f"{remedy}") from error
    if not path:
        return "", {}
    contents = read_pretrained(path)
    source = pretrained.recognise(contents, given.get(f"{key}_SOURCE", ""))
    return os.path.abspath(path), pretrained.backbone_of(source.rename(contents.tensors))


def check_folder(folder: Path, resume: bool) -> dict | None:
    """Check the folder of a run.

    Args:
        folder: folder of the run.
        resume: whether to resume a run.

    Returns:
        the record of the run to resume; None for a new run.

    Raises:
        ValueError: if the folder contains other files, or a run and `resume` is False, or if the record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: exists and was not made by cerberus train; give another --out.")
        return None
    if not resume:
        raise ValueError(f"{folder}: already contains a run; continue it with --resume, give another --out, or delete "
                         "the folder.")
    record = read_json(str(path), "delete the folder and train again")
    missing = [key for key in ("said", "file", "choices", "findings") if key not in record]
    if missing:
        raise ValueError(f"{path}: has no '{missing[0]}'; delete the folder and train again.")
    return record


def refuse_other_choices(folder: Path, record: Mapping, said: Mapping) -> None:
    """Check that a resumed run has the options with which it was started, so that its result is the same.

    Options that are not given again keep their values.

    Args:
        folder: folder of the run.
        record: its record.
        said: options of the present command.

    Raises:
        ValueError: if an option differs.
    """
    differ = [f"{key} is {value!r} and was {record['said'].get(key) or 'not given'!r}" for key, value in said.items()
              if value and value != record["said"].get(key)]
    if differ:
        raise ValueError(f"{folder}: --resume continues with the options of the first start, but {'; '.join(differ)}. "
                         "Omit these options, or train again in another --out.")


def begin(folder: Path, data: str, name_pattern: str, wish: Wish, recipe: Recipe, findings: Sequence,
          said: Mapping) -> dict:
    """Write the record of a new run, and return it.

    Args:
        folder: folder of the run.
        data, name_pattern: the data, see `read_people`.
        wish: options of the user for the configuration.
        recipe: the chosen configuration.
        findings: findings of `check`.
        said: all options of the command, for --resume.

    Raises:
        ValueError: if a configuration key or value is not valid.
    """
    fixed = {"DATASETS.NAMES": f"({os.path.abspath(data)!r},)", "DATASETS.TESTS": f"({os.path.abspath(data)!r},)",
             "DATASETS.NAME_PATTERN": name_pattern}
    options = recipe.options
    for key, value in fixed.items():
        if key not in wish.given:
            options += [key, value]
    read_config(_arguments(recipe.file, options))  # checks keys and values before writing anything
    record = {"said": dict(said), "data": os.path.abspath(data), "file": recipe.file, "options": options,
              "choices": [list(choice) for choice in recipe.choices], "findings": findings,
              "calibrated on": recipe.calibrated_on, "not calibrated": recipe.not_calibrated}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(str(folder / RECORD), record)
    return record


def train(folder: Path, record: Mapping) -> None:
    """Train or resume, evaluate, calibrate if there are enough people, and write the report.

    Args:
        folder: folder of the run.
        record: returned by `begin`, or by `check_folder` for a run to resume.
    """
    # The folder may have been moved since the run was started.
    args = _arguments(record["file"], [*map(str, record["options"]), "OUTPUT_DIR", str(folder)])
    with short_log(folder):
        cfg = setup(args)
        trainer = CerberusTrainer(cfg)
        trainer.register_hooks([LastCheckpoint(folder)])
        trainer.resume_or_load(resume=True)
        trainer.train()
        del trainer  # frees the GPU memory of its model
        predictor = CerberusPredictor(folder, device=cfg.MODEL.DEVICE)
        calibrated = record["not calibrated"]
        if record["calibrated on"]:
            calibrated = _calibrate(predictor, folder)
        elif calibrated:
            logger.info(f"probabilities are not calibrated: {calibrated}")
        write_page(folder, record, predictor, calibrated)
        model_card.write(folder)  # once more: it tells whether the run is calibrated


def _arguments(file: str, options: list[str]) -> argparse.Namespace:
    """Arguments of FastReID's `default_setup`."""
    return argparse.Namespace(config_file=str(configuration(file)), opts=options, resume=True, eval_only=False)


def _calibrate(predictor: CerberusPredictor, folder: Path) -> str:
    """Calibrate; return the reason if it failed, otherwise ""."""
    output = folder / os.path.dirname(calibrate.CALIBRATION_FILE)
    output.mkdir(exist_ok=True)
    try:
        record = calibrate.run(predictor, predictor.cfg.DATASETS.TESTS[0], calibrate.FALSE_MATCH_RATES,
                               calibrate.ACCURACY, calibrate.PRIOR, output)
    except ValueError as error:
        logger.warning(f"probabilities are not calibrated: {error}")
        return str(error)
    logger.info(f"probabilities are calibrated on {record['fitted on']} and measured on {record['measured on']}; "
                f"written to {output}")
    return ""


def table_of(record: Mapping) -> str:
    """Format the chosen configuration with reasons for the terminal."""
    rows = [("configuration", record["file"], "the base, changed by the following keys"), *record["choices"]]
    return tabulate([[key, *("\n".join(textwrap.wrap(cell, width)) for cell, width in zip(texts, (48, 60)))]
                     for key, *texts in rows], ["key", "value", "reason"], disable_numparse=True)


def figures_of(folder: Path) -> str:
    """Format the metrics of a finished run, with those before training, for the terminal."""
    results = read_results(str(folder))
    parts = []
    for name, figures in results["results"].items():
        for section in sections_of(figures, results["before training"].get(name, {})):
            parts.append(f"{section.title}\n{aligned(section.rows, section.columns)}")
    return "\n\n".join(parts)
