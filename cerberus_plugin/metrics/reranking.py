"""k-reciprocal re-ranking (Zhong, Zheng, Cao and Li, CVPR 2017) from features, computed for blocks of rows.

Shapes: Q queries, N gallery images, n = Q + N, D feature size, B queries of a block.

The implementation avoids the dense matrices (n, n) of the published code: it computes the nearest images from the
distances of one block of rows at a time, and stores neighbour sets and weights in sparse matrices. In addition to the
input features it needs about `8 * n * D + 16 * n * w` bytes and a few blocks of `BLOCK_ENTRIES` values, where w is the
number of weights per image after query expansion, 20 to 120 at k1 = 20 and k2 = 6. Measured: 152 MiB for n = 24,000 and
D = 256, where one matrix (n, n) has 2.1 GiB. For MSMT17 (n = 93,820) and D = 2048 the formula gives about 1.7 GiB,
compared with 33 GiB per dense matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..utils.environment import values_at_once
from .distances import METRICS, between, prepare

VARIANTS = ("paper", "fastreid")

# Number of values of a block on a CPU: distances, or features of pairs of images.
BLOCK_ENTRIES = 2**22
VALUE_BYTES = 32  # upper bound of GPU memory per value: float64 with temporary copies


def check_reranking(variant: str, metric: str, k1: int, k2: int, lambda_value: float) -> None:
    """Check the options of `reranked`.

    Args:
        variant: see `reranked`.
        metric: see `reranked`.
        k1: see `reranked`.
        k2: see `reranked`.
        lambda_value: see `reranked`.

    Raises:
        ValueError: if an option or combination is not supported; with the configuration key.

    Examples:
        >>> check_reranking("paper", "cosine", k1=20, k2=0, lambda_value=0.3)
        Traceback (most recent call last):
        ValueError: TEST.RERANK.K2 is 0, expected 1 or more
    """
    if variant not in VARIANTS:
        raise ValueError(f"TEST.RERANK.VARIANT is '{variant}', expected one of {', '.join(VARIANTS)}")
    if metric not in METRICS:
        raise ValueError(f"TEST.METRIC is '{metric}', expected one of {', '.join(METRICS)}")
    if variant == "fastreid" and metric != "cosine":
        raise ValueError(f"TEST.RERANK.VARIANT is 'fastreid' and TEST.METRIC '{metric}': FastReID adds Jaccard "
                         "distances, which are at most 1, to squared Euclidean distances of any magnitude, so that "
                         "re-ranking has almost no effect. Set TEST.RERANK.VARIANT paper, or TEST.METRIC cosine.")
    for key, value in (("K1", k1), ("K2", k2)):
        if value < 1:
            raise ValueError(f"TEST.RERANK.{key} is {value}, expected 1 or more")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"TEST.RERANK.LAMBDA is {lambda_value}, expected a share from 0 to 1")


def reranked(query_features: Tensor, gallery_features: Tensor, *, metric: str = "cosine", k1: int = 20, k2: int = 6,
             lambda_value: float = 0.3, variant: str = "paper") -> Callable[[slice], Tensor]:
    """Return a function that computes re-ranked distances of some queries to the whole gallery.

    The distance is `(1 - lambda_value) * Jaccard + lambda_value * original`. The Jaccard distance compares the weighted
    k-reciprocal neighbours of two images. All features must be in memory; a gallery processed in parts cannot be
    re-ranked.

    Args:
        query_features: float (Q, D).
        gallery_features: float (N, D), on the same device. Distances are computed on this device, neighbour sets on
            the CPU.
        metric: "cosine" (1 - cosine) or "euclidean" (squared). With the variant "paper" both give the same result for
            features of unit length.
        k1: number of neighbours in k-reciprocal sets.
        k2: number of images averaged in query expansion; 1 disables it.
        lambda_value: weight of the original distance, 0 to 1.
        variant: "paper": the neighbours are the image itself and `k1` others, and original distances are divided by the
            largest distance of the query to all query and gallery images, as in the published code. "fastreid": `k1`
            includes the image itself, and distances are not divided; requires "cosine".

    Returns:
        a function from a slice of range(Q) to distances float32 (B, N) on the device of the features.

    Raises:
        ValueError: if options are not supported (`check_reranking`), or features contain NaN.

    Examples:
        >>> query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.9, 0.1], [0.0, 1.0]])
        >>> distances = reranked(query, gallery, k1=1, k2=1)(slice(0, 1))
        >>> distances.shape, bool(distances[0, 0] < distances[0, 1])
        (torch.Size([1, 2]), True)
    """
    check_reranking(variant, metric, k1, k2, lambda_value)
    paper = variant == "paper"
    num_query = len(query_features)
    dtype = torch.promote_types(query_features.dtype, torch.float32)
    features = prepare(torch.cat([query_features, gallery_features]), metric, dtype)  # (n, D)
    distances = between(features, features, metric)
    reciprocal = k1 + 1 if paper else k1
    # FastReID only searches k1 neighbours, so its k2 is effectively at most k1.
    neighbours, largest = _nearest(distances, len(features),
                                   min(max(reciprocal, k2) if paper else reciprocal, len(features)), features.device)
    # FastReID computes weights from squared Euclidean distances for "cosine" as well; these are 2 (1 - cosine).
    scale = 1 / largest if paper else torch.full_like(largest, 2.0)
    weights = _weights(features, neighbours[:, :reciprocal], scale, metric, k1)
    # Mean of the rows of k2 neighbours. The first neighbour is the image itself, so k2 = 1 has no effect.
    weights = (_rows_of(neighbours[:, :k2]) / min(k2, neighbours.shape[1])) @ weights
    of_queries, of_gallery = weights[:num_query], weights[num_query:].tocsc()
    from_query = between(features[:num_query], features[num_query:], metric)
    of_rows = scale[:num_query, None]  # (Q, 1)

    def rows(block: slice) -> Tensor:
        original = from_query(block)  # (B, N)
        if paper:
            original = original.clamp_(min=0) * of_rows[block]
        jaccard = _jaccard(of_queries[block], of_gallery).to(original.device)
        return (lambda_value * original).add_(jaccard, alpha=1 - lambda_value).float()

    return rows


def _nearest(distances: Callable[[slice], Tensor], num_images: int, k: int,
             device: torch.device) -> tuple[np.ndarray, Tensor]:
    """Nearest images and largest distance of each image.

    Returns:
        the k nearest images, int64 (n, k), beginning with the image itself; ties are broken by the lower index. And the
        largest distance, float (n,) on the device of the distances; 1 if all distances are 0.
    """
    size = max(1, values_at_once(device, BLOCK_ENTRIES, VALUE_BYTES) // num_images)
    # Allocated once: small results allocated between large temporary blocks would fragment the memory.
    nearest, largest = np.empty((num_images, k), dtype=np.int64), torch.empty(0)
    for start in range(0, num_images, size):
        block = distances(slice(start, start + size))  # (B, n)
        if not len(largest):
            largest = block.new_empty(num_images)
        highest = block.amax(dim=1)
        if highest.isnan().any():
            raise ValueError("re-ranking: distances are NaN; look for NaN in the features")
        largest[start:start + size] = torch.where(highest > 0, highest, 1.0)
        block.clamp_(min=0)
        own = torch.arange(len(block), device=block.device)
        block[own, start + own] = -1
        kth = block.topk(k, dim=1, largest=False).values.amax(dim=1, keepdim=True)
        row, column = (block <= kth).nonzero(as_tuple=True)  # k per row, more if there are ties
        order = block[row, column].sort(stable=True).indices
        order = order[row[order].sort(stable=True).indices]
        first = torch.searchsorted(row, own)  # start of each row
        chosen = first[:, None] + torch.arange(k, device=block.device)  # (B, k)
        nearest[start:start + size] = column[order[chosen]].cpu().numpy()
    return nearest, largest


def _rows_of(columns: np.ndarray) -> sparse.csr_array:
    """Sparse matrix (n, n) with a 1 at each of the columns int64 (n, k) of each row."""
    num_rows, k = columns.shape
    values = np.ones(columns.size, dtype=np.float32)
    return sparse.csr_array((values, columns.ravel(), np.arange(num_rows + 1) * k), shape=(num_rows, num_rows))


def _reciprocal(neighbours: np.ndarray) -> sparse.csr_array:
    """Sparse matrix (n, n) with a 1 for each pair of images that are neighbours of each other."""
    forward = _rows_of(neighbours)
    return forward.multiply(forward.T).tocsr()


def _weights(features: Tensor, neighbours: np.ndarray, scale: Tensor, metric: str, k1: int) -> sparse.csr_array:
    """Weights of the expanded k-reciprocal neighbours of each image, with the sum 1: sparse float32 (n, n).

    The reciprocal set of a neighbour at k1 / 2 is added if more than two thirds of it are already in the set.
    """
    whole = _reciprocal(neighbours)
    half = _reciprocal(neighbours[:, :round(k1 / 2) + 1])
    shared = (whole @ half).multiply(whole).tocoo()  # for image i and neighbour j: |R(j, k1 / 2) and R(i, k1)|
    joins = 3 * shared.data > 2 * half.sum(axis=1)[shared.col]
    chosen = sparse.coo_array((shared.data[joins], (shared.row[joins], shared.col[joins])), shape=whole.shape).tocsr()
    expanded = (whole + chosen @ half).tocoo()
    row, column = expanded.row.astype(np.int64), expanded.col.astype(np.int64)
    values = np.exp(-_distances_of(features, row, column, scale, metric))
    weights = sparse.csr_array((values, (row, column)), shape=whole.shape)
    return (sparse.diags_array(1 / weights.sum(axis=1)) @ weights).astype(np.float32).tocsr()


def _distances_of(features: Tensor, row: np.ndarray, column: np.ndarray, scale: Tensor, metric: str) -> np.ndarray:
    """Scaled distances of pairs of images, float64 (M,)."""
    parts = []
    size = max(1, values_at_once(features.device, BLOCK_ENTRIES, VALUE_BYTES) // features.shape[1])
    for start in range(0, len(row), size):
        one, other = (torch.from_numpy(index[start:start + size]).to(features.device) for index in (row, column))
        if metric == "cosine":
            found = 1 - (features[one] * features[other]).sum(dim=1)
        else:
            found = (features[one] - features[other]).square().sum(dim=1)
        parts.append((found.clamp_(min=0) * scale[one]).double().cpu().numpy())
    return np.concatenate(parts)


def _jaccard(of_queries: sparse.csr_array, of_gallery: sparse.csc_array) -> Tensor:
    """Jaccard distances of weights (B, n) and (N, n): float32 (B, N).

    Each row of weights has the sum 1, so the sum of maxima is 2 minus the sum of minima.
    """
    num_query, num_gallery = of_queries.shape[0], of_gallery.shape[0]
    distances = torch.empty(num_query, num_gallery)
    for i, (start, stop) in enumerate(zip(of_queries.indptr, of_queries.indptr[1:])):
        shared = of_gallery[:, of_queries.indices[start:stop]]  # columns in which the query has a weight
        smaller = np.minimum(shared.data, of_queries.data[start:stop].repeat(np.diff(shared.indptr)))
        minima = np.bincount(shared.indices, smaller, minlength=num_gallery)
        distances[i] = torch.from_numpy(1 - minima / (2 - minima))
    return distances
