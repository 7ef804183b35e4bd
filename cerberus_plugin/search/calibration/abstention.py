"""Abstention: the probability below which a model answers "cannot tell", so that the answers it gives are right.

Shapes: N images.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from .bounds import CONFIDENCE, ROUNDING, chance_of_so_few, needed


def identities_to_vouch(accuracy: float, confidence: float = CONFIDENCE) -> int:
    """Identities that a wanted accuracy takes, if none of their answers is wrong: 22 for 0.9, 45 for 0.95."""
    if not 0 < accuracy < 1:
        raise ValueError(f"abstention: the wanted accuracy is {accuracy}, expected a share between 0 and 1, without "
                         "both")
    return needed(1 - accuracy, confidence)


def choose_withholding(probabilities: Tensor, right: Tensor, identities: Tensor, accuracy: float,
                       confidence: float = CONFIDENCE) -> float:
    """The probability from which on answers reach an accuracy, on other people too; infinite where there is none.

    Guarantee: in at most 1 - confidence of all samples of people, a threshold is returned above which the accuracy in
    their population is lower than wanted. Accuracy is the mean over identities of the share of correct answers among
    those given. Identities are assumed independent, images of one identity are not. The guarantee holds for one
    attribute at a time.

    Thresholds are tested from the highest probability downwards, once enough people have an answer, until one fails
    (fixed-sequence testing; Angelopoulos et al., "Learn then test", 2021), so no correction for multiple tests is
    needed. The lowest threshold that passes would be biased, as the accuracy does not fall monotonically.

    Args:
        probabilities: float (N,), of the answers.   right: bool (N,).   identities: int64 (N,).
        accuracy: wanted of the answers that are given, below 1.
    """
    least_people = identities_to_vouch(accuracy, confidence)
    available = len(identities.unique())
    if available < least_people:
        raise ValueError(f"abstention: {available} identities cannot vouch for an accuracy of {accuracy} with a "
                         f"confidence of {confidence}; it takes {least_people} at least, and so few vouch for "
                         f"{(1 - confidence)**(1 / available):.3f} at most")
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
        among_equals = i + 1 < len(values) and values[i + 1] == value
        if among_equals or len(given) < least_people:
            continue
        if chance_of_so_few(lost, len(given), 1 - accuracy) > 1 - confidence + ROUNDING:
            break
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
