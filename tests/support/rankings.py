"""Comparison of ranking metrics."""

import torch


def same_figures(a, b):
    """Return whether two tuples of tensors are equal, with NaN equal to NaN."""
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in zip(a, b))
