"""Ranking metrics for retrieval in a gallery from which a filter has removed images.

Shapes: Q queries, N gallery images, B queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranking import rank_in_blocks


@dataclass(frozen=True)
class FilteredResult:
    """Metrics of the Market-1501 protocol after a filter, as fractions from 0 to 1.

    Means are taken over the queries with a match before the filter. A removed match counts as a miss: AP is divided by
    the number of matches before the filter, and is 0 for a query without a remaining match.

    Attributes:
        rank1: Rank-1 of the filtered ranking.
        mAP: mAP of the filtered ranking.
        speed_up: mean number of candidates before the filter, divided by the mean number after it.
        survivors: int64 (Q,), number of candidates after the filter. Images of the identity and camera of the query
            are not candidates.
        kept_matches: share of all true matches that remain.
    """

    rank1: float
    mAP: float
    speed_up: float
    survivors: Tensor
    kept_matches: float


def filtered_metrics(
    distances: Callable[[slice], Tensor],
    keep: Callable[[slice], Tensor],
    query_pids: Tensor,
    query_camids: Tensor,
    gallery_pids: Tensor,
    gallery_camids: Tensor,
    *,
    block_size: int | None = None,
) -> FilteredResult:
    """Evaluate a filtered ranking by the Market-1501 protocol.

    Args:
        distances: function from a slice of range(Q) to distances float (B, N); smaller is better.
        keep: function from the same slice to bool (B, N), True for images that the filter keeps.
        query_pids: int64 (Q,), identities of the queries.
        query_camids: int64 (Q,), cameras of the queries.
        gallery_pids: int64 (N,), identities of the gallery.
        gallery_camids: int64 (N,), cameras of the gallery.
        block_size: number of queries ranked at a time; None for `ranking.block_rows` of the device.

    Raises:
        ValueError: if no query has a match before the filter.

    Examples:
        >>> distances, keep = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[False, True, True]])
        >>> result = filtered_metrics(distances.__getitem__, keep.__getitem__, torch.tensor([7]), torch.tensor([1]),
        ...                           torch.tensor([8, 7, 7]), torch.tensor([2, 2, 3]))
        >>> result.rank1, result.mAP, result.speed_up, result.kept_matches
        (1.0, 1.0, 1.5, 1.0)
    """
    counts: list[Tensor] = []

    def block(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        kept = keep(rows)
        same = query_pids[rows, None] == gallery_pids
        own = same & (query_camids[rows, None] == gallery_camids)
        match = same & ~own
        counts.append(torch.stack([match.sum(dim=1), (~own).sum(dim=1), (kept.to(own.device) & ~own).sum(dim=1)]))
        matrix = distances(rows)
        kept = kept.to(matrix.device)
        # An infinite distance ranks removed images last, so that they do not change the ranks of the others.
        return matrix.masked_fill(~kept, float("inf")), match.to(matrix.device) & kept, own.to(matrix.device)

    queries = rank_in_blocks(block, len(query_pids), len(gallery_pids), block_size)
    matches, candidates, survivors = torch.cat(counts, dim=1)  # (Q,) each
    had = matches > 0
    if not had.any():
        raise ValueError("filter: no query has a match in another camera; check that pids and camids of query and "
                         "gallery use the same numbering")
    ap = queries.ap.nan_to_num(0) * (queries.num_matches / matches)  # 0 / 0 gives NaN for a query without a match
    return FilteredResult(
        rank1=(queries.first_match[had] == 1).double().mean().item(),
        mAP=ap[had].mean().item(),
        speed_up=(candidates.double().mean() / survivors.double().mean()).item(),
        survivors=survivors,
        kept_matches=(queries.num_matches.sum() / matches.sum()).item(),
    )
