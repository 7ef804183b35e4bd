"""Backbones: files of pretrained weights, fitted and counted, what such a file needs, and the pooling of the stem."""

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

_recording = threading.RLock()  # one thread at a time replaces torch's method

SHARE = 0.95  # of a backbone's tensors that a file fills, or it is of another backbone
# What weights decide about a model beside its size, so that a run and its checkpoints keep it.
SETTINGS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.BACKBONE.STEM_POOL", "MODEL.BACKBONE.CONV_STEM",
            "MODEL.BACKBONE.EXTRA_TOKENS", "MODEL.BACKBONE.SEMANTIC_WEIGHT")
UNSET = {"CONV_STEM": False, "EXTRA_TOKENS": 0, "SEMANTIC_WEIGHT": -1.0}  # of the last three
TIMM = "build_timm_backbone"
POOLED = "build_resnet_backbone"  # whose stem STEM_POOL is about

_ADVICE = (
    "Set MODEL.BACKBONE.PRETRAIN_PATH to a file of weights (docs/pretrained.md has those that are known; torchvision's "
    "resnet50 file fits the host's 50x ResNet), or MODEL.BACKBONE.PRETRAIN to False."
)


def load_pretrained() -> None:
    """Load files of pretrained weights in place of the host's backbones, and count the tensors.

    Each of the host's backbones unpacks its file in its own way and loads with strict=False (modeling/backbones/
    resnet.py:354): a file whose keys all differ, because of a prefix or an outer "state_dict", loads nothing and
    training starts from noise without a word. Without a path it imports gdown and downloads (resnet.py:248, :283).
    A backbone that neither the host nor this package registered loads by itself; its tensors are counted.
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
                return _with_stem_pool(backbone, node, _stem_pool(node, "padding"))  # torchvision's and IBN-Net's
            settled, _ = settle(cfg)
            differing = [key for key in ("PIXEL_MEAN", "PIXEL_STD") if settled.MODEL[key] != cfg.MODEL[key]]
            if differing:
                raise ValueError(f"{node.PRETRAIN_PATH}: set " + " and ".join(
                    f"MODEL.{key} to {settled.MODEL[key]}" for key in differing) + ", which the weights need")
            contents, source = _read(node)
            node = settled.MODEL.BACKBONE
            node.PRETRAIN = False
            backbone = _with_stem_pool(host_build(settled), node, node.get("STEM_POOL", "ceil"))
            _fill(backbone, contents, source, node)
            return backbone

        return build_backbone

    replace(host_module, "build_backbone", build)


def _is_read_here(node) -> bool:
    """Whether there is a file, of a backbone that does not load it by itself."""
    from fastreid.modeling.backbones import BACKBONE_REGISTRY

    builder = BACKBONE_REGISTRY.get(node.NAME)
    return bool(node.PRETRAIN_PATH) and builder.__module__.startswith(("fastreid.", "cerberus_plugin."))


def _check_path(path: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"MODEL.BACKBONE.PRETRAIN_PATH '{path}' is no file. {_ADVICE}")


def read_pretrained(path: str) -> pretrained.Contents:
    """Tensors of a file of pretrained weights; raises ValueError as `read_tensors` and `pretrained.unwrap`."""
    # Self-distillation keeps its options beside the weights: an argparse.Namespace, of which reading sets attributes.
    with _recording, torch.serialization.safe_globals([argparse.Namespace]):
        content = read_tensors(path, map_location="cpu")
    return pretrained.unwrap(content, os.path.basename(path))


def _read(node) -> tuple[pretrained.Contents, pretrained.Source]:
    """Contents of MODEL.BACKBONE.PRETRAIN_PATH, and whose they are."""
    _check_path(node.PRETRAIN_PATH)
    contents = read_pretrained(node.PRETRAIN_PATH)
    return contents, pretrained.recognise(contents, node.get("PRETRAIN_SOURCE", ""))


def starting_weights(cfg) -> dict[str, str | None]:
    """The pretrained weights that a training of this configuration starts from, for its records.

    Returns:
        "what", a description, and where a file is read: "file", its name, "sha256", "source" and "terms" as far as
        `pretrained.SOURCES` has them.
    """
    node = cfg.MODEL.BACKBONE
    if not node.PRETRAIN:
        return {"what": "none, trained from scratch"}
    file = {"file": os.path.basename(node.PRETRAIN_PATH), "sha256": file_sha256(node.PRETRAIN_PATH)}
    if not node.PRETRAIN_PATH:
        return {"what": "downloaded by the backbone", "terms": ""}
    if not _is_read_here(node):
        return {"what": "a file that the backbone loads itself", "terms": "", **file}
    _, source = _read(node)
    return {"what": source.what, "source": source.name, "terms": source.terms, **file}


def settle(cfg):
    """Set what the pretrained weights need and the configuration leaves open.

    Args:
        cfg: not changed.

    Returns:
        the configuration, not frozen, with MODEL.PIXEL_MEAN and PIXEL_STD, BACKBONE.STEM_POOL and what timm's models
        need; and a line for each thing that was set.

    Raises:
        ValueError: if the configuration has other values than the weights need; names the keys.
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
        raise ValueError(f"{who}, which needs MODEL.BACKBONE.NAME {TIMM}, not {node.NAME}")
    notes = [f"{who} ({source.terms})"] if source.terms else []
    size = tuple(cfg.INPUT.SIZE_TRAIN)
    if source.sizes and size not in source.sizes:
        notes.append(f"{who}; their authors fine-tune with INPUT.SIZE_TRAIN {list(source.sizes[0])}, not {list(size)}")
    notes += _settle_normalisation(cfg, source, who)
    for key, value in source.needs.items():
        if node[key] == UNSET[key]:
            node[key] = value
            notes.append(f"{who}: MODEL.BACKBONE.{key} is {value}")
        elif node[key] != value and key != "SEMANTIC_WEIGHT":
            raise ValueError(f"{who}, which needs MODEL.BACKBONE.{key} {value}, not {node[key]}; set it to {value}, or "
                             "leave it out")
    if "STEM_POOL" in node:
        if node.STEM_POOL == "auto" and node.NAME == POOLED:
            notes.append(f"{who}: MODEL.BACKBONE.STEM_POOL is {source.stem}, as the weights were trained")
        node.STEM_POOL = _stem_pool(node, source.stem)
    if source.name == "imagenet" and contents.has(pretrained.RESNET) and "fc.weight" not in contents.tensors:
        notes.append(f"{who}; it has no classifier. If it is LUPerson's or LUPerson-NL's, which need pixels normalised "
                     "otherwise, set MODEL.BACKBONE.PRETRAIN_SOURCE to luperson")
    return cfg, notes


