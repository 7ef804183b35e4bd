"""Embeddings: what two of them say about being the same person, and how many are taken at a time.

Shapes: N images, Q queries, E size of an embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ENTRIES = 2**26  # values of embeddings that are brought to unit length at a time: 256 MiB


def image_scores(queries: Tensor, gallery: Tensor, metric: str = "cosine") -> Tensor:
    """How near embeddings of any model are, higher is nearer: (Q, E), (N, E) -> (Q, N).

    Args:
        metric: "cosine", for Cerberus the mean over its groups; or "euclidean", minus the distance.
    """
    if metric == "euclidean":
        return -torch.cdist(queries, gallery)
    queries = F.normalize(queries, dim=1)
    return torch.cat([queries @ F.normalize(chunk, dim=1).T for chunk in chunks(gallery)], dim=1)


def chunks(embeddings: Tensor) -> tuple[Tensor, ...]:
    """(N, E) -> some rows at a time, views of `CHUNK_ENTRIES` values at most; one chunk where there are no rows."""
    return embeddings.split(max(1, CHUNK_ENTRIES // max(1, embeddings.shape[1])))
