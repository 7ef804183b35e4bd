"""Pretrained backbones: loading of weight files, the settings that they require, and the pooling of the stem."""

import argparse
import contextlib
import logging
import os
import threading
from collections.abc import Iterator

import torch
from torch import nn

from .. import pretrained
from ..utils.files import file_sha256
from .patching import replace
from .weights import read_tensors

logger = logging.getLogger("fastreid.cerberus.host")

_recording = threading.RLock()  # only one thread at a time may replace torch's method

SHARE = 0.95  # of a backbone's tensors that must match, or the file belongs to another backbone
# Settings that depend on the weights; stored with the run and in its checkpoints.
SETTINGS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.BACKBONE.STEM_POOL", "MODEL.BACKBONE.CONV_STEM",
            "MODEL.BACKBONE.EXTRA_TOKENS", "MODEL.BACKBONE.SEMANTIC_WEIGHT")
UNSET = {"CONV_STEM": False, "EXTRA_TOKENS": 0, "SEMANTIC_WEIGHT": -1.0}  # of the last three
TIMM = "build_timm_backbone"
POOLED = "build_resnet_backbone"  # the backbone to which STEM_POOL applies

_ADVICE = (
    "Set MODEL.BACKBONE.PRETRAIN_PATH to a weight file (docs/pretrained.md lists the supported files; torchvision's "
    "resnet50 fits FastReID's ResNet of depth 50x), or MODEL.BACKBONE.PRETRAIN to False."
)


def load_pretrained() -> None:
    """Load pretrained weights with this package instead of FastReID's backbones, and count the matching tensors.

    FastReID's backbones load their files with strict=False (modeling/backbones/resnet.py:354): if all keys differ,
    because of a prefix or an outer "state_dict", nothing is loaded, and training silently starts from random weights.
    Without a path they import gdown and download a file (resnet.py:248, :283). A backbone that was registered by
    neither FastReID nor this package loads its file itself; its tensors are counted.
    """
    import fastreid.modeling.backbones.build as host_module

    def build(host_build):
        def build_backbone(cfg):
            node = cfg.MODEL.BACKBONE
            if not node.PRETRAIN:
                return _with_stem_pool(host_build(cfg), node, _stem_pool(node))
            if not _is_read_here(node):
                if node.PRETRAIN_PATH:
                    _check_path(node.PRETRAIN_PATH)
                with recorded_loads() as loads:
                    backbone = _built(host_build, cfg)
                _report(loads, node.PRETRAIN_PATH, node.NAME)
                return _with_stem_pool(backbone, node, _stem_pool(node, "padding"))  # torchvision, IBN-Net
            settled, _ = settle(cfg)
            differing = [key for key in ("PIXEL_MEAN", "PIXEL_STD") if settled.MODEL[key] != cfg.MODEL[key]]
            if differing:
                raise ValueError(f"{node.PRETRAIN_PATH}: set " + " and ".join(
                    f"MODEL.{key} to {settled.MODEL[key]}" for key in differing) + ", which the weights require")
            contents, source = _read(node)
            node = settled.MODEL.BACKBONE
            node.PRETRAIN = False
            backbone = _with_stem_pool(host_build(settled), node, node.get("STEM_POOL", "ceil"))
            _fill(backbone, contents, source, node)
            return backbone

        return build_backbone

    replace(host_module, "build_backbone", build)


def _is_read_here(node) -> bool:
    """Return whether there is a weight file and this package loads it, not the backbone."""
    return bool(node.PRETRAIN_PATH) and not _is_foreign(node)


def _is_foreign(node) -> bool:
    """Return whether the backbone was registered by neither FastReID nor this package."""
    from fastreid.modeling.backbones import BACKBONE_REGISTRY

    return not BACKBONE_REGISTRY.get(node.NAME).__module__.startswith(("fastreid.", "cerberus_plugin."))


