"""Ranking figures of a retrieval: AP, CMC and INP, from distances or features, block by block of queries.

Letters: Q queries, N gallery images, B queries of a block, D feature size, P matches of a block.

Conventions, the same for every figure here: rank 1 is the smallest distance; equal distances rank the lower gallery
index first; an ignored image is taken out of the ranking, so that the images behind it move up.
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

# Distances of a block on a CPU. Measured: blocks of this size stay in its caches, and larger ones take longer.
BLOCK_ENTRIES = 2**22
# Memory of a distance on a GPU, at most: float64 in double, its sorted copy, the order, and the space of the sort.
DISTANCE_BYTES = 64
# Measured: with fewer queries in a block, two passes over parts are sooner done than one over the whole gallery.
MIN_ROWS = 32


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
    _refuse_empty(tuple(distances.shape))
    return _rank_pairs(distances, pairs_of_masks(relevant, ignored))


def _rank_pairs(distances: Tensor, pairs: Pairs) -> Ranking:
    """`rank_matches` of pairs, in any order."""
    distances = sortable(distances)
    refuse_nan(distances)
    pairs, values = pairs.best_first(distances_of(pairs, distances))
    return _figures(pairs, count_others(distances, pairs, values), len(distances))


def _figures(pairs: Pairs, others_before: Tensor, num_queries: int) -> Ranking:
    """Figures from pairs, best first, and the other images before each: int64 (M,)."""
    query, others_before = pairs.query[pairs.match], others_before[pairs.match]  # (P,) each
    num_matches = query.bincount(minlength=num_queries)  # (B,)
    end = num_matches.cumsum(dim=0)  # (B,), where a query's matches end among the P
    start = end - num_matches
    hits = torch.arange(1, len(query) + 1) - start[query]  # (P,), 1..n within each query
    rank = others_before + hits
    # On the CPU float64 sums have one order, the same on every machine.
    precision = hits.double() / rank
    old_precision = torch.where(rank == 1, 1.0, (hits - 1).double() / (rank - 1))

    def mean_over_matches(values: Tensor) -> Tensor:  # 0 / 0 is the NaN of a query without a match
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
    """Queries of a block, one at least: `BLOCK_ENTRIES` distances on a CPU, as many as fit the memory of a GPU."""
    return max(1, values_at_once(device, BLOCK_ENTRIES, DISTANCE_BYTES) // max(1, num_gallery))


def rank_in_blocks(
    block: Callable[[slice], tuple[Tensor, Tensor, Tensor | None]], num_queries: int, num_gallery: int,
    block_size: int | None = None
) -> Ranking:
    """Rank all queries while holding the distances of a block of them.

    Args:
        block: given the rows of a block as a slice of range(Q), the arguments of `rank_matches` for these rows.
        block_size: queries of a block; None for `block_rows` of the device of the distances.
    """
    def rank(rows: slice) -> tuple[Ranking, torch.device]:
        given = block(rows)
        return rank_matches(*given), given[0].device

    return _in_blocks(rank, num_queries, num_gallery, block_size)


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
    `num_skipped` counts those without a match in another camera, or under the setting of outfits that was asked for.
    """

    cmc: Tensor
    mAP: float
    mAP_trapezoid: float
    mINP: float
    num_skipped: int
    queries: Ranking

    def percentages(self) -> dict[str, float]:
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
    """The Market-1501 protocol on ready distances.

    Gallery images of a query's own identity and camera are ignored; a query without any other image of its identity
    is skipped and leaves the denominator.

    Args:
        distances: float (Q, N), smaller is better; or a function from rows, a slice of range(Q), to those rows of it.
        query_pids, query_camids: int64 (Q,).   gallery_pids, gallery_camids: int64 (N,).
        block_size: queries ranked at a time; None for `block_rows` of the device.
        outfits: rank under a cloth-changing setting. Where it leaves no query a match, figures are NaN.
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
    """The Market-1501 protocol on features: distances are made for one block of queries at a time and dropped.

    A gallery that lies elsewhere than on `device`, or whose rows are too long to be ranked some dozens at a time, is
    taken in parts: one of them is in memory at a time, and every part is read twice.

    Args:
        query_features: float (Q, D).
        gallery_features: float (N, D) by rows: a tensor on any device, an array, an `np.memmap`, or any object whose
            slices are such. Below float32 both are raised to it.
        metric: "cosine" (1 - cosine) or "euclidean" (squared: the ranking is the same).
        device: where to rank; None for that of the queries.
        part_size: gallery images of a part, to take any gallery in parts; None for as many as `PART_ENTRIES`, or the
            memory of a GPU, allows where parts are needed.
        block_size: queries ranked at a time; None for `block_rows` of the device.
        report: told the name of each pass over the parts, "distances" or "ranks", and its seconds.
        outfits: as of `reid_metrics`.
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
        return _figures(*stream.count(protocol.pairs(rows)), rows.stop - rows.start)

    return protocol.result(_joined(map(rank, protocol.slices_of_pairs())), max_rank)


def evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50):
    """NumPy twin of `fastreid.evaluation.rank.evaluate_rank` for the Market-1501 protocol.

    Two differences, both on purpose: ties are stable, and CMC has `max_rank` entries whatever the gallery's size.

    Args:
        distmat: float (Q, N).   q_pids, q_camids: int (Q,).   g_pids, g_camids: int (N,).

    Returns:
        CMC float64 (max_rank,), and AP and INP float64 (queries with a match,).
    """
    arrays = (distmat, q_pids, q_camids, g_pids, g_camids)
    result = reid_metrics(*(torch.as_tensor(array) for array in arrays), max_rank=max_rank)
    found = result.queries.num_matches > 0
    return result.cmc.numpy(), result.queries.ap[found].numpy(), result.queries.inp[found].numpy()


class _Protocol:
    """Pairs and means of the Market-1501 protocol: same identity and camera ignored, unmatched queries left out.

    Outfits, where they are given, take further matches away.
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
        """Rank by the distances of any rows of queries to the whole gallery."""
        def rank(rows: slice) -> tuple[Ranking, torch.device]:
            of_rows = distances(rows)
            return _rank_pairs(of_rows, self.pairs(rows)), of_rows.device

        return _in_blocks(rank, *self._shape, block_size)

    def slices_of_pairs(self) -> list[slice]:
        """Rows of queries with at most `BLOCK_ENTRIES` pairs together, or one row; pairs lie on the CPU."""
        group = self._gallery.count(self._pids).cumsum(dim=0) // BLOCK_ENTRIES
        sizes = group.unique_consecutive(return_counts=True)[1].tolist()
        return [slice(stop - size, stop) for size, stop in zip(sizes, itertools.accumulate(sizes))]

    def result(self, queries: Ranking, max_rank: int) -> ReIDResult:
        num_found = int((queries.num_matches > 0).sum())
        if num_found == 0 and self._outfits is None:
            raise ValueError("ranking: all query identities do not appear in gallery (under another camera): "
                             f"{self._shape[0]} queries, {self._shape[1]} gallery images; check that pids and camids "
                             "of both have one numbering")
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
    """Ranking by `rank`, of some rows of queries and with the device of their distances."""
    if num_queries == 0:
        raise ValueError("ranking: empty query set, nothing to rank")
    # The first block tells where distances are, and so how large the others may be.
    first = min(block_size or block_rows(num_gallery), num_queries)
    ranking, device = rank(slice(0, first))
    size = block_size or block_rows(num_gallery, device)
    others = (slice(start, min(start + size, num_queries)) for start in range(first, num_queries, size))
    return _joined([ranking, *(rank(rows)[0] for rows in others)])


def _joined(parts: Iterable[Ranking]) -> Ranking:
    return Ranking(*(torch.cat(column) for column in zip(*parts)))
