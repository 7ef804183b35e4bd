"""Distances between features, for one block of queries at a time.

Letters: Q queries, N gallery images, B queries of a block, D feature size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

METRICS = ("cosine", "euclidean")


def pairwise(query_features: Tensor, gallery_features: Tensor, metric: str = "cosine") -> Callable[[slice], Tensor]:
    """Distances of any rows of queries to the whole gallery, on demand: slice of range(Q) -> float (B, N)."""
    dtype = torch.promote_types(query_features.dtype, torch.float32)
    return between(prepare(query_features, metric, dtype), prepare(gallery_features, metric, dtype), metric)


def prepare(features: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """Features (N, D) as `between` takes them: in this precision, and of unit length for the cosine."""
    if metric not in METRICS:
        raise ValueError(f"ranking: unknown metric '{metric}', expected 'cosine' or 'euclidean'")
    features = features.to(dtype)
    return torch.nn.functional.normalize(features, dim=1) if metric == "cosine" else features


def between(queries: Tensor, gallery: Tensor, metric: str,
            gallery_norms: Tensor | None = None) -> Callable[[slice], Tensor]:
    """`pairwise` of prepared features; `gallery_norms`, its `squares`, save computing them for each call."""
    if metric == "cosine":
        return lambda rows: (queries[rows] @ gallery.T).neg_().add_(1)  # (B, N), 1 - cosine
    query_norms, gallery_norms = squares(queries), squares(gallery) if gallery_norms is None else gallery_norms
    return lambda rows: (query_norms[rows, None] + gallery_norms).sub_(2 * queries[rows] @ gallery.T)  # (B, N)


def squares(features: Tensor) -> Tensor:
    """Squared lengths: (N, D) -> (N,)."""
    return features.square().sum(dim=1)