def _settle_normalisation(cfg, source: pretrained.Source, who: str) -> list[str]:
    """Set MODEL.PIXEL_MEAN and PIXEL_STD where they are the host's, ImageNet's, and the weights need others."""
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
        raise ValueError(f"{who}, trained with pixels normalised by MODEL.PIXEL_MEAN {mean} and PIXEL_STD {std}"
                         f"{f' ({names})' if names else ''}; the configuration has {list(given[0])} and "
                         f"{list(given[1])}. Remove both keys, or set them to these values. If the file is not that, "
                         "name it by MODEL.BACKBONE.PRETRAIN_SOURCE")
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean, std
    return [f"{who}: MODEL.PIXEL_MEAN is {mean}, PIXEL_STD is {std}"]


def _are_close(given, pair) -> bool:
    return all(len(ours) == 3 and all(abs(one - other) < 0.02 for one, other in zip(ours, theirs))
               for ours, theirs in zip(given, pair))


def _stem_pool(node, of_the_weights: str = "ceil") -> str:
    """MODEL.BACKBONE.STEM_POOL, "auto" as it fits the weights; "ceil" is to leave a backbone as it is."""
    stem_pool = node.get("STEM_POOL", "ceil")  # the host alone has no such key
    if stem_pool != "auto":
        return stem_pool
    return of_the_weights if node.NAME == POOLED else "ceil"


