"""Backbones split into a trunk that a model's branches share and a branch that each of them copies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn
from torchvision.ops import Permute

from .chains import Step, blocks_of, chain_of, runs_of
from .timm_backbones import TimmBackbone
from .tokens import ClassToken, Grid, HostTrunk, MapOfTokens, OnMap, TimmTrunk

# Where a branch may begin, by the names of ResNet's blocks: Cerberus in the third stage, CSSC at the last one. Of
# ResNet-50 at 384x128, the maps there are 24 x 8.
CUTS = ("conv4_2", "conv5_1")

SIZE = (128, 64)  # of the image that is followed through a network, where any may be given
SHARED_BLOCKS = 2 / 3  # of a vision transformer's are in Cerberus's trunk
LAST_BLOCKS = 3  # of a vision transformer's are behind CSSC's trunk, as many as ResNet-50's last layer has


class Split(NamedTuple):
    """A backbone in two parts.

    trunk: images (B, 3, H, W) to maps (B, C', H', W').   branch: these maps to (B, channels, H", W"); the blocks in
    their order, since CSSC puts modules of its own between them.   width: channels between these blocks, where they are
    others than at the end.   to_global, to_map: of a branch that gives tokens, what is read of it: as a whole
    (B, channels, 1, 1), and by place (B, channels, H", W").
    """

    trunk: nn.Module
    branch: nn.Sequential
    channels: int
    width: int | None = None
    to_global: nn.Module = nn.Identity()
    to_map: nn.Module = nn.Identity()


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
        cut: of `CUTS`, where the branch begins unless MODEL.BACKBONE.CUT says otherwise.

    Raises:
        ValueError: if no function is registered for MODEL.BACKBONE.NAME, if the backbone has no place to cut it as
            asked, or if MODEL.BACKBONE.FEAT_DIM is another number of channels than the branch gives.
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


def place_of(names: Sequence[str], options, default: int, first: int = 1, left: int = 1) -> int:
    """How many of the modules with these names the trunk has: those up to MODEL.BACKBONE.CUT, or `default`.

    Args:
        first: the fewest that it may have.   left: the fewest that the branch may have.
    """
    if not options.CUT:
        return default
    allowed = names[first - 1:len(names) - left]
    if options.CUT not in allowed:
        raise ValueError(f"MODEL.BACKBONE.CUT is '{options.CUT}', but {options.NAME} at depth {options.DEPTH} can be "
                         f"cut for this model behind {', '.join(allowed)} alone; '' is the default")
    return names.index(options.CUT) + 1


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
    names = [f"layer3.{i}" for i in range(len(third))] + [f"layer4.{i}" for i in range(len(last))]
    if cut == "conv4_2":
        place = place_of(names, options, default=1)
    else:  # blocks of one width
        place = place_of(names, options, default=len(third), first=len(third), left=2)
    if place < len(third):
        return Split(nn.Sequential(*stem, *third[:place]), nn.Sequential(*third[place:], last), channels)
    inside = place - len(third)
    return Split(nn.Sequential(*stem, third, *last[:inside]), last[inside:], channels)


@register_split("build_osnet_backbone", "build_mobilenetv2_backbone", "build_mobilenetv3_backbone",
                "build_shufflenetv2_backbone", "build_effnet_backbone", "build_regnet_backbone",
                "build_repvgg_backbone")
def split_chain(backbone: nn.Module, options, cut: str) -> Split:
    """Networks that pass a map from one module to the next, cut behind the first block with a sixteenth of the height.

    For CSSC the branch begins with the last blocks of one width, such as the three of 160 channels of MobileNetV2; what
    widens the map behind them is shared.
    """
    return _split_steps(chain_of(backbone, SIZE), SIZE[0], options, cut)


@register_split("build_vit_backbone")
def split_vit(backbone: nn.Module, options, cut: str) -> Split:
    """The host's vision transformer; the class token is what the global branch gives, as in the host's own forward."""
    if backbone.cam_num > 0:
        raise ValueError("MODEL.BACKBONE.NAME build_vit_backbone: the transformer has camera embeddings, but models "
                         "that split their backbone see images alone; build it without cameras")
    patches = backbone.patch_embed
    return _split_tokens(backbone, HostTrunk, Grid(patches.num_y, patches.num_x, 1, True), options, cut)


@register_split("build_timm_backbone")
def split_timm(backbone: TimmBackbone, options, cut: str) -> Split:
    """Networks of timm: vision transformers between two blocks, others as chains of modules."""
    if backbone.grid:
        return _split_tokens(backbone.timm_model, TimmTrunk, backbone.grid, options, cut)
    steps = [step._replace(name=step.name.removeprefix("timm_model.")) for step in chain_of(backbone, backbone.size)]
    return _split_steps(steps, backbone.size[0], options, cut, backbone.channels_behind)


def _split_steps(steps: list[Step], height: int, options, cut: str, channels_behind: bool = False) -> Split:
    """Cut a chain.

    Args:
        height: of the image that was followed.   channels_behind: maps within the chain are (B, H, W, C).
    """
    names, channels = [step.name for step in steps], steps[-1].shape[1]
    rows, depth = (1, 3) if channels_behind else (2, 1)
    to_map, from_map = ([Permute([0, 3, 1, 2])], [Permute([0, 2, 3, 1])]) if channels_behind else ([], [])
    if cut == "conv4_2":
        small = next((i for i, step in enumerate(steps) if 16 * step.shape[rows] <= height), len(steps) // 2)
        place = place_of(names, options, min(small + 1, len(steps) - 1))
        return Split(_sequence(steps[:place], [], to_map), _sequence(steps[place:], from_map, []), channels)
    blocks = blocks_of(steps)
    runs = [run for run in runs_of(steps, blocks) if len(run) > 1]
    if not runs:
        raise ValueError(f"{options.NAME} at depth {options.DEPTH} has no two blocks of one width side by side, which "
                         "the branches of CSSC need; choose another backbone")
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
    """Cut a vision transformer between two of its blocks.

    CSSC gates maps between blocks, so its branches go on without the class token.
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
