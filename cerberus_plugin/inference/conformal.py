"""Thresholds of attribute-accelerated retrieval that keep a true match with a wanted probability.

Shapes: P pairs of a query and its match, M attributes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .filtered_search import Predictions

ROUNDING = 1e-9  # 0.9 of 9 identities is 8.1 in exact numbers only


def critical_thresholds(queries: Predictions, gallery: Predictions) -> Tensor:
    """The least threshold at which each pair of images survives: rows of both in pairs, (P, M) each -> float (P,).

    A pair is removed where some attribute with differing classes is reliable in both, so it survives from the largest
    of their smaller probabilities on; 0 where no classes differ.
    """
    smaller = torch.minimum(queries.probabilities, gallery.probabilities)
    return torch.where(queries.classes != gallery.classes, smaller, 0).amax(dim=1)


def identities_needed(survival: float) -> int:
    """Held-out identities that can vouch for a wanted survival: n with 1 / (n + 1) <= 1 - survival."""
    if not 0 < survival < 1:
        raise ValueError(f"threshold: the wanted survival is {survival}, expected a probability between 0 and 1, "
                         "without both")
    return math.ceil(survival / (1 - survival) - ROUNDING)


def choose_threshold(critical: Tensor, identities: Tensor, survival: float) -> float:
    """The least threshold that keeps a true match with the wanted probability, by conformal risk control.

    For n held-out identities that are exchangeable with a new one, an identity's expected share of lost true matches is
    at most 1 - survival if (n * mean share lost + 1) / (n + 1) is (Angelopoulos et al., arXiv 2208.02814). Queries of
    another kind than theirs (other cameras, boxes drawn by hand) are not exchangeable with them, and not promised.

    Args:
        critical: float (P,), `critical_thresholds` of true matches of held-out identities.
        identities: int64 (P,), whose they are; each identity counts once, however many pairs it has.
        survival: wanted probability, below 1.
    """
    _, owner, counts = torch.unique(identities, return_inverse=True, return_counts=True)
    needed = identities_needed(survival)
    if len(counts) < needed:
        raise ValueError(f"threshold: {len(counts)} held-out identities with a true match cannot vouch for a survival "
                         f"of {survival}; it takes {needed} at least")
    may_lose = (1 - survival) * (len(counts) + 1) - 1 + ROUNDING  # of the identities' shares
    order = critical.argsort(descending=True)
    values, weights = critical[order].double(), 1 / counts[owner[order]].double()
    lost = weights.cumsum(dim=0) - weights  # where the threshold is at this value, all larger ones are removed
    lost = lost[torch.searchsorted(-values, -values)]  # equal values survive together
    return values[lost <= may_lose].min().item()
