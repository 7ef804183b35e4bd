"""Attribute-accelerated retrieval (proposed with APR): skip gallery images whose attributes contradict the query.

The attributes of the gallery are predicted once in advance. An attribute of an image is reliable if the probability of
its class exceeds a threshold. A gallery image is removed if an attribute is reliable both in the image and in the
query, and the two classes differ. The remaining images, the survivors, are ranked by distance.
Shapes: N gallery images, Q queries, M attributes (columns), W machine words of the code of an image.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attributes.marginals import check_threshold, is_reliable
from ..metrics.distances import between, prepare, squares
from ..utils.environment import values_at_once

WORD_BITS = 63  # usable bits of an int64
BLOCK_ENTRIES = 2**22  # pairs of images processed at a time on a CPU
PAIR_BYTES = 64  # upper bound of memory per pair: codes, and row, column and distance of a survivor, with copies
# Measured: with larger shares of survivors, comparing one query (or several) with the whole gallery is faster.
ONE_SHARE, MANY_SHARE = 0.5, 0.05

# Set globally, because searches run in threads and `warnings.catch_warnings` affects all threads.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support")


class Predictions(NamedTuple):
    """Predicted attributes of images.

    Attributes:
        classes: int64 (N, M), the most probable class of each attribute; -1 for none.
        probabilities: float (N, M), of these classes.
    """

    classes: Tensor
    probabilities: Tensor

    def rows(self, index) -> Predictions:
        """Select images."""
        return Predictions(self.classes[index], self.probabilities[index])

    def to(self, device: torch.device) -> Predictions:
        """Copy to a device."""
        return Predictions(self.classes.to(device), self.probabilities.to(device))


class AttributeFilter:
    """Filter that keeps the gallery images whose reliable attributes do not contradict the query.

    Each class of each attribute has one bit. The code of a query has the bits of its reliable classes, the code of a
    gallery image the bits of the classes that contradict it. A pair of images is then tested with one AND operation per
    word, while a distance takes thousands of multiplications.

    Args:
        gallery: predictions of the gallery.
        sizes: number of classes of each attribute.
        threshold: tau in [0, 1]; larger probabilities are reliable, so that 1 removes no image.

    Raises:
        ValueError: if the threshold is not a probability, or the predictions are invalid (`check_predictions`).

    Examples:
        >>> gallery = Predictions(torch.tensor([[0], [1], [1]]), torch.tensor([[0.9], [0.9], [0.6]]))
        >>> query = Predictions(torch.tensor([[0]]), torch.tensor([[0.95]]))
        >>> AttributeFilter(gallery, sizes=[2], threshold=0.8).keep(query).tolist()
        [[True, False, True]]
    """

    def __init__(self, gallery: Predictions, sizes: Sequence[int], threshold: float) -> None:
        check_threshold(threshold)
        self.threshold = threshold
        self.sizes = tuple(sizes)
        self._bits, self._words = _places(self.sizes)
        check_predictions(gallery, self.sizes, "gallery")
        self._against = self._codes(gallery)[1]  # (N, W)

    def keep(self, queries: Predictions) -> Tensor:
        """Return the survivors of each query, bool (Q, N)."""
        return self.keep_by(self.said_by(queries))

    def said_by(self, queries: Predictions) -> Tensor:
        """Return the codes of queries, int64 (Q, W), on the device of the gallery."""
        check_predictions(queries, self.sizes, "query")
        return self._codes(queries)[0].to(self._against.device)

    def keep_by(self, said: Tensor) -> Tensor:
        """`keep` for codes of queries, int64 (Q, W)."""
        kept = torch.ones(len(said), len(self._against), dtype=torch.bool, device=said.device)
        for word in range(said.shape[1]):
            kept &= (said[:, None, word] & self._against[None, :, word]) == 0
        return kept

    def _codes(self, predictions: Predictions) -> tuple[Tensor, Tensor]:
        """Bits of the reliable classes, and bits of the classes that contradict them: int64 (N, W) each."""
        reliable = is_reliable(predictions.probabilities, self.threshold)  # (N, M)
        attribute = torch.arange(len(self.sizes), device=reliable.device)
        bits = self._bits.to(reliable.device)[attribute, predictions.classes + 1] * reliable
        others = self._bits.sum(dim=1).to(reliable.device) * reliable - bits
        words = [self._words == word for word in range(1 + self._words[-1])]

        def in_words(each: Tensor) -> Tensor:
            return torch.stack([each[:, own].sum(dim=1) for own in words], dim=1)

        return in_words(bits), in_words(others)


class AcceleratedGallery:
    """A gallery in which only the survivors of each query are compared.

    Args:
        embeddings: float (N, E).
        metric: "cosine" or "euclidean".
        predictions: predictions of the gallery, N images.
        sizes: see `AttributeFilter`.
        threshold: see `AttributeFilter`.

    Raises:
        ValueError: if the numbers of embeddings and predictions differ; see also `AttributeFilter`.
    """

    def __init__(self, embeddings: Tensor, predictions: Predictions, sizes: Sequence[int], threshold: float,
                 metric: str = "cosine") -> None:
        if len(embeddings) != len(predictions.classes):
            raise ValueError(f"filter: {len(embeddings)} gallery embeddings, but predictions of "
                             f"{len(predictions.classes)} images")
        self.filter = AttributeFilter(predictions.to(embeddings.device), sizes, threshold)
        self.metric = metric
        self.embeddings = prepare(embeddings, metric, torch.float32)
        self._squares = squares(self.embeddings)  # (N,), for each search

    def search(self, embeddings: Tensor, predictions: Predictions, top: int = 10) -> tuple[Tensor, Tensor]:
        """Find the nearest survivors of each query.

        Args:
            embeddings: float (Q, E).
            predictions: predictions of the queries.
            top: number of results.

        Returns:
            rows of the gallery, int64 (Q, top), nearest first, on the device of the gallery; the order of equal
            distances is undefined; -1 if there are fewer survivors. And distances, float (Q, top), 1 - cosine or
            squared Euclidean; infinite if there are fewer survivors.
        """
        if len(embeddings) != len(predictions.classes) or embeddings.shape[1] != self.embeddings.shape[1]:
            raise ValueError(f"filter: query embeddings are {tuple(embeddings.shape)} and predictions of "
                             f"{len(predictions.classes)} images; expected the same number of both, and embeddings "
                             f"with {self.embeddings.shape[1]} values as in the gallery")
        device = self.embeddings.device
        queries = prepare(embeddings.to(device), self.metric, torch.float32)
        said = self.filter.said_by(predictions.to(device))  # once for all blocks: the check synchronises a GPU
        size = max(1, values_at_once(device, BLOCK_ENTRIES, PAIR_BYTES) // len(self.embeddings))
        found = [self._nearest(own, self.filter.keep_by(codes), top)
                 for own, codes in zip(queries.split(size), said.split(size))]
        rows, distances = map(torch.cat, zip(*found))
        return rows.masked_fill(distances.isinf(), -1), distances

    def _nearest(self, queries: Tensor, kept: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """Rows and distances of the nearest of the kept images, bool (q, N); missing results have infinite distance."""
        counts = kept.sum(dim=1)
        total, most = torch.stack([counts.sum(), counts.max()]).tolist()  # one GPU synchronisation
        if total > (ONE_SHARE if len(queries) == 1 else MANY_SHARE) * kept.numel():
            distances = between(queries, self.embeddings, self.metric, self._squares)(slice(None))
            distances, column = distances.masked_fill_(~kept, float("inf")), None
        elif total == 0:  # cuSPARSE does not accept a matrix without entries
            distances, column = queries.new_empty(len(queries), 0), None
        else:
            distances, column = self._of_survivors(queries, kept, counts, most)
        best = distances.topk(min(top, distances.shape[1]), dim=1, largest=False)
        missing = (0, min(top, kept.shape[1]) - best.values.shape[1])
        rows = best.indices if column is None else column.gather(1, best.indices)
        return F.pad(rows, missing), F.pad(best.values, missing, value=float("inf"))

    def _of_survivors(self, queries: Tensor, kept: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Distances and gallery rows of the survivors of each query: (q, most), padded with infinity."""
        query, column = kept.nonzero(as_tuple=True)
        start = F.pad(counts.cumsum(dim=0), (1, 0))
        wanted = torch.sparse_csr_tensor(start, column, queries.new_zeros(len(column)), size=kept.shape,
                                         check_invariants=False)
        # Computes the products of survivors only, without a gather, which would take ten times as long.
        products = torch.sparse.sampled_addmm(wanted, queries, self.embeddings.T, beta=0.0).values()
        if self.metric == "cosine":
            values = 1 - products
        else:
            values = self._squares[column] - 2 * products + squares(queries)[query]
        slot = torch.arange(len(column), device=column.device) - start[query]
        distances = queries.new_full((len(queries), most), float("inf"))
        columns = column.new_zeros(len(queries), most)
        distances[query, slot], columns[query, slot] = values, column
        return distances, columns


