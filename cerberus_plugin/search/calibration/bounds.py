"""What a sample of people vouches for: a bound on a share that needs no bell curve, and how many people it takes.

A promise here holds with a confidence: the share of samples of people, drawn like this one, in which it comes true.
"""

from __future__ import annotations

import math

from scipy.special import bdtr, xlogy

CONFIDENCE = 0.9
ROUNDING = 1e-9  # sums of shares, and logarithms of round numbers, are exact in exact numbers only


def chance_of_so_few(lost: float, count: int, share: float) -> float:
    """How likely `count` draws sum to `lost` or less where their mean is `share` or more: an upper bound.

    The draws are independent and between 0 and 1, such as a person's share of wrong answers; the exact binomial tail
    holds for 0 and 1 alone. The smaller of the bounds of Hoeffding (1963) and Bentkus (2004).
    """
    mean = lost / count
    if mean >= share:
        return 1.0
    divergence = xlogy(mean, mean / share) + (1 - mean) * math.log((1 - mean) / (1 - share))
    return min(math.exp(-count * divergence), math.e * float(bdtr(math.ceil(lost - ROUNDING), count, share)))


def needed(share: float, confidence: float) -> int:
    """How many draws without a loss exclude a mean of `share` or more: n with (1 - share)^n <= 1 - confidence."""
    for name, value in (("the share that may be wrong", share), ("the confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"calibration: {name} is {value:g}, expected a share between 0 and 1, without both")
    return math.ceil(math.log(1 - confidence) / math.log1p(-share) - ROUNDING)
