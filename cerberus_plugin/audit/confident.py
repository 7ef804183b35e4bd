"""Labels that are probably wrong, by confident learning, pooled over the pictures of a person.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021): a class is
confident where its probability reaches the mean probability that it has where it is the label. Shapes: N pictures or
means over pictures, C classes, U units of pictures that share a label.
"""

from __future__ import annotations

import numpy as np


def thresholds(probabilities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean probability of each class where it is the label, t_c of Eq. 2: float (C,); infinite where it never is.

    Args:
        probabilities: float (N, C).   right: bool (N, C), the labels; of two colours both.
    """
    count = right.sum(axis=0)
    total = np.where(right, probabilities, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.inf), where=count > 0)


def confident_classes(probabilities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The most probable of the classes that reach their threshold: int64 (N,), -1 where none does."""
    reaching = np.where(probabilities >= limits, probabilities, -1.0)
    return np.where((probabilities >= limits).any(axis=1), reaching.argmax(axis=1), -1)


def pooled(probabilities: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean probabilities of each group: (N, C), groups int64 (N,) from 0 without gaps -> (G, C)."""
    total = np.zeros((groups.max(initial=-1) + 1, probabilities.shape[1]))
    np.add.at(total, groups, probabilities)
    return total / np.bincount(groups)[:, None]


def self_confidence(probabilities: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The probability of the label: float (N,)."""
    return np.where(right, probabilities, 0.0).sum(axis=1)
