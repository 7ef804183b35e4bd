"""The host's ResNet-like backbones taken apart, for models that share their beginning and copy their end."""

from __future__ import annotations

from torch import nn


def resnet_parts(backbone: nn.Module, options, model: str) -> list[nn.Module]:
    """conv1, bn1, relu, maxpool and layer1 to layer4 of a backbone of which these are all.

    Args:
        options: MODEL.BACKBONE.   model: who asks, for the message.
    """
    maxpool = "maxpool1" if hasattr(backbone, "maxpool1") else "maxpool"  # the host's ResNeXt numbers it
    parts = ("conv1", "bn1", "relu", maxpool, "layer1", "layer2", "layer3", "layer4")
    absent = [name for name in parts if not hasattr(backbone, name)]
    if absent:
        raise ValueError(f"MODEL.BACKBONE.NAME '{options.NAME}' has no {', '.join(absent)}; {model} takes a "
                         "ResNet-like backbone apart: use build_resnet_backbone, build_resnext_backbone or "
                         "build_resnest_backbone.")
    if options.WITH_NL:
        raise ValueError("MODEL.BACKBONE.WITH_NL is True: non-local blocks live in the host's ResNet.forward and would "
                         f"be lost in {model}, which takes it apart; set it to False.")
    return [getattr(backbone, name) for name in parts]


def num_channels(layer: nn.Module) -> int:
    """Channels that a layer of such a backbone gives."""
    last = layer[-1]
    return (last.bn3 if hasattr(last, "bn3") else last.bn2).weight.shape[0]
