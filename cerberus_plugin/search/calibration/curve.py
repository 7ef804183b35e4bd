"""Calibration metrics: reliability curve, expected calibration error and Brier score.

Errors of images of one person are correlated, so all standard errors are computed over identities, not over images.
Shapes: N answers (images, or pairs of images), B bins, I identities.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
DRAWS = 1000  # bootstrap samples of the identities


@dataclass(frozen=True)
class Reliability:
    """A reliability curve with bins of equal mass.

    Attributes:
        probability, accuracy: float64 (B,), means of each bin.
        share: float64 (B,), share of the answers in each bin; sums to 1.
        ece: expected calibration error, the weighted mean of |accuracy - probability| over the bins.
        error: standard error of `ece`, by a bootstrap over identities.
        chance: expected `ece` of perfectly calibrated probabilities, by the same bootstrap. It is above 0, since a
            small sample deviates by chance.
    """

    probability: Tensor
    accuracy: Tensor
    share: Tensor
    ece: float
    error: float
    chance: float


def reliability(probabilities: Tensor, right: Tensor, identities: Tensor, bins: int = BINS,
                weights: Tensor | None = None) -> Reliability:
    """Compute the reliability curve of answers.

    Args:
        probabilities: float (N,), of the answers.
        right: bool (N,), whether each answer is correct.
        identities: int64 (N,), identity of each answer.
        bins: maximum number of bins; equal probabilities are always in the same bin.
        weights: float (N,), mass of each answer; 1 if None.

    Returns:
        the curve and its calibration error.

    Raises:
        ValueError: if the shapes differ, there are no answers, or a probability is outside 0 to 1.

    Examples:
        >>> p = torch.tensor([0.6, 0.6, 0.9, 0.9])
        >>> round(reliability(p, torch.tensor([True, False, True, True]), torch.arange(4), bins=2).ece, 3)
        0.1
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
    noise = ((drawn - 1) @ gaps).abs().sum(dim=1) / own_mass.sum()  # deviations of the draws from the sample
    return Reliability(of_p / mass, of_hit / mass, mass / mass.sum(),
                       (gaps.sum(dim=0).abs().sum() / own_mass.sum()).item(), spread.std().item(), noise.mean().item())


def brier(probabilities: Tensor, right: Tensor, identities: Tensor) -> tuple[float, float]:
    """Compute the Brier score, the mean squared difference between probability and correctness (1 or 0).

    Args:
        probabilities: float (N,), of the answers.
        right: bool (N,), whether each answer is correct.
        identities: int64 (N,), identity of each answer.

    Returns:
        the score, lower is better, and its standard error over identities.

    Raises:
        ValueError: as `reliability`.

    Examples:
        >>> brier(torch.tensor([1.0, 0.5]), torch.tensor([True, True]), torch.arange(2))[0]
        0.125
    """
    _check(probabilities, right, identities)
    return mean_by_images((probabilities.double() - right.double()).square(), identities)


def mean_by_images(values: Tensor, identities: Tensor) -> tuple[float, float]:
    """Compute the mean over images, and its standard error with images clustered by identity.

    Args:
        values: float (N,).
        identities: int64 (N,), identity of each image.

    Returns:
        the mean, and its standard error, NaN for a single identity.

    Examples:
        >>> mean_by_images(torch.tensor([0.0, 1.0]), torch.tensor([3, 4]))
        (0.5, 0.5)
    """
    values, (_, owner) = values.double().cpu(), identities.cpu().unique(return_inverse=True)
    mean, people = values.mean(), int(owner.max()) + 1
    sums = torch.zeros(people, dtype=torch.float64).index_add_(0, owner, values - mean)
    if people < 2:
        return mean.item(), float("nan")
    return mean.item(), ((people / (people - 1) * sums.square().sum()).sqrt() / len(values)).item()


def draws(people: int) -> Tensor:
    """Draw bootstrap samples of identities; deterministic.

    Args:
        people: number of identities.

    Returns:
        float64 (DRAWS, people), the number of times that each identity is in each sample.
    """
    chosen = torch.randint(people, (DRAWS, people), generator=torch.Generator().manual_seed(0))
    return torch.zeros(DRAWS, people, dtype=torch.float64).scatter_add_(1, chosen, torch.ones_like(chosen).double())


def _equal_mass(p: Tensor, w: Tensor, bins: int) -> Tensor:
    """Return the bin of each probability: int64 (N,), numbered from 0, without empty bins."""
    values, inverse = p.unique(return_inverse=True)
    mass = torch.zeros_like(values).index_add_(0, inverse, w)
    middle = (mass.cumsum(dim=0) - mass / 2) / mass.sum()
    return (middle * bins).long().clamp(max=bins - 1).unique(return_inverse=True)[1][inverse]


def _check(probabilities: Tensor, right: Tensor, identities: Tensor) -> None:
    shapes = [tuple(part.shape) for part in (probabilities, right, identities)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or not len(probabilities):
        raise ValueError(f"reliability: probabilities, right and identities have the shapes "
                         f"{', '.join(map(str, shapes))}; expected the same shape (N,) with N of 1 or more")
    outside = ~((probabilities >= 0) & (probabilities <= 1))
    if outside.any():
        raise ValueError(f"reliability: {int(outside.sum())} of {len(probabilities)} probabilities are outside [0, 1], "
                         f"such as {probabilities[outside][0].item():.3g}")
