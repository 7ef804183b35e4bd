"""Confident learning: find labels that are probably wrong from predicted probabilities.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021): a predicted
class is confident if its probability is at least the mean probability of this class over the images that are labelled
with it. Shapes: N images or means over images, C classes, G groups of images.
"""

from __future__ import annotations

import numpy as np


def thresholds(probabilities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compute the threshold of each class: its mean probability over the images with this label (t_c of Eq. 2).

    Args:
        probabilities: float (N, C).
        right: bool (N, C), the labels; several per row for garments of several colours.

    Returns:
        float (C,); infinite for a class that is never the label.

    Examples:
        >>> thresholds(np.array([[0.75, 0.25], [0.25, 0.75]]), np.array([[True, False], [True, False]]))
        array([0.5, inf])
    """
    count = right.sum(axis=0)
    total = np.where(right, probabilities, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.inf), where=count > 0)


def confident_classes(probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the most probable class if it reaches its threshold.

    The paper instead takes the most probable of the classes that reach their thresholds. The two differ if a rare class
    has a low threshold and the label is more probable than it. Such findings were mostly wrong, see docs/audit.md.

    Args:
        probabilities: float (N, C).
        limits: float (C,), returned by `thresholds`.

    Returns:
        int64 (N,), -1 if the most probable class does not reach its threshold.

    Examples:
        >>> confident_classes(np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([0.75, 0.6]))
        array([ 1, -1])
    """
    best = probabilities.argmax(axis=1)
    return np.where(probabilities[np.arange(len(best)), best] >= limits[best], best, -1)


def pooled(probabilities: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Average probabilities over groups of rows.

    Args:
        probabilities: float (N, C).
        groups: int64 (N,), the group of each row, 0 to G - 1 without gaps.

    Returns:
        float (G, C).
    """
    total = np.zeros((groups.max(initial=-1) + 1, probabilities.shape[1]))
    np.add.at(total, groups, probabilities)
    return total / np.bincount(groups)[:, None]


def self_confidence(probabilities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the probability of the label.

    Args:
        probabilities: float (N, C).
        right: bool (N, C), the labels; probabilities of several labels are added.

    Returns:
        float (N,).
    """
    return np.where(right, probabilities, 0.0).sum(axis=1)