def _check_path(path: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"MODEL.BACKBONE.PRETRAIN_PATH '{path}' does not exist. {_ADVICE}")


def read_pretrained(path: str) -> pretrained.Contents:
    """Read a file of pretrained weights.

    Args:
        path: a .pth or .safetensors file.

    Raises:
        ValueError: see `read_tensors` and `pretrained.unwrap`.
    """
    # Checkpoints of self-distillation contain their options as an argparse.Namespace, which executes no code.
    with _recording, torch.serialization.safe_globals([argparse.Namespace]):
        content = read_tensors(path, map_location="cpu")
    return pretrained.unwrap(content, os.path.basename(path))


def _read(node) -> tuple[pretrained.Contents, pretrained.Source]:
    """Read MODEL.BACKBONE.PRETRAIN_PATH and recognise its source."""
    _check_path(node.PRETRAIN_PATH)
    contents = read_pretrained(node.PRETRAIN_PATH)
    return contents, pretrained.recognise(contents, node.get("PRETRAIN_SOURCE", ""))


def starting_weights(cfg) -> dict[str, str | None]:
    """Describe the pretrained weights of a training, for its records.

    Args:
        cfg: configuration.

    Returns:
        "what", a description. If a file is loaded, also "file", its name, "sha256", and "source" and "terms" if
        `pretrained.SOURCES` contains them.
    """
    node = cfg.MODEL.BACKBONE
    if not node.PRETRAIN:
        return {"what": "none, trained from scratch"}
    file = {"file": os.path.basename(node.PRETRAIN_PATH), "sha256": file_sha256(node.PRETRAIN_PATH)}
    if not node.PRETRAIN_PATH:
        return {"what": f"not known, {node.NAME} loads them itself, if any" if _is_foreign(node) else
                "downloaded by the backbone", "terms": ""}
    if not _is_read_here(node):
        return {"what": "a file that the backbone loads itself", "terms": "", **file}
    _, source = _read(node)
    return {"what": source.what, "source": source.name, "terms": source.terms, **file}


def settle(cfg):
    """Set the keys that the pretrained weights require and that are at their defaults.

    Args:
        cfg: configuration; not changed.

    Returns:
        the configuration, not frozen, with MODEL.PIXEL_MEAN, PIXEL_STD, BACKBONE.STEM_POOL and the keys of timm's
        models; and one message for each key that was set.

    Raises:
        ValueError: if the configuration has other values than the weights require; names the keys.
    """
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.BACKBONE
    if not node.PRETRAIN or not _is_read_here(node):
        if "STEM_POOL" in node:
            node.STEM_POOL = _stem_pool(node, "padding" if node.PRETRAIN else "ceil")
        return cfg, []
    contents, source = _read(node)
    who = f"{node.PRETRAIN_PATH} is read as {source.what}"
    if source.needs and node.NAME != TIMM:
        raise ValueError(f"{who}, which requires MODEL.BACKBONE.NAME {TIMM}, not {node.NAME}")
    notes = [f"{who} ({source.terms})"] if source.terms else []
    size = tuple(cfg.INPUT.SIZE_TRAIN)
    if source.sizes and size not in source.sizes:
        notes.append(f"{who}; its authors fine-tune with INPUT.SIZE_TRAIN {list(source.sizes[0])}, not {list(size)}")
    notes += _settle_normalisation(cfg, source, who)
    for key, value in source.needs.items():
        if node[key] == UNSET[key]:
            node[key] = value
            notes.append(f"{who}: MODEL.BACKBONE.{key} is {value}")
        elif node[key] != value and key != "SEMANTIC_WEIGHT":
            raise ValueError(f"{who}, which requires MODEL.BACKBONE.{key} {value}, not {node[key]}; set it to {value}, "
                             "or remove the key")
    if "STEM_POOL" in node:
        if node.STEM_POOL == "auto" and node.NAME == POOLED:
            notes.append(f"{who}: MODEL.BACKBONE.STEM_POOL is {source.stem}, as the weights were trained")
        node.STEM_POOL = _stem_pool(node, source.stem)
    if source.name == "imagenet" and contents.has(pretrained.RESNET) and "fc.weight" not in contents.tensors:
        notes.append(f"{who}; it has no classifier. If the file is from LUPerson or LUPerson-NL, which use another "
                     "normalisation, set MODEL.BACKBONE.PRETRAIN_SOURCE to luperson")
    return cfg, notes


