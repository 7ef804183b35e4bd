"""Pedestrian attribute recognition (PAR): accuracy of one answer a column, in each convention papers report.

Letters: N images, M columns, C_m classes (answers) of column m. A colour column has one yes/no truth a class, so that
none or several can be true; every other column has exactly one true class. An answer of -1 means no answer,
or "none of the listed colours".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PARResult:
    """Shares of 1, never percent; tensors are float64 (M,), NaN where nothing defines them.

    * `official`: share of the known images whose answer is true (Market-1501-attribute tool). Of several listed
      colours any counts; where no colour is listed no answer can be right;
    * `binary`: a colour column is the mean of its per-colour yes/no accuracies, any other column as `official`;
    * `balanced`: mean of (TPR + TNR) / 2 over the column's yes/no questions, as RAP and PETA define mA;
    * `ceiling`: the most that `official` can reach, the share of images for which some answer is true.

    `mA_official` and `mA_binary` are plain means of the columns, `mA_balanced` of all yes/no questions of all columns.
    Columns without a known image are left out of the means. `num_undefined_bits` counts those of the `num_bits` yes/no
    questions that have no yes or no no among the images, and are left out as well.
    """

    official: Tensor
    binary: Tensor
    balanced: Tensor
    ceiling: Tensor
    mA_official: float
    mA_binary: float
    mA_balanced: float
    num_undefined_bits: int
    num_bits: int


def par_metrics(
    predictions: Tensor, truth: Sequence[Tensor], known: Tensor, is_colour: Sequence[bool]
) -> PARResult:
    """Score one answer a column and image, in all conventions at once.

    Args:
        predictions: int64 (N, M), class of each column; -1 for none.
        truth: M tensors bool (N, C_m), as `AttributeSchema.column_truth` gives them.
        known: bool (N, M), False where the label is missing: such an image is left out of that column.
        is_colour: M flags, columns with a yes/no truth a class.
    """
    _check(predictions, truth, known, is_colour)
    rows, bits = [], []
    for m, colour in enumerate(is_colour):
        keep = known[:, m].cpu()
        answer, true = predictions[:, m].cpu()[keep], truth[m].cpu()[keep]  # (n,), (n, C_m)
        said = answer[:, None] == torch.arange(true.shape[1])  # (n, C_m)
        right = (said & true).any(dim=1)  # (n,)
        bits.append(_balanced_bits(said, true, colour))
        official = _share(right)
        rows.append({
            "official": official,
            "binary": _share(said == true).mean() if colour else official,
            "balanced": bits[m].nanmean(),
            "ceiling": _share(true.any(dim=1)),
        })
    columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}  # (M,) each
    all_bits = torch.cat(bits)
    return PARResult(
        **columns,
        mA_official=columns["official"].nanmean().item(),
        mA_binary=columns["binary"].nanmean().item(),
        mA_balanced=all_bits.nanmean().item(),
        num_undefined_bits=int(all_bits.isnan().sum()),
        num_bits=len(all_bits),
    )


def majority_answers(truth: Sequence[Tensor], known: Tensor) -> Tensor:
    """The most frequent class of each column, the floor any model has to beat: -> int64 (M,).

    For colours the most frequent listed one; the first of equally frequent classes; -1 where a column has no label.

    Args:
        truth: M tensors bool (N, C_m), of training identities or images.   known: bool (N, M).
    """
    answers = []
    for m, true in enumerate(truth):
        counts = true[known[:, m]].sum(dim=0)  # (C_m,)
        answers.append(torch.where(counts.max() > 0, counts.argmax(), -1))
    return torch.stack(answers)


def _share(flags: Tensor) -> Tensor:
    """Share of True along the images: bool (n, ...) -> float64 (...); NaN for no image."""
    return flags.double().mean(dim=0)


def _balanced_bits(said: Tensor, true: Tensor, colour: bool) -> Tensor:
    """(TPR + TNR) / 2 of each yes/no question of a column, NaN where yes or no never occurs: -> float64 (bits,)."""
    yes_rate = (said & true).sum(dim=0).double() / true.sum(dim=0)  # (C_m,), 0 / 0 is the NaN
    if not colour and true.shape[1] == 2:
        # One question, not two mirrored ones; the recall of either class, so that no answer is wrong for both.
        return yes_rate.mean(dim=0, keepdim=True)
    no_rate = (~said & ~true).sum(dim=0).double() / (~true).sum(dim=0)
    return (yes_rate + no_rate) / 2


def _check(predictions: Tensor, truth: Sequence[Tensor], known: Tensor, is_colour: Sequence[bool]) -> None:
    shape = (len(predictions), len(truth))
    lengths = [len(true) for true in truth]
    if not (predictions.shape == known.shape == shape and len(is_colour) == len(truth) and set(lengths) == {shape[0]}):
        raise ValueError(f"par: {len(truth)} columns of {lengths} images and {len(is_colour)} flags need predictions "
                         f"and known of {shape}; got {tuple(predictions.shape)} and {tuple(known.shape)}")
    for m, true in enumerate(truth):
        wrong = ((predictions[:, m] < -1) | (predictions[:, m] >= true.shape[1])).sum()
        if wrong:
            raise ValueError(f"par: {int(wrong)} of {shape[0]} predictions of column {m} are outside "
                             f"-1..{true.shape[1] - 1}; answers count from 0, and -1 is none")
