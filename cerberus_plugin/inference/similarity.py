"""Embeddings: what two of them say about being the same person, and how many are taken at a time.

Shapes: N images, Q queries, E size of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable

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
    if metric != "cosine":
        raise ValueError(f"TEST.METRIC is '{metric}', expected cosine or euclidean")
    queries = F.normalize(queries, dim=1)
    return torch.cat([queries @ F.normalize(chunk, dim=1).T for chunk in chunks(gallery)], dim=1)


def mean_over_described(known: Tensor, embeddings: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores of images for descriptions, each a mean over what is described: (Q, N).

    Args:
        known: bool (P, Q), which of P parts each query describes.
        total: of some embeddings (n, E) the sums over the described parts, (Q, n).
    """
    described = known.sum(dim=0)  # (Q,)
    if (described == 0).any():
        raise ValueError(f"search: query {int((described == 0).nonzero()[0])} describes nothing; give at least one "
                         "attribute.")
    scores = torch.cat([total(chunk) for chunk in chunks(embeddings)], dim=1)
    return scores.div_(described[:, None].to(scores))


def chunks(embeddings: Tensor) -> tuple[Tensor, ...]:
    """(N, E) -> some rows at a time, views of `CHUNK_ENTRIES` values at most; one chunk where there are no rows."""
    return embeddings.split(max(1, CHUNK_ENTRIES // max(1, embeddings.shape[1])))