def _with_stem_pool(backbone: nn.Module, node, stem_pool: str) -> nn.Module:
    """Pool the stem as MODEL.BACKBONE.STEM_POOL says.

    The host's ResNet pools with ceil_mode and without padding (modeling/backbones/resnet.py:136), torchvision's with a
    padding of 1, and so were trained the ImageNet weights that both use and those of people that are known. Maps have
    the same size where the image's sides are even, but cover other pixels. The host's ResNeXt, ResNeSt, RegNet and
    OSNet pad as torchvision does.
    """
    from fastreid.modeling.backbones.resnet import ResNet

    if stem_pool not in ("ceil", "padding"):
        raise ValueError(f"MODEL.BACKBONE.STEM_POOL is '{stem_pool}', expected 'auto', 'ceil' or 'padding'")
    if stem_pool == "padding":
        if not isinstance(backbone, ResNet):
            raise ValueError(f"MODEL.BACKBONE.STEM_POOL is 'padding', which is for build_resnet_backbone alone, but "
                             f"MODEL.BACKBONE.NAME is '{node.NAME}'; set STEM_POOL to 'auto', its default, which "
                             "leaves other backbones as they are")
        backbone.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return backbone


def _fill(backbone: nn.Module, contents: pretrained.Contents, source: pretrained.Source, node) -> None:
    """Put the file's tensors into the backbone and log the account; too few are an error."""
    path, partial = node.PRETRAIN_PATH, node.get("PRETRAIN_PARTIAL", False)
    result = pretrained.fit(backbone, source.rename(contents.tensors), source.rows_per_column)
    model = " ".join(str(each) for each in (node.NAME, node.DEPTH, "with IBN" if node.WITH_IBN else "") if each)
    account = f"{path}, read as {source.what}: {result.account()}"
    if not result.matched or result.share < SHARE and not partial:
        own = list(pretrained.names_of(backbone))[:3]
        raise ValueError(
            f"{account}. The file has names like {list(contents.tensors)[:3]}, {model} like {own}. Less than "
            f"{SHARE:.0%} is a file of another backbone or kind: compare MODEL.BACKBONE.NAME, DEPTH and WITH_IBN with "
            "it; MODEL.BACKBONE.PRETRAIN_SOURCE names a kind, and MODEL.BACKBONE.PRETRAIN_PARTIAL True takes what "
            f"fits. {_ADVICE}")
    logger.log(logging.INFO if not result.absent else logging.WARNING, account)


@contextlib.contextmanager
def recorded_loads() -> Iterator[list[tuple[nn.Module, set[str]]]]:
    """Collect the module and the keys of each `load_state_dict` that this thread calls in the block.

    Each of the host's backbones unpacks and renames its file in its own way; what reaches this call is what counts.
    torch's method is replaced meanwhile, so blocks of several threads run one after the other.
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
    """Build; without a path, turn a failing download into what to set."""
    try:
        return host_build(cfg)
    except Exception as error:
        # gdown's own error, for a refused link, has no base but Exception.
        offline = isinstance(error, (ImportError, OSError)) or type(error).__module__.startswith("gdown")
        if cfg.MODEL.BACKBONE.PRETRAIN_PATH or not offline:
            raise
        raise ValueError(
            f"MODEL.BACKBONE.PRETRAIN is True without a PRETRAIN_PATH, and the weights of {cfg.MODEL.BACKBONE.NAME} "
            f"could not be downloaded ({error}). {_ADVICE}"
        ) from error


def _report(loads: list[tuple[nn.Module, set[str]]], path: str, backbone: str) -> None:
    """Log how many tensors a backbone that loads by itself has filled; none at all is an error."""
    source = path or "the downloaded file"
    if not loads:
        logger.warning(f"{source}: {backbone} loads weights in a way that cannot be counted")
        return
    counts = [(len(keys & set(names)), len(names), keys) for module, keys in loads
              for names in [pretrained.names_of(module)]]
    matched, total, keys = max(counts, key=lambda count: count[0])
    if matched == 0:
        raise ValueError(f"{source}: 0 of {total} tensors matched {backbone}; it was given names like "
                         f"{sorted(keys)[:3]}. {_ADVICE}")
    level = logging.INFO if matched == total else logging.WARNING
    logger.log(level, f"{source}: {matched} of {total} tensors matched")
