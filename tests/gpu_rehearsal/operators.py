"""Check with torch's dispatch table that a GPU supports the operators that ran on the software device."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torchgen
import yaml

# Kernels for any device that are composed of other operators.
COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}


@cache
def _entries() -> dict[str, dict]:
    """Return the entries of the table by operator and overload, such as 'add.Tensor'."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    return {entry["func"].partition("(")[0]: entry
            for entry in yaml.load(table.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))}


def has_cuda_kernel(name: str) -> bool:
    """Return whether an operator such as 'aten::add.Tensor' has a CUDA kernel or a composite one.

    Returns False for operators of other libraries.
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
    """Return the operators without a CUDA kernel, sorted."""
    return sorted(name for name in names if not has_cuda_kernel(name))
