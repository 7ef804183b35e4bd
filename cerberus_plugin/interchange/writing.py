"""Export a run as a folder that the package `reid` loads: reid_config.json and weights.safetensors.

    cerberus export --run runs/osnet --format reid --output osnet_reid
"""

from __future__ import annotations

import logging
from pathlib import Path

from fastreid.config import CfgNode
from safetensors.torch import save

from ..config import flat
from ..evaluation.model_card import CARD
from ..evaluation.report import read_results
from ..predictor import CerberusPredictor
from ..utils.files import write_json, write_whole
from .architectures import IN_REID, Architecture
from .opening import CONFIG, WEIGHTS

logger = logging.getLogger("fastreid.cerberus")

REMEDY = ("Export ONNX with cerberus export --run RUN --images IMAGES, which any program with onnxruntime can run; "
          "docs/interchange.md shows how to train one of these models, and how to use any run with the package in "
          "Python")


def export_reid(run_folder: str | Path, output: str | Path, weights: str | Path | None = None) -> str:
    """Export a run for the package `reid`, which then computes the same embeddings.

    Args:
        run_folder: folder of the run.
        output: folder to create; files of an earlier export are replaced. The model card of the run is copied.
        weights: another checkpoint of the run.

    Returns:
        the name of the model in the package.

    Raises:
        ValueError: if the package does not support this model or its image preprocessing; the message lists the
            differences.
    """
    predictor = CerberusPredictor(run_folder, weights, device="cpu", precise=True)
    architecture = _architecture_of(predictor)
    record = {"architecture": architecture.name, "preprocessing": _preprocessing(predictor)}
    tensors = {}
    for name, value in predictor.model.state_dict().items():
        theirs = architecture.from_host(name)
        if value.numel():  # an empty tensor is a classifier without identities
            tensors[theirs] = (value.flatten(1) if theirs.startswith("fc.0.w") else value).contiguous()
    write_whole(Path(output) / WEIGHTS, lambda file: file.write(save(tensors)))
    write_json(str(Path(output) / CONFIG), record)
    _copy_card(predictor, Path(output))
    return architecture.name


def _copy_card(predictor: CerberusPredictor, output: Path) -> None:
    """Copy the model card of the run, where it is of the exported checkpoint."""
    card = Path(predictor.run_folder) / CARD
    if not card.is_file():
        return
    evaluated = (read_results(str(predictor.run_folder)).get("manifest") or {}).get("checkpoint")
    if evaluated == Path(predictor.cfg.MODEL.WEIGHTS).name:
        write_whole(output / CARD, lambda file: file.write(card.read_bytes()))
    else:
        logger.warning(f"{card} is of {evaluated}, not of {predictor.cfg.MODEL.WEIGHTS}: not copied")


def _architecture_of(predictor: CerberusPredictor) -> Architecture:
    """The architecture of the package `reid` that the run's configuration builds."""
    values = flat(predictor.cfg)
    differing = {name: [key for key, value in each.options.items() if values[key] != value]
                 for name, each in IN_REID.items()}
    nearest = IN_REID[min(differing, key=lambda name: len(differing[name]))]
    if differing[nearest.name]:
        found = ", ".join(f"{key} {values[key]}, expected {nearest.options[key]}" for key in differing[nearest.name])
        raise ValueError(f"{predictor.run_folder}: the package reid supports only {', '.join(IN_REID)}. The most "
                         f"similar is {nearest.name}; the run has {found}. {REMEDY}")
    return nearest


def _preprocessing(predictor: CerberusPredictor) -> dict:
    """The entry `preprocessing` of reid_config.json, for pixels from 0 to 1."""
    cfg: CfgNode = predictor.cfg
    if len(cfg.INPUT.SIZE_TEST) != 2 or cfg.INPUT.CROP.ENABLED:
        raise ValueError(f"{predictor.run_folder}: INPUT.SIZE_TEST is {list(cfg.INPUT.SIZE_TEST)} and "
                         f"INPUT.CROP.ENABLED {cfg.INPUT.CROP.ENABLED}; the package reid resizes all images to one "
                         "height and width, so only runs that do the same can be exported")
    return {"input_size": list(cfg.INPUT.SIZE_TEST), "interpolation": cfg.INPUT.INTERPOLATION,
            "mean": [each / 255 for each in cfg.MODEL.PIXEL_MEAN], "std": [each / 255 for each in cfg.MODEL.PIXEL_STD],
            "resize_mode": "stretch", "to_rgb": True}
