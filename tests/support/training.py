"""Small configurations and models, and training runs of them."""

from pathlib import Path

from cerberus_plugin import add_cerberus_config
from cerberus_plugin.attributes import GROUPS
from cerberus_plugin.modeling.backbones import register_split, split_resnet

import torch
from fastreid.config import get_cfg
from fastreid.modeling.meta_arch import build_model
from torch import nn

from support import backbones  # noqa: F401  registers the tiny backbone

register_split("build_tiny_backbone")(split_resnet)
CONFIGS = Path(__file__).parents[2] / "configs"
RESNET = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", 512)
TINY = ("MODEL.BACKBONE.NAME", "build_tiny_backbone", "MODEL.BACKBONE.FEAT_DIM", 16)
SMALL = (*TINY, "MODEL.HEADS.EMBEDDING_DIM", 16)
PLUS = ("MODEL.CERBERUS.SOFTMAX", 2.0, "MODEL.CERBERUS.POOL", "gem", "MODEL.CERBERUS.SPLIT", True,
        "MODEL.LOSSES.CE.EPSILON", 0.1)


def model_of(*options) -> nn.Module:
    """Build Cerberus for Market-1501 on the CPU; options are pairs of key and value."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "Market1501/cerberus_R50.yml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NUM_CLASSES", 751,
                         "MODEL.CERBERUS.SCHEMA", "market1501", "MODEL.CERBERUS.NUM_SIDS", [4, 18, 40, 8, 4], *options])
    torch.manual_seed(0)
    return build_model(cfg)


def small_batch(model: nn.Module, size: int = 8) -> dict:
    """Return random images of `size` / 2 identities with semantic IDs, one of them missing; fill the model's tables."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.prototypes.sid_of_class.copy_(torch.randint(4, (751, 5), generator=generator))
        model.prototypes.sid_of_class[3, 1] = -1
        for g, group in enumerate(GROUPS):
            model.prototypes.margins(group).fill_(0.6)
            carried, counts = model.prototypes.sid_of_class[:, g], model.prototypes.counts(group)
            counts.copy_(carried[carried >= 0].bincount(minlength=len(counts)))
    targets = torch.arange(size) // 2
    return {"images": torch.rand(size, 3, 96, 48, generator=generator) * 255, "targets": targets,
            "sids": model.prototypes.sid_of_class[targets]}


def read_config(*options, file: str = "configs/Market1501/cerberus_demo.yml"):
    """Read a configuration file, and set a tiny backbone, 48x24 images, a few other small values, and `options`."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(Path(__file__).parents[2] / file))
    cfg.merge_from_list([
        *TINY, "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False, "INPUT.SIZE_TRAIN", [48, 24],
        "INPUT.SIZE_TEST", [48, 24],
        "SOLVER.AMP.ENABLED", False, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_EPOCH", 2, "SOLVER.WARMUP_ITERS", 0,
        "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 2, "TEST.UNTRAINED_FLOOR", False,
        "DATALOADER.NUM_WORKERS", 0, "MODEL.COMPILE", False, "SEED", 1, *options])
    cfg.freeze()
    return cfg


def trained(cfg):
    """Train, and return the trainer with `start`, the initial parameters, and `results`, the metrics after training."""
    from cerberus_plugin import CerberusTrainer

    from fastreid.utils.env import seed_all_rng

    seed_all_rng(1)
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.results = trainer.train()
    return trainer


def solver_cfg(**solver):
    """Return FastReID's default configuration with these keys of SOLVER."""
    cfg = get_cfg()
    for key, value in {"BASE_LR": 0.1, "HEADS_LR_FACTOR": 0.5, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg
