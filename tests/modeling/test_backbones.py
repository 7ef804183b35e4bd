"""Backbones: cut in two they are what they were, and every one of them trains, is saved, resumed and exported."""

import copy
import json
from pathlib import Path

from cerberus_plugin import CerberusPredictor, CerberusTrainer
from cerberus_plugin.config import add_cerberus_config, check_model_keys
from cerberus_plugin.modeling.backbones import Split, split_backbone
from cerberus_plugin.modeling.build import load_model
from cerberus_plugin.modeling.chains import chain_of
from cerberus_plugin.modeling.tokens import ClassToken, MapOfTokens

import pytest
import timm
import torch
from fastreid.config import get_cfg
from fastreid.modeling.backbones import build_backbone
from support.training import CONFIGS, model_of, read_config, small_batch, trained
from timm.models import build_model_with_cfg, register_model
from timm.models.swin_transformer import SwinTransformer
from torch import nn


@register_model
def tiny_swin(pretrained: bool = False, **options) -> SwinTransformer:
    return build_model_with_cfg(SwinTransformer, "tiny_swin", pretrained, embed_dim=8, depths=(1, 2, 3, 2),
                                num_heads=(1, 1, 2, 2), window_size=4, **options)


# The smallest of each family, with its number of channels and the height of its map for an image of 128 x 64.
BACKBONES = {
    "resnet": ("18x", 512, 8), "resnext": ("50x", 2048, 8), "resnest": ("50x", 2048, 8), "osnet": ("x0_25", 128, 8),
    "mobilenetv2": ("0.1x", 1280, 4), "mobilenetv3": ("Small", 1024, 4), "shufflenetv2": ("0.5x", 1024, 4),
    "effnet": ("b0", 1280, 8), "regnet": ("200x", 368, 8), "repvgg": ("A0", 1280, 8), "vit": ("small", 768, 8)}
OF_TIMM = {"test_vit": (64, 8), "test_vit2": (64, 8), "tiny_swin": (64, 4), "test_convnext": (64, 4),
             "mobilenetv4_conv_small_035": (336, 4), "repvit_m0_9": (384, 4)}
CASES = {**{name: (f"build_{name}_backbone", *values) for name, values in BACKBONES.items()},
         **{name: ("build_timm_backbone", name, *values) for name, values in OF_TIMM.items()}}
LARGE = ("resnext", "resnest", "effnet", "regnet", "repvgg", "vit", "repvit_m0_9", "mobilenetv3")

# Trained in the tests: fast ones for what is special to a family, the others for each of its members.
FAST = {("osnet", "Cerberus"), ("mobilenetv2", "CSSC"), ("test_vit", "Cerberus"), ("tiny_swin", "CSSC"),
        ("test_convnext", "APR")}
RUNS = [pytest.param(case, model, marks=() if (case, model) in FAST else pytest.mark.slow)
        for case in CASES for model in ("Cerberus", "CSSC", "APR")]


def options_of(case: str, *options, size: tuple[int, int] = (128, 64)) -> list:
    name, depth, channels, _ = CASES[case]
    return ["MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth, "MODEL.BACKBONE.FEAT_DIM", channels,
            "INPUT.SIZE_TRAIN", list(size), "INPUT.SIZE_TEST", list(size), "MODEL.HEADS.EMBEDDING_DIM", 16, *options]


def config_of(case: str, *options):
    return read_config(*options_of(case, *options))


def with_statistics(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, each batch normalisation with statistics and weights of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@pytest.mark.parametrize("cut", ["conv4_2", "conv5_1"])
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in LARGE else ()) for case in CASES])
@torch.no_grad()
def test_a_backbone_in_two_parts_computes_what_it_did_in_one(case, cut):
    cfg = config_of(case)
    backbone = with_statistics(build_backbone(cfg))
    images = torch.randn(2, 3, 128, 64)
    expected = backbone(images)
    split = split_backbone(backbone, cfg, cut)
    given = split.branch(split.trunk(images))
    by_place = split.to_map(given)
    assert by_place.shape[:3] == (2, split.channels, CASES[case][3])
    if cut == "conv4_2" or not has_tokens(case):
        assert torch.allclose(split.to_global(given), expected, atol=1e-5)
        assert expected.abs().max() > 0.01


def has_tokens(case: str) -> bool:
    return case == "vit" or case.startswith("test_vit")


def weights_of(model: nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def resumed(cfg) -> CerberusTrainer:
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.restored = weights_of(trainer.model)
    trainer.results = trainer.train()
    return trainer


@pytest.mark.parametrize(("case", "model"), RUNS)
def test_it_trains_evaluates_is_saved_loaded_resumed_and_exported(small_config, market_root, case, model):
    file = {"Cerberus": "configs/Market1501/cerberus_demo.yml", "CSSC": "configs/PRCC/cssc_demo.yml",
            "APR": "configs/Market1501/apr_demo.yml"}[model]
    size = (128, 64) if model != "CSSC" else (256, 64) if CASES[case][3] == 4 else (128, 64)

    def config(*more):
        return small_config(*options_of(case, *more, size=size), "TEST.EVAL_PERIOD", 1, file=file)

    check_model_keys(config())
    first = trained(config("SOLVER.MAX_EPOCH", 1))
    moved = [not torch.equal(p.detach(), first.start[name]) for name, p in first.model.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)
    second = resumed(config("SOLVER.MAX_EPOCH", 2))
    left, found = weights_of(first.model), second.restored
    assert all(torch.equal(value, found[name]) for name, value in left.items())
    assert second.start_epoch == 1 and second.results["mAP"] > 0
    ...


