"""Ranks of matches in a gallery that no memory holds: two passes over its parts, block by block of queries.

The first pass takes down the distances of the pairs, the second counts the other images before each of them. Both make
the same blocks from the same parts, so that a distance is the same to its last bit in either, and ties stay ties.

Letters: Q queries, N gallery images, D feature size, M pairs.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .counting import Pairs, count_others, distances_of, refuse_nan
from .distances import between, prepare

# Feature values of a part on a CPU: 128 MiB in single precision, and as much again while they are made unit vectors.
PART_ENTRIES = 2**25
# Memory of a feature value on a GPU, at most: as read and as unit vectors; a part is to leave room for its distances.
FEATURE_BYTES = 32


class Gallery(Protocol):
    """Features (N, D) by rows: a tensor on any device, an array, an `np.memmap`, or a reader of a user's own."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor | np.ndarray: ...


class Stream:
    """Blocks of distances between queries and one part of a gallery after the other.

    Args:
        queries: float (Q, D).
        gallery: float16 is raised to float32 part by part, as the cosine's unit length is taken.
        part_size: gallery images of a part.   block_size: queries of a block.
        report: told the name of each pass, "distances" or "ranks", and its seconds.
    """

    def __init__(self, queries: Tensor, gallery: Gallery, metric: str, device: torch.device | str, part_size: int,
                 block_size: int, report: Callable[[str, float], None] | None = None) -> None:
        self._queries = prepare(queries.to(device), metric, torch.promote_types(queries.dtype, torch.float32))
        self._gallery, self._metric, self._device = gallery, metric, device
        self._part_size, self._block_size = part_size, block_size
        self._report = report or (lambda name, seconds: None)

    def count(self, pairs: Pairs) -> tuple[Pairs, Tensor]:
        """The pairs, best first, and the other images before each of them: int64 (M,)."""
        start = time.perf_counter()
        values = self._distances_of(pairs)
        self._report("distances", time.perf_counter() - start)
        start = time.perf_counter()
        pairs, values = pairs.best_first(values)
        before = self._count_others(pairs, values)
        self._report("ranks", time.perf_counter() - start)
        return pairs, before

    def _distances_of(self, pairs: Pairs) -> Tensor:
        """Distances (M,) of the pairs; blocks without a pair are left out, as in a gallery ordered by identity."""
        values = torch.empty(len(pairs.query), dtype=self._queries.dtype)
        for part in self._parts():
            inside = ((pairs.column >= part.start) & (pairs.column < part.stop)).nonzero().flatten()
            if not len(inside):
                continue
            distances = self._distances(part)
            block = pairs.query[inside] // self._block_size
            for k in block.unique().tolist():
                own = inside[block == k]
                values[own] = distances_of(_within(pairs, own, k * self._block_size, part.start),
                                           distances(self._rows(k)))
        return values

    def _count_others(self, pairs: Pairs, values: Tensor) -> Tensor:
        """Sum of `count_others` over the parts: int64 (M,)."""
        before = torch.zeros(len(values), dtype=torch.int64)
        num_blocks = -(-len(self._queries) // self._block_size)
        bounds = torch.searchsorted(pairs.query, torch.arange(num_blocks + 1) * self._block_size).tolist()
        for part in self._parts():
            distances = self._distances(part)
            for k, own in enumerate(map(slice, bounds, bounds[1:])):
                of_block = _within(pairs, own, k * self._block_size, 0)
                block = distances(self._rows(k))
                refuse_nan(block)
                before[own] += count_others(block, of_block, values[own], first=part.start)
        return before

    def _parts(self) -> Iterator[slice]:
        num_gallery = len(self._gallery)
        for first in range(0, num_gallery, self._part_size):
            yield slice(first, min(first + self._part_size, num_gallery))

    def _rows(self, k: int) -> slice:
        return slice(k * self._block_size, (k + 1) * self._block_size)

    def _distances(self, part: slice) -> Callable[[slice], Tensor]:
        """Distances of any rows of queries to one part."""
        rows = self._gallery[part]
        if rows.shape[1] != self._queries.shape[1]:
            raise ValueError(f"ranking: query features are {self._queries.shape[1]} numbers an image, gallery features "
                             f"{rows.shape[1]}; take both from one model")
        # A copy, so that the pages of a mapped file can go.
        rows = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
        _let_pages_go(self._gallery)
        return between(self._queries, prepare(rows.to(self._device), self._metric, self._queries.dtype), self._metric)


def _within(pairs: Pairs, own: Tensor | slice, first_query: int, first_column: int) -> Pairs:
    """Some of the pairs, numbered from the first query of a block and the first column of a part."""
    return Pairs(pairs.query[own] - first_query, pairs.column[own] - first_column, pairs.match[own])


def _let_pages_go(gallery: Gallery) -> None:
    """Take a mapped file out of this process's resident memory, which it would fill; its pages can be read again."""
    # Not of a copy on write, mode "c": what was written to it would be lost.
    if isinstance(gallery, np.memmap) and gallery.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        gallery._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # numpy's stubs leave it out
