"""Makes FastReID importable: what its 1.4.0 wheel imports and current Python, torch or torchvision no longer have."""

import collections
import collections.abc
import contextlib
import importlib
import sys
import types
import warnings
from collections.abc import Iterator

import torch

HOST_PARTS = ("fastreid.data", "fastreid.evaluation.rank", "fastreid.evaluation.roc", "fastreid.modeling",
              "fastreid.solver", "fastreid.engine", "fastreid.utils.checkpoint")

# A torch.library.Library takes its operators back when it is collected.
_torchvision_ops: list[torch.library.Library] = []


def prepare() -> None:
    """Import every part of the host that this package adapts, leaving sys.modules and collections as they were."""
    require_fastreid()
    import_torchvision()
    missing = [name for name in HOST_PARTS if name not in sys.modules]
    if not missing:
        return  # a later call changes nothing, however many threads run by then
    with torch_six(), collections_mapping(), warnings.catch_warnings():
        # rank.py:14 and roc.py:18 recommend at import to compile Cython parts, which `skip_compilation` prevents.
        warnings.filterwarnings("ignore", message=r"Cython (rank|roc) evaluation")
        for name in missing:
            importlib.import_module(name)


def require_fastreid() -> None:
    """Say how to install the host where it is missing; `pip install fastreid` itself fails on Python 3.11 and up."""
    try:
        importlib.import_module("fastreid")
    except ModuleNotFoundError as error:
        if error.name != "fastreid":
            raise
        raise ImportError(
            'FastReID is not installed: pip install --no-deps "fastreid==1.4.0" '
            "(--no-deps because it pins torch 1.13.1, which has no build for this Python).",
            name="fastreid",
        ) from None


def import_torchvision() -> None:
    """Let torchvision's Python parts run beside a CPU-only torch (torchvision/_meta_registrations.py).

    A torchvision built for CUDA cannot load its library there, so `torchvision::nms` and `qnms` are unknown and
    its import fails. The host takes only transforms from it: the two operators are declared, without a body.
    With a CUDA torch the same error means two releases that do not fit, which is left to be seen.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or torch.version.cuda is not None:
            raise
        # The submodules of the failed attempt would stay unbound in the new torchvision package.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_ops.append(library)
        importlib.import_module("torchvision")


@contextlib.contextmanager
def torch_six() -> Iterator[None]:
    """data/build.py:11 imports `string_classes` from torch._six, which torch 2.0 removed; lent for the import only."""
    try:
        importlib.import_module("torch._six")
    except ModuleNotFoundError:
        sys.modules["torch._six"] = module = types.ModuleType("torch._six")
        module.string_classes = (str, bytes)
        try:
            yield
        finally:
            del sys.modules["torch._six"]
    else:
        yield


@contextlib.contextmanager
def collections_mapping() -> Iterator[None]:
    """data/build.py:12 and evaluation/testing.py:5 import `collections.Mapping`, which Python 3.10 removed."""
    if hasattr(collections, "Mapping"):
        yield
        return
    collections.Mapping = collections.abc.Mapping
    try:
        yield
    finally:
        del collections.Mapping
