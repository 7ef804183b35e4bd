"""Comparison of ranking figures."""

import torch


def same_figures(a, b):
    return all(torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)) for x, y in zip(a, b))
