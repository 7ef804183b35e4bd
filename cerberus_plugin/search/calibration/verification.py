"""Verification of image pairs: the probability that two images show the same person, and error rates of thresholds.

The probability is fitted with Platt scaling: logistic regression on the score. Pairs of one person and pairs of
different people have equal total weight, so that the linear term is a log-likelihood ratio to which any prior can be
added later. Isotonic regression fits the data more closely, but it is a step function: it returns 0 and 1 outside the
range of the scores, so that a prior has no effect in the tails, which few people determine. On synthetic people it was
equally good on one half of them and worse on the other half.
Shapes: P pairs of one person, D pairs of different people, I identities, N images, E values of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import binomtest
from torch import Tensor

from ...utils.text import counted
from .curve import draws

LEVEL = 0.95  # of all confidence intervals
MOST_PAIRS = 2**22  # maximum number of pairs of different people; enough for rates down to 1e-6
BLOCK_ENTRIES = 2**24  # pairs scored at a time


@dataclass(frozen=True)
class ScoredPairs:
    """Scores of pairs of images from different cameras; higher is more similar.

    Attributes:
        same: float (P,), scores of pairs of one person.
        owner: int64 (P,), identity of each of these pairs.
        different: float (D,), scores of pairs of different people.
        owners: int64 (D, 2), identities of each of these pairs.
        there: number of all pairs of different people; `different` may be a random sample of them.
    """

    same: Tensor
    owner: Tensor
    different: Tensor
    owners: Tensor
    there: int


def collect_pairs(score: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, pids: Tensor, camids: Tensor,
                  most: int = MOST_PAIRS) -> ScoredPairs:
    """Score all pairs of images from different cameras; pairs of different people are sampled if there are too many.

    Args:
        score: computes float (Q, N) from embeddings (Q, E) and (N, E); higher is more similar.
        embeddings: float (N, E).
        pids, camids: int64 (N,), identity and camera of each image.
        most: maximum number of pairs of different people, approximately.

    Returns:
        the scored pairs, each once.

    Raises:
        ValueError: if there are no pairs of one person, or none of different people.
    """
    count, there = len(pids), _pairs_of_two(pids, camids)
    share = min(1.0, most / max(1, there))
    generator = torch.Generator().manual_seed(0)
    parts: list[tuple[Tensor, ...]] = []
    rows = max(1, BLOCK_ENTRIES // max(1, count))
    for start in range(0, count, rows):
        block = slice(start, start + rows)
        later = torch.arange(start, min(start + rows, count))[:, None] < torch.arange(count)
        pair = later & (camids[block, None] != camids)
        same = pair & (pids[block, None] == pids)
        other = pair & ~same
        if share < 1:
            other &= torch.rand(other.shape, generator=generator) < share
        scores = score(embeddings[block], embeddings).cpu()
        (q, _), (a, b) = same.nonzero(as_tuple=True), other.nonzero(as_tuple=True)
        parts.append((scores[same], pids[q + start], scores[other], torch.stack([pids[a + start], pids[b]], dim=1)))
    pairs = ScoredPairs(*map(torch.cat, zip(*parts)), there)
    if not len(pairs.same) or not len(pairs.different):
        raise ValueError(f"same person: found {counted(len(pairs.same), 'pair')} of images of one person and "
                         f"{counted(len(pairs.different), 'pair')} of different people, from different cameras; both "
                         "kinds are needed")
    return pairs


def _pairs_of_two(pids: Tensor, camids: Tensor) -> int:
    """Count the pairs of images of different people from different cameras, by inclusion and exclusion."""
    def within(*keys: Tensor) -> int:
        counts = torch.stack(keys, dim=1).unique(dim=0, return_counts=True)[1]
        return int((counts * (counts - 1) // 2).sum())

    count = len(pids)
    return count * (count - 1) // 2 - within(pids) - within(camids) + within(pids, camids)


def fit_logistic(same: Tensor, different: Tensor) -> tuple[float, float]:
    """Fit the log-likelihood ratio as a linear function of the score (Platt scaling).

    The targets are (n + 1) / (n + 2) and 1 / (n + 2) instead of 1 and 0 (Platt, 1999), so that the slope is finite
    even if the scores separate the two kinds of pairs completely.

    Args:
        same: float (P,), scores of pairs of one person.
        different: float (D,), scores of pairs of different people.

    Returns:
        slope and intercept.

    Raises:
        ValueError: if pairs of one person do not score higher than pairs of different people.
    """
    scores = torch.cat([same, different]).double().cpu().numpy()
    counts = len(same), len(different)
    target = np.repeat([(counts[0] + 1) / (counts[0] + 2), 1 / (counts[1] + 2)], counts)
    weight = np.repeat([0.5 / counts[0], 0.5 / counts[1]], counts)
    centre, width = float(weight @ scores), float(np.sqrt(weight @ (scores - weight @ scores)**2)) or 1.0
    standard = (scores - centre) / width

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z = line[0] * standard + line[1]
        gap = weight * (expit(z) - target)
        return float(weight @ (np.logaddexp(0, z) - target * z)), np.array([gap @ standard, gap.sum()])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    if slope <= 0 or scores.min() == scores.max():
        raise ValueError("same person: pairs of one person do not score higher than pairs of different people; the "
                         "model cannot distinguish people, train it first")
    return float(slope / width), float(intercept - slope * centre / width)


def likelihood_ratio_cost(same: Tensor, different: Tensor, slope: float, intercept: float) -> float:
    """Compute the log-likelihood-ratio cost, Cllr (Brummer and du Preez, 2006).

    Args:
        same: float (P,), scores of pairs of one person.
        different: float (D,), scores of pairs of different people.
        slope, intercept: of the log-likelihood ratio, see `fit_logistic`.

    Returns:
        bits per pair: 0 for certain and correct decisions, 1 for a probability of 0.5 for every pair.

    Examples:
        >>> likelihood_ratio_cost(torch.ones(3), torch.zeros(5), slope=0.0, intercept=0.0)
        1.0
    """
    one, two = (slope * scores.double() + intercept for scores in (same, different))
    cost = torch.nn.functional.softplus(-one).mean() + torch.nn.functional.softplus(two).mean()
    return cost.item() / (2 * math.log(2))


def false_match_rate(pairs: ScoredPairs, threshold: float) -> tuple[float, float, float]:
    """Measure the share of pairs of different people with at least the threshold, with a 95 % confidence interval.

    The interval covers two intervals: a bootstrap over identities, since pairs share people; and the exact interval of
    Clopper and Pearson, which assumes independent pairs but has an upper limit above 0 without any false match.

    Args:
        pairs: scored pairs of images.
        threshold: images with this score or more match.

    Returns:
        the rate, and the lower and upper limit of the interval.
    """
    matched = pairs.different >= threshold
    _, owner = pairs.owners.unique(return_inverse=True)
    people = int(owner.max()) + 1
    cell = owner[:, 0] * people + owner[:, 1]
    counts, false = (torch.bincount(cell, weights, people**2).double().view(people, people)
                     for weights in (None, matched.double()))
    drawn = draws(people)
    rates = ((drawn @ false) * drawn).sum(dim=1) / ((drawn @ counts) * drawn).sum(dim=1)
    return _with_interval(matched, rates)


def true_match_rate(pairs: ScoredPairs, threshold: float) -> tuple[float, float, float]:
    """Measure the share of pairs of one person with at least the threshold, with a 95 % confidence interval.

    Args:
        pairs: scored pairs of images.
        threshold: images with this score or more match.

    Returns:
        the rate, and the lower and upper limit of the interval, computed as in `false_match_rate`.
    """
    matched = pairs.same >= threshold
    _, owner, counts = pairs.owner.unique(return_inverse=True, return_counts=True)
    true = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, owner, matched.double())
    drawn = draws(len(counts))
    return _with_interval(matched, (drawn @ true) / (drawn @ counts.double()))


def _with_interval(matched: Tensor, drawn: Tensor) -> tuple[float, float, float]:
    """Return the share of matched pairs, bool (n,), and the union of the exact and the bootstrap interval."""
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(drawn[drawn.isfinite()], edges).tolist()
    exact = binomtest(int(matched.sum()), len(matched)).proportion_ci(LEVEL)
    return matched.double().mean().item(), min(low, exact.low), max(high, exact.high)
