"""Distances between features, for one block of queries at a time.

Shapes: Q queries, N gallery images, B queries of a block, D feature size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

METRICS = ("cosine", "euclidean")


def pairwise(query_features: Tensor, gallery_features: Tensor, metric: str = "cosine") -> Callable[[slice], Tensor]:
    """Return a function that computes distances of some queries to the whole gallery.

    Args:
        query_features: float (Q, D).
        gallery_features: float (N, D).
        metric: "cosine" (1 - cosine) or "euclidean" (squared).

    Returns:
        a function from a slice of range(Q) to distances float (B, N), in float32 or higher precision.

    Raises:
        ValueError: if the metric is unknown.

    Examples:
        >>> distances = pairwise(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [3.0, 0.0]]), "euclidean")
        >>> distances(slice(0, 1)).tolist()
        [[5.0, 4.0]]
    """
    dtype = torch.promote_types(query_features.dtype, torch.float32)
    return between(prepare(query_features, metric, dtype), prepare(gallery_features, metric, dtype), metric)


def prepare(features: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """Convert features (N, D) to the input of `between`: to a dtype, and to unit length if the metric is "cosine".

    Raises:
        ValueError: if the metric is unknown.

    Examples:
        >>> prepare(torch.tensor([[0, 2]]), "cosine", torch.float32).tolist()
        [[0.0, 1.0]]
    """
    if metric not in METRICS:
        raise ValueError(f"ranking: unknown metric '{metric}', expected 'cosine' or 'euclidean'")
    features = features.to(dtype)
    return torch.nn.functional.normalize(features, dim=1) if metric == "cosine" else features


def between(queries: Tensor, gallery: Tensor, metric: str,
            gallery_norms: Tensor | None = None) -> Callable[[slice], Tensor]:
    """`pairwise` for features from `prepare`.

    Args:
        queries: float (Q, D).
        gallery: float (N, D).
        metric: "cosine" or "euclidean".
        gallery_norms: `squares` of the gallery, float (N,); None to compute them.

    Examples:
        >>> between(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "cosine")(slice(0, 1)).tolist()
        [[1.0, 0.0]]
    """
    if metric == "cosine":
        return lambda rows: (queries[rows] @ gallery.T).neg_().add_(1)  # (B, N), 1 - cosine
    query_norms, gallery_norms = squares(queries), squares(gallery) if gallery_norms is None else gallery_norms
    return lambda rows: (query_norms[rows, None] + gallery_norms).sub_(2 * queries[rows] @ gallery.T)  # (B, N)


def squares(features: Tensor) -> Tensor:
    """Return squared norms, (N, D) -> (N,).

    Examples:
        >>> squares(torch.tensor([[3.0, 4.0]])).tolist()
        [25.0]
    """
    return features.square().sum(dim=1)
