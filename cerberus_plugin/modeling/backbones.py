"""Split a backbone into a trunk, which the branches of a model share, and a branch, which the model copies.

Shapes: B images, H x W pixels, C channels, h x w the feature map.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn
from torchvision.ops import Permute

from .chains import Step, blocks_of, chain_of, runs_of
from .timm_backbones import TimmBackbone
from .tokens import ClassToken, Grid, HostTrunk, MapOfTokens, OnMap, TimmTrunk

# First block of the branch, in the names of ResNet's blocks: "conv4_2" for Cerberus (third stage), "conv5_1" for CSSC
# (last stage). With ResNet-50 and 384x128 images, the feature maps at both points are 24 x 8.
CUTS = ("conv4_2", "conv5_1")

SIZE = (128, 64)  # H, W of the image that is traced through networks which accept any size
SHARED_BLOCKS = 2 / 3  # Cerberus: share of a vision transformer's blocks in the trunk
LAST_BLOCKS = 3  # CSSC: number of a vision transformer's blocks after the split, as in ResNet-50's last stage


class Split(NamedTuple):
    """A backbone split into two parts.

    Args:
        trunk: maps images, float (B, 3, H, W), to feature maps (B, C', h', w').
        branch: maps these feature maps to (B, channels, h, w). Its children are blocks in the order of the forward
            pass, because CSSC inserts modules between them.
        channels: channels of the branch's output.
        width: channels between the blocks of the branch; None if equal to `channels`.
        to_global: for a branch that returns tokens, converts them to a pooled map (B, channels, 1, 1).
        to_map: for a branch that returns tokens, converts them to a feature map (B, channels, h, w).
    """

    trunk: nn.Module
    branch: nn.Sequential
    channels: int
    width: int | None = None
    to_global: nn.Module = nn.Identity()
    to_map: nn.Module = nn.Identity()


SPLITTERS: dict[str, Callable[[nn.Module, object, str], Split]] = {}


def register_split(*names: str):
    """Register the decorated function as the splitter of backbones.

    Args:
        names: values of MODEL.BACKBONE.NAME. The function takes the backbone, the configuration node MODEL.BACKBONE and
            one of `CUTS`, and returns a `Split`.

    Returns:
        the decorator, which returns the function unchanged.

    Examples:
        >>> @register_split("build_two_convolutions")
        ... def split_two_convolutions(backbone, options, cut):
        ...     return Split(backbone[:1], backbone[1:], options.FEAT_DIM)
        >>> SPLITTERS.pop("build_two_convolutions") is split_two_convolutions
        True
    """

    def register(function):
        SPLITTERS.update(dict.fromkeys(names, function))
        return function

    return register


def split_backbone(backbone: nn.Module, cfg, cut: str) -> Split:
    """Split a backbone with the function registered for MODEL.BACKBONE.NAME.

    Args:
        backbone: the module that `build_backbone(cfg)` returns.
        cfg: the configuration.
        cut: one of `CUTS`; the split point unless MODEL.BACKBONE.CUT is set.

    Returns:
        the two parts. The modules of `backbone` are reused, not copied.

    Raises:
        ValueError: if no function is registered for MODEL.BACKBONE.NAME, if the backbone cannot be split at the
            requested module, or if MODEL.BACKBONE.FEAT_DIM differs from the channels of the branch.
    """
    options = cfg.MODEL.BACKBONE
    if options.NAME not in SPLITTERS:
        raise ValueError(f"MODEL.BACKBONE.NAME is '{options.NAME}', expected one of {', '.join(SPLITTERS)}: "
                         f"{cfg.MODEL.META_ARCHITECTURE} splits its backbone into a trunk and branches. For another "
                         "backbone, register a function with cerberus_plugin.modeling.backbones.register_split.")
    split = SPLITTERS[options.NAME](backbone, options, cut)
    if split.channels != options.FEAT_DIM:
        raise ValueError(f"MODEL.BACKBONE.FEAT_DIM is {options.FEAT_DIM}, but {options.NAME} at depth {options.DEPTH} "
                         f"has {split.channels} output channels; set it to {split.channels}.")
    return split


def place_of(names: Sequence[str], options, default: int, first: int = 1, left: int = 1) -> int:
    """Number of modules in the trunk: those up to and including MODEL.BACKBONE.CUT.

    Args:
        names: of the modules, in the order of the forward pass.
        options: the configuration node MODEL.BACKBONE.
        default: returned if MODEL.BACKBONE.CUT is empty.
        first: smallest number of modules in the trunk.
        left: smallest number of modules in the branch.

    Raises:
        ValueError: if MODEL.BACKBONE.CUT is not a valid split point.
    """
    if not options.CUT:
        return default
    allowed = names[first - 1:len(names) - left]
    if options.CUT not in allowed:
        raise ValueError(f"MODEL.BACKBONE.CUT is '{options.CUT}', but {options.NAME} at depth {options.DEPTH} can be "
                         f"split for this model only after {', '.join(allowed)}; '' selects the default")
    return names.index(options.CUT) + 1


@register_split("build_resnet_backbone", "build_resnext_backbone", "build_resnest_backbone")
def split_resnet(backbone: nn.Module, options, cut: str) -> Split:
    """Split FastReID's ResNet, ResNeXt or ResNeSt; arguments and errors as `split_backbone`."""
    if options.WITH_NL:
        raise ValueError("MODEL.BACKBONE.WITH_NL is True, which models that split their backbone do not support: "
                         "FastReID applies non-local blocks in ResNet.forward, outside the modules. Set it to False.")
    maxpool = backbone.maxpool1 if hasattr(backbone, "maxpool1") else backbone.maxpool  # FastReID's ResNeXt: maxpool1
    stem = (backbone.conv1, backbone.bn1, backbone.relu, maxpool, backbone.layer1, backbone.layer2)
    third, last = backbone.layer3, backbone.layer4
    channels = (last[-1].bn3 if hasattr(last[-1], "bn3") else last[-1].bn2).weight.shape[0]
    names = [f"layer3.{i}" for i in range(len(third))] + [f"layer4.{i}" for i in range(len(last))]
    if cut == "conv4_2":
        place = place_of(names, options, default=1)
    else:  # CSSC needs blocks with the same number of channels
        place = place_of(names, options, default=len(third), first=len(third), left=2)
    if place < len(third):
        return Split(nn.Sequential(*stem, *third[:place]), nn.Sequential(*third[place:], last), channels)
    inside = place - len(third)
    return Split(nn.Sequential(*stem, third, *last[:inside]), last[inside:], channels)


@register_split("build_osnet_backbone", "build_mobilenetv2_backbone", "build_mobilenetv3_backbone",
                "build_shufflenetv2_backbone", "build_effnet_backbone", "build_regnet_backbone",
                "build_repvgg_backbone")
def split_chain(backbone: nn.Module, options, cut: str) -> Split:
    """Split a network that is a chain of modules, see `chains`; arguments and errors as `split_backbone`.

    Cerberus splits after the first block whose feature map has at most a sixteenth of the image's height. For CSSC the
    branch is the last run of blocks with the same number of channels, such as the three blocks of 160 channels of
    MobileNetV2. Later layers that increase the number of channels are in the last block, which CSSC shares.
    """
    return _split_steps(chain_of(backbone, SIZE), SIZE[0], options, cut)


@register_split("build_vit_backbone")
def split_vit(backbone: nn.Module, options, cut: str) -> Split:
    """Split FastReID's vision transformer; arguments and errors as `split_backbone`.

    The class token is the output of the global branch, as in FastReID's forward pass.
    """
    if backbone.cam_num > 0:
        raise ValueError("MODEL.BACKBONE.NAME build_vit_backbone: the transformer has camera embeddings, but models "
                         "that split their backbone receive images without camera numbers; build it without cameras")
    patches = backbone.patch_embed
    return _split_tokens(backbone, HostTrunk, Grid(patches.num_y, patches.num_x, 1, True), options, cut)


@register_split("build_timm_backbone")
def split_timm(backbone: TimmBackbone, options, cut: str) -> Split:
    """Split a timm model: a vision transformer between two blocks, any other as `split_chain`."""
    if backbone.grid:
        return _split_tokens(backbone.timm_model, TimmTrunk, backbone.grid, options, cut)
    steps = [step._replace(name=step.name.removeprefix("timm_model.")) for step in chain_of(backbone, backbone.size)]
    return _split_steps(steps, backbone.size[0], options, cut, backbone.nhwc)


def _split_steps(steps: list[Step], height: int, options, cut: str, nhwc: bool = False) -> Split:
    """Split a chain of modules.

    Args:
        height: pixels, of the image that was traced.
        nhwc: whether feature maps within the chain have the shape (B, h, w, C).
    """
    names, channels = [step.name for step in steps], steps[-1].shape[1]
    rows, depth = (1, 3) if nhwc else (2, 1)
    to_map, from_map = ([Permute([0, 3, 1, 2])], [Permute([0, 2, 3, 1])]) if nhwc else ([], [])
    if cut == "conv4_2":
        small = next((i for i, step in enumerate(steps) if 16 * step.shape[rows] <= height), len(steps) // 2)
        place = place_of(names, options, min(small + 1, len(steps) - 1))
        return Split(_sequence(steps[:place], [], to_map), _sequence(steps[place:], from_map, []), channels)
    blocks = blocks_of(steps)
    runs = [run for run in runs_of(steps, blocks) if len(run) > 1]
    if not runs:
        raise ValueError(f"{options.NAME} at depth {options.DEPTH} has no two consecutive blocks with the same number "
                         "of channels, which the branches of CSSC need; choose another backbone")
    last = runs[-1]
    place = place_of(names, options, last[0], left=len(steps) - last[-1] + (steps[last[0]].shape[depth] == channels))
    run = runs_of(steps, [i for i in blocks if i >= place])[0]
    parts = [steps[place:run[0] + 1], *([steps[i]] for i in run[1:])]
    rest, width = steps[run[-1] + 1:], steps[run[0]].shape[depth]
    if width == channels:
        parts[-1] = parts[-1] + rest
    else:
        parts.append(rest)
    ends = [to_map] * (len(parts) - 1) + [[]]
    return Split(_sequence(steps[:place], [], to_map),
                 nn.Sequential(*(_sequence(part, from_map, end) for part, end in zip(parts, ends))), channels, width)


def _sequence(steps: list[Step], before: list[nn.Module], after: list[nn.Module]) -> nn.Sequential:
    named = {step.name.replace(".", "_"): step.module for step in steps}
    return nn.Sequential(OrderedDict({**{f"before_{i}": m for i, m in enumerate(before)}, **named,
                                      **{f"after_{i}": m for i, m in enumerate(after)}}))


def _split_tokens(vit: nn.Module, trunk: Callable[[nn.Module, int], nn.Module], grid: Grid, options, cut: str) -> Split:
    """Split a vision transformer between two blocks.

    CSSC weights the channels of feature maps between blocks, so its branches drop the class token.
    """
    blocks, norm, channels = list(vit.blocks), vit.norm, vit.embed_dim
    names = [f"blocks.{i}" for i in range(len(blocks))]
    to_map = MapOfTokens(grid)
    if cut == "conv4_2":
        place = place_of(names, options, round(len(blocks) * SHARED_BLOCKS))
        return Split(trunk(vit, place), nn.Sequential(*blocks[place:], norm), channels,
                     to_global=ClassToken() if grid.class_token else to_map, to_map=to_map)
    place = place_of(names, options, max(1, len(blocks) - LAST_BLOCKS), left=2)
    return Split(nn.Sequential(trunk(vit, place), to_map),
                 nn.Sequential(*map(OnMap, blocks[place:-1]), OnMap(blocks[-1], norm)), channels)