def _settle_normalisation(cfg, source: pretrained.Source, who: str) -> list[str]:
    """Set MODEL.PIXEL_MEAN and PIXEL_STD if they have FastReID's defaults (ImageNet) and the weights require others."""
    given = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    accepted = source.normalisations
    if source.name == "imagenet" and cfg.MODEL.BACKBONE.NAME == TIMM:
        import timm

        usual = timm.get_pretrained_cfg(cfg.MODEL.BACKBONE.DEPTH)
        accepted = () if usual is None else (tuple(tuple(255 * each for each in part)
                                                   for part in (usual.mean, usual.std)),)
    if not accepted or any(_are_close(given, pair) for pair in accepted):
        return []
    mean, std = ([round(each, 4) for each in part] for part in accepted[0])
    if source.name == "imagenet" and not _are_close(given, pretrained.NORMALISATIONS["ImageNet"]):
        return [f"{who}; timm trained the weights of this name with MODEL.PIXEL_MEAN {mean} and PIXEL_STD {std}, not "
                f"{list(given[0])} and {list(given[1])}"]
    if not _are_close(given, pretrained.NORMALISATIONS["ImageNet"]):
        names = " or ".join(name for name, pair in pretrained.NORMALISATIONS.items() if pair in accepted)
        raise ValueError(f"{who}, trained with MODEL.PIXEL_MEAN {mean} and PIXEL_STD {std}"
                         f"{f' ({names})' if names else ''}; the configuration has {list(given[0])} and "
                         f"{list(given[1])}. Remove both keys, or set them to these values. If the source was not "
                         "recognised correctly, set MODEL.BACKBONE.PRETRAIN_SOURCE")
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean, std
    return [f"{who}: MODEL.PIXEL_MEAN is {mean}, PIXEL_STD is {std}"]


def _are_close(given, pair) -> bool:
    return all(len(ours) == 3 and all(abs(one - other) < 0.02 for one, other in zip(ours, theirs))
               for ours, theirs in zip(given, pair))


def _stem_pool(node, of_the_weights: str = "ceil") -> str:
    """Return MODEL.BACKBONE.STEM_POOL, with "auto" replaced by the value of the weights; "ceil" is FastReID's own."""
    stem_pool = node.get("STEM_POOL", "ceil")  # FastReID's own configurations have no such key
    if stem_pool != "auto":
        return stem_pool
    return of_the_weights if node.NAME == POOLED else "ceil"


def _with_stem_pool(backbone: nn.Module, node, stem_pool: str) -> nn.Module:
    """Set the pooling of the stem to MODEL.BACKBONE.STEM_POOL.

    FastReID's ResNet pools with ceil_mode and without padding (modeling/backbones/resnet.py:136), torchvision's with a
    padding of 1. The ImageNet weights that both use, and all known person-pretrained weights, were trained with
    padding. The maps have the same size for images with even sides, but cover other pixels. FastReID's ResNeXt,
    ResNeSt, RegNet and OSNet pad like torchvision.
    """
    from fastreid.modeling.backbones.resnet import ResNet

    if stem_pool not in ("ceil", "padding"):
        raise ValueError(f"MODEL.BACKBONE.STEM_POOL is '{stem_pool}', expected 'auto', 'ceil' or 'padding'")
    if stem_pool == "padding":
        if not isinstance(backbone, ResNet):
            raise ValueError(f"MODEL.BACKBONE.STEM_POOL is 'padding', which only build_resnet_backbone supports, but "
                             f"MODEL.BACKBONE.NAME is '{node.NAME}'; set STEM_POOL to 'auto', its default, which "
                             "does not change other backbones")
        backbone.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return backbone


