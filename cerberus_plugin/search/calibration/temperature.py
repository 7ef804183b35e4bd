"""The temperature of a recognition column: by how much its scores are divided before the softmax, so that it is as
sure as it is right.

Shapes: N images, K scores of a column (classes, or the semantic IDs of its group), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

BOUNDS = (0.05, 20.0)  # a fit that ends at either has found nothing that limits it
SCALES = (0.05, 100.0)  # that a cosine scale is looked for between; at the lower end answers are the prior's
GRID = 25  # values tried first: sums over classes can give the likelihood several minima


def right_answers(truth: Tensor) -> Tensor:
    """Which answers of a column are right, "none of them" first: bool (N, C) -> bool (N, C + 1).

    Of several listed colours each is right; where none is true, the answer -1 is.
    """
    return torch.cat([~truth.any(dim=1, keepdim=True), truth], dim=1)


def negative_log_likelihood(scores: Tensor, right: Tensor, temperature: float = 1.0) -> float:
    """Mean over images of minus the logarithm of the probability of a right answer.

    Args:
        scores: float (N, K), minus infinity where a row may not be answered.
        right: bool (N, K), the scores whose answer is right: at least one finite one an image.
    """
    return -_log_right(scores.double(), right, temperature).mean().item()


def fit_temperature(scores: Tensor, right: Tensor, identities: Tensor) -> float:
    """The temperature under which the right answers are likeliest; above 1 it makes answers less sure.

    Images without a right answer among the scores tell nothing of the temperature, and are left out. Where every
    answer is right, the likeliest temperature is 0 and every later answer would be certain; but n identities without an
    error show no more than a probability of (n + 1) / (n + 2) (Laplace's rule of succession), so the mean over images
    is kept at that.

    Args:
        scores, right: see `negative_log_likelihood`.
        identities: int64 (N,), whose images they are.
    """
    usable = (right & scores.isfinite()).any(dim=1)
    if not usable.any():
        raise ValueError(f"temperature: none of {len(scores)} images has a right answer among those that can be given; "
                         "fit on labelled images")
    scores, right = scores[usable].double(), right[usable]
    best = _likeliest(lambda t: negative_log_likelihood(scores, right, t), BOUNDS)
    count = len(identities[usable].unique())
    most = (count + 1) / (count + 2)

    def excess(t: float) -> float:
        return _log_right(scores, right, math.exp(t)).exp().mean().item() - most

    low, high = math.log(best), math.log(BOUNDS[1])
    if excess(low) > 0 > excess(high):
        return math.exp(brentq(excess, low, high, xtol=1e-6))
    return best


def fit_scale(cosines: Tensor, right: Tensor, log_prior: Tensor, default: float) -> float:
    """The scale s of a column, within `SCALES`, under which its true values are likeliest.

    The probability of a value is that of all semantic IDs that hold it, by the softmax of s * cosine + log prior.

    Args:
        cosines: float (N, K), of images with prototypes.
        right: bool (N, K), the semantic IDs that hold a true value; images without one tell nothing.
        log_prior: float (K,).
        default: what to return where no image tells anything.
    """
    usable = right.any(dim=1)
    if not usable.any():
        return default
    cosines, right, log_prior = cosines[usable].double(), right[usable], log_prior.double()
    return _likeliest(lambda scale: negative_log_likelihood(scale * cosines + log_prior, right), SCALES)


def _likeliest(loss: Callable[[float], float], bounds: tuple[float, float]) -> float:
    """The value with the smallest loss: the best of `GRID` values in equal ratios, and then between its neighbours."""
    grid = torch.linspace(*map(math.log, bounds), GRID, dtype=torch.float64).tolist()
    start = min(range(GRID), key=lambda i: loss(math.exp(grid[i])))
    found = minimize_scalar(lambda x: loss(math.exp(x)), method="bounded", options={"xatol": 1e-5},
                            bounds=(grid[max(start - 1, 0)], grid[min(start + 1, GRID - 1)]))
    return math.exp(found.x)


def _log_right(scores: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Logarithm of the probability of a right answer: float64 (N,)."""
    scaled = scores / temperature
    return scaled.masked_fill(~right, float("-inf")).logsumexp(dim=1) - scaled.logsumexp(dim=1)
