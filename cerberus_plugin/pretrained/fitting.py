"""Tensors of a file put into a model by name and shape, with an account of what fits and what does not."""

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

# Counters and tables that a model computes by itself; older files lack the former, timm keeps the latter out.
COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")
# What models add to a published backbone: non-local blocks, embeddings of cameras.
ADDED = ("NL_", "sie_embed")


@dataclass(frozen=True)
class Fit:
    """What became of a file.

    Args:
        matched: names of tensors that were filled.
        absent: names of the model that the file lacks, or has in another shape; (file's, model's) shape of those.
        added: names of the model that no file has.
        unused: names of the file that the model lacks.
    """

    matched: tuple[str, ...]
    absent: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]] | None]
    added: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def total(self) -> int:
        return len(self.matched) + len(self.absent)

    @property
    def share(self) -> float:
        """Of the tensors that a file can fill."""
        return len(self.matched) / self.total if self.total else 1.0

    def account(self) -> str:
        """One line."""
        lacking = [name for name, shapes in self.absent.items() if shapes is None]
        shaped = [f"{name} {_size(shapes[0])}, in the model {_size(shapes[1])}" for name, shapes in self.absent.items()
                  if shapes is not None]
        parts = [f"{len(self.matched)} of {self.total} tensors matched"]
        for what, named in (("absent in the file", grouped(lacking)), ("of another shape", shaped),
                            ("new, in no such file", grouped(self.added)),
                            ("not in the model", grouped(self.unused))):
            if named:
                more = f" and {len(named) - 4} more" if len(named) > 4 else ""
                parts.append(f"{what}: {', '.join(named[:4])}{more}")
        return "; ".join(parts)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def grouped(names: Iterable[str]) -> list[str]:
    """Names by module, `layers.3 (24)`, in order."""
    counts = Counter(re.findall(r"^[^.]+(?:\.\d+)?", name)[0] for name in names)
    return [f"{name} ({count})" for name, count in counts.items()]


def names_of(module: nn.Module) -> dict[str, Tensor]:
    """What a file can fill of a backbone, of timm's model within it where there is one."""
    target = getattr(module, "timm_model", module)
    return {name: value for name, value in target.state_dict().items() if not name.endswith(COMPUTED)}


def fit(module: nn.Module, tensors: Mapping[str, Tensor], rows_per_column: int = 1) -> Fit:
    """Fill a backbone; of a `timm_model` within it, by timm's names.

    Args:
        tensors: under the model's names.
        rows_per_column: of the grid of the file's position embeddings.
    """
    target = getattr(module, "timm_model", module)
    wanted = names_of(module)
    held = {name: value for name, value in tensors.items() if not name.endswith(COMPUTED)}
    positions = held.get("pos_embed")
    if positions is not None and "pos_embed" in wanted and positions.shape != wanted["pos_embed"].shape:
        held["pos_embed"] = resized_positions(positions, wanted["pos_embed"].shape[1], grid_of(target), rows_per_column)
    if "patch_embed.proj.weight" in held and held["patch_embed.proj.weight"].dim() == 2:  # of linear patches
        weight = held["patch_embed.proj.weight"]
        held["patch_embed.proj.weight"] = weight.reshape(-1, *wanted["patch_embed.proj.weight"].shape[1:])
    matched = [name for name, value in wanted.items() if name in held and held[name].shape == value.shape]
    left = [name for name in wanted if name not in matched]
    added = tuple(name for name in left if name.startswith(ADDED) and name not in held)
    absent = {name: (tuple(held[name].shape), tuple(wanted[name].shape)) if name in held else None
              for name in left if name not in added}
    target.load_state_dict({name: held[name] for name in matched}, strict=False)
    return Fit(tuple(matched), absent, added, tuple(name for name in held if name not in wanted))


def grid_of(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches of timm's or the host's transformer."""
    patches: Any = model.patch_embed
    return tuple(patches.grid_size) if hasattr(patches, "grid_size") else (patches.num_y, patches.num_x)


def resized_positions(positions: Tensor, count: int, grid: tuple[int, int], rows_per_column: int) -> Tensor:
    """Position embeddings (1, n, C) for `count` tokens, of which the last rows * columns are a grid of patches.

    Embeddings of other tokens are kept, as many as both have. A grid that is not of the given proportion is left as it
    is, for `fit` to report.
    """
    patches = grid[0] * grid[1]
    for own in (count - patches, 1, 0, 2, 4):  # tokens before the patches: class, distillation or part tokens
        columns = math.isqrt(max(positions.shape[1] - own, 0) // rows_per_column)
        if own >= 0 and columns and rows_per_column * columns**2 == positions.shape[1] - own:
            break
    else:
        return positions
    before, maps = positions[:, :own], positions[:, own:].unflatten(1, (rows_per_column * columns, columns))
    resized = F.interpolate(maps.movedim(3, 1).float(), size=grid, mode="bicubic", antialias=True)
    before = before[:, :count - patches]
    if before.shape[1] < count - patches:  # a class token's embedding in the model alone
        before = F.pad(before, (0, 0, 0, count - patches - before.shape[1]))
    return torch.cat([before.float(), resized.flatten(2).transpose(1, 2)], dim=1)

