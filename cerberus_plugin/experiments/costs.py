"""Parameters and operations of a model, counted as in the paper and by torch, and measured times."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable

import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..attributes import MARKET1501, MISSING, SIDTable
from ..config import with_values
from ..engine.trainer import CerberusTrainer
from ..modeling import precision
from ..utils import environment

WARM, STEPS = 3, 10  # steps before timing (allocations, compilation), and timed steps


def costs(cfg: CfgNode) -> dict:
    """Return `counts` and `times` of a configuration, by name."""
    return {**counts(cfg), **times(cfg)}


def counts(cfg: CfgNode) -> dict[str, int]:
    """Count the parameters that the embedding of an image depends on, and the operations for one image.

    "multiply-adds, paper" counts the multiply-adds of convolutions and linear layers, and two operations per output of
    batch normalisation of maps; this gives the paper's 10.06 G. "operations, torch" is the count of torch: two per
    multiply-add, with the matrix products of attention and without batch normalisation. Classifiers are not included.

    Args:
        cfg: configuration of a model.
    """
    model = build_model(_filled(cfg)).eval().requires_grad_()  # including layers that a recipe freezes
    height, width = cfg.INPUT.SIZE_TEST
    found = {"macs": 0, "outputs": 0}

    def measure(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            found["macs"] += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.BatchNorm2d):
            found["outputs"] += output.numel()

    handles = [module.register_forward_hook(measure) for module in model.modules()]
    counter = FlopCounterMode(display=False)
    with counter:
        embedding = model({"images": torch.rand(1, 3, height, width) * 255})
    for handle in handles:
        handle.remove()
    # Classifiers and prototypes are used in training only, so they have no gradient of the embedding.
    gradients = torch.autograd.grad(embedding.sum(), list(model.parameters()), allow_unused=True)
    return {"parameters": sum(gradient.numel() for gradient in gradients if gradient is not None),
            "multiply-adds, paper": found["macs"] + 2 * found["outputs"],
            "operations, torch": counter.get_total_flops(), "values an embedding": embedding.shape[1]}


def times(cfg: CfgNode, warm: int = WARM, steps: int = STEPS) -> dict[str, float | int | str]:
    """Measure the time of a training step, with data loading, and of extraction; both are medians.

    Extraction uses random images in device memory, without reading files. The run folder is not changed.

    Args:
        cfg: configuration of a model and its training set.
        warm: steps before timing.
        steps: timed steps.

    Returns:
        Seconds per training step, images per second of extraction, and the batch sizes, precisions and hardware that
        they were measured with, by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = _times(with_values(cfg, {"OUTPUT_DIR": folder}), warm, steps)
    gc.collect()  # trainer and hooks refer to each other; free the device memory for the next run
    hardware = environment.hardware(cfg.MODEL.DEVICE)
    half = precision.computes_in_half(torch.device(cfg.MODEL.DEVICE))
    trained, extracted = (named if half and named else "float32" for named in (cfg.SOLVER.AUTOCAST, cfg.TEST.AUTOCAST))
    return found | {"precision of a step": "float16" if cfg.SOLVER.AMP.ENABLED else trained,
                    "precision of extraction": extracted,
                    "machine": hardware.get("gpu") or f"{hardware['processor']}, {hardware['cores']} core(s)"}


def _times(cfg: CfgNode, warm: int, steps: int) -> dict[str, float | int]:
    trainer = CerberusTrainer(cfg)
    with EventStorage(0) as trainer.storage:

        def step() -> None:
            trainer.iter = trainer.storage.iter
            trainer.run_step()
            trainer.storage.step()

        step_seconds = _median(step, warm, steps)
    height, width = cfg.INPUT.SIZE_TEST
    model = trainer.model.eval()
    images = torch.rand(cfg.TEST.IMS_PER_BATCH, 3, height, width, device=cfg.MODEL.DEVICE) * 255

    def extract() -> None:
        with torch.no_grad():
            model({"images": images.clone()})  # models of FastReID normalise in place

    return {"seconds a training step": step_seconds, "images a step": cfg.SOLVER.IMS_PER_BATCH,
            "milliseconds a training image": 1000 * step_seconds / cfg.SOLVER.IMS_PER_BATCH,
            "images a second, extraction": len(images) / _median(extract, warm, steps),
            "images a batch, extraction": len(images)}


def _median(work: Callable[[], None], warm: int, steps: int) -> float:
    """Median of the seconds of `steps` calls."""
    seconds = [environment.timed(work)[0] for _ in range(warm + steps)]
    return torch.tensor(seconds[warm:]).median().item()


def _filled(cfg: CfgNode) -> CfgNode:
    """Set the CPU and random weights, and the sizes of Market-1501 if no dataset has set them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.PRETRAIN = "cpu", False
    cfg.MODEL.HEADS.NUM_CLASSES = cfg.MODEL.HEADS.NUM_CLASSES or 751
    if not (cfg.MODEL.CERBERUS.SCHEMA or cfg.MODEL.APR.SCHEMA):
        unlabelled = torch.full((1, len(MARKET1501.fields)), MISSING)
        cfg.MODEL.CERBERUS.SCHEMA = cfg.MODEL.APR.SCHEMA = MARKET1501.name
        cfg.MODEL.CERBERUS.NUM_SIDS = list(SIDTable.build(MARKET1501, unlabelled).sizes)
    cfg.freeze()
    return cfg
