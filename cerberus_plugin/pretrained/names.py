"""Names of tensors as published files have them, and as torchvision's ResNet and timm's models have them.

Each function takes tensors by name and returns them under other names. The facts are read from public code; the tests
hold each table against the models of torchvision, timm and the host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]

MMCV_SWIN: Rules = ((r"^patch_embed\.projection\.", "patch_embed.proj."), (r"^stages\.", "layers."),
                    (r"\.attn\.w_msa\.", ".attn."), (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
                    (r"\.ffn\.layers\.1\.", ".mlp.fc2."), (r"^norm3\.", "norm."))
CLIP_VIT: Rules = ((r"^conv1\.", "patch_embed.proj."), (r"^class_embedding$", "cls_token"),
                   (r"^positional_embedding$", "pos_embed"), (r"^ln_pre\.", "norm_pre."), (r"^ln_post\.", "norm."),
                   (r"^transformer\.resblocks\.", "blocks."), (r"\.ln_", ".norm"), (r"\.attn\.in_proj_", ".attn.qkv."),
                   (r"\.attn\.out_proj\.", ".attn.proj."), (r"\.mlp\.c_fc\.", ".mlp.fc1."),
                   (r"\.mlp\.c_proj\.", ".mlp.fc2."))
CLIP_RESNET: Rules = ((r"^conv(\d)\.", r"stem.conv\1.conv."), (r"^bn(\d)\.", r"stem.conv\1.bn."),
                      (r"^(layer\d\.\d+)\.(conv|bn)([13])\.", r"\1.conv\3_1x1.\2."),
                      (r"^(layer\d\.\d+)\.(conv|bn)2\.", r"\1.conv2_kxk.\2."),
                      (r"^(layer\d\.\d+)\.downsample\.0\.", r"\1.shortcut.conv.conv."),
                      (r"^(layer\d\.\d+)\.downsample\.1\.", r"\1.shortcut.conv.bn."),
                      (r"^attnpool\.positional_embedding$", "head.pos_embed"),
                      (r"^attnpool\.([qkv])_proj\.", r"head.\1."), (r"^attnpool\.c_proj\.", "head.proj."))
TORCHVISION_VIT: Rules = ((r"^conv_proj\.", "patch_embed.proj."), (r"^class_token$", "cls_token"),
                          (r"^encoder\.pos_embedding$", "pos_embed"), (r"^encoder\.ln\.", "norm."),
                          (r"^encoder\.layers\.encoder_layer_", "blocks."), (r"\.ln_", ".norm"),
                          (r"\.self_attention\.in_proj_", ".attn.qkv."),
                          (r"\.self_attention\.out_proj\.", ".attn.proj."),
                          (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."), (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."))


def renamed(tensors: Tensors, rules: Rules) -> dict[str, Tensor]:
    """Each rule, a regular expression and what takes its place, applied to each name in turn."""
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def merging_of_next_stage(tensors: Tensors) -> dict[str, Tensor]:
    """Swin: where patches are merged at the end of a stage, timm merges them at the start of the next one."""
    def later(found: re.Match) -> str:
        return f"layers.{int(found[1]) + 1}.downsample."

    return {re.sub(r"^layers\.(\d+)\.downsample\.", later, name): value for name, value in tensors.items()}


def solider(tensors: Tensors) -> dict[str, Tensor]:
    """SOLIDER's Swin in mmcv's names to timm's.

    mmcv merges patches by `nn.Unfold`, channel by channel, rows before columns; timm pixel by pixel, columns before
    rows. A semantic embedding scales what a merging gives; that of the last stage reaches no output.
    """
    found = merging_of_next_stage(renamed(tensors, MMCV_SWIN))
    for name in [name for name in found if ".downsample." in name]:
        value = found[name]
        parts = value.unflatten(-1, (-1, 2, 2))  # (..., C, rows, columns)
        found[name] = parts.movedim((-1, -2, -3), (-3, -2, -1)).flatten(-3).contiguous()  # columns, rows, C
    for name in [name for name in found if name.startswith("semantic_embed_")]:
        _, stage, part = name.split(".")
        kind = "scale" if name.startswith("semantic_embed_w") else "shift"
        value = found.pop(name)
        if int(stage) < 3:
            found[f"layers.{int(stage) + 1}.downsample.{kind}_{part}"] = value
    return found


def cion_swin(tensors: Tensors) -> dict[str, Tensor]:
    return merging_of_next_stage(renamed(tensors, ((r"^norm3\.", "norm."),)))


def clip_vit(tensors: Tensors) -> dict[str, Tensor]:
    """CLIP's transformer; the projection to the space of texts is left out, as representations have their own."""
    found = renamed(tensors, CLIP_VIT)
    found.pop("proj", None)
    found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    found["pos_embed"] = found["pos_embed"].unsqueeze(0)  # (1, N, C)
    return found


def clip_resnet(tensors: Tensors) -> dict[str, Tensor]:
    """CLIP's ResNet; the attention that pools its last map is the head of timm's model, which branches leave out."""
    return {re.sub(r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.", name): value
            for name, value in renamed(tensors, CLIP_RESNET).items()}


def with_part_tokens(tensors: Tensors) -> dict[str, Tensor]:
    """PASS: three tokens beside the class token, each with a position of its own, as timm's register tokens."""
    found = dict(tensors)
    found["reg_token"] = torch.cat([found.pop(f"part_token{part}") for part in (1, 2, 3)], dim=1)  # (1, 3, C)
    own = [found.pop(name) for name in ("cls_pos", "part1_pos", "part2_pos", "part3_pos")]
    found["pos_embed"] = torch.cat([*own, found["pos_embed"]], dim=1)
    return found


def imagenet(tensors: Tensors) -> dict[str, Tensor]:
    """Microsoft's Swin, torchvision's ViT and MobileNetV2; other names stay as they are."""
    if "layers.0.downsample.reduction.weight" in tensors:
        return merging_of_next_stage(tensors)
    if "encoder.pos_embedding" in tensors:
        return renamed(tensors, TORCHVISION_VIT)
    if "features.18.0.weight" in tensors:
        nested = "features.1.conv.0.0.weight" in tensors
        return {_mobilenetv2(name, nested): value for name, value in tensors.items()}
    return dict(tensors)


def _mobilenetv2(name: str, nested: bool) -> str:
    """Torchvision's MobileNetV2 to the host's, where a block is one sequence.

    Args:
        nested: whether convolution, normalisation and activation are a sequence in a block, as since torchvision 0.3.
    """
    name = re.sub(r"^features\.18\.", "conv.", name)
    found = re.match(r"^features\.(\d+)\.conv\.(\d)\.(?:(\d)\.)?(.*)$", name)
    if not nested or found is None:
        return name
    block, place, part, rest = found.groups()
    inner = 1 if block == "1" else 2  # sequences in the block; what follows them is not nested
    index = 3 * int(place) + int(part) if part else 3 * inner + int(place) - inner
    return f"features.{block}.conv.{index}.{rest}"
