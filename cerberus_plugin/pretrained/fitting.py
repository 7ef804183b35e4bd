"""Load tensors into a model by name and shape, and report which match and which do not."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Counters and tables that the model computes. Older files lack the counters; timm does not save the tables.
COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")
# Prefixes of modules that are added to a published backbone: non-local blocks and camera embeddings (pos_drop of timm's
# models, see modeling/cameras.py).
ADDED = ("NL_", "sie_embed", "pos_drop.")


@dataclass(frozen=True)
class Fit:
    """Result of loading a file into a model.

    Args:
        matched: names of the tensors that were loaded.
        absent: names of the model's tensors that were not loaded, with None if the file lacks the name, or the shapes
            (in the file, in the model) if they differ.
        added: names of the model's tensors that no published file contains, see `ADDED`.
        unused: names in the file that the model lacks.
    """

    matched: tuple[str, ...]
    absent: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]] | None]
    added: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of tensors that a file can fill."""
        return len(self.matched) + len(self.absent)

    @property
    def share(self) -> float:
        """Share of these tensors that were loaded, 0 to 1; 1 if there are none."""
        return len(self.matched) / self.total if self.total else 1.0

    def account(self) -> str:
        """Summary in one line, for logs and errors."""
        missing = [name for name, shapes in self.absent.items() if shapes is None]
        shaped = [f"{name} {_size(shapes[0])}, in the model {_size(shapes[1])}" for name, shapes in self.absent.items()
                  if shapes is not None]
        parts = [f"{len(self.matched)} of {self.total} tensors matched"]
        for what, named in (("absent in the file", grouped(missing)), ("of another shape", shaped),
                            ("new, in no published file", grouped(self.added)),
                            ("not in the model", grouped(self.unused))):
            if named:
                more = f" and {len(named) - 4} more" if len(named) > 4 else ""
                parts.append(f"{what}: {', '.join(named[:4])}{more}")
        return "; ".join(parts)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def grouped(names: Iterable[str]) -> list[str]:
    """Count names by their module, in order.

    Examples:
        >>> grouped(["conv1.weight", "layers.3.weight", "layers.3.bias"])
        ['conv1 (1)', 'layers.3 (2)']
    """
    counts = Counter(re.findall(r"^[^.]+(?:\.\d+)?", name)[0] for name in names)
    return [f"{name} ({count})" for name, count in counts.items()]


def names_of(module: nn.Module) -> dict[str, Tensor]:
    """Tensors of a backbone that a file can fill, by name; for a `TimmBackbone`, those of its `timm_model`."""
    target = getattr(module, "timm_model", module)
    return {name: value for name, value in target.state_dict().items() if not name.endswith(COMPUTED)}


def fit(module: nn.Module, tensors: Mapping[str, Tensor], rows_per_column: int = 1) -> Fit:
    """Load tensors into a backbone, in place; for a `TimmBackbone`, into its `timm_model`.

    Position embeddings of another size are resized.

    Args:
        module: the backbone.
        tensors: by the model's names.
        rows_per_column: rows divided by columns of the grid of the file's position embeddings.

    Returns:
        which tensors match and which do not.

    Examples:
        >>> fit(nn.Linear(2, 1), {"weight": torch.ones(1, 2)}).account()
        '1 of 2 tensors matched; absent in the file: bias (1)'
    """
    target = getattr(module, "timm_model", module)
    wanted = names_of(module)
    given = {name: value for name, value in tensors.items() if not name.endswith(COMPUTED)}
    positions = given.get("pos_embed")
    if positions is not None and "pos_embed" in wanted and positions.shape != wanted["pos_embed"].shape:
        given["pos_embed"] = resized_positions(positions, wanted["pos_embed"].shape[1], grid_of(target),
                                               rows_per_column)
    if "patch_embed.proj.weight" in given and given["patch_embed.proj.weight"].dim() == 2:  # a linear layer
        weight = given["patch_embed.proj.weight"]
        given["patch_embed.proj.weight"] = weight.reshape(-1, *wanted["patch_embed.proj.weight"].shape[1:])
    matched = [name for name, value in wanted.items() if name in given and given[name].shape == value.shape]
    others = [name for name in wanted if name not in matched]
    added = tuple(name for name in others if name.startswith(ADDED) and name not in given)
    absent = {name: (tuple(given[name].shape), tuple(wanted[name].shape)) if name in given else None
              for name in others if name not in added}
    target.load_state_dict({name: given[name] for name in matched}, strict=False)
    return Fit(tuple(matched), absent, added, tuple(name for name in given if name not in wanted))


def grid_of(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches of a vision transformer of timm or FastReID."""
    patches: Any = model.patch_embed
    return tuple(patches.grid_size) if hasattr(patches, "grid_size") else (patches.num_y, patches.num_x)


def resized_positions(positions: Tensor, count: int, grid: tuple[int, int], rows_per_column: int) -> Tensor:
    """Resize position embeddings to another grid of patches by bicubic interpolation.

    Embeddings of the tokens before the patches are copied; tokens that only the model has get zeros.

    Args:
        positions: float (1, n, C).
        count: number of tokens of the model; the last rows * columns are the patches.
        grid: rows and columns of patches of the model.
        rows_per_column: rows divided by columns of the grid of `positions`.

    Returns:
        float (1, count, C), or `positions` unchanged if its grid does not have these proportions; `fit` then reports
        the shape.

    Examples:
        >>> resized_positions(torch.zeros(1, 1 + 14 * 14, 8), 1 + 16 * 8, (16, 8), rows_per_column=1).shape
        torch.Size([1, 129, 8])
    """
    patches = grid[0] * grid[1]
    for own in (count - patches, 1, 0, 2, 4):  # number of class, distillation or part tokens
        columns = math.isqrt(max(positions.shape[1] - own, 0) // rows_per_column)
        if own >= 0 and columns and rows_per_column * columns**2 == positions.shape[1] - own:
            break
    else:
        return positions
    before, maps = positions[:, :own], positions[:, own:].unflatten(1, (rows_per_column * columns, columns))
    resized = F.interpolate(maps.movedim(3, 1).float(), size=grid, mode="bicubic", antialias=True)
    before = before[:, :count - patches]
    if before.shape[1] < count - patches:  # the model has more tokens before the patches
        before = F.pad(before, (0, 0, 0, count - patches - before.shape[1]))
    return torch.cat([before.float(), resized.flatten(2).transpose(1, 2)], dim=1)

