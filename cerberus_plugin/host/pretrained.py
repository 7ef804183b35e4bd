"""Backbones: how many tensors a file of weights filled, errors where it filled none, and the pooling of the stem."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

from torch import nn

from .patching import replace
from .weights import read_tensors

logger = logging.getLogger("fastreid.cerberus.host")

_recording = threading.RLock()  # one thread at a time replaces torch's method

_ADVICE = (
    "Set MODEL.BACKBONE.PRETRAIN_PATH to a plain state dict (torchvision's resnet50 file fits the host's 50x ResNet), "
    "or MODEL.BACKBONE.PRETRAIN to False."
)


def count_matches() -> None:
    """Count the tensors that a pretrained file fills while the host builds a backbone.

    The host loads with strict=False (modeling/backbones/resnet.py:354): a file whose keys all differ, because of
    a prefix or an outer "state_dict", loads nothing and training starts from noise without a word. Without a path
    it imports gdown and downloads (resnet.py:248, :283).
    """
    import fastreid.modeling.backbones.build

    def build(host_build):
        def build_backbone(cfg):
            node = cfg.MODEL.BACKBONE
            if not node.PRETRAIN:
                return _with_stem_pool(host_build(cfg), node)
            if node.PRETRAIN_PATH and not os.path.isfile(node.PRETRAIN_PATH):
                raise FileNotFoundError(f"MODEL.BACKBONE.PRETRAIN_PATH '{node.PRETRAIN_PATH}' is no file. {_ADVICE}")
            with recorded_loads() as loads:
                backbone = _built(host_build, cfg)
            _report(loads, node.PRETRAIN_PATH, node.NAME)
            return _with_stem_pool(backbone, node)

        return build_backbone

    replace(fastreid.modeling.backbones.build, "build_backbone", build)


def _with_stem_pool(backbone: nn.Module, node) -> nn.Module:
    """Pool the stem as MODEL.BACKBONE.STEM_POOL says.

    The host's ResNet pools with ceil_mode and without padding (modeling/backbones/resnet.py:136), torchvision's with a
    padding of 1, and so were the ImageNet weights trained that both use. Maps have the same size where the image's
    sides are even, but cover other pixels. The host's ResNeXt, ResNeSt, RegNet and OSNet pad as torchvision does.
    """
    from fastreid.modeling.backbones.resnet import ResNet

    stem_pool = node.get("STEM_POOL", "ceil")  # the host alone has no such key
    if stem_pool not in ("ceil", "padding"):
        raise ValueError(f"MODEL.BACKBONE.STEM_POOL is '{stem_pool}', expected 'ceil' or 'padding'")
    if stem_pool == "padding":
        if not isinstance(backbone, ResNet):
            raise ValueError(f"MODEL.BACKBONE.STEM_POOL is 'padding', which is for build_resnet_backbone alone, but "
                             f"MODEL.BACKBONE.NAME is '{node.NAME}'; set STEM_POOL to 'ceil', its default, which "
                             "leaves other backbones as they are")
        backbone.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return backbone


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


def _names(module: nn.Module) -> list[str]:
    """Tensor names without BatchNorm's counters, which older files lack and inference does not use."""
    return [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]


def _report(loads: list[tuple[nn.Module, set[str]]], path: str, backbone: str) -> None:
    """Log how many tensors were filled; none at all is an error."""
    source = path or "the downloaded file"
    if not loads:
        logger.warning(f"{source}: {backbone} loads weights in a way that cannot be counted")
        return
    counts = [(len(keys.intersection(_names(module))), len(_names(module)), module, keys) for module, keys in loads]
    matched, total, module, keys = max(counts, key=lambda count: count[0])
    if matched == 0:
        held = list(read_tensors(path, map_location="cpu")) if path else sorted(keys)
        raise ValueError(
            f"{source}: 0 of {total} tensors matched {backbone}; the file has keys like {held[:3]}, the model like "
            f"{_names(module)[:3]}. Save the weights as one plain dict with the model's names: no outer key, no "
            f"'module.' or 'backbone.' in front. {_ADVICE}"
        )
    level = logging.INFO if matched == total else logging.WARNING
    logger.log(level, f"{source}: {matched} of {total} tensors matched")
