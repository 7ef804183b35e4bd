"""A checkpoint of torchreid, BoxMOT or the package `reid` as a run folder, which every command then opens.

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

CONFIG, WEIGHTS = "reid_config.json", "weights.safetensors"  # of the package `reid`
CLASSIFIERS = ("classifier.", "heads.weight")  # of the people it was trained on
# FastReID kept these in its checkpoints until 1.3.
NORMALISATION = {"pixel_mean": "MODEL.PIXEL_MEAN", "pixel_std": "MODEL.PIXEL_STD"}
REMEDY = (f"Known are {', '.join(each.name for each in ARCHITECTURES)}. A run of FastReID or of this package needs no "
          "import: put the config.yaml of its training beside model_final.pth. ImageNet weights to begin a training "
          "with go to MODEL.BACKBONE.PRETRAIN_PATH")


@dataclass(frozen=True)
class Imported:
    """A run folder that was made.

    Attributes:
        architecture: its name in the other package.
        size: height and width of its pictures.
        interpolation: by which they are resized.
        left_out: names of tensors that are of no use here: classifiers of training people.
    """

    architecture: str
    size: tuple[int, int]
    interpolation: str
    left_out: tuple[str, ...]


def import_checkpoint(source: str | Path, out: str | Path) -> Imported:
    """Write a checkpoint as a run: config.yaml with the host's Baseline, and model_final.pth in the host's names.

    Args:
        source: a file of weights, or a folder with reid_config.json and weights.safetensors.
        out: folder to make; one that holds a run is refused.

    Raises:
        ValueError: names the file, what was found and what is expected.
    """
    source, out = Path(source), Path(out)
    if (out / "config.yaml").exists():
        raise ValueError(f"{out}: holds a run already; give another folder by --out")
    known, given = _described(source / CONFIG) if source.is_dir() else (None, {})
    path = source / WEIGHTS if source.is_dir() else source
    tensors, _ = pretrained.opened(host.read_tensors(path, map_location="cpu"), str(path))
    architecture = known or next((each for each in ARCHITECTURES if each.fits(tensors)), None)
    if architecture is None:
        raise ValueError(f"{path}: its tensors, such as {', '.join(list(tensors)[:3])}, are of no model that can be "
                         f"opened as a run. {REMEDY}")
    held = {NORMALISATION[name]: tensors.pop(name).flatten().tolist() for name in NORMALISATION if name in tensors}
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg = with_values(cfg, {
        **architecture.options, "MODEL.BACKBONE.PRETRAIN": False,
        "INPUT.SIZE_TRAIN": list(architecture.size), "INPUT.SIZE_TEST": list(architecture.size),
        "INPUT.INTERPOLATION": architecture.interpolation, "OUTPUT_DIR": str(out),
        "DATASETS.NAMES": [], "DATASETS.TESTS": [], **held, **given})
    left_out = tuple(name for name in tensors if name.startswith(CLASSIFIERS))
    state = _fitted({name: value for name, value in tensors.items() if name not in left_out}, architecture, cfg, path)
    write_whole(out / "model_final.pth", lambda file: torch.save({"model": state}, file))
    write_text(str(out / "config.yaml"), cfg.dump())
    return Imported(architecture.name, tuple(cfg.INPUT.SIZE_TEST), cfg.INPUT.INTERPOLATION, left_out)


def _fitted(tensors: Mapping[str, Tensor], architecture: Architecture, cfg: CfgNode, path: Path) -> dict[str, Tensor]:
    """All tensors of the host's model, by its names; the file must have these and no others."""
    wanted = build_model(with_values(cfg, {"MODEL.DEVICE": "cpu"})).state_dict()
    state = {}
    for name, value in tensors.items():
        ours = architecture.to_host(name)
        if ours not in wanted:
            raise ValueError(f"{path}: holds '{name}', which {architecture.name} has not, so it is of another model. "
                             f"{REMEDY}")
        if value.numel() != wanted[ours].numel():
            raise ValueError(f"{path}: '{name}' is {_size(value)}, expected {_size(wanted[ours])} in "
                             f"{architecture.name}. {REMEDY}")
        state[ours] = value.to(wanted[ours].dtype).reshape(wanted[ours].shape)  # a fully connected layer is 1 x 1 here
    # Older files have no counters of batches; the classifier is of no people.
    others = {name: value for name, value in wanted.items()
              if name.endswith("num_batches_tracked") or not value.numel()}
    absent = [name for name in wanted if name not in state and name not in others]
    if absent:
        raise ValueError(f"{path}: lacks '{architecture.from_host(absent[0])}' and {len(absent) - 1} other tensors of "
                         f"{architecture.name}; it is cut short or of another model. {REMEDY}")
    return others | state


def _described(path: Path) -> tuple[Architecture, dict[str, Any]]:
    """The model that a reid_config.json names, and its settings of pictures by key."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; give a file of weights, or a folder that the package reid wrote")
    record = read_json(path, "write the folder again by save_pretrained of the package reid")
    name = record.get("architecture") if isinstance(record, dict) else None
    if name not in IN_REID:
        raise ValueError(f"{path}: 'architecture' is {name!r:.60}, expected one of {', '.join(IN_REID)}")
    pictures = record.get("preprocessing") or {}
    found = {}
    for key, allowed in (("resize_mode", ("stretch",)), ("interpolation", INTERPOLATIONS)):
        if key in pictures and pictures[key] not in allowed:
            raise ValueError(f"{path}: '{key}' is {pictures[key]!r:.60}, expected {' or '.join(allowed)}: pictures are "
                             "resized to the model's size in no other way here")
    if "interpolation" in pictures:
        found["INPUT.INTERPOLATION"] = pictures["interpolation"]
    if "input_size" in pictures:
        size = [int(each) for each in _numbers(pictures["input_size"], 2, path, "input_size")]
        found |= {"INPUT.SIZE_TRAIN": size, "INPUT.SIZE_TEST": size}
    for key, ours in (("mean", "MODEL.PIXEL_MEAN"), ("std", "MODEL.PIXEL_STD")):
        if key in pictures:  # of pixels in 0..1
            values = [255 * each for each in _numbers(pictures[key], 3, path, key, key == "mean")]
            if not np.allclose(values, defaults()[ours], rtol=0, atol=1e-5):  # the same but for rounding
                found[ours] = values
    return IN_REID[name], found


def _numbers(value: Any, count: int, path: Path, key: str, zero: bool = False) -> Sequence[float]:
    if not (isinstance(value, list) and len(value) == count and all(
            isinstance(each, int | float) and math.isfinite(each) and (each > 0 or zero) for each in value)):
        raise ValueError(f"{path}: '{key}' is {value!r:.60}, expected {count} {'' if zero else 'positive '}numbers")
    return value


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
