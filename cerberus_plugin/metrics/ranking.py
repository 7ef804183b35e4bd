"""Retrieval metrics (AP, CMC and INP) from distances or features, computed for blocks of queries.

Shapes: Q queries, N gallery images, B queries of a block, D feature size, P matches of a block.

Conventions: rank 1 is the smallest distance. Ties are broken by the lower gallery index. Ignored images are removed
from the ranking, so that the following images move up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.environment import values_at_once
from .counting import Identities, Pairs, count_others, distances_of, pairs_of_masks, refuse_nan, sortable
from .distances import pairwise
from .outfits import Outfits
from .streaming import FEATURE_BYTES, PART_ENTRIES, Gallery, Stream

# Number of distances of a block on a CPU. Measured: such blocks fit in the cache; larger blocks are slower.
BLOCK_ENTRIES = 2**22
# Upper bound of GPU memory per distance in bytes: two float64 copies, a sorted copy, the order, and sort workspace.
DISTANCE_BYTES = 64
# Measured: with fewer queries per block, two passes over parts are faster than one pass over the whole gallery.
MIN_ROWS = 32


class Ranking(NamedTuple):
    """Metrics of each query, all (Q,) on the CPU; float64 fields are NaN for a query without a match.

    The n matches of a query have the ranks r_1 < ... < r_n.

    Attributes:
        ap: average precision by the rectangle rule, (1/n) sum_k k / r_k, as in FastReID.
        ap_trapezoid: average precision by the trapezoid rule, (1/n) sum_k (k / r_k + o_k) / 2, where o_k is
            (k-1) / (r_k - 1), and 1 if r_k is 1; as in the MATLAB evaluation code of Market-1501 and DukeMTMC. It is at
            most `ap`, and equal only for a perfect ranking.
        inp: inverse negative penalty, n / r_n.
        first_match: r_1, int64; 0 for a query without a match.
        num_matches: n, int64.
    """

    ap: Tensor
    ap_trapezoid: Tensor
    inp: Tensor
    first_match: Tensor
    num_matches: Tensor


def rank_matches(distances: Tensor, relevant: Tensor, ignored: Tensor | None = None) -> Ranking:
    """Rank the gallery for one block of queries, on the device of `distances`.

    Args:
        distances: float (B, N), smaller is better; pass `-scores` if larger is better.
        relevant: bool (B, N), True for matches.
        ignored: bool (B, N), True for images to remove from the ranking, relevant or not; None removes no image.

    Raises:
        ValueError: if there are no queries or gallery images, or a distance is NaN.

    Examples:
        >>> result = rank_matches(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[True, False, True]]))
        >>> round(result.ap.item(), 4), round(result.ap_trapezoid.item(), 4)  # (1 + 2/3) / 2, (1 + (2/3 + 1/2) / 2) / 2
        (0.8333, 0.7917)
        >>> round(result.inp.item(), 4), result.first_match.item()  # 2/3
        (0.6667, 1)
    """
    _refuse_empty(tuple(distances.shape))
    return _rank_pairs(distances, pairs_of_masks(relevant, ignored))


def _rank_pairs(distances: Tensor, pairs: Pairs) -> Ranking:
    """`rank_matches` for pairs, in any order."""
    distances = sortable(distances)
    refuse_nan(distances)
    pairs, values = pairs.best_first(distances_of(pairs, distances))
    return _metrics_of_pairs(pairs, count_others(distances, pairs, values), len(distances))


def _metrics_of_pairs(pairs: Pairs, others_before: Tensor, num_queries: int) -> Ranking:
    """Metrics from pairs, best first, and the number of other images before each, int64 (M,)."""
    query, others_before = pairs.query[pairs.match], others_before[pairs.match]  # (P,) each
    num_matches = query.bincount(minlength=num_queries)  # (B,)
    end = num_matches.cumsum(dim=0)  # (B,), end of the matches of each query among the P
    start = end - num_matches
    hits = torch.arange(1, len(query) + 1) - start[query]  # (P,), 1..n within each query
    rank = others_before + hits
    # Float64 sums on the CPU have a fixed order, so results are identical on all machines.
    precision = hits.double() / rank
    old_precision = torch.where(rank == 1, 1.0, (hits - 1).double() / (rank - 1))

    def mean_over_matches(values: Tensor) -> Tensor:  # 0 / 0 gives NaN for a query without a match
        return torch.zeros(num_queries, dtype=torch.float64).index_add_(0, query, values) / num_matches

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


def block_rows(num_gallery: int, device: torch.device | str = "cpu") -> int:
    """Return the number of queries of a block, at least one.

    A block has at most `BLOCK_ENTRIES` distances on a CPU; on a GPU the free memory is the limit.

    Args:
        num_gallery: N.
        device: device of the distances.

    Examples:
        >>> block_rows(2**20)
        4
    """
    return max(1, values_at_once(device, BLOCK_ENTRIES, DISTANCE_BYTES) // max(1, num_gallery))


def rank_in_blocks(
    block: Callable[[slice], tuple[Tensor, Tensor, Tensor | None]], num_queries: int, num_gallery: int,
    block_size: int | None = None
) -> Ranking:
    """Rank all queries with the distances of one block in memory at a time.

    Args:
        block: function from a slice of range(Q) to the arguments of `rank_matches` for these queries.
        num_queries: Q.
        num_gallery: N.
        block_size: number of queries of a block; None for `block_rows` of the device of the distances.

    Examples:
        >>> distances, relevant = torch.tensor([[0.1, 0.2], [0.4, 0.3]]), torch.tensor([[True, False], [True, False]])
        >>> rank_in_blocks(lambda rows: (distances[rows], relevant[rows], None), 2, 2, block_size=1).ap.tolist()
        [1.0, 0.5]
    """
    def rank(rows: slice) -> tuple[Ranking, torch.device]:
        given = block(rows)
        return rank_matches(*given), given[0].device

    return _in_blocks(rank, num_queries, num_gallery, block_size)


def cmc_curve(first_match: Tensor, max_rank: int, num_queries: int) -> Tensor:
    """Compute the CMC curve: for k = 1..max_rank, the share of queries with a match among the first k images.

    Args:
        first_match: int64 (Q,), rank of the first match; 0 for a query without a match.
        max_rank: length of the curve. Values beyond the size of the gallery repeat the last value.
        num_queries: the denominator.

    Returns:
        float64 (max_rank,).

    Examples:
        >>> cmc_curve(torch.tensor([1, 3, 0, 1]), max_rank=3, num_queries=4).tolist()
        [0.5, 0.5, 0.75]
    """
    ranks = torch.arange(1, max_rank + 1)
    ordered = first_match[first_match > 0].sort().values
    return torch.searchsorted(ordered, ranks, right=True).double() / num_queries


@dataclass(frozen=True)
class ReIDResult:
    """Metrics of re-identification as fractions from 0 to 1, averaged over the queries with a match.

    Attributes:
        cmc: float64 (max_rank,); entry k - 1 is Rank-k.
        mAP: mean of `Ranking.ap`.
        mAP_trapezoid: mean of `Ranking.ap_trapezoid`.
        mINP: mean of `Ranking.inp`.
        num_skipped: number of queries without a match in another camera (and, if outfits are given, in the setting).
        queries: metrics of each of the Q queries, including the skipped ones.
    """

    cmc: Tensor
    mAP: float
    mAP_trapezoid: float
    mINP: float
    num_skipped: int
    queries: Ranking

    def percentages(self) -> dict[str, float]:
        """Return Rank-1, 5 and 10, mAP by both rules, and mINP in percent."""
        rank = {f"Rank-{k}": 100 * self.cmc[k - 1].item() for k in (1, 5, 10)}
        return {**rank, "mAP": 100 * self.mAP, "mINP": 100 * self.mINP, "mAP_trapezoid": 100 * self.mAP_trapezoid}


def reid_metrics(
    distances: Tensor | Callable[[slice], Tensor],
    query_pids: Tensor,
    query_camids: Tensor,
    gallery_pids: Tensor,
    gallery_camids: Tensor,
    *,
    max_rank: int = 50,
    block_size: int | None = None,
    outfits: Outfits | None = None,
) -> ReIDResult:
    """Evaluate distances by the Market-1501 protocol (Zheng et al., ICCV 2015).

    Gallery images of the identity and camera of the query are ignored. A query without another image of its identity is
    skipped and not counted.

    Args:
        distances: float (Q, N), smaller is better; or a function from a slice of range(Q) to these rows.
        query_pids: int64 (Q,), identities of the queries.
        query_camids: int64 (Q,), cameras of the queries.
        gallery_pids: int64 (N,), identities of the gallery.
        gallery_camids: int64 (N,), cameras of the gallery.
        max_rank: length of the CMC curve.
        block_size: number of queries ranked at a time; None for `block_rows` of the device.
        outfits: evaluate a cloth-changing setting. If no query has a match in it, the metrics are NaN.

    Raises:
        ValueError: if shapes do not match, a set is empty, a distance is NaN, or no query has a match (without
            `outfits`).

    Examples:
        >>> distances, query = torch.tensor([[0.1, 0.2, 0.3]]), (torch.tensor([7]), torch.tensor([1]))
        >>> gallery = torch.tensor([7, 8, 7]), torch.tensor([1, 2, 2])  # the first image is ignored: same camera
        >>> result = reid_metrics(distances, *query, *gallery)
        >>> result.mAP, result.cmc[:2].tolist()
        (0.5, [0.0, 1.0])
    """
    shape = (len(query_pids), len(gallery_pids)) if callable(distances) else tuple(distances.shape)
    protocol = _Protocol(shape, query_pids, query_camids, gallery_pids, gallery_camids, outfits)
    rows_of = distances if callable(distances) else distances.__getitem__
    return protocol.result(protocol.in_blocks(rows_of, block_size), max_rank)


def reid_metrics_from_features(
    query_features: Tensor,
    gallery_features: Gallery,
    query_pids: Tensor,
    query_camids: Tensor,
    gallery_pids: Tensor,
    gallery_camids: Tensor,
    *,
    metric: str = "cosine",
    max_rank: int = 50,
    device: torch.device | str | None = None,
    part_size: int | None = None,
    block_size: int | None = None,
    report: Callable[[str, float], None] | None = None,
    outfits: Outfits | None = None,
) -> ReIDResult:
    """Evaluate features by the Market-1501 protocol, with the distances of one block of queries in memory at a time.

    The gallery is processed in parts if it is not a tensor on `device`, or so large that a block would have fewer than
    `MIN_ROWS` queries. One part is then in memory at a time, and each part is read twice.

    Args:
        query_features: float (Q, D).
        gallery_features: float (N, D): a tensor on any device, an array, an `np.memmap`, or an object that returns
            one of these for a slice of rows. Lower precisions are converted to float32.
        query_pids: int64 (Q,), identities of the queries.
        query_camids: int64 (Q,), cameras of the queries.
        gallery_pids: int64 (N,), identities of the gallery.
        gallery_camids: int64 (N,), cameras of the gallery.
        metric: "cosine" (1 - cosine) or "euclidean" (squared, which gives the same ranking).
        max_rank: length of the CMC curve.
        device: device of the computation; None for the device of the queries.
        part_size: number of gallery images of a part; forces processing in parts. None for the number that
            `PART_ENTRIES`, or the memory of a GPU, permits.
        block_size: number of queries ranked at a time; None for `block_rows` of the device.
        report: called with the name of each pass over the parts, "distances" or "ranks", and its duration in seconds.
        outfits: see `reid_metrics`.

    Raises:
        ValueError: see `reid_metrics`; also if the metric is unknown or feature sizes differ.

    Examples:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.1]])
        >>> ids = torch.tensor([7]), torch.tensor([1]), torch.tensor([8, 7]), torch.tensor([2, 2])
        >>> reid_metrics_from_features(query, gallery, *ids).mAP
        1.0
    """
    protocol = _Protocol((len(query_features), len(gallery_features)), query_pids, query_camids, gallery_pids,
                         gallery_camids, outfits)
    device = query_features.device if device is None else torch.device(device)
    if (part_size is None and isinstance(gallery_features, Tensor) and gallery_features.device.type == device.type
            and block_rows(len(gallery_features), device) >= MIN_ROWS):
        distances = pairwise(query_features.to(device), gallery_features, metric)
        return protocol.result(protocol.in_blocks(distances, block_size), max_rank)
    if part_size is None:
        part_size = max(1, values_at_once(device, PART_ENTRIES, FEATURE_BYTES) // query_features.shape[1])
    part_size = min(part_size, len(gallery_features))

    def rank(rows: slice) -> Ranking:
        stream = Stream(query_features[rows], gallery_features, metric, device, part_size,
                        block_size or block_rows(part_size, device), report)
        return _metrics_of_pairs(*stream.count(protocol.pairs(rows)), rows.stop - rows.start)

    return protocol.result(_joined(map(rank, protocol.slices_of_pairs())), max_rank)


def evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50):
    """Replacement for `fastreid.evaluation.rank.evaluate_rank` for the Market-1501 protocol, on NumPy arrays.

    It intentionally differs in two points: ties are broken by the gallery index, and CMC always has `max_rank` entries.

    Args:
        distmat: float (Q, N).
        q_pids: int (Q,), identities of the queries.
        q_camids: int (Q,), cameras of the queries.
        g_pids: int (N,), identities of the gallery.
        g_camids: int (N,), cameras of the gallery.

    Returns:
        CMC float64 (max_rank,), and AP and INP of the queries with a match, float64.

    Examples:
        >>> cmc, ap, inp = evaluate_rank([[0.2, 0.1]], [7], [7, 8], [1], [2, 2], max_rank=2)
        >>> cmc.tolist(), ap.tolist(), inp.tolist()
        ([0.0, 1.0], [0.5], [0.5])
    """
    arrays = (distmat, q_pids, q_camids, g_pids, g_camids)
    result = reid_metrics(*(torch.as_tensor(array) for array in arrays), max_rank=max_rank)
    found = result.queries.num_matches > 0
    return result.cmc.numpy(), result.queries.ap[found].numpy(), result.queries.inp[found].numpy()


class _Protocol:
    """Matches and means of the Market-1501 protocol: same identity and camera ignored, unmatched queries skipped.

    If outfits are given, their setting ignores further images.
    """

    def __init__(self, shape: tuple[int, ...], query_pids: Tensor, query_camids: Tensor, gallery_pids: Tensor,
                 gallery_camids: Tensor, outfits: Outfits | None = None) -> None:
        lengths = [len(ids) for ids in (query_pids, query_camids, gallery_pids, gallery_camids)]
        if shape != (lengths[0], lengths[2]) or lengths[0] != lengths[1] or lengths[2] != lengths[3]:
            raise ValueError(f"ranking: distances are {shape} (queries, gallery), but there are {lengths[0]} query "
                             f"pids, {lengths[1]} query camids, {lengths[2]} gallery pids and {lengths[3]} gallery "
                             "camids")
        self._shape, self._pids, self._camids = shape, query_pids.cpu(), query_camids.cpu()
        if shape[0] == 0:
            raise ValueError("ranking: empty query set, nothing to rank")
        _refuse_empty(shape)
        self._gallery = Identities(gallery_pids, gallery_camids)
        self._outfits = outfits
        if outfits is not None:
            outfits.check(shape[0], shape[1])

    def pairs(self, rows: slice) -> Pairs:
        pairs = self._gallery.pairs(self._pids[rows], self._camids[rows])
        return pairs if self._outfits is None else self._outfits.restrict(pairs, rows)

    def in_blocks(self, distances: Callable[[slice], Tensor], block_size: int | None) -> Ranking:
        """Rank by a function from a slice of queries to their distances to the whole gallery."""
        def rank(rows: slice) -> tuple[Ranking, torch.device]:
            of_rows = distances(rows)
            return _rank_pairs(of_rows, self.pairs(rows)), of_rows.device

        return _in_blocks(rank, *self._shape, block_size)

    def slices_of_pairs(self) -> list[slice]:
        """Slices of queries with at most `BLOCK_ENTRIES` pairs each (on the CPU), or of one query."""
        group = self._gallery.count(self._pids).cumsum(dim=0) // BLOCK_ENTRIES
        sizes = group.unique_consecutive(return_counts=True)[1].tolist()
        return [slice(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes))]

    def result(self, queries: Ranking, max_rank: int) -> ReIDResult:
        num_found = int((queries.num_matches > 0).sum())
        if num_found == 0 and self._outfits is None:
            raise ValueError("ranking: all query identities do not appear in gallery (under another camera): "
                             f"{self._shape[0]} queries, {self._shape[1]} gallery images; check that pids and camids "
                             "of both use the same numbering")
        return ReIDResult(
            cmc=cmc_curve(queries.first_match, max_rank, num_found),
            mAP=queries.ap.nanmean().item(),
            mAP_trapezoid=queries.ap_trapezoid.nanmean().item(),
            mINP=queries.inp.nanmean().item(),
            num_skipped=self._shape[0] - num_found,
            queries=queries,
        )


def _refuse_empty(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise ValueError(f"ranking: empty query or gallery: distances have the shape {shape}")


def _in_blocks(rank: Callable[[slice], tuple[Ranking, torch.device]], num_queries: int, num_gallery: int,
               block_size: int | None) -> Ranking:
    """Rank all queries by a function from a slice of queries to their ranking and the device of their distances."""
    if num_queries == 0:
        raise ValueError("ranking: empty query set, nothing to rank")
    # The first block determines the device of the distances, and thus the size of the other blocks.
    first = min(block_size or block_rows(num_gallery), num_queries)
    ranking, device = rank(slice(0, first))
    size = block_size or block_rows(num_gallery, device)
    others = (slice(start, min(start + size, num_queries)) for start in range(first, num_queries, size))
    return _joined([ranking, *(rank(rows)[0] for rows in others)])


def _joined(parts: Iterable[Ranking]) -> Ranking:
    return Ranking(*(torch.cat(column) for column in zip(*parts)))
