"""When to say "cannot tell": the probability below which an answer is withheld, so that those given are right.

Shapes: N images.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

ROUNDING = 1e-9  # 0.95 / 0.05 is 19 in exact numbers only


def identities_to_vouch(accuracy: float) -> int:
    """Identities that a wanted accuracy takes: n with 1 / (n + 1) <= 1 - accuracy."""
    if not 0 < accuracy < 1:
        raise ValueError(f"withholding: the wanted accuracy is {accuracy}, expected a share between 0 and 1, without "
                         "both")
    return math.ceil(accuracy / (1 - accuracy) - ROUNDING)


def choose_withholding(probabilities: Tensor, right: Tensor, identities: Tensor, accuracy: float) -> float:
    """The least probability from which on answers are right as often as wanted; infinite where there is none.

    Each identity counts once, by the share of its given answers that is wrong, and one more is counted as wrong
    altogether: a few people who happen to be recognised vouch for nothing.

    Args:
        probabilities: float (N,), of the answers.   right: bool (N,).   identities: int64 (N,).
        accuracy: wanted of the answers that are given, below 1.
    """
    needed = identities_to_vouch(accuracy)
    available = len(identities.unique())
    if available < needed:
        raise ValueError(f"withholding: {available} identities cannot vouch for an accuracy of {accuracy}; it takes "
                         f"{needed} at least, and so few vouch for {available / (available + 1):.3f} at most")
    values, order = probabilities.double().cpu().sort(descending=True)
    values, order = values.tolist(), order.cpu()
    hits, owners = right.cpu()[order].tolist(), identities.cpu()[order].tolist()
    given, wrong = defaultdict(int), defaultdict(int)
    lost, least = 0.0, math.inf  # lost: sum over identities of their shares of wrong answers
    for i, (value, hit, owner) in enumerate(zip(values, hits, owners)):
        before = wrong[owner] / given[owner] if given[owner] else 0.0
        given[owner] += 1
        wrong[owner] += not hit
        lost += wrong[owner] / given[owner] - before
        last_of_equals = i + 1 == len(values) or values[i + 1] < value
        if last_of_equals and (lost + 1) / (len(given) + 1) <= 1 - accuracy + ROUNDING:
            least = value
    return least


def answered(probabilities: Tensor, right: Tensor, identities: Tensor,
             threshold: float) -> tuple[float, float, float]:
    """Share of images that get an answer; its accuracy as a mean over identities, NaN for none; and its error."""
    told = (probabilities >= threshold).cpu()
    if not told.any():
        return 0.0, math.nan, math.nan
    _, owner, counts = identities.cpu()[told].unique(return_inverse=True, return_counts=True)
    shares = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, owner, right.cpu()[told].double()) / counts
    error = (shares.std() / len(counts)**0.5).item() if len(counts) > 1 else math.nan
    return told.double().mean().item(), shares.mean().item(), error
