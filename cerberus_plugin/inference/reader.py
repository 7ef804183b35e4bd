"""Interfaces of models that predict attributes from embeddings, and similarity scores of embeddings.

Shapes: N images, E embedding size, Q queries, A label fields, M columns, V values of a score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attributes import AttributeSchema

CHUNK_ENTRIES = 2**26  # values of embeddings that are processed at a time: 256 MiB


class AttributeReader(Protocol):
    """Interface for attribute recognition and search from embeddings. Models of other packages can implement it.

    Predictions and scores of an image must not depend on the other images of a call, because large galleries are
    processed in parts. If a reader has an attribute `train_labels`, int64 (C, A), the labels of its training
    identities, the evaluation also reports the majority-class baseline and separate results for seen and unseen
    categories.
    """

    schema: AttributeSchema

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Predict the class of each column, (N, E) -> int64 (N, M); -1 for none."""

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Score images for descriptions; higher is better.

        Args:
            labels: int64 (Q, A), -1 for fields that are not described.
            embeddings: float (N, E).

        Returns:
            float (Q, N).
        """


class PersonReader(AttributeReader, Protocol):
    """A reader that can also predict the attributes of a person from several images, from the mean of their scores."""

    def answer_scores(self, embeddings: Tensor, balanced: bool = False) -> Tensor:
        """Return the scores from which predictions are made. They can be averaged over the images of a person.

        Args:
            embeddings: float (N, E).
            balanced: return scores for predictions that maximise the expected balanced accuracy.

        Returns:
            float (N, V).
        """

    def decide(self, scores: Tensor, balanced: bool = False) -> Tensor:
        """Convert scores to predictions. For the scores of one image the result equals that of `recognise`.

        Args:
            scores: float (N, V), or means of scores over images.
            balanced: see `answer_scores`.

        Returns:
            int64 (N, M).
        """


class ConfidentReader(AttributeReader, Protocol):
    """A reader that also returns probabilities, as required by attribute-accelerated retrieval.

    A reader with the methods `column_scores` and `calibrated`, such as the readers of this package, can be calibrated.
    """

    def confidences(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable class of each column, int64 (N, M), -1 for none; and its probability, float (N, M).
        """


def image_scores(queries: Tensor, gallery: Tensor, metric: str = "cosine") -> Tensor:
    """Return similarity scores of embeddings; higher is more similar.

    Args:
        queries: float (Q, E).
        gallery: float (N, E).
        metric: "cosine", which for Cerberus is the mean over its groups; or "euclidean", the negative distance.

    Returns:
        float (Q, N).

    Raises:
        ValueError: if the metric is unknown.

    Examples:
        >>> image_scores(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [2.0, 0.0]])).tolist()
        [[0.0, 1.0]]
    """
    if metric == "euclidean":
        return -torch.cdist(queries, gallery)
    if metric != "cosine":
        raise ValueError(f"TEST.METRIC is '{metric}', expected cosine or euclidean")
    queries = F.normalize(queries, dim=1)
    return torch.cat([queries @ F.normalize(chunk, dim=1).T for chunk in chunks(gallery)], dim=1)


def mean_over_described(known: Tensor, embeddings: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    """Return scores of images for descriptions, averaged over the described columns or groups.

    Args:
        known: bool (P, Q), which of P columns or groups each query describes.
        embeddings: float (N, E).
        total: function from some embeddings (n, E) to the sums over the described columns or groups, (Q, n).

    Returns:
        float (Q, N).

    Raises:
        ValueError: if a query describes no attribute.

    Examples:
        >>> known = torch.tensor([[True], [True]])  # two columns, both described
        >>> mean_over_described(known, torch.tensor([[3.0], [5.0]]), lambda chunk: 2 * chunk.T).tolist()
        [[3.0, 5.0]]
    """
    described = known.sum(dim=0)  # (Q,)
    if (described == 0).any():
        raise ValueError(f"search: query {int((described == 0).nonzero()[0])} describes nothing; give at least one "
                         "attribute.")
    scores = torch.cat([total(chunk) for chunk in chunks(embeddings)], dim=1)
    return scores.div_(described[:, None].to(scores))


def chunks(embeddings: Tensor) -> tuple[Tensor, ...]:
    """Split embeddings (N, E) into views of at most `CHUNK_ENTRIES` values; one chunk if there are no rows.

    Examples:
        >>> [len(chunk) for chunk in chunks(torch.empty(3, 2**25, device="meta"))]
        [2, 1]
    """
    return embeddings.split(max(1, CHUNK_ENTRIES // max(1, embeddings.shape[1])))
