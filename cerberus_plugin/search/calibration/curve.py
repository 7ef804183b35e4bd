"""Whether probabilities come true: the reliability curve, its calibration error and the Brier score.

Images of one person err together, so every standard error is by identities: that of a sum over persons, not images.
Shapes: N answers (images, or pairs of them), B bins, I identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
DRAWS = 1000  # bootstrap draws of the identities


@dataclass(frozen=True)
class Reliability:
    """Answers in bins of equal mass by their probability.

    Attributes:
        probability, accuracy: float64 (B,), means of each bin.   share: float64 (B,), of all answers; sums to 1.
        ece: expected calibration error, the mean of |accuracy - probability| over answers, by bins.
        error: its standard error, by a bootstrap of identities.
        chance: what `ece` would be on average for probabilities that are true, by the same bootstrap: few people
            show an error where there is none.
    """

    probability: Tensor
    accuracy: Tensor
    share: Tensor
    ece: float
    error: float
    chance: float


def reliability(probabilities: Tensor, right: Tensor, identities: Tensor, bins: int = BINS,
                weights: Tensor | None = None) -> Reliability:
    """Compare probabilities of answers with how often they are right.

    Args:
        probabilities: float (N,).   right: bool (N,).   identities: int64 (N,), whose answers they are.
        bins: at most; equal probabilities stay in one bin, however many they are.
        weights: float (N,), mass of each answer; 1 if None.
    """
    _check(probabilities, right, identities)
    p, hit = probabilities.double().cpu(), right.double().cpu()
    w = torch.ones_like(p) if weights is None else weights.double().cpu()
    bin_of = _equal_mass(p, w, bins)  # (N,)
    count = int(bin_of.max()) + 1
    mass, of_p, of_hit = (torch.zeros(count, dtype=torch.float64).index_add_(0, bin_of, w * value)
                          for value in (torch.ones_like(p), p, hit))
    _, owner = identities.cpu().unique(return_inverse=True)
    people = int(owner.max()) + 1
    gaps = torch.zeros(people * count, dtype=torch.float64)
    gaps = gaps.index_add_(0, owner * count + bin_of, w * (hit - p)).view(people, count)  # (I, B)
    own_mass = torch.zeros(people, dtype=torch.float64).index_add_(0, owner, w)
    drawn = draws(people)  # (DRAWS, I)
    spread = (drawn @ gaps).abs().sum(dim=1) / (drawn @ own_mass)
    noise = ((drawn - 1) @ gaps).abs().sum(dim=1) / own_mass.sum()  # the draws around what was observed
    return Reliability(of_p / mass, of_hit / mass, mass / mass.sum(),
                       (gaps.sum(dim=0).abs().sum() / own_mass.sum()).item(), spread.std().item(), noise.mean().item())


def brier(probabilities: Tensor, right: Tensor, identities: Tensor) -> tuple[float, float]:
    """Mean squared difference of an answer's probability and its being right (1 or 0), and its standard error."""
    _check(probabilities, right, identities)
    return mean_by_images((probabilities.double() - right.double()).square(), identities)


def mean_by_images(values: Tensor, identities: Tensor) -> tuple[float, float]:
    """Mean over images, and its standard error where images of an identity go together: float (N,), int64 (N,)."""
    values, (_, owner) = values.double().cpu(), identities.cpu().unique(return_inverse=True)
    mean, people = values.mean(), int(owner.max()) + 1
    sums = torch.zeros(people, dtype=torch.float64).index_add_(0, owner, values - mean)
    if people < 2:
        return mean.item(), float("nan")
    return mean.item(), ((people / (people - 1) * sums.square().sum()).sqrt() / len(values)).item()


def draws(people: int) -> Tensor:
    """How often each identity is drawn in each bootstrap sample: float64 (DRAWS, people); always the same ones."""
    chosen = torch.randint(people, (DRAWS, people), generator=torch.Generator().manual_seed(0))
    return torch.zeros(DRAWS, people, dtype=torch.float64).scatter_add_(1, chosen, torch.ones_like(chosen).double())


def _equal_mass(p: Tensor, w: Tensor, bins: int) -> Tensor:
    """The bin of each probability, from 0, without empty bins: int64 (N,)."""
    values, inverse = p.unique(return_inverse=True)
    mass = torch.zeros_like(values).index_add_(0, inverse, w)
    middle = (mass.cumsum(dim=0) - mass / 2) / mass.sum()
    return (middle * bins).long().clamp(max=bins - 1).unique(return_inverse=True)[1][inverse]


def _check(probabilities: Tensor, right: Tensor, identities: Tensor) -> None:
    shapes = [tuple(part.shape) for part in (probabilities, right, identities)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not len(probabilities):
        raise ValueError(f"reliability: probabilities, right and identities are {', '.join(map(str, shapes))}; "
                         "expected one of each an answer, and an answer at least")
    outside = ~((probabilities >= 0) & (probabilities <= 1))
    if outside.any():
        raise ValueError(f"reliability: {int(outside.sum())} of {len(probabilities)} probabilities are outside [0, 1], "
                         f"such as {probabilities[outside][0].item():.3g}")
