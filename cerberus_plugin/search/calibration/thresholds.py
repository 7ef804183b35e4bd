"""The score from which on two pictures match, so that other people are taken for one another no more often than wanted.

Shapes: D pairs of images of two persons, I identities.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import t as student
from torch import Tensor

from .bounds import CONFIDENCE, ROUNDING, chance_of_so_few, needed
from .verification import ScoredPairs

FEWER = 0.97  # false matches that are tried next, as a share of those that were too many
UNSEEN = 0.2  # false matches that stand for none where a logarithm is taken


def pairs_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """Pairs of persons that can show a false-match rate: so many without one exclude it, if they are independent."""
    if not 0 < rate < 1:
        raise ValueError(f"false-match rate: {rate}, expected a share between 0 and 1, without both")
    return needed(rate, confidence)


def people_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """People of whom there are so many pairs, n (n - 1) / 2: 22 for a rate of 0.01, 69 for 0.001."""
    return math.ceil((1 + math.sqrt(1 + 8 * pairs_needed(rate, confidence))) / 2 - ROUNDING)


def threshold_for(pairs: ScoredPairs, rate: float, confidence: float = CONFIDENCE) -> float:
    """The score that at most this share of pairs of two persons exceeds, on other people too.

    The plain quantile of the given pairs is too low for about half of all samples, and by a multiple where a few people
    cause most false matches. So the score is raised until both of these are at most the rate:
    - the observed rate times exp(t s), where s is the standard error of its logarithm, by leaving out each identity in
      turn (the jackknife: pairs share people), and t Student's quantile at the confidence;
    - the bound of `chance_of_so_few` with one draw for each pair of persons, however many images they have, which is
      above zero also where no false match was seen.

    Guarantee: the rate in the population exceeds the wanted one in about 1 - confidence of all samples of people, or
    fewer. It is approximate, as s is estimated and pairs that share a person are dependent. On drawn people (see the
    tests) at confidence 0.9 the rate was exceeded in 3 to 15 % of samples, and in up to 25 % where effects of single
    persons make up nearly all of the spread of scores and there were hardly more people than `people_needed`. The mean
    rate was always below the wanted one.
    """
    wanted = pairs_needed(rate, confidence)
    identities, owner = pairs.owners.unique(return_inverse=True)  # (D, 2)
    people, total = len(identities), len(pairs.different)
    cells = len((owner.amin(dim=1) * people + owner.amax(dim=1)).unique())
    if cells < wanted:
        raise ValueError(f"false-match rate: {people} people, {cells:,} pairs of them, cannot show {rate:g} with a "
                         f"confidence of {confidence:g}; it takes {wanted:,} pairs, so "
                         f"{people_needed(rate, confidence):,} people at least")
    scores, order = pairs.different.topk(min(total, math.floor(rate * total + ROUNDING) + 1))
    compared = owner.flatten().bincount(minlength=people)  # (I,)
    last = len(scores) - 1
    while True:
        matched = int((scores > scores[last]).sum())  # below `last` where scores are equal
        of_each = owner[order[:matched]].flatten().bincount(minlength=people)
        share = matched / total
        if (_upper(share, (matched - of_each) / (total - compared), UNSEEN / total, confidence) <= rate
                and chance_of_so_few(share * cells, cells, rate) <= 1 - confidence + ROUNDING):
            return torch.nextafter(scores[last], torch.tensor(math.inf).to(scores)).item()
        last = min(matched - 1, math.floor(FEWER * matched))


def _upper(rate: float, without: Tensor, least: float, confidence: float) -> float:
    """Upper bound of a rate by what it is without each identity, float (I,)."""
    if not rate:
        return 0.0
    people = len(without)
    error = ((people - 1) * without.double().clamp(min=least).log().var(correction=0)).sqrt().item()
    return rate * math.exp(float(student.ppf(confidence, people - 1)) * error)