def _fill(backbone: nn.Module, contents: pretrained.Contents, source: pretrained.Source, node) -> None:
    """Load the file's tensors into the backbone, and log how many matched; too few are an error."""
    path, partial = node.PRETRAIN_PATH, node.get("PRETRAIN_PARTIAL", False)
    result = pretrained.fit(backbone, source.rename(contents.tensors), source.rows_per_column)
    model = " ".join(str(each) for each in (node.NAME, node.DEPTH, "with IBN" if node.WITH_IBN else "") if each)
    account = f"{path}, read as {source.what}: {result.account()}"
    if not result.matched or result.share < SHARE and not partial:
        own = list(pretrained.names_of(backbone))[:3]
        raise ValueError(
            f"{account}. The file has names like {list(contents.tensors)[:3]}, {model} like {own}. Less than "
            f"{SHARE:.0%} means that the file belongs to another backbone or source: check MODEL.BACKBONE.NAME, DEPTH "
            "and WITH_IBN, or set MODEL.BACKBONE.PRETRAIN_SOURCE. MODEL.BACKBONE.PRETRAIN_PARTIAL True loads the "
            f"tensors that match. {_ADVICE}")
    logger.log(logging.INFO if not result.absent else logging.WARNING, account)


@contextlib.contextmanager
def recorded_loads() -> Iterator[list[tuple[nn.Module, set[str]]]]:
    """Collect the module and the keys of each `load_state_dict` that this thread calls in the block.

    Backbones unpack and rename their files before this call. torch's method is replaced during the block, so the blocks
    of several threads run one after the other.
    """
    loads, owner = [], threading.get_ident()
    with _recording:
        plain = nn.Module.load_state_dict

        def load_state_dict(self, state_dict, *args, **kwargs):
            if threading.get_ident() == owner:
                loads.append((self, set(state_dict)))
            return plain(self, state_dict, *args, **kwargs)

        nn.Module.load_state_dict = load_state_dict
        try:
            yield loads
        finally:
            nn.Module.load_state_dict = plain


def _built(host_build, cfg) -> nn.Module:
    """Build the backbone; if a download fails, raise ValueError with the keys to set."""
    try:
        return host_build(cfg)
    except Exception as error:
        # gdown's own error, for a link without access, is derived from Exception only.
        offline = isinstance(error, (ImportError, OSError)) or type(error).__module__.startswith("gdown")
        if cfg.MODEL.BACKBONE.PRETRAIN_PATH or not offline:
            raise
        raise ValueError(
            f"MODEL.BACKBONE.PRETRAIN is True without a PRETRAIN_PATH, and the weights of {cfg.MODEL.BACKBONE.NAME} "
            f"could not be downloaded ({error}). {_ADVICE}"
        ) from error


def _report(loads: list[tuple[nn.Module, set[str]]], path: str, backbone: str) -> None:
    """Log how many tensors a backbone that loads its file itself has loaded; none is an error."""
    source = path or "the downloaded file"
    if not loads:
        logger.warning(f"{source}: the tensors that {backbone} loads cannot be counted")
        return
    counts = [(len(keys & set(names)), len(names), keys) for module, keys in loads
              for names in [pretrained.names_of(module)]]
    matched, total, keys = max(counts, key=lambda count: count[0])
    if matched == 0:
        raise ValueError(f"{source}: 0 of {total} tensors matched {backbone}; the file has names like "
                         f"{sorted(keys)[:3]}. {_ADVICE}")
    level = logging.INFO if matched == total else logging.WARNING
    logger.log(level, f"{source}: {matched} of {total} tensors matched")
