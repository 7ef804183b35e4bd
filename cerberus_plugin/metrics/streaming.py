"""Ranks of matches in a gallery larger than memory: two passes over parts of the gallery, for blocks of queries.

The first pass stores the distances of the pairs; the second pass counts the other images before each pair. Both passes
use the same blocks of the same parts, so that distances are bitwise equal and ties are preserved.

Shapes: Q queries, N gallery images, D feature size, M pairs.
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

# Feature values of a part on a CPU: 128 MiB in float32, and the same again during normalisation.
PART_ENTRIES = 2**25
# Upper bound of GPU memory per feature value: the raw and normalised features, with space left for distances.
FEATURE_BYTES = 32


class Gallery(Protocol):
    """Features (N, D) with slices of rows: a tensor on any device, an array, an `np.memmap`, or a user's class."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor | np.ndarray: ...


class Stream:
    """Compute distances between queries and a gallery, one part of the gallery at a time.

    Args:
        queries: float (Q, D).
        gallery: float (N, D). Each part is converted to at least float32 and, for "cosine", normalised.
        metric: "cosine" or "euclidean".
        device: device of the computation.
        part_size: number of gallery images of a part.
        block_size: number of queries of a block.
        report: called with the name of each pass, "distances" or "ranks", and its duration in seconds.
    """

    def __init__(self, queries: Tensor, gallery: Gallery, metric: str, device: torch.device | str, part_size: int,
                 block_size: int, report: Callable[[str, float], None] | None = None) -> None:
        self._queries = prepare(queries.to(device), metric, torch.promote_types(queries.dtype, torch.float32))
        self._gallery, self._metric, self._device = gallery, metric, device
        self._part_size, self._block_size = part_size, block_size
        self._report = report or (lambda name, seconds: None)

    def count(self, pairs: Pairs) -> tuple[Pairs, Tensor]:
        """Return the pairs, best first, and the number of other images before each, int64 (M,)."""
        start = time.perf_counter()
        values = self._distances_of(pairs)
        self._report("distances", time.perf_counter() - start)
        start = time.perf_counter()
        pairs, values = pairs.best_first(values)
        before = self._count_others(pairs, values)
        self._report("ranks", time.perf_counter() - start)
        return pairs, before

    def _distances_of(self, pairs: Pairs) -> Tensor:
        """Distances (M,) of the pairs. Blocks without a pair are skipped; a gallery sorted by identity has many."""
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
        """Function from a slice of queries to their distances to one part."""
        rows = self._gallery[part]
        if rows.shape[1] != self._queries.shape[1]:
            raise ValueError(f"ranking: query features have {self._queries.shape[1]} values per image, gallery "
                             f"features {rows.shape[1]}; compute both with the same model")
        # Copied, so that the pages of a memory-mapped file can be released.
        rows = rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
        _release_pages(self._gallery)
        return between(self._queries, prepare(rows.to(self._device), self._metric, self._queries.dtype), self._metric)


def _within(pairs: Pairs, own: Tensor | slice, first_query: int, first_column: int) -> Pairs:
    """Select pairs, with indices relative to the first query of a block and the first column of a part."""
    return Pairs(pairs.query[own] - first_query, pairs.column[own] - first_column, pairs.match[own])


def _release_pages(gallery: Gallery) -> None:
    """Release the pages of a memory-mapped file from resident memory; they are read again on access."""
    # Not in copy-on-write mode "c", where modifications would be lost.
    if isinstance(gallery, np.memmap) and gallery.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        gallery._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # missing in numpy's stubs
