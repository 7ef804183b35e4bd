"""Distribution-free bounds on a mean measured on a sample of people, and the required sample sizes.

The confidence of a guarantee is the share of random samples for which the guarantee holds.
"""

from __future__ import annotations

import math

from scipy.special import bdtr, xlogy

CONFIDENCE = 0.9
ROUNDING = 1e-9  # tolerance for rounding errors of sums and logarithms


def chance_of_so_few(lost: float, count: int, share: float) -> float:
    """Bound the probability that `count` draws sum to at most `lost` if their expected value is at least `share`.

    The draws are independent and lie between 0 and 1, such as the share of wrong answers of each person. (The exact
    binomial tail would only hold for draws of 0 or 1.) The bound is the smaller one of Hoeffding (1963) and Bentkus
    (2004).

    Args:
        lost: sum of the draws.
        count: number of draws, 1 or more.
        share: expected value, between 0 and 1.

    Returns:
        an upper bound, at most 1.

    Examples:
        >>> round(chance_of_so_few(0, 22, 0.1), 4)  # 0.9 ** 22
        0.0985
    """
    mean = lost / count
    if mean >= share:
        return 1.0
    divergence = xlogy(mean, mean / share) + (1 - mean) * math.log((1 - mean) / (1 - share))
    return min(math.exp(-count * divergence), math.e * float(bdtr(math.ceil(lost - ROUNDING), count, share)))


def needed(share: float, confidence: float) -> int:
    """Return the smallest n with (1 - share)^n <= 1 - confidence: n draws without an error exclude the error rate.

    Args:
        share: error rate to exclude, between 0 and 1.
        confidence: between 0 and 1.

    Raises:
        ValueError: if an argument is not between 0 and 1.

    Examples:
        >>> needed(0.1, 0.9)
        22
    """
    for name, value in (("the allowed error rate", share), ("the confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"calibration: {name} is {value:g}, expected a number greater than 0 and less than 1")
    return math.ceil(math.log(1 - confidence) / math.log1p(-share) - ROUNDING)
