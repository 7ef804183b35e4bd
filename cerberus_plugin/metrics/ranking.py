"""Ranking figures of a retrieval: AP, CMC and INP, from distances or features, block by block of queries.

Letters: Q queries, N gallery images, B queries of a block, D feature size, P matches of a block.

Conventions, the same for every figure here: rank 1 is the smallest distance; equal distances rank the lower gallery
index first; an ignored image is taken out of the ranking, so that the images behind it move up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Measured: under 0.4 GB while a block is ranked against the 15,913 gallery images of Market-1501.
BLOCK_SIZE = 256


class Ranking(NamedTuple):
    """Figures of each query, all (Q,) on the CPU; float64 fields are NaN for a query without a match.

    With the n matches of a query at the ranks r_1 < ... < r_n, and hits k at rank r_k:

    * `ap`, rectangle rule: (1/n) sum_k k / r_k; what FastReID reports;
    * `ap_trapezoid`: (1/n) sum_k (k / r_k + o_k) / 2 with o_k = (k-1) / (r_k - 1), and 1 at rank 1; what the MATLAB
      kits of Market-1501 and DukeMTMC report. It never exceeds `ap` and equals it only for a perfect list;
    * `inp`: n / r_n;
    * `first_match`: r_1, int64, 0 for a query without a match;
    * `num_matches`: n, int64.
    """

    ap: Tensor
    ap_trapezoid: Tensor
    inp: Tensor
    first_match: Tensor
    num_matches: Tensor


def rank_matches(distances: Tensor, relevant: Tensor, ignored: Tensor | None = None) -> Ranking:
    """Rank the gallery for one block of queries, on the device of `distances`.

    Args:
        distances: float (B, N), smaller is better; hand over `-scores` where larger is better.
        relevant: bool (B, N), the images to be found.
        ignored: bool (B, N), images taken out of the ranking, relevant or not; None takes none out.
    """
    if distances.numel() == 0:
        raise ValueError(f"ranking: empty query or gallery: distances have the shape {tuple(distances.shape)}")
    if distances.isnan().any():
        raise ValueError(f"ranking: {int(distances.isnan().sum())} of {distances.numel()} distances are NaN; "
                         "look for NaN in the features")
    order = distances.sort(dim=1, stable=True).indices  # (B, N)
    if ignored is not None:
        relevant = relevant & ~ignored
    query, column = relevant.gather(1, order).nonzero(as_tuple=True)  # (P,) each, query by query, best first
    rank = column + 1
    if ignored is not None:
        rank = rank - ignored.gather(1, order).cumsum(dim=1)[query, column]  # (P,)

    # Only P numbers are left of B * N: on the CPU their float64 sums have one order, the same on every machine.
    query, rank, num_matches = query.cpu(), rank.cpu(), relevant.sum(dim=1).cpu()
    end = num_matches.cumsum(dim=0)  # (B,), where a query's matches end among the P
    start = end - num_matches
    hits = torch.arange(1, len(rank) + 1) - start[query]  # (P,), 1..n within each query
    precision = hits.double() / rank
    old_precision = torch.where(rank == 1, 1.0, (hits - 1).double() / (rank - 1))

    def mean_over_matches(values: Tensor) -> Tensor:  # 0 / 0 is the NaN of a query without a match
        return torch.zeros(len(start), dtype=torch.float64).index_add_(0, query, values) / num_matches

    found = num_matches > 0
    first_match = torch.zeros_like(num_matches)
    first_match[found] = rank[start[found]]
    last_match = torch.zeros_like(num_matches)
    last_match[found] = rank[end[found] - 1]
    return Ranking(
        ap=mean_over_matches(precision),
        ap_trapezoid=mean_over_matches((precision + old_precision) / 2),
        inp=num_matches.double() / last_match,
        first_match=first_match,
        num_matches=num_matches,
    )


def rank_in_blocks(
    block: Callable[[slice], tuple[Tensor, Tensor, Tensor | None]], num_queries: int, block_size: int = BLOCK_SIZE
) -> Ranking:
    """Rank all queries while holding the distances of at most `block_size` of them.

    Args:
        block: given the rows of a block as a slice of range(Q), the arguments of `rank_matches` for these rows.
    """
    if num_queries == 0:
        raise ValueError("ranking: empty query set, nothing to rank")
    rows = (slice(i, min(i + block_size, num_queries)) for i in range(0, num_queries, block_size))
    parts = [rank_matches(*block(r)) for r in rows]
    return Ranking(*(torch.cat(column) for column in zip(*parts)))


def cmc_curve(first_match: Tensor, max_rank: int, num_queries: int) -> Tensor:
    """CMC@1..max_rank: share of `num_queries` with a match in the first k; int64 (Q,) -> float64 (max_rank,).

    A gallery shorter than `max_rank` repeats its last value.
    """
    ranks = torch.arange(1, max_rank + 1)
    ordered = first_match[first_match > 0].sort().values
    return torch.searchsorted(ordered, ranks, right=True).double() / num_queries


@dataclass(frozen=True)
class ReIDResult:
    """Figures of a re-identification test, as shares of 1; means run over the queries that have a match.

    `cmc` is float64 (max_rank,), `queries` holds the figures of each of the Q queries, skipped ones included,
    `num_skipped` counts those without a match in another camera.
    """

    cmc: Tensor
    mAP: float
    mAP_trapezoid: float
    mINP: float
    num_skipped: int
    queries: Ranking


def reid_metrics(
    distances: Tensor,
    query_pids: Tensor,
    query_camids: Tensor,
    gallery_pids: Tensor,
    gallery_camids: Tensor,
    *,
    max_rank: int = 50,
    block_size: int = BLOCK_SIZE,
) -> ReIDResult:
    """The Market-1501 protocol on a ready distance matrix.

    Gallery images of a query's own identity and camera are ignored; a query without any other image of its identity
    is skipped and leaves the denominator.

    Args:
        distances: float (Q, N), smaller is better.
        query_pids, query_camids: int64 (Q,).   gallery_pids, gallery_camids: int64 (N,).
    """
    return _market1501(lambda rows: distances[rows], tuple(distances.shape), distances.device, query_pids,
                       query_camids, gallery_pids, gallery_camids, max_rank, block_size)


def reid_metrics_from_features(
    query_features: Tensor,
    gallery_features: Tensor,
    query_pids: Tensor,
    query_camids: Tensor,
    gallery_pids: Tensor,
    gallery_camids: Tensor,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
    block_size: int = BLOCK_SIZE,
) -> ReIDResult:
    """The Market-1501 protocol on features: distances are made for one block of queries at a time and dropped.

    Args:
        query_features: float (Q, D).   gallery_features: float (N, D); below float32 both are raised to it.
        metric: "cosine" (1 - cosine) or "euclidean" (squared: the ranking is the same).
    """
    distances = pairwise(query_features, gallery_features, metric)
    shape = (len(query_features), len(gallery_features))
    return _market1501(distances, shape, query_features.device, query_pids, query_camids, gallery_pids,
                       gallery_camids, max_rank, block_size)


def pairwise(query_features: Tensor, gallery_features: Tensor, metric: str = "cosine") -> Callable[[slice], Tensor]:
    """Distances of any rows of queries to the whole gallery, on demand: slice of range(Q) -> float (B, N)."""
    dtype = torch.promote_types(query_features.dtype, torch.float32)
    queries, gallery = query_features.to(dtype), gallery_features.to(dtype)
    if metric == "cosine":
        queries = torch.nn.functional.normalize(queries, dim=1)
        gallery = torch.nn.functional.normalize(gallery, dim=1)
        return lambda rows: 1 - queries[rows] @ gallery.T  # (B, N)
    if metric == "euclidean":
        query_norms, gallery_norms = queries.square().sum(dim=1), gallery.square().sum(dim=1)
        return lambda rows: query_norms[rows, None] + gallery_norms - 2 * queries[rows] @ gallery.T  # (B, N)
    raise ValueError(f"ranking: unknown metric '{metric}', expected 'cosine' or 'euclidean'")


def evaluate_rank(
    distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50, use_metric_cuhk03=False, use_cython=True
):
    """NumPy twin of `fastreid.evaluation.rank.evaluate_rank`, with its arguments and its three results.

    Two differences, both on purpose: ties are stable, and CMC has `max_rank` entries whatever the gallery's size.

    Args:
        distmat: float (Q, N).   q_pids, q_camids: int (Q,).   g_pids, g_camids: int (N,).
        use_cython: without effect, kept for the host's callers.

    Returns:
        CMC float64 (max_rank,), and AP and INP float64 (queries with a match,).
    """
    if use_metric_cuhk03:
        raise ValueError("evaluate_rank: the CUHK03 protocol draws random galleries and is not offered here; "
                         "use the host's fastreid.evaluation.rank.eval_cuhk03")
    arrays = (distmat, q_pids, q_camids, g_pids, g_camids)
    result = reid_metrics(*(torch.as_tensor(array) for array in arrays), max_rank=max_rank)
    found = result.queries.num_matches > 0
    return result.cmc.numpy(), result.queries.ap[found].numpy(), result.queries.inp[found].numpy()


def _market1501(
    distances: Callable[[slice], Tensor],
    shape: tuple[int, ...],
    device: torch.device,
    query_pids: Tensor,
    query_camids: Tensor,
    gallery_pids: Tensor,
    gallery_camids: Tensor,
    max_rank: int,
    block_size: int,
) -> ReIDResult:
    """Ignore same identity and camera, rank, and average over the queries that have a match."""
    lengths = [len(ids) for ids in (query_pids, query_camids, gallery_pids, gallery_camids)]
    if shape != (lengths[0], lengths[2]) or lengths[0] != lengths[1] or lengths[2] != lengths[3]:
        raise ValueError(f"ranking: distances are {shape} (queries, gallery), but there are {lengths[0]} query pids, "
                         f"{lengths[1]} query camids, {lengths[2]} gallery pids and {lengths[3]} gallery camids")
    query_pids, query_camids = query_pids.to(device)[:, None], query_camids.to(device)[:, None]  # (Q, 1)
    gallery_pids, gallery_camids = gallery_pids.to(device), gallery_camids.to(device)

    def block(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        same_person = query_pids[rows] == gallery_pids  # (B, N)
        return distances(rows), same_person, same_person & (query_camids[rows] == gallery_camids)

    queries = rank_in_blocks(block, shape[0], block_size)
    num_found = int((queries.num_matches > 0).sum())
    if num_found == 0:
        raise ValueError(f"ranking: all query identities do not appear in gallery (under another camera): {shape[0]} "
                         f"queries, {shape[1]} gallery images; check that pids and camids of both have one numbering")
    return ReIDResult(
        cmc=cmc_curve(queries.first_match, max_rank, num_found),
        mAP=queries.ap.nanmean().item(),
        mAP_trapezoid=queries.ap_trapezoid.nanmean().item(),
        mINP=queries.inp.nanmean().item(),
        num_skipped=shape[0] - num_found,
        queries=queries,
    )
