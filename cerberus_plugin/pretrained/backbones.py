"""The backbone that a file of weights belongs to, as keys of MODEL.BACKBONE."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# By whether there are bottlenecks, and the number of blocks of layer3.
RESNETS = {(False, 2): "18x", (False, 6): "34x", (True, 6): "50x", (True, 23): "101x"}
OSNETS = {64: ("x1_0", 512), 48: ("x0_75", 384), 32: ("x0_5", 256), 16: ("x0_25", 128)}  # by channels of the stem


def backbone_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the keys NAME, DEPTH, FEAT_DIM and WITH_IBN of MODEL.BACKBONE by which FastReID builds the backbone.

    ResNet, with or without the IBN-a blocks of IBN-Net, MobileNetV2 of width 1 and OSNet are recognised.

    Args:
        tensors: under the names of the model, see `Source.rename`.

    Returns:
        the keys; {} for a backbone that is not recognised.

    Examples:
        >>> import torch
        >>> names = ["layer1.0.bn1.IN.weight", "layer3.0.conv3.weight", *(f"layer3.{i}.conv1.weight" for i in range(6))]
        >>> backbone_of(dict.fromkeys(names, torch.zeros(1)))["DEPTH"]
        '50x'
        >>> backbone_of(dict.fromkeys(names, torch.zeros(1)))["WITH_IBN"]
        'True'
    """
    def built(name: str, depth: str, features: int, ibn: bool = False) -> dict[str, str]:
        return {"NAME": name, "DEPTH": depth, "FEAT_DIM": str(features), "WITH_IBN": str(ibn)}

    stem = tensors.get("conv1.conv.weight")
    if stem is not None and "conv2.0.conv1.conv.weight" in tensors and len(stem) in OSNETS:
        return built("build_osnet_backbone", *OSNETS[len(stem)], "conv2.0.IN.weight" in tensors)
    first = tensors.get("features.0.0.weight")
    if first is not None and "features.17.conv.0.weight" in tensors and len(first) == 32:
        return built("build_mobilenetv2_backbone", "1.0x", 1280)
    blocks = {name.split(".")[1] for name in tensors if name.startswith("layer3.")}
    depth = RESNETS.get((any(name.startswith("layer3.") and ".conv3." in name for name in tensors), len(blocks)))
    if depth is None:
        return {}
    return built("build_resnet_backbone", depth, 512 if depth in ("18x", "34x") else 2048,
                 "layer1.0.bn1.IN.weight" in tensors)
