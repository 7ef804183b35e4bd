"""Thresholds on the score of two images for a given false-match rate.

Shapes: D pairs of images of different people, I identities.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import t as student
from torch import Tensor

from ...utils.text import counted
from .bounds import CONFIDENCE, ROUNDING, chance_of_so_few, needed
from .verification import ScoredPairs

FEWER = 0.97  # each step allows this share of the false matches of the step before
UNSEEN = 0.2  # replaces 0 false matches in logarithms


def pairs_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """Return the number of pairs of people that are needed to guarantee a false-match rate.

    This number of independent pairs without a false match excludes a higher rate.

    Args:
        rate: false-match rate, between 0 and 1.
        confidence: probability that the guarantee holds, between 0 and 1.

    Raises:
        ValueError: if an argument is not between 0 and 1.

    Examples:
        >>> pairs_needed(0.001)
        2302
    """
    if not 0 < rate < 1:
        raise ValueError(f"false-match rate: {rate}, expected a number greater than 0 and less than 1")
    return needed(rate, confidence)


def people_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """Return the smallest number of people n with n (n - 1) / 2 pairs or more than `pairs_needed`.

    Args:
        rate, confidence: see `pairs_needed`.

    Raises:
        ValueError: as `pairs_needed`.

    Examples:
        >>> people_needed(0.01), people_needed(0.001)
        (22, 69)
    """
    return math.ceil((1 + math.sqrt(1 + 8 * pairs_needed(rate, confidence))) / 2 - ROUNDING)


def threshold_for(pairs: ScoredPairs, rate: float, confidence: float = CONFIDENCE) -> float:
    """Choose a threshold that at most this share of pairs of different people exceeds, also for unseen people.

    The plain quantile of the given pairs is too low for about half of all samples. If a few people cause most false
    matches, the rate is then exceeded several times. Therefore the threshold is raised until both conditions hold:

    - The observed rate times exp(t s) is at most `rate`. s is the standard error of the logarithm of the rate, by the
      jackknife over identities (pairs share people), and t is Student's quantile at the confidence.
    - The bound `chance_of_so_few`, with one draw per pair of people independent of their number of images, excludes a
      higher rate. This bound is above 0 even without any false match.

    Guarantee: the rate in the population exceeds `rate` for about 1 - confidence of all samples of people, or fewer.
    The guarantee is approximate, since s is estimated and pairs that share a person are dependent. In simulations (see
    the tests) with confidence 0.9, the rate was exceeded for 3 to 15 % of samples, and for up to 25 % if nearly all
    variance of the scores came from single people and there were hardly more people than `people_needed`. The mean rate
    was always below `rate`.

    Args:
        pairs: scored pairs of images.
        rate: false-match rate, between 0 and 1.
        confidence: probability that the guarantee holds, between 0 and 1.

    Returns:
        the threshold; images with this score or more match.

    Raises:
        ValueError: if there are fewer pairs of people than `pairs_needed`.
    """
    wanted = pairs_needed(rate, confidence)
    identities, owner = pairs.owners.unique(return_inverse=True)  # (D, 2)
    people, total = len(identities), len(pairs.different)
    cells = len((owner.amin(dim=1) * people + owner.amax(dim=1)).unique())
    if cells < wanted:
        raise ValueError(f"false-match rate: {counted(people, 'person', 'people')} and {counted(cells, 'pair')} of "
                         f"people are too few to guarantee {rate:g} with a confidence of {confidence:g}; at least "
                         f"{wanted:,} pairs are needed, of at least {people_needed(rate, confidence):,} people")
    scores, order = pairs.different.topk(min(total, math.floor(rate * total + ROUNDING) + 1))
    compared = owner.flatten().bincount(minlength=people)  # (I,)
    last = len(scores) - 1
    while True:
        matched = int((scores > scores[last]).sum())  # less than `last` if scores are equal
        of_each = owner[order[:matched]].flatten().bincount(minlength=people)
        share = matched / total
        if (_upper(share, (matched - of_each) / (total - compared), UNSEEN / total, confidence) <= rate
                and chance_of_so_few(share * cells, cells, rate) <= 1 - confidence + ROUNDING):
            return torch.nextafter(scores[last], torch.tensor(math.inf).to(scores)).item()
        last = min(matched - 1, math.floor(FEWER * matched))


def _upper(rate: float, without: Tensor, least: float, confidence: float) -> float:
    """Return the jackknife upper bound of a rate.

    Args:
        rate: observed rate.
        without: float (I,), the rate without each identity.
        least: lower limit of `without` for the logarithm.
        confidence: of the bound.
    """
    if not rate:
        return 0.0
    people = len(without)
    error = ((people - 1) * without.double().clamp(min=least).log().var(correction=0)).sqrt().item()
    return rate * math.exp(float(student.ppf(confidence, people - 1)) * error)
