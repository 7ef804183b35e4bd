"""Whether a GPU has the operators that ran on the software device, by the dispatch table that torch ships."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torchgen
import yaml

# Kernels that compose other operators, for any device.
COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}


@cache
def _entries() -> dict[str, dict]:
    """Entries of the table by operator and overload: 'add.Tensor'."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    return {entry["func"].partition("(")[0]: entry
            for entry in yaml.load(table.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))}


def has_cuda_kernel(name: str) -> bool:
    """Whether 'aten::add.Tensor' has a kernel for CUDA, its own or a composite one.

    Operators of other libraries have none here.
    """
    entry = _entries().get(name.removeprefix("aten::"))
    if entry is None:
        return False
    if "structured_delegate" in entry:
        return has_cuda_kernel(entry["structured_delegate"])
    if "ufunc_inner_loop" in entry:  # kernels for the CPU and for CUDA are generated from one formula
        return True
    kernels = entry.get("dispatch", {"CompositeImplicitAutograd": ""})
    keys = {key.strip() for keys in kernels for key in keys.split(",")}
    return bool(keys & (COMPOSITE | {"CUDA"}))


def without_cuda_kernel(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not has_cuda_kernel(name))
