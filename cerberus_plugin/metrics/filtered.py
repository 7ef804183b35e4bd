"""Ranking figures of a retrieval in which a filter has removed gallery images beforehand.

Letters: Q queries, N gallery images, B queries of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranking import rank_in_blocks


@dataclass(frozen=True)
class FilteredResult:
    """Figures of the Market-1501 protocol behind a filter, as shares of 1; means run over queries that had a match.

    A removed match counts as a miss: AP divides by the matches there were, and a query that lost all of them counts as
    0.

    * `rank1`, `mAP`;
    * `speed_up`: candidates before the filter / after it, both means over queries;
    * `survivors`: int64 (Q,), candidates after it. Images of the query's own identity and camera are no candidates;
    * `kept_matches`: share of all true matches that survived.
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
    """The Market-1501 protocol among the images that a filter keeps.

    Args:
        distances: of any rows of queries to the whole gallery: slice of range(Q) -> float (B, N), smaller is better.
        keep: of the same rows: slice of range(Q) -> bool (B, N).
        query_pids, query_camids: int64 (Q,).   gallery_pids, gallery_camids: int64 (N,).
        block_size: queries ranked at a time; None for `ranking.block_rows` of the device.
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
        # Behind everything else, removed images change the rank of no survivor.
        return matrix.masked_fill(~kept, float("inf")), match.to(matrix.device) & kept, own.to(matrix.device)

    queries = rank_in_blocks(block, len(query_pids), len(gallery_pids), block_size)
    matches, candidates, survivors = torch.cat(counts, dim=1)  # (Q,) each
    had = matches > 0
    if not had.any():
        raise ValueError("filter: no query has a match under another camera; check that pids and camids of query and "
                         "gallery have one numbering")
    ap = queries.ap.nan_to_num(0) * (queries.num_matches / matches)  # 0 / 0 is the NaN of a query without a match
    return FilteredResult(
        rank1=(queries.first_match[had] == 1).double().mean().item(),
        mAP=ap[had].mean().item(),
        speed_up=(candidates.double().mean() / survivors.double().mean()).item(),
        survivors=survivors,
        kept_matches=(queries.num_matches.sum() / matches.sum()).item(),
    )
