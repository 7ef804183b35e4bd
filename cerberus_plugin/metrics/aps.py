"""Attribute-based person search (APS): a description ranks the gallery, and its images are those that fit it.

Letters: Q queries (descriptions), N gallery images, A label fields, K categories. A category is one full tuple of
labels; the queries of a dataset are distinct categories of its test images, see `QUERIES`, and an image is relevant
when its category is the query's. Where labels are missing, a query describes what is known of its category, and
`relations` tells which images fit it.
For a partial query (some groups given) there are two readings, both served here: hand over the full categories, or the
categories of the given fields alone, `categories(labels[:, given])`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranking import Ranking, cmc_curve, rank_in_blocks

# Which categories are queries. SAL's code takes them from the query images: 484 on Market-1501, as many as without this
# rule, but 307 on DukeMTMC-reID, where 408 of 1,110 test identities have no query image. All identities make 387
# categories there, the number of published tables. "sal-all" is SAL's ranking for these.
QUERIES = {"asmr": "categories of all test images", "sal": "categories of the query images",
           "sal-all": "categories of all test images"}
PROTOCOLS = tuple(QUERIES)
# The rule of the AP in each protocol's own paper and code.
PUBLISHED_AP = {"asmr": "trapezoid", "sal": "rectangle", "sal-all": "rectangle"}
RANKS = (1, 5, 10, 20)  # Rank-k: share of the queries with a relevant image among the first k


@dataclass(frozen=True)
class APSResult:
    """Figures of an attribute search, as shares of 1; means run over queries, each counting once.

    `cmc` is float64 (20,), of which entry k - 1 is Rank-k. `num_unmatched` counts the queries without a relevant image:
    "asmr" counts them as zeros, the others leave them out. `queries` holds the figures of each of the Q queries. Means
    over no query are NaN.
    """

    cmc: Tensor
    mAP: float
    mAP_trapezoid: float
    num_unmatched: int
    queries: Ranking

    @classmethod
    def of(cls, queries: Ranking, protocol: str) -> APSResult:
        """The means over some queries, as a protocol counts those without a relevant image."""
        num_queries = len(queries.num_matches)
        num_matched = int((queries.num_matches > 0).sum())
        denominator = num_queries if protocol == "asmr" else num_matched
        return cls(
            cmc=cmc_curve(queries.first_match, max(RANKS), denominator),
            mAP=(queries.ap.nansum() / denominator).item(),
            mAP_trapezoid=(queries.ap_trapezoid.nansum() / denominator).item(),
            num_unmatched=num_queries - num_matched,
            queries=queries,
        )

    @property
    def rank1(self) -> float:
        return self.cmc[0].item()

    def percentages(self) -> dict[str, float]:
        ranks = {f"Rank-{k}": 100 * self.cmc[k - 1].item() for k in RANKS}
        return {"mAP": 100 * self.mAP, "mAP_trapezoid": 100 * self.mAP_trapezoid, **ranks}


def categories(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct label tuples: int64 (N, A) -> categories int64 (N,), and their labels int64 (K, A).

    Categories are numbered in lexicographic order of their labels.
    """
    distinct, ids = torch.unique(labels, dim=0, return_inverse=True)
    return ids, distinct


