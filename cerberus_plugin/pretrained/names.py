"""Rename the tensors of published files to the names of torchvision's ResNet, timm's models and FastReID's backbones.

Each function takes tensors by name and returns them under the new names. The tables are taken from public code; the
tests compare each with the models of torchvision, timm and FastReID.
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
    """Apply rules to the names of tensors.

    Args:
        tensors: by name.
        rules: regular expressions with their replacements, applied one after the other to each name.

    Examples:
        >>> list(renamed({"stages.0.attn.w_msa.qkv.weight": torch.ones(1)}, MMCV_SWIN))
        ['layers.0.attn.qkv.weight']
    """
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def merging_of_next_stage(tensors: Tensors) -> dict[str, Tensor]:
    """Rename the patch mergings of Swin: other code has them at the end of a stage, timm at the start of the next.

    Examples:
        >>> list(merging_of_next_stage({"layers.0.downsample.norm.weight": torch.ones(1)}))
        ['layers.1.downsample.norm.weight']
    """
    def later(found: re.Match) -> str:
        return f"layers.{int(found[1]) + 1}.downsample."

    return {re.sub(r"^layers\.(\d+)\.downsample\.", later, name): value for name, value in tensors.items()}


def solider(tensors: Tensors) -> dict[str, Tensor]:
    """Rename SOLIDER's Swin from mmcv's names to timm's.

    Reorders the input channels of the patch mergings: mmcv uses `nn.Unfold`, whose output is ordered by channel, row
    and column; timm's is ordered by column, row and channel. The semantic embeddings scale the outputs of the mergings;
    that of the last stage has no effect and is dropped.
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
    """Rename CION's Swin to timm's names."""
    return merging_of_next_stage(renamed(tensors, ((r"^norm3\.", "norm."),)))


def clip_vit(tensors: Tensors) -> dict[str, Tensor]:
    """Rename CLIP's vision transformer to timm's names.

    Drops the projection to the joint embedding space of images and texts, since the model's heads project the features.
    """
    found = renamed(tensors, CLIP_VIT)
    found.pop("proj", None)
    found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    found["pos_embed"] = found["pos_embed"].unsqueeze(0)  # (1, N, C)
    return found


def clip_resnet(tensors: Tensors) -> dict[str, Tensor]:
    """Rename CLIP's ResNet to timm's names; its attention pooling is the head of timm's model, which is not used."""
    return {re.sub(r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.", name): value
            for name, value in renamed(tensors, CLIP_RESNET).items()}


def with_part_tokens(tensors: Tensors) -> dict[str, Tensor]:
    """Rename PASS's vision transformer: its three part tokens become timm's register tokens.

    Each part token has its own position embedding.
    """
    found = dict(tensors)
    found["reg_token"] = torch.cat([found.pop(f"part_token{part}") for part in (1, 2, 3)], dim=1)  # (1, 3, C)
    own = [found.pop(name) for name in ("cls_pos", "part1_pos", "part2_pos", "part3_pos")]
    found["pos_embed"] = torch.cat([*own, found["pos_embed"]], dim=1)
    return found


def imagenet(tensors: Tensors) -> dict[str, Tensor]:
    """Rename Microsoft's Swin, torchvision's ViT and torchvision's MobileNetV2; other names stay unchanged."""
    if "layers.0.downsample.reduction.weight" in tensors:
        return merging_of_next_stage(tensors)
    if "encoder.pos_embedding" in tensors:
        return renamed(tensors, TORCHVISION_VIT)
    if "features.18.0.weight" in tensors:
        nested = "features.1.conv.0.0.weight" in tensors
        return {_mobilenetv2(name, nested): value for name, value in tensors.items()}
    return dict(tensors)


def _mobilenetv2(name: str, nested: bool) -> str:
    """Rename a tensor of torchvision's MobileNetV2 to FastReID's name, where a block is one `nn.Sequential`.

    Args:
        name: in the file.
        nested: whether convolution, normalisation and activation are an `nn.Sequential` within the block, as since
            torchvision 0.3.
    """
    name = re.sub(r"^features\.18\.", "conv.", name)
    found = re.match(r"^features\.(\d+)\.conv\.(\d)\.(?:(\d)\.)?(.*)$", name)
    if not nested or found is None:
        return name
    block, place, part, rest = found.groups()
    inner = 1 if block == "1" else 2  # nested nn.Sequential in the block; the layers after them are not nested
    index = 3 * int(place) + int(part) if part else 3 * inner + int(place) - inner
    return f"features.{block}.conv.{index}.{rest}"
