"""Makes FastReID importable: supplies names that release 1.4.0 imports and current Python and torch have removed."""

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

# torch.library.Library removes its operators when it is garbage-collected, so keep a reference.
_torchvision_ops: list[torch.library.Library] = []


def prepare() -> None:
    """Import every module of FastReID that this package adapts; restore sys.modules and collections afterwards."""
    require_fastreid()
    import_torchvision()
    missing = [name for name in HOST_PARTS if name not in sys.modules]
    if not missing:
        return  # thread safe: a later call changes nothing
    with torch_six(), collections_mapping(), warnings.catch_warnings():
        # rank.py:14 and roc.py:18 warn that Cython modules are not compiled; `skip_compilation` makes them unnecessary.
        warnings.filterwarnings("ignore", message=r"Cython (rank|roc) evaluation")
        for name in missing:
            importlib.import_module(name)


def require_fastreid() -> None:
    """Raise ImportError with the install command if FastReID is missing.

    A plain `pip install fastreid` fails on Python 3.11 and newer, because it requires torch 1.13.1.
    """
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
    """Import a torchvision that was built for CUDA together with a CPU-only torch.

    Such a torchvision cannot load its C++ library, so `torchvision::nms` and `qnms` are undefined and the import fails
    (torchvision/_meta_registrations.py). FastReID uses only the transforms, so the two operators are declared without
    an implementation. With a CUDA build of torch, the same error means that the two releases do not match, and it is
    raised.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or torch.version.cuda is not None:
            raise
        # Submodules of the failed import would not become attributes of the new torchvision package.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_ops.append(library)
        importlib.import_module("torchvision")


@contextlib.contextmanager
def torch_six() -> Iterator[None]:
    """Provide torch._six.string_classes during the import (data/build.py:11); torch 2.0 removed it."""
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
    """Provide `collections.Mapping` during the import; Python 3.10 removed it.

    It is used in data/build.py:12 and evaluation/testing.py:5.
    """
    if hasattr(collections, "Mapping"):
        yield
        return
    collections.Mapping = collections.abc.Mapping
    try:
        yield
    finally:
        del collections.Mapping
