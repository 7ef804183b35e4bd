"""Ranks of a query's matches without ordering the gallery: how many other images lie before each of them.

Letters: B queries, n gallery images (all, or a part of them), M pairs. A pair is a query and a gallery image that is
taken out of its ranking: a match, or an image that is ignored. All others are sorted by value alone, and the k-th match
of a query has the rank k + the others before it. Counts over parts of a gallery add up.

Pairs are lists on the CPU; distances are sorted and searched on their own device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Images taken out of the rankings of B queries, all (M,), in the order of query and column.

    `query` int64 0..B-1, `column` int64, `match` bool: True for an image to be found, False for an ignored one.
    """

    query: Tensor
    column: Tensor
    match: Tensor

    def best_first(self, values: Tensor) -> tuple[Pairs, Tensor]:
        """These pairs and their distances (M,) in the order of query, distance and column."""
        order = values.sort(stable=True).indices
        order = order[self.query[order].sort(stable=True).indices]
        return Pairs(*(field[order] for field in self)), values[order]


def pairs_of_masks(relevant: Tensor, ignored: Tensor | None) -> Pairs:
    """Pairs of bool masks (B, n), on any device."""
    taken = relevant if ignored is None else relevant | ignored
    query, column = taken.nonzero(as_tuple=True)
    match = torch.ones_like(query, dtype=torch.bool) if ignored is None else ~ignored[query, column]
    return Pairs(query.cpu(), column.cpu(), match.cpu())


class Identities:
    """Gallery images by identity: the pairs of the Market-1501 protocol without a comparison of B times n ids.

    Args:
        pids, camids: int64 (n,).
    """

    def __init__(self, pids: Tensor, camids: Tensor) -> None:
        self._pids, self._columns = pids.cpu().sort(stable=True)
        self._camids = camids.cpu()

    def count(self, pids: Tensor) -> Tensor:
        """Images of the identities int64 (B,): int64 (B,)."""
        pids = pids.cpu()
        return torch.searchsorted(self._pids, pids, right=True) - torch.searchsorted(self._pids, pids)

    def pairs(self, pids: Tensor, camids: Tensor) -> Pairs:
        """Each query's images of its identity, those of its own camera ignored: int64 (B,), (B,)."""
        pids, camids = pids.cpu().contiguous(), camids.cpu()
        counts = self.count(pids)
        query = torch.arange(len(pids)).repeat_interleave(counts)  # (M,)
        within = torch.arange(len(query)) - (counts.cumsum(dim=0) - counts)[query]
        column = self._columns[torch.searchsorted(self._pids, pids)[query] + within]
        return Pairs(query, column, self._camids[column] != camids[query])


def distances_of(pairs: Pairs, distances: Tensor) -> Tensor:
    """Distances (M,) of pairs in the matrix (B, n), on the CPU."""
    return distances[pairs.query.to(distances.device), pairs.column.to(distances.device)].cpu()


def refuse_nan(distances: Tensor) -> None:
    """NaN has no place in an order."""
    if distances.amax().isnan():
        raise ValueError(f"ranking: {int(distances.isnan().sum())} of {distances.numel()} distances are NaN; "
                         "look for NaN in the features")


def sortable(distances: Tensor) -> Tensor:
    """float32 or float64 of the same order: NumPy sorts no others fast, and whole numbers have no infinity."""
    wide = torch.promote_types(distances.dtype, torch.float32) if distances.is_floating_point() else torch.float64
    return distances.detach().to(wide)


def count_others(distances: Tensor, pairs: Pairs, values: Tensor, first: int = 0) -> Tensor:
    """Other images before each pair; equal distances rank the lower column first.

    Args:
        distances: float32 or float64 (B, n), columns `first`, `first` + 1, ... of the gallery.
        pairs: best first, of columns inside and outside of these.   values: their distances, (M,).

    Returns:
        int64 (M,), on the CPU.
    """
    if len(values) == 0:
        return torch.zeros(0, dtype=torch.int64)
    device, (num_rows, width) = distances.device, distances.shape
    query, column = pairs.query, pairs.column - first
    inside = (column >= 0) & (column < width)  # (M,)
    others = distances.clone(memory_format=torch.contiguous_format)
    others[query[inside].to(device), column[inside].to(device)] = float("inf")
    others = _sorted_rows(others)

    start = torch.searchsorted(query, torch.arange(num_rows))
    slot = torch.arange(len(query)) - start[query]  # 0.. within each query
    padded = values.new_full((num_rows, int(slot.max()) + 1), float("inf"))
    padded[query, slot] = values
    padded = padded.to(device)
    nearer = torch.searchsorted(others, padded).cpu()[query, slot]
    as_near = torch.searchsorted(others, padded, right=True).cpu()[query, slot]
    del others
    tied = (as_near > nearer).nonzero().flatten()
    if len(tied):
        nearer[tied] += _equal_before(distances, query, column, values, inside, tied)
    return nearer


def _sorted_rows(values: Tensor) -> Tensor:
    """Each row in ascending order; on the CPU in place."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    values.numpy().sort(axis=1)  # by vector instructions: a twentieth of the time of torch's sort
    return values


def _equal_before(distances: Tensor, query: Tensor, column: Tensor, values: Tensor, inside: Tensor,
                  tied: Tensor) -> Tensor:
    """Others at the distance of a tied pair and in a lower column: int64 (T,) for `tied` int64 (T,)."""
    device, (num_rows, width) = distances.device, distances.shape
    begins = torch.ones(len(query), dtype=torch.bool)  # of runs of one query and one distance
    begins[1:] = (query[1:] != query[:-1]) | (values[1:] != values[:-1])
    run = begins.cumsum(dim=0) - 1
    taken = inside.cumsum(dim=0) - inside.long()  # pairs inside before this one; a run lists its columns in order
    taken = (taken - taken[begins][run])[tied]

    # One pass over a row for each run, however long: all images of a collapsed model are one run a query.
    runs, of_tied = run[tied].unique_consecutive(return_inverse=True)
    heads = begins.nonzero().flatten()[runs]
    up_to = column[tied].clamp(0, width)
    equal = torch.zeros_like(tied)
    step = max(1, num_rows // 4)
    for low in range(0, len(heads), step):
        some = heads[low:low + step]
        of_run = distances[query[some].to(device)] == values[some].to(device)[:, None]
        ends = of_run.cumsum(dim=1, dtype=torch.int32)
        here = ((of_tied >= low) & (of_tied < low + step) & (up_to > 0)).nonzero().flatten()
        equal[here] = ends[(of_tied[here] - low).to(device), (up_to[here] - 1).to(device)].cpu().long()
    return equal - taken
