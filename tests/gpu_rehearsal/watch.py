"""Count the operations on a cuda device, and the places where Python waits for the device."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import soft_cuda

ROOT = Path(__file__).parents[2]
# Operators with a result, or a size of the result, for which Python waits.
WAITS = {"_local_scalar_dense": "item", "nonzero": "nonzero", "masked_select": "masked_select", "equal": "equal",
         "unique_dim": "unique", "_unique2": "unique", "unique_consecutive": "unique", "bincount": "bincount",
         "unique_dim_consecutive": "unique", "repeat_interleave": "repeat_interleave",
         "_linalg_check_errors": "linear algebra"}
# Operators that create tensors without work of the device: views and uninitialised memory.
FREE = {"view", "as_strided", "t", "transpose", "permute", "expand", "select", "slice", "unsqueeze", "squeeze",
        "detach", "alias", "_unsafe_view", "unbind", "split", "split_with_sizes", "unfold", "diagonal", "lift_fresh",
        "_reshape_alias", "set_", "resize_", "is_pinned", "_pin_memory",
        "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}


class Watch(TorchDispatchMode):
    """Counts operations in a `with` block, including those of backward passes.

    Attributes:
        operations: calls of operators that need work of the device, including copies to the device, by name.
        waits: places where Python waits for the device, by kind and location.
        uploads: copies to the device from memory that is not pinned, by shape and location; Python waits for each copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.waits, self.uploads = Counter(), Counter(), Counter()

    def counts(self) -> dict[str, int]:
        """Return the total number of operations, waits and uploads."""
        return {name: sum(getattr(self, name).values()) for name in ("operations", "waits", "uploads")}

    def __enter__(self):
        soft_cuda.on_wait.append(self._count_wait)
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        soft_cuda.on_wait.remove(self._count_wait)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(result))
        if any(tensor.is_cuda for tensor in (*inputs, *outputs)):
            name = func._schema.name.removeprefix("aten::")
            if name in ("copy_", "_to_copy"):
                self._count_copy(name, inputs, outputs, args, kwargs)
            else:
                self._count(name, inputs)
        return result

    def _count(self, name: str, inputs: list[torch.Tensor]) -> None:
        if name not in FREE:
            self.operations[name] += 1
        if name in WAITS:
            self._count_wait(WAITS[name])
        if name.startswith(("index", "_index")):
            if any(index.dtype == torch.bool for index in inputs[1:]):
                self._count_wait("boolean index")
            if any(not index.is_cuda and index.dim() for index in inputs[1:]):
                self.uploads[f"index @ {_place()}"] += 1

    def _count_copy(self, name, inputs, outputs, args, kwargs) -> None:
        source, target = (inputs[-1], inputs[0]) if name == "copy_" else (inputs[0], outputs[0])
        non_blocking = args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False)
        if source.is_cuda and not target.is_cuda:
            if not (non_blocking and (name == "_to_copy" or target.is_pinned())):  # `to` allocates pinned memory itself
                self._count_wait("copy to the CPU")
            return
        self.operations[name] += 1
        if not source.is_cuda:
            if not (non_blocking and source.is_pinned()):
                self.uploads[f"{tuple(source.shape)} {source.dtype} @ {_place()}"] += 1

    def _count_wait(self, kind: str) -> None:
        self.waits[f"{kind} @ {_place()}"] += 1


def _place(depth: int = 3) -> str:
    """Return file and line in the project or FastReID with their callers, the innermost first."""
    known = []
    for frame in reversed(traceback.extract_stack()):
        _, inside, path = frame.filename.rpartition("site-packages/")
        if not inside and Path(frame.filename).is_relative_to(ROOT):
            path = str(Path(frame.filename).relative_to(ROOT))
        if path.startswith(("cerberus_plugin/", "fastreid/", "torch/optim/", "torch/amp/")):
            known.append(f"{path}:{frame.lineno}")
    return " < ".join(known[:depth]) or "a backward pass"


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
