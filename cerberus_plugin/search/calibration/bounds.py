"""Distribution-free bounds on a share that was measured on a sample of people, and the sample sizes they need.

A guarantee holds with a confidence: the share of samples, drawn like the given one, for which it is true.
"""

from __future__ import annotations

import math

from scipy.special import bdtr, xlogy

CONFIDENCE = 0.9
ROUNDING = 1e-9  # sums of shares, and logarithms of round numbers, are exact in exact numbers only


def chance_of_so_few(lost: float, count: int, share: float) -> float:
    """An upper bound of the probability that `count` draws sum to at most `lost` if their mean is at least `share`.

    The draws are independent and between 0 and 1, such as a person's share of wrong answers; the exact binomial tail
    holds for 0 and 1 alone. The smaller of the bounds of Hoeffding (1963) and Bentkus (2004).
    """
    mean = lost / count
    if mean >= share:
        return 1.0
    divergence = xlogy(mean, mean / share) + (1 - mean) * math.log((1 - mean) / (1 - share))
    return min(math.exp(-count * divergence), math.e * float(bdtr(math.ceil(lost - ROUNDING), count, share)))


def needed(share: float, confidence: float) -> int:
    """Number n of draws without a loss that exclude a mean of at least `share`: (1 - share)^n <= 1 - confidence."""
    for name, value in (("the share that may be wrong", share), ("the confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"calibration: {name} is {value:g}, expected a share between 0 and 1, without both")
    return math.ceil(math.log(1 - confidence) / math.log1p(-share) - ROUNDING)
