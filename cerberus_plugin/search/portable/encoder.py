"""The interface of models that galleries use, implemented with torch and with onnxruntime.

Shapes: N images, G groups, D values of a group's block, E = G * D values of an embedding.
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
    """Return the groups that are ignored if people may have changed clothes.

    Args:
        groups: all groups of the model.
        lasting: the groups that stay the same when clothes change.

    Examples:
        >>> clothing_groups(["head", "upper", "identity"], lasting=["head", "identity"])
        ['upper']
    """
    return [group for group in groups if group not in lasting]


class Encoder(Protocol):
    """Computes embeddings of images, and contains what is needed to compare them and to predict attributes.

    Attributes:
        fingerprint: hexadecimal SHA-256 of the weights and of the settings that affect embeddings. Only embeddings with
            the same fingerprint can be compared.
        dim: E.
        groups: names of the blocks of an embedding, in order; () for a model with a single block.
        metric: "cosine" (each block has unit length) or "euclidean".
        vocabulary: attribute tables, to predict attributes and to search by them; None for a model without them.
        lasting_groups: groups that stay the same when clothes change; () for a model with a single block.
        verification: calibration of the probability that two images show the same person; None if not calibrated.
    """

    fingerprint: str
    dim: int
    groups: tuple[str, ...]
    metric: str
    vocabulary: AttributeModel | None
    lasting_groups: tuple[str, ...]
    verification: Verification | None

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Compute the embeddings of images.

        Args:
            images: N RGB images of any size.

        Returns:
            float32 (N, E).
        """
