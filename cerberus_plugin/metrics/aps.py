"""Attribute-based person search (APS): rank gallery images by how well they match a description.

Shapes: Q queries (descriptions), N gallery images, A label fields, K categories.

A category is one complete tuple of labels. The queries of a dataset are distinct categories of its test images, see
`QUERIES`. An image is relevant if it has the category of the query. If labels are missing, a query describes the known
labels of its category, and `relations` defines which images are relevant.

A partial query describes some groups only. Its relevant images can be defined in two ways: pass the full categories, or
the categories of the described fields, `categories(labels[:, given])`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .ranking import Ranking, cmc_curve, rank_in_blocks

# The categories that are used as queries. SAL's code takes them from the query images: 484 categories on Market-1501,
# the same number as for all test images, but 307 on DukeMTMC-reID, where 408 of 1,110 test identities have no query
# image. All test identities give 387 categories, the number in published tables. "sal-all" uses SAL's ranking rule for
# these.
QUERIES = {"asmr": "categories of all test images", "sal": "categories of the query images",
           "sal-all": "categories of all test images"}
PROTOCOLS = tuple(QUERIES)
# The AP rule in the paper and code of each protocol.
PUBLISHED_AP = {"asmr": "trapezoid", "sal": "rectangle", "sal-all": "rectangle"}
RANKS = (1, 5, 10, 20)  # values of k for Rank-k, the share of queries with a relevant image among the first k


@dataclass(frozen=True)
class APSResult:
    """Metrics of an attribute search, as fractions from 0 to 1, averaged over queries.

    Attributes:
        cmc: float64 (20,); entry k - 1 is Rank-k.
        mAP: mean AP by the rectangle rule.
        mAP_trapezoid: mean AP by the trapezoid rule, see `ranking.Ranking`.
        num_unmatched: number of queries without a relevant image. "asmr" counts them as 0; the other protocols exclude
            them.
        queries: metrics of each of the Q queries.

    Means over zero queries are NaN.
    """

    cmc: Tensor
    mAP: float
    mAP_trapezoid: float
    num_unmatched: int
    queries: Ranking

    @classmethod
    def of(cls, queries: Ranking, protocol: str) -> APSResult:
        """Average the metrics of queries by the rule of a protocol for queries without a relevant image."""
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
        """Rank-1, from 0 to 1."""
        return self.cmc[0].item()

    def percentages(self) -> dict[str, float]:
        """Return mAP by both rules and Rank-1, 5, 10 and 20 in percent."""
        ranks = {f"Rank-{k}": 100 * self.cmc[k - 1].item() for k in RANKS}
        return {"mAP": 100 * self.mAP, "mAP_trapezoid": 100 * self.mAP_trapezoid, **ranks}


def categories(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct rows of labels, in lexicographic order.

    Args:
        labels: int64 (N, A).

    Returns:
        the category of each row, int64 (N,), and the labels of each category, int64 (K, A).

    Examples:
        >>> ids, distinct = categories(torch.tensor([[1, 0], [0, 1], [1, 0]]))
        >>> ids.tolist(), distinct.tolist()
        ([1, 0, 1], [[0, 1], [1, 0]])
    """
    distinct, ids = torch.unique(labels, dim=0, return_inverse=True)
    return ids, distinct


def relations(described: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return which categories match which descriptions, if labels are missing.

    A category matches a description if all described labels are known and equal. It is undecided if no known label
    contradicts the description, but a described label is unknown. Undecided images are excluded from the ranking.

    Args:
        described: int64 (K', A), -1 where a field is not described.
        labels: int64 (K, A), -1 where missing.

    Returns:
        two masks, matches and undecided, bool (K', K) each. None if each field is either known in all rows or missing
        in all rows; a category then matches if it is equal to the description, and none is undecided.

    Examples:
        >>> matches, undecided = relations(torch.tensor([[1, 0]]), torch.tensor([[1, 0], [1, -1], [0, -1]]))
        >>> matches.tolist(), undecided.tolist()
        ([[True, False, False]], [[False, True, False]])
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
    """Compute Rank-k, and mAP by both rules, of the gallery rankings of all queries; averaged over queries.

    "asmr" ranks gallery and query images together, without a filter by identity or camera, and counts all queries; its
    paper reports the trapezoid AP. "sal" and "sal-all" choose one identity and camera as the representative of each
    query and exclude their images from the ranking; SAL's paper reports the rectangle AP. The two differ in the queries
    that the caller passes, see `QUERIES`.

    Args:
        scores: float (Q, N), higher is better; or a function from a slice of range(Q) to these rows of the scores.
        query_categories: int64 (Q,).
        gallery_categories: int64 (N,), with the same numbering.
        protocol: one of `PROTOCOLS`.
        representative_pids: int64 (Q,), identity that represents each query; required unless the protocol is "asmr".
        representative_camids: int64 (Q,), its camera; required unless the protocol is "asmr".
        gallery_pids: int64 (N,); required unless the protocol is "asmr".
        gallery_camids: int64 (N,); required unless the protocol is "asmr".
        related: result of `relations`, indexed by category; None if an image is relevant only for its own category.
            Images of undecided categories are excluded from the ranking.
        block_size: number of queries ranked at a time; None for `ranking.block_rows` of the device.

    Raises:
        ValueError: if the protocol is unknown, an argument is missing, shapes do not match, or no query has a relevant
            image.

    Examples:
        >>> scores, gallery = torch.tensor([[0.9, 0.2, 0.5]]), torch.tensor([1, 0, 0])  # relevant at the ranks 2 and 3
        >>> result = aps_metrics(scores, torch.tensor([0]), gallery)
        >>> result.rank1, round(result.mAP, 4)  # (1/2 + 2/3) / 2
        (0.0, 0.5833)
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
                         "and gallery categories use the same numbering")
    return result


def _check_shape(name: str, given: Tensor, num_queries: int, num_gallery: int) -> None:
    if given.shape != (num_queries, num_gallery):
        raise ValueError(f"aps: {name} has the shape {tuple(given.shape)}, expected ({num_queries}, {num_gallery}): "
                         "queries, gallery images")
