"""k-reciprocal re-ranking (Zhong, Zheng, Cao and Li, CVPR 2017), from features and in blocks of rows.

Letters: Q queries, N gallery images, n = Q + N images of both, D feature size, B queries of a block.

The dense matrices (n, n) of the published code are not needed: the distances of a block of rows give its nearest
images, and neighbour sets and weights are sparse. Memory beside the features handed over is about
`8 * n * D + 16 * n * w` bytes, where w, 20 to 120 at k1 = 20 and k2 = 6, is the number of weights of an image after
query expansion, and some blocks of `BLOCK_ENTRIES` values. Measured: 152 MiB for n = 24,000 and D = 256, where one
matrix (n, n) has 2.1 GiB. For MSMT17, n = 93,820, and D = 2048 that is about 1.7 GiB in place of 33 GiB a matrix.
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

# Values of a block of distances, and of the pairs of features whose distances are taken at a time, on a CPU.
BLOCK_ENTRIES = 2**22
VALUE_BYTES = 32  # that one takes at most on a GPU, in float64 with temporary copies


def check_reranking(variant: str, metric: str, k1: int, k2: int, lambda_value: float) -> None:
    """Raise ValueError, with the configuration key, for options of `reranked` that have no meaning."""
    if variant not in VARIANTS:
        raise ValueError(f"TEST.RERANK.VARIANT is '{variant}', expected one of {', '.join(VARIANTS)}")
    if metric not in METRICS:
        raise ValueError(f"TEST.METRIC is '{metric}', expected one of {', '.join(METRICS)}")
    if variant == "fastreid" and metric != "cosine":
        raise ValueError(f"TEST.RERANK.VARIANT is 'fastreid' and TEST.METRIC '{metric}': FastReID adds Jaccard "
                         "distances, which are at most 1, to squared Euclidean distances of any size, so re-ranking "
                         "changes almost nothing. Set TEST.RERANK.VARIANT paper, or TEST.METRIC cosine.")
    for key, value in (("K1", k1), ("K2", k2)):
        if value < 1:
            raise ValueError(f"TEST.RERANK.{key} is {value}, expected 1 or more")
    if not 0 <= lambda_value <= 1:
        raise ValueError(f"TEST.RERANK.LAMBDA is {lambda_value}, expected a share from 0 to 1")


def reranked(query_features: Tensor, gallery_features: Tensor, *, metric: str = "cosine", k1: int = 20, k2: int = 6,
             lambda_value: float = 0.3, variant: str = "paper") -> Callable[[slice], Tensor]:
    """Re-ranked distances of any rows of queries to the whole gallery, on demand: slice of range(Q) -> float32 (B, N).

    The distance is `(1 - lambda_value) * Jaccard + lambda_value * original`. The Jaccard distance compares the weighted
    k-reciprocal neighbours of two images. Features must be at hand as a whole: a gallery that is streamed in parts
    cannot be re-ranked.

    Args:
        query_features: float (Q, D).   gallery_features: float (N, D), on the same device. Distances are computed
            there, neighbour sets on the CPU.
        metric: "cosine" (1 - cosine) or "euclidean" (squared). With "paper" both give the same result for features
            of unit length.
        k1: neighbours of the k-reciprocal sets.   k2: images that query expansion averages over; 1 for none.
        lambda_value: share of the original distance.
        variant: "paper": the image itself and `k1` others are neighbours, and original distances are divided by each
            query's largest distance to any query or gallery image, as in the published code. "fastreid": `k1` counts
            the image itself and distances are not divided; needs "cosine".

    Returns:
        a function; its results are on the device of the features.

    Raises:
        ValueError: for options that have no meaning (`check_reranking`), and for NaN in the features.
    """
    check_reranking(variant, metric, k1, k2, lambda_value)
    paper = variant == "paper"
    num_query = len(query_features)
    dtype = torch.promote_types(query_features.dtype, torch.float32)
    features = prepare(torch.cat([query_features, gallery_features]), metric, dtype)  # (n, D)
    distances = between(features, features, metric)
    reciprocal = k1 + 1 if paper else k1
    # FastReID searches for the reciprocal sets alone, so its k2 is k1 at most.
    neighbours, largest = _nearest(distances, len(features),
                                   min(max(reciprocal, k2) if paper else reciprocal, len(features)), features.device)
    # FastReID's weights are of squared Euclidean distances also under the cosine, and those are twice as large.
    scale = 1 / largest if paper else torch.full_like(largest, 2.0)
    weights = _weights(features, neighbours[:, :reciprocal], scale, metric, k1)
    # A mean of rows: the image itself comes first among its neighbours, so that k2 = 1 changes nothing.
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
    """The k nearest images of each, itself first and the lower index first among equals: int64 (n, k).

    And each image's largest distance, float (n,) on the device of the distances; 1 where all are 0.
    """
    size = max(1, values_at_once(device, BLOCK_ENTRIES, VALUE_BYTES) // num_images)
    # Made once: results of each block, kept among blocks that are freed, would hold on to the memory of these.
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
        row, column = (block <= kth).nonzero(as_tuple=True)  # k a row, more where images are equally far
        order = block[row, column].sort(stable=True).indices
        order = order[row[order].sort(stable=True).indices]
        first = torch.searchsorted(row, own)  # where each row's begin
        chosen = first[:, None] + torch.arange(k, device=block.device)  # (B, k)
        nearest[start:start + size] = column[order[chosen]].cpu().numpy()
    return nearest, largest


def _rows_of(columns: np.ndarray) -> sparse.csr_array:
    """Matrix (n, n) with a 1 at each of the columns int64 (n, k) of each row."""
    num_rows, k = columns.shape
    values = np.ones(columns.size, dtype=np.float32)
    return sparse.csr_array((values, columns.ravel(), np.arange(num_rows + 1) * k), shape=(num_rows, num_rows))


def _reciprocal(neighbours: np.ndarray) -> sparse.csr_array:
    """Pairs of images that are among each other's neighbours, as ones of a matrix (n, n)."""
    forward = _rows_of(neighbours)
    return forward.multiply(forward.T).tocsr()


def _weights(features: Tensor, neighbours: np.ndarray, scale: Tensor, metric: str, k1: int) -> sparse.csr_array:
    """The weights of each image's expanded k-reciprocal neighbours, which sum to 1: sparse float32 (n, n).

    Of each neighbour the reciprocal set at half of k1 joins where more than two thirds of it are in the set.
    """
    whole = _reciprocal(neighbours)
    half = _reciprocal(neighbours[:, :round(k1 / 2) + 1])
    shared = (whole @ half).multiply(whole).tocoo()  # of image i and neighbour j: |R(j, k1 / 2) and R(i, k1)|
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

    Each row of weights sums to 1, so that the sum of maxima is 2 minus the sum of minima.
    """
    num_query, num_gallery = of_queries.shape[0], of_gallery.shape[0]
    distances = torch.empty(num_query, num_gallery)
    for i, (start, stop) in enumerate(zip(of_queries.indptr, of_queries.indptr[1:])):
        shared = of_gallery[:, of_queries.indices[start:stop]]  # the images that have a weight where the query has one
        smaller = np.minimum(shared.data, of_queries.data[start:stop].repeat(np.diff(shared.indptr)))
        minima = np.bincount(shared.indices, smaller, minlength=num_gallery)
        distances[i] = torch.from_numpy(1 - minima / (2 - minima))
    return distances
