"""What the tasks ask of a model that reads attributes.

Shapes: N images, E size of an embedding, Q queries, A label fields, M recognition columns.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..attributes import AttributeSchema


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
