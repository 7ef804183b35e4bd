"""Whether two images show the same person: a probability from their score, and how often a threshold is right.

The probability is Platt's: a logistic line in the score, fitted with both kinds of pairs of equal weight, so that the
line is the logarithm of a likelihood ratio and any prior can be put to it afterwards. An isotonic curve would follow
the data closer, but it is made of steps, says 0 and 1 beyond the scores it has seen, and leaves nothing to put a prior
to in the tails, where few people decide it; on drawn people it was as good on one half of them, worse on the other.
Shapes: P pairs of one person, D pairs of two, I identities, N images, E size of an embedding.
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

from .curve import draws

LEVEL = 0.95  # of all intervals
MOST_PAIRS = 2**22  # pairs of two persons that are kept: they show rates down to 1e-6
BLOCK_ENTRIES = 2**24  # pairs scored at a time


@dataclass(frozen=True)
class ScoredPairs:
    """Scores of pairs of images under different cameras, higher is nearer, and whose they are.

    same float (P,), owner int64 (P,): pairs of one person. different float (D,), owners int64 (D, 2): pairs of two.
    `there` counts all pairs of two persons, of which D may be a draw.
    """

    same: Tensor
    owner: Tensor
    different: Tensor
    owners: Tensor
    there: int


def collect_pairs(score: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, pids: Tensor, camids: Tensor,
                  most: int = MOST_PAIRS) -> ScoredPairs:
    """Every pair of images under different cameras once; of those of two persons a draw where there are too many.

    Args:
        score: of embeddings (Q, E) with (N, E), higher is nearer: float (Q, N).
        pids, camids: int64 (N,).
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
        raise ValueError(f"same person: {len(pairs.same)} pairs of one person and {len(pairs.different)} of two, under "
                         "different cameras; a probability takes both kinds")
    return pairs


def _pairs_of_two(pids: Tensor, camids: Tensor) -> int:
    """Pairs of images of two persons under two cameras: all, without those of one person, or camera, or both once."""
    def within(*keys: Tensor) -> int:
        counts = torch.stack(keys, dim=1).unique(dim=0, return_counts=True)[1]
        return int((counts * (counts - 1) // 2).sum())

    count = len(pids)
    return count * (count - 1) // 2 - within(pids) - within(camids) + within(pids, camids)


def fit_logistic(same: Tensor, different: Tensor) -> tuple[float, float]:
    """Slope and intercept of the log likelihood ratio in the score: float (P,), float (D,).

    Targets are Platt's, (n + 1) / (n + 2) and 1 / (n + 2) in place of 1 and 0, so scores that part the two kinds
    altogether give a steep line, not an infinite one.
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
        raise ValueError("same person: pairs of one person score no higher than pairs of two; this model tells nobody "
                         "apart, train it first")
    return float(slope / width), float(intercept - slope * centre / width)


def likelihood_ratio_cost(same: Tensor, different: Tensor, slope: float, intercept: float) -> float:
    """Cllr (Brummer and du Preez, 2006): bits a pair, 0 for certain and right, 1 for "as likely as not" throughout."""
    one, two = (slope * scores.double() + intercept for scores in (same, different))
    cost = torch.nn.functional.softplus(-one).mean() + torch.nn.functional.softplus(two).mean()
    return cost.item() / (2 * math.log(2))


def false_match_rate(pairs: ScoredPairs, threshold: float) -> tuple[float, float, float]:
    """Share of pairs of two persons that score at least the threshold, and a 95 % interval.

    The interval is the wider of two: by a bootstrap of identities, since pairs share people; and by Clopper and
    Pearson, which takes pairs as independent, but knows that none seen is not none.
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
    """Share of pairs of one person that score at least the threshold, and a 95 % interval, as `false_match_rate`."""
    matched = pairs.same >= threshold
    _, owner, counts = pairs.owner.unique(return_inverse=True, return_counts=True)
    true = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, owner, matched.double())
    drawn = draws(len(counts))
    return _with_interval(matched, (drawn @ true) / (drawn @ counts.double()))


def _with_interval(matched: Tensor, drawn: Tensor) -> tuple[float, float, float]:
    """Share of pairs bool (n,), and the wider of the exact interval and that of bootstrap draws, float64."""
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.quantile(drawn[drawn.isfinite()], edges).tolist()
    exact = binomtest(int(matched.sum()), len(matched)).proportion_ci(LEVEL)
    return matched.double().mean().item(), min(low, exact.low), max(high, exact.high)
