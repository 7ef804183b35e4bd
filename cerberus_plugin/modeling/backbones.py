"""Backbones split into a trunk that a model's branches share and a branch that each of them copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

# Where a branch may begin, by the names of ResNet's blocks: Cerberus in the third stage, CSSC at the last one. Of
# ResNet-50 at 384x128, the maps there are 24 x 8.
CUTS = ("conv4_2", "conv5_1")


class Split(NamedTuple):
    """A backbone in two parts.

    trunk: images (B, 3, H, W) to maps (B, C', H', W').   branch: these maps to (B, channels, H", W"); the blocks in
    their order, since CSSC puts modules of its own between them.
    """

    trunk: nn.Sequential
    branch: nn.Sequential
    channels: int


SPLITTERS: dict[str, Callable[[nn.Module, object, str], Split]] = {}


def register_split(*names: str):
    """Decorate a function (backbone, MODEL.BACKBONE, cut) -> `Split` for backbones of these MODEL.BACKBONE.NAME."""

    def register(function):
        SPLITTERS.update(dict.fromkeys(names, function))
        return function

    return register


def split_backbone(backbone: nn.Module, cfg, cut: str) -> Split:
    """Split the backbone of a configuration.

    Args:
        cut: of `CUTS`, where the branch begins.

    Raises:
        ValueError: if no function is registered for MODEL.BACKBONE.NAME, or MODEL.BACKBONE.FEAT_DIM is another number
            of channels than the branch gives.
    """
    options = cfg.MODEL.BACKBONE
    if options.NAME not in SPLITTERS:
        raise ValueError(f"MODEL.BACKBONE.NAME is '{options.NAME}', expected one of {', '.join(SPLITTERS)}: "
                         f"{cfg.MODEL.META_ARCHITECTURE} splits its backbone into trunk and branches. To add another, "
                         "register a function for it with cerberus_plugin.modeling.backbones.register_split.")
    split = SPLITTERS[options.NAME](backbone, options, cut)
    if split.channels != options.FEAT_DIM:
        raise ValueError(f"MODEL.BACKBONE.FEAT_DIM is {options.FEAT_DIM}, but {options.NAME} at depth {options.DEPTH} "
                         f"gives {split.channels} channels; set it to {split.channels}.")
    return split


@register_split("build_resnet_backbone", "build_resnext_backbone", "build_resnest_backbone")
def split_resnet(backbone: nn.Module, options, cut: str) -> Split:
    """The host's ResNet, ResNeXt and ResNeSt."""
    if options.WITH_NL:
        raise ValueError("MODEL.BACKBONE.WITH_NL is True: non-local blocks live in the host's ResNet.forward and would "
                         "be lost in a model that splits its backbone; set it to False.")
    maxpool = backbone.maxpool1 if hasattr(backbone, "maxpool1") else backbone.maxpool  # the host's ResNeXt numbers it
    stem = (backbone.conv1, backbone.bn1, backbone.relu, maxpool, backbone.layer1, backbone.layer2)
    third, last = backbone.layer3, backbone.layer4
    channels = (last[-1].bn3 if hasattr(last[-1], "bn3") else last[-1].bn2).weight.shape[0]
    if cut == "conv4_2":
        return Split(nn.Sequential(*stem, third[0]), nn.Sequential(*third[1:], last), channels)
    return Split(nn.Sequential(*stem, third), last, channels)