def check_predictions(predictions: Predictions, sizes: Sequence[int], side: str) -> None:
    """Check predictions.

    Args:
        predictions: predictions of N images and M attributes.
        sizes: number of classes of each attribute.
        side: "query" or "gallery", for the message.

    Raises:
        ValueError: if predictions are missing (NaN), have another number of attributes, or contain invalid
            probabilities or classes.

    Examples:
        >>> check_predictions(Predictions(torch.tensor([[2]]), torch.tensor([[0.9]])), [2], "query")
        Traceback (most recent call last):
        ValueError: filter: 1 query classes are outside their attribute, such as 2 of attribute 0; expected -1 ...
    """
    classes, probabilities = predictions
    if classes.shape != probabilities.shape or classes.dim() != 2 or classes.shape[1] != len(sizes):
        raise ValueError(f"filter: {side} predictions are {tuple(classes.shape)} classes and "
                         f"{tuple(probabilities.shape)} probabilities, expected (images, {len(sizes)}) for both: "
                         "query and gallery must be predicted by one model")
    absent = probabilities.isnan().any(dim=1)
    if absent.any():
        raise ValueError(f"filter: {int(absent.sum())} of {len(absent)} {side} images have no predictions, first row "
                         f"{int(absent.nonzero()[0])}; predict their attributes, or search without the filter")
    if len(classes) == 0:
        raise ValueError(f"filter: no {side} images")
    bad = (probabilities < 0) | (probabilities > 1)
    if bad.any():
        raise ValueError(f"filter: {int(bad.sum())} {side} probabilities are outside [0, 1], such as "
                         f"{probabilities[bad][0].item():.3g}")
    wrong = (classes < -1) | (classes >= torch.tensor(tuple(sizes), device=classes.device))
    if wrong.any():
        row, m = wrong.nonzero()[0].tolist()
        raise ValueError(f"filter: {int(wrong.sum())} {side} classes are outside their attribute, such as "
                         f"{int(classes[row, m])} of attribute {m}; expected -1 for none, or 0..{sizes[m] - 1}")


def _places(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The bit of each class, int64 (M, max(sizes) + 1), "none" first, and the word of each attribute, int64 (M,)."""
    bits, words = torch.zeros(len(sizes), max(sizes) + 1, dtype=torch.int64), []
    word, first = 0, 0
    for m, size in enumerate(sizes):
        if first + size + 1 > WORD_BITS:
            word, first = word + 1, 0
        bits[m, :size + 1] = 1 << torch.arange(first, first + size + 1)
        words.append(word)
        first += size + 1
    return bits, torch.tensor(words)
