"""What a gallery asks of a model, whether torch runs it or onnxruntime does.

Shapes: N images, G groups, D dimensions of a group's block, E = G * D values of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ...attributes.attribute_model import AttributeModel
from .verification import Verification

if TYPE_CHECKING:
    from PIL.Image import Image


def clothing_groups(groups: Sequence[str], lasting: Sequence[str]) -> list[str]:
    """Groups of clothes and bags, which do not count where somebody may have changed clothes."""
    return [group for group in groups if group not in lasting]


class Encoder(Protocol):
    """Pictures to embeddings, with what is needed to compare them and to read attributes off them.

    Attributes:
        fingerprint: hexadecimal SHA-256 of the weights and of the settings that change embeddings; embeddings of one
            fingerprint can be compared, others cannot.
        dim: E.
        groups: names of the blocks of an embedding, side by side; () for a model whose embedding is one block.
        metric: what its embeddings are compared by, "cosine" (each block has unit length) or "euclidean".
        vocabulary: the attributes that can be read off, and described; None where the model knows none this way.
        lasting_groups: those that count where somebody may have changed clothes; () for a model of one block.
        verification: how a score tells whether two pictures show one person; None where it is not calibrated.
    """

    fingerprint: str
    dim: int
    groups: tuple[str, ...]
    metric: str
    vocabulary: AttributeModel | None
    lasting_groups: tuple[str, ...]
    verification: Verification | None

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """RGB pictures of any size to embeddings: float32 (N, E)."""
