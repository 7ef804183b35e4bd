"""Temperature scaling of attribute predictions, and the scale of cosines.

Scores are divided by the temperature before the softmax, so that the probabilities match the accuracy.
Shapes: N images, K scores of a column (classes, or the semantic IDs of its group), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

BOUNDS = (0.05, 20.0)  # of the temperature; a fit at a bound means that the likelihood has no optimum inside
SCALES = (0.05, 100.0)  # of the cosine scale; at the lower bound the predictions equal the prior
GRID = 25  # initial values: the likelihood can have several optima


def right_answers(truth: Tensor) -> Tensor:
    """Prepend the answer "none" to the correct classes of a column.

    Several classes of an image can be correct, such as two colours. "None" is correct if no class is.

    Args:
        truth: bool (N, C), correct classes.

    Returns:
        bool (N, C + 1), correct answers; the first column is "none".

    Examples:
        >>> right_answers(torch.tensor([[True, False], [False, False]])).tolist()
        [[False, True, False], [True, False, False]]
    """
    return torch.cat([~truth.any(dim=1, keepdim=True), truth], dim=1)


def negative_log_likelihood(scores: Tensor, right: Tensor, temperature: float = 1.0) -> float:
    """Compute the mean negative log-probability of the correct answers.

    Args:
        scores: float (N, K); minus infinity for answers that are not allowed.
        right: bool (N, K), scores of correct answers, at least one finite score per image.
        temperature: divides the scores before the softmax.

    Returns:
        the mean over images, in nats.

    Examples:
        >>> round(negative_log_likelihood(torch.zeros(1, 2), torch.tensor([[True, False]])), 4)  # log 2
        0.6931
    """
    return -_log_right(scores.double(), right, temperature).mean().item()


def fit_temperature(scores: Tensor, right: Tensor, identities: Tensor) -> float:
    """Fit the temperature that maximises the likelihood of the correct answers; above 1 it lowers the confidence.

    Images without a correct answer among the scores are ignored. If all answers are correct, the maximum-likelihood
    temperature is 0, and all later probabilities would be 1. Since n identities without an error only support a
    probability of (n + 1) / (n + 2) (Laplace's rule of succession), the mean probability of the correct answers is
    limited to this value.

    Args:
        scores: float (N, K); minus infinity for answers that are not allowed.
        right: bool (N, K), scores of correct answers.
        identities: int64 (N,), identity of each image.

    Returns:
        the temperature, within `BOUNDS`.

    Raises:
        ValueError: if no image has a correct answer.
    """
    usable = (right & scores.isfinite()).any(dim=1)
    if not usable.any():
        raise ValueError(f"temperature: none of {len(scores)} images has a correct answer among the possible answers; "
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
    """Fit the cosine scale s of a column that maximises the likelihood of the true values.

    The probability of a value is the sum over the semantic IDs with this value of softmax(s * cosine + log prior).

    Args:
        cosines: float (N, K), of images and prototypes.
        right: bool (N, K), semantic IDs with the true value; images without one are ignored.
        log_prior: float (K,), of the semantic IDs.
        default: returned if no image is labelled.

    Returns:
        the scale, within `SCALES`.
    """
    usable = right.any(dim=1)
    if not usable.any():
        return default
    cosines, right, log_prior = cosines[usable].double(), right[usable], log_prior.double()
    return _likeliest(lambda scale: negative_log_likelihood(scale * cosines + log_prior, right), SCALES)


def _likeliest(loss: Callable[[float], float], bounds: tuple[float, float]) -> float:
    """Minimise a loss: take the best of `GRID` values in equal ratios, then search between its neighbours."""
    grid = torch.linspace(*map(math.log, bounds), GRID, dtype=torch.float64).tolist()
    start = min(range(GRID), key=lambda i: loss(math.exp(grid[i])))
    found = minimize_scalar(lambda x: loss(math.exp(x)), method="bounded", options={"xatol": 1e-5},
                            bounds=(grid[max(start - 1, 0)], grid[min(start + 1, GRID - 1)]))
    return math.exp(found.x)


def _log_right(scores: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Return the log-probability of the correct answers: float64 (N,)."""
    scaled = scores / temperature
    return scaled.masked_fill(~right, float("-inf")).logsumexp(dim=1) - scaled.logsumexp(dim=1)
