"""Abstention: thresholds below which a prediction is "uncertain", so that the other predictions reach an accuracy.

Shapes: N images.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from .bounds import CONFIDENCE, ROUNDING, chance_of_so_few, needed


def identities_to_vouch(accuracy: float, confidence: float = CONFIDENCE) -> int:
    """Return the number of identities that are needed to guarantee an accuracy if all their answers are correct.

    Args:
        accuracy: required accuracy, between 0 and 1.
        confidence: probability that the guarantee holds, between 0 and 1.

    Returns:
        the smallest sufficient number of identities.

    Raises:
        ValueError: if an argument is not between 0 and 1.

    Examples:
        >>> identities_to_vouch(0.9), identities_to_vouch(0.95)
        (22, 45)
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"abstention: the required accuracy is {accuracy}, expected a number greater than 0 and less "
                         "than 1")
    return needed(1 - accuracy, confidence)


def choose_withholding(probabilities: Tensor, right: Tensor, identities: Tensor, accuracy: float,
                       confidence: float = CONFIDENCE) -> float:
    """Choose the lowest tested threshold above which the answers reach an accuracy on unseen people.

    Guarantee: with a probability of at least `confidence` over the sample of people, the accuracy above the returned
    threshold is at least `accuracy` in the population. Accuracy is the mean over identities of the share of correct
    answers among the answers above the threshold. Identities are assumed to be independent, images of one identity are
    not. The guarantee holds for each attribute separately.

    Thresholds are tested from the highest probability downwards, beginning where enough identities have an answer,
    until one fails (fixed-sequence testing; Angelopoulos et al., "Learn then test", 2021). No correction for multiple
    tests is needed. The lowest threshold that passes would be biased, since the accuracy is not monotonic in the
    threshold.

    Args:
        probabilities: float (N,), of the answers.
        right: bool (N,), whether each answer is correct.
        identities: int64 (N,), identity of each image.
        accuracy: required accuracy, between 0 and 1.
        confidence: probability that the guarantee holds, between 0 and 1.

    Returns:
        the threshold; answers of this probability or more are given. Infinity if no threshold passes.

    Raises:
        ValueError: if there are fewer identities than `identities_to_vouch`, or an argument is out of range.
    """
    least_people = identities_to_vouch(accuracy, confidence)
    available = len(identities.unique())
    if available < least_people:
        raise ValueError(f"abstention: {available} identities are too few to guarantee an accuracy of {accuracy} with "
                         f"a confidence of {confidence}; at least {least_people} are needed. {available} identities "
                         f"can guarantee an accuracy of at most {(1 - confidence)**(1 / available):.3f}")
    values, order = probabilities.double().cpu().sort(descending=True)
    values, order = values.tolist(), order.cpu()
    hits, owners = right.cpu()[order].tolist(), identities.cpu()[order].tolist()
    given, wrong = defaultdict(int), defaultdict(int)
    lost, least = 0.0, math.inf  # lost: sum over identities of the share of wrong answers
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
    """Measure the coverage and the accuracy of the answers above a threshold.

    Args:
        probabilities: float (N,), of the answers.
        right: bool (N,), whether each answer is correct.
        identities: int64 (N,), identity of each image.
        threshold: answers of this probability or more are given.

    Returns:
        the share of images with an answer; the accuracy of these answers, as the mean over identities, NaN without
        answers; and its standard error, NaN for fewer than two identities.

    Examples:
        >>> answered(torch.tensor([0.9, 0.8, 0.4]), torch.tensor([True, True, False]), torch.tensor([0, 1, 1]), 0.8)[1]
        1.0
    """
    told = (probabilities >= threshold).cpu()
    if not told.any():
        return 0.0, math.nan, math.nan
    _, owner, counts = identities.cpu()[told].unique(return_inverse=True, return_counts=True)
    shares = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, owner, right.cpu()[told].double()) / counts
    error = (shares.std() / len(counts)**0.5).item() if len(counts) > 1 else math.nan
    return told.double().mean().item(), shares.mean().item(), error