def relations(described: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which categories fit which description, where labels are missing.

    A category fits if all that is described is known of it, and so. It is open, and neither found nor missed, if
    nothing that is known of it contradicts the description but some of that is unknown.

    Args:
        described: int64 (K', A), -1 where nothing is described.   labels: int64 (K, A), -1 where missing.

    Returns:
        fits and open, bool (K', K); None where no description has a gap, nor any category, in a field that another one
        knows: then categories fit that are equal, and none is open.
    """
    unknown = torch.cat([described, labels]) == -1
    if (unknown.any(dim=0) == unknown.all(dim=0)).all():
        return None
    fits, contradicted = (torch.empty(len(described), len(labels), dtype=torch.bool) for _ in range(2))
    step = max(1, 2**24 // max(1, labels.numel()))
    for start in range(0, len(described), step):
        rows = slice(start, start + step)
        wanted = described[rows, None]  # (B, 1, A)
        same = (wanted == labels) | (wanted == -1)
        fits[rows] = same.all(dim=2)
        contradicted[rows] = (~same & (labels != -1)).any(dim=2)
    return fits, ~(fits | contradicted)


def aps_metrics(
    scores: Tensor | Callable[[slice], Tensor],
    query_categories: Tensor,
    gallery_categories: Tensor,
    *,
    protocol: str = "asmr",
    representative_pids: Tensor | None = None,
    representative_camids: Tensor | None = None,
    gallery_pids: Tensor | None = None,
    gallery_camids: Tensor | None = None,
    related: tuple[Tensor, Tensor] | None = None,
    block_size: int | None = None,
) -> APSResult:
    """Rank the gallery for each category: Rank-k and mAP by both rules, macro over queries.

    "asmr" ranks the whole pool (gallery and query images together), without a filter by person or camera, and keeps
    every query in the denominator; its paper publishes the trapezoid AP. "sal" and "sal-all" take the images of the
    person and camera that represents a query's category out of the ranking; SAL's paper publishes the rectangle AP.
    These two differ in the queries that a caller is to give, see `QUERIES`.

    Args:
        scores: float (Q, N), larger is better; or a function from rows, a slice of range(Q), to those rows of it.
        query_categories: int64 (Q,).   gallery_categories: int64 (N,), in the same numbering.
        representative_pids, representative_camids: int64 (Q,), not for "asmr".
        gallery_pids, gallery_camids: int64 (N,), not for "asmr".
        related: of `relations`, by number of category; None where a category fits itself alone. Images of open
            categories are taken out of the ranking.
        block_size: queries ranked at a time; None for `ranking.block_rows` of the device.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"aps: unknown protocol '{protocol}', expected one of {PROTOCOLS}")
    people = [ids for ids in (representative_pids, representative_camids, gallery_pids, gallery_camids)
              if ids is not None]
    if protocol != "asmr" and len(people) < 4:
        raise ValueError(f"aps: protocol '{protocol}' needs representative_pids, representative_camids, gallery_pids "
                         "and gallery_camids")
    num_queries = len(query_categories)
    if isinstance(scores, Tensor):
        _check_shape("scores", scores, num_queries, len(gallery_categories))

    def block(rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        block_scores = scores(rows) if callable(scores) else scores[rows]  # (B, N)

        def equal(of_queries: Tensor, of_gallery: Tensor) -> Tensor:
            return of_queries[rows, None].to(block_scores.device) == of_gallery.to(block_scores.device)  # (B, N)

        wanted, left_out = equal(query_categories, gallery_categories), None
        if related is not None:
            pairs = query_categories[rows, None].cpu(), gallery_categories.cpu()
            wanted, left_out = (table[pairs].to(block_scores.device) for table in related)
        _check_shape("a block of scores", block_scores, *wanted.shape)
        if protocol != "asmr":
            own = equal(people[0], people[2]) & equal(people[1], people[3])
            left_out = own if left_out is None else left_out | own
        return -block_scores, wanted, left_out

    queries = rank_in_blocks(block, num_queries, len(gallery_categories), block_size)
    result = APSResult.of(queries, protocol)
    if result.num_unmatched == num_queries:
        raise ValueError(f"aps: none of {num_queries} queries has a relevant image in the gallery; check that query "
                         "and gallery categories come from one numbering")
    return result


def _check_shape(name: str, given: Tensor, num_queries: int, num_gallery: int) -> None:
    if given.shape != (num_queries, num_gallery):
        raise ValueError(f"aps: {name} has the shape {tuple(given.shape)}, expected ({num_queries}, {num_gallery}): "
                         "queries, gallery images")
