"""Thresholds of attribute-accelerated retrieval with a guaranteed survival probability of true matches.

Shapes: P pairs of a query and its match, M attributes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .filtered_search import Predictions

ROUNDING = 1e-9  # tolerance for floating-point errors in products of shares and numbers of identities


def critical_thresholds(queries: Predictions, gallery: Predictions) -> Tensor:
    """Return the smallest threshold at which each pair of images survives the filter.

    A pair is removed if an attribute with different classes is reliable in both images. It survives if the threshold is
    at least min(p, q) for the probabilities p and q of each such attribute.

    Args:
        queries: predictions of the query of each pair, (P, M).
        gallery: predictions of the match of each pair, (P, M).

    Returns:
        float (P,); 0 if all classes are equal.

    Examples:
        >>> query = Predictions(torch.tensor([[0, 1]]), torch.tensor([[0.75, 0.9]]))
        >>> match = Predictions(torch.tensor([[1, 1]]), torch.tensor([[0.5, 0.8]]))
        >>> critical_thresholds(query, match).tolist()
        [0.5]
    """
    smaller = torch.minimum(queries.probabilities, gallery.probabilities)
    return torch.where(queries.classes != gallery.classes, smaller, 0).amax(dim=1)


def identities_needed(survival: float) -> int:
    """Return the minimum number n of held-out identities for a guarantee: 1 / (n + 1) <= 1 - survival.

    Raises:
        ValueError: if `survival` is not strictly between 0 and 1.

    Examples:
        >>> identities_needed(0.9)
        9
    """
    if not 0 < survival < 1:
        raise ValueError(f"threshold: the requested survival is {survival}, expected a probability greater than 0 and "
                         "less than 1")
    return math.ceil(survival / (1 - survival) - ROUNDING)


def choose_threshold(critical: Tensor, identities: Tensor, survival: float) -> float:
    """Choose the smallest threshold that keeps a true match with the requested probability, by conformal risk control.

    For n held-out identities that are exchangeable with a new one, the expected share of lost true matches of an
    identity is at most 1 - survival, if (n * mean share lost + 1) / (n + 1) is at most 1 - survival (Angelopoulos et
    al., arXiv 2208.02814). The guarantee does not cover queries that are not exchangeable with those of the held-out
    identities, such as images of other cameras or with manually annotated boxes.

    Args:
        critical: float (P,), `critical_thresholds` of true matches of held-out identities.
        identities: int64 (P,), the identity of each pair. All identities have the same weight.
        survival: requested probability, less than 1.

    Raises:
        ValueError: if there are fewer identities than `identities_needed`.

    Examples:
        >>> critical = torch.tensor([0.125, 0.25, 0.5, 0.75])  # one of four identities may be lost: (1 + 1) / 5 <= 0.5
        >>> choose_threshold(critical, torch.tensor([1, 2, 3, 4]), survival=0.5)
        0.5
    """
    _, owner, counts = torch.unique(identities, return_inverse=True, return_counts=True)
    needed = identities_needed(survival)
    if len(counts) < needed:
        raise ValueError(f"threshold: a survival of {survival} needs at least {needed} held-out identities with a true "
                         f"match, got {len(counts)}")
    may_lose = (1 - survival) * (len(counts) + 1) - 1 + ROUNDING  # maximum sum of the shares lost by the identities
    order = critical.argsort(descending=True)
    values, weights = critical[order].double(), 1 / counts[owner[order]].double()
    lost = weights.cumsum(dim=0) - weights  # with the threshold at this value, pairs with larger values are removed
    lost = lost[torch.searchsorted(-values, -values)]  # pairs with equal values survive together
    return values[lost <= may_lose].min().item()
