"""Convert a checkpoint of torchreid, BoxMOT or the package `reid` to a run folder, which every command can open.

    cerberus import osnet_x1_0_msmt17.pth --out runs/osnet
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling.meta_arch import build_model
from torch import Tensor

from .. import host, pretrained
from ..config import add_cerberus_config, defaults, with_values
from ..utils.files import read_json, write_text, write_whole
from ..utils.images import INTERPOLATIONS
from .architectures import ARCHITECTURES, IN_REID, Architecture

CONFIG, WEIGHTS = "reid_config.json", "weights.safetensors"  # files of the package `reid`
CLASSIFIERS = ("classifier.", "heads.weight")  # prefixes of the classifiers of training identities
# Checkpoints of FastReID up to 1.3 contain these tensors.
NORMALISATION = {"pixel_mean": "MODEL.PIXEL_MEAN", "pixel_std": "MODEL.PIXEL_STD"}
REMEDY = (f"Supported models: {', '.join(each.name for each in ARCHITECTURES)}. A run of FastReID or of this package "
          "needs no import: put the config.yaml of its training next to model_final.pth. To start a training from "
          "ImageNet weights, set MODEL.BACKBONE.PRETRAIN_PATH")


@dataclass(frozen=True)
class Imported:
    """Summary of an import.

    Args:
        architecture: name of the model in the other package.
        size: H, W of the images in pixels.
        interpolation: "bilinear" or "bicubic", used to resize images.
        left_out: names of the tensors that were skipped: classifiers of training identities.
    """

    architecture: str
    size: tuple[int, int]
    interpolation: str
    left_out: tuple[str, ...]


def import_checkpoint(source: str | Path, out: str | Path) -> Imported:
    """Convert a checkpoint to a run: config.yaml with FastReID's Baseline, and model_final.pth with FastReID's names.

    Args:
        source: a weight file, or a folder with reid_config.json and weights.safetensors.
        out: folder to create.

    Returns:
        the recognised model and its preprocessing.

    Raises:
        ValueError: if `out` contains a run, or the file does not contain a supported model.
        FileNotFoundError: if a file is missing.
    """
    source, out = Path(source), Path(out)
    if (out / "config.yaml").exists():
        raise ValueError(f"{out}: already contains a run; choose another folder with --out")
    named, given = _described(source / CONFIG) if source.is_dir() else (None, {})
    path = source / WEIGHTS if source.is_dir() else source
    tensors, _ = pretrained.opened(host.read_tensors(path, map_location="cpu"), str(path))
    architecture = named or next((each for each in ARCHITECTURES if each.fits(tensors)), None)
    if architecture is None:
        raise ValueError(f"{path}: its tensors, such as {', '.join(list(tensors)[:3])}, do not belong to a supported "
                         f"model. {REMEDY}")
    normalisation = {key: tensors.pop(name).flatten().tolist() for name, key in NORMALISATION.items()
                     if name in tensors}
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg = with_values(cfg, {
        **architecture.options, "MODEL.BACKBONE.PRETRAIN": False,
        "INPUT.SIZE_TRAIN": list(architecture.size), "INPUT.SIZE_TEST": list(architecture.size),
        "INPUT.INTERPOLATION": architecture.interpolation, "OUTPUT_DIR": str(out),
        "DATASETS.NAMES": [], "DATASETS.TESTS": [], **normalisation, **given})
    left_out = tuple(name for name in tensors if name.startswith(CLASSIFIERS))
    state = _fitted({name: value for name, value in tensors.items() if name not in left_out}, architecture, cfg, path)
    write_whole(out / "model_final.pth", lambda file: torch.save({"model": state}, file))
    write_text(str(out / "config.yaml"), cfg.dump())
    return Imported(architecture.name, tuple(cfg.INPUT.SIZE_TEST), cfg.INPUT.INTERPOLATION, left_out)


def _fitted(tensors: Mapping[str, Tensor], architecture: Architecture, cfg: CfgNode, path: Path) -> dict[str, Tensor]:
    """Rename the tensors of a file to those of FastReID's model; both must have exactly the same tensors.

    Args:
        tensors: of the file, by name.
        architecture: of the file.
        cfg: configuration that builds FastReID's model.
        path: of the file, for error messages.
    """
    wanted = build_model(with_values(cfg, {"MODEL.DEVICE": "cpu"})).state_dict()
    state = {}
    for name, value in tensors.items():
        ours = architecture.to_host(name)
        if ours not in wanted:
            raise ValueError(f"{path}: contains '{name}', which {architecture.name} does not have, so the file is of "
                             f"another model. {REMEDY}")
        if value.numel() != wanted[ours].numel():
            raise ValueError(f"{path}: '{name}' is {_size(value)}, expected {_size(wanted[ours])} in "
                             f"{architecture.name}. {REMEDY}")
        state[ours] = value.to(wanted[ours].dtype).reshape(wanted[ours].shape)  # linear layers are 1 x 1 convolutions
    # Older files have no num_batches_tracked; the classifier has no identities and therefore no elements.
    others = {name: value for name, value in wanted.items()
              if name.endswith("num_batches_tracked") or not value.numel()}
    absent = [name for name in wanted if name not in state and name not in others]
    if absent:
        raise ValueError(f"{path}: lacks '{architecture.from_host(absent[0])}' and {len(absent) - 1} other tensors of "
                         f"{architecture.name}; the file is incomplete or of another model. {REMEDY}")
    return others | state


def _described(path: Path) -> tuple[Architecture, dict[str, Any]]:
    """Read a reid_config.json: the model, and the configuration keys of its preprocessing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; pass a weight file, or a folder that the package reid saved")
    record = read_json(path, "save the folder again with save_pretrained of the package reid")
    name = record.get("architecture") if isinstance(record, dict) else None
    if name not in IN_REID:
        raise ValueError(f"{path}: 'architecture' is {name!r:.60}, expected one of {', '.join(IN_REID)}")
    preprocessing = record.get("preprocessing") or {}
    found = {}
    for key, allowed in (("resize_mode", ("stretch",)), ("interpolation", INTERPOLATIONS)):
        if key in preprocessing and preprocessing[key] not in allowed:
            raise ValueError(f"{path}: '{key}' is {preprocessing[key]!r:.60}, expected {' or '.join(allowed)}; other "
                             "ways to resize images are not supported")
    if "interpolation" in preprocessing:
        found["INPUT.INTERPOLATION"] = preprocessing["interpolation"]
    if "input_size" in preprocessing:
        size = [int(each) for each in _numbers(preprocessing["input_size"], 2, path, "input_size")]
        found |= {"INPUT.SIZE_TRAIN": size, "INPUT.SIZE_TEST": size}
    for key, ours in (("mean", "MODEL.PIXEL_MEAN"), ("std", "MODEL.PIXEL_STD")):
        if key in preprocessing:  # for pixels from 0 to 1
            values = [255 * each for each in _numbers(preprocessing[key], 3, path, key, key == "mean")]
            if not np.allclose(values, defaults()[ours], rtol=0, atol=1e-5):  # equal except for rounding
                found[ours] = values
    return IN_REID[name], found


def _numbers(value: Any, count: int, path: Path, key: str, zero: bool = False) -> Sequence[float]:
    """Check that a value is a list of `count` finite numbers, positive unless `zero`."""
    if not (isinstance(value, list) and len(value) == count and all(
            isinstance(each, int | float) and math.isfinite(each) and (each > 0 or zero) for each in value)):
        raise ValueError(f"{path}: '{key}' is {value!r:.60}, expected {count} {'' if zero else 'positive '}numbers")
    return value


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
