"""What the tasks ask of a model that reads attributes, and scores of embeddings for one another.

Shapes: N images, E size of an embedding, Q queries, A label fields, M recognition columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attributes import AttributeSchema

CHUNK_ENTRIES = 2**26  # values of embeddings that are brought to unit length at a time: 256 MiB


class AttributeReader(Protocol):
    """What recognition and search ask of a model, by its embeddings; any model of a user's own may offer it.

    An answer and a score are of one image, whichever others come with it: large galleries are handed over in parts.
    One that also has `train_labels`, int64 (C, A), of the identities it was trained on, is scored beside the majority
    answer and on seen and unseen categories apart.
    """

    schema: AttributeSchema

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Attributes of images: (N, E) -> int64 (N, M), a class of each column, -1 for none."""

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Scores of images for described persons: labels int64 (Q, A), -1 where open -> (Q, N), higher is nearer."""


class PersonReader(AttributeReader, Protocol):
    """A reader that also recognises a person in several images: by the means of their scores."""

    def answer_scores(self, embeddings: Tensor, balanced: bool = False) -> Tensor:
        """What answers are decided by, and may be averaged over images of one person: (N, E) -> float (N, V).

        Args:
            balanced: for the answers that balanced accuracy expects.
        """

    def decide(self, scores: Tensor, balanced: bool = False) -> Tensor:
        """Answers, int64 (N, M), from scores or means of scores, (N, V); of one image the answers of `recognise`."""


class ConfidentReader(AttributeReader, Protocol):
    """A reader that also says how sure it is: what attribute-accelerated retrieval needs.

    One that also has `column_scores` and `calibrated`, as this package's readers have, can be calibrated.
    """

    def confidences(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable class of each column, int64 (N, M), -1 for none, and its probability, float (N, M)."""


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
