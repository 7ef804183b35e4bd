"""When to say "cannot tell": the probability below which an answer is withheld, so that those given are right.

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
        raise ValueError(f"withholding: the wanted accuracy is {accuracy}, expected a share between 0 and 1, without "
                         "both")
    return needed(1 - accuracy, confidence)


def choose_withholding(probabilities: Tensor, right: Tensor, identities: Tensor, accuracy: float,
                       confidence: float = CONFIDENCE) -> float:
    """A probability from which on answers are right as often as wanted, on other people too; infinite where there is
    none.

    The promise: over samples of people such as these, the share in which a threshold is given, but answers from it on
    are right less often than wanted on the people they were drawn from, is at most 1 - confidence. "Right" is a mean
    over identities, each by the share of its given answers that is right. Identities are taken as independent, images
    of one are not. It is said of one attribute, not of several at once.

    From the surest answers down each threshold is tested, once enough people have an answer, and the first that fails
    ends it (fixed-sequence testing; Angelopoulos et al., "Learn then test", 2021): so many can be tried without a
    charge. To take the least of all that pass would be to take the luckiest: the accuracy does not fall steadily.

    Args:
        probabilities: float (N,), of the answers.   right: bool (N,).   identities: int64 (N,).
        accuracy: wanted of the answers that are given, below 1.
    """
    least_people = identities_to_vouch(accuracy, confidence)
    available = len(identities.unique())
    if available < least_people:
        raise ValueError(f"withholding: {available} identities cannot vouch for an accuracy of {accuracy} with a "
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
