"""Pedestrian attribute recognition (PAR): accuracy by all conventions of the literature.

Shapes: N images, M columns (attributes), C_m classes of column m, L binary labels.

A model predicts one class per column. A colour column has a binary ground truth for each class, so that zero or several
classes can be true; in other columns exactly one class is true. The prediction -1 means no prediction, or "none of the
listed colours".

The binary labels correspond to the bits of semantic IDs, 30 for Market-1501 and 23 for DukeMTMC: one label per class of
a column. A column of two classes is one label, which is positive for the second class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# How the prediction of an attribute is converted to predictions of binary labels.
LABELS = ("yes for the predicted value, no for all others; for a yes/no attribute predicted by probability, this is a "
          "threshold of 0.5")


@dataclass(frozen=True)
class LabelResult:
    """Metrics of multi-label recognition for binary labels, as fractions from 0 to 1; NaN if undefined.

    Label-based metrics, float64 (L,), over the images with a known label:

    * `accuracy`: share of correct predictions. Its mean is the accuracy over 30 (23) attributes of Market-1501
      (DukeMTMC);
    * `balanced`: (TPR + TNR) / 2; NaN for a label without positive or without negative images. Its mean is mA;
    * `f1`: F1 of the positive class; NaN for a label without positive images and positive predictions.

    Instance-based metrics, where P is the set of known positive labels of an image and A the set of labels predicted
    positive, as defined for RAP (Li et al., arXiv 1603.07054):

    * `instance_accuracy`: mean over images of |P & A| / |P | A|;
    * `instance_precision`: mean of |P & A| / |A|;
    * `instance_recall`: mean of |P & A| / |P|;
    * `instance_f1`: harmonic mean of `instance_precision` and `instance_recall`, not a mean over images.

    Images with the fraction 0 / 0 are excluded from the mean, as in the authors' code: `num_without_yes` images have
    an empty P, `num_without_answer` an empty A, and `num_without_either` both. Rethinking_of_PAR counts these images as
    0; its metrics are those above, multiplied by the share of the `num_images` images that are not excluded.
    """

    accuracy: Tensor
    balanced: Tensor
    f1: Tensor
    instance_accuracy: float
    instance_precision: float
    instance_recall: float
    instance_f1: float
    num_images: int
    num_without_yes: int
    num_without_answer: int
    num_without_either: int


def label_metrics(answers: Tensor, truth: Tensor, known: Tensor) -> LabelResult:
    """Evaluate predictions of binary labels, such as probabilities above a threshold.

    Args:
        answers: bool (N, L), True for a positive prediction.
        truth: bool (N, L).
        known: bool (N, L), False for a missing label.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> answers, truth = torch.tensor([[True, True], [False, True]]), torch.tensor([[True, False], [False, True]])
        >>> result = label_metrics(answers, truth, torch.ones(2, 2, dtype=torch.bool))
        >>> result.accuracy.tolist(), result.balanced.tolist(), result.instance_precision
        ([1.0, 0.5], [1.0, 0.5], 0.75)
    """
    if not answers.shape == truth.shape == known.shape:
        raise ValueError(f"par: answers are {tuple(answers.shape)}, truth {tuple(truth.shape)} and known "
                         f"{tuple(known.shape)}; expected one shape, images by labels")
    answers, truth, known = answers.cpu(), truth.cpu(), known.cpu()
    both, either = answers & truth & known, (answers | truth) & known
    yes, no, said = truth & known, ~truth & known, answers & known

    def counts(flags: Tensor, dim: int) -> Tensor:
        return flags.sum(dim=dim).double()  # so that 0 / 0 is NaN

    precision, recall = ((counts(both, 1) / counts(of, 1)).nanmean().item() for of in (said, yes))
    f1 = 0.0 if precision == recall == 0 else 2 * precision * recall / (precision + recall)
    return LabelResult(
        accuracy=counts((answers == truth) & known, 0) / counts(known, 0),
        balanced=(counts(both, 0) / counts(yes, 0) + counts(~answers & no, 0) / counts(no, 0)) / 2,
        f1=2 * counts(both, 0) / (counts(yes, 0) + counts(said, 0)),
        instance_accuracy=(counts(both, 1) / counts(either, 1)).nanmean().item(),
        instance_precision=precision,
        instance_recall=recall,
        instance_f1=f1,
        num_images=len(truth),
        num_without_yes=int((~yes.any(dim=1)).sum()),
        num_without_answer=int((~said.any(dim=1)).sum()),
        num_without_either=int((~either.any(dim=1)).sum()),
    )


@dataclass(frozen=True)
class PARResult:
    """Accuracy of attribute recognition by all conventions, as fractions from 0 to 1.

    Metrics of columns, float64 (M,), NaN if undefined:

    * `official`: share of the images with a known label whose prediction is true (Market-1501-attribute tool). Of
      several listed colours any is correct; for an image without a listed colour no prediction is correct;
    * `with_none`: as `official`, but for an image without a listed colour "none" is correct;
    * `binary`: for a colour column the mean of the binary accuracies of its colours; otherwise as `official`;
    * `balanced`: mean of (TPR + TNR) / 2 over the binary labels of the column, as mA is defined for RAP and PETA;
    * `ceiling`: the maximum of `official`, the share of images with a true class.

    `mA_official`, `mA_with_none` and `mA_binary` are means over the columns, `mA_balanced` is the mean over all binary
    labels of all columns. Columns without a known label are excluded. `num_undefined_bits` of the `num_bits` binary
    labels have no positive or no negative image and are excluded as well. `labels` contains the metrics of the same
    predictions as binary labels.
    """

    official: Tensor
    with_none: Tensor
    binary: Tensor
    balanced: Tensor
    ceiling: Tensor
    mA_official: float
    mA_with_none: float
    mA_binary: float
    mA_balanced: float
    num_undefined_bits: int
    num_bits: int
    labels: LabelResult


def correct_with_none(prediction: Tensor, truth: Tensor, is_colour: bool) -> Tensor:
    """Return whether predictions of one column are correct by the rule `with_none`, see `PARResult`.

    Args:
        prediction: int64 (N,), the predicted class; -1 for none.
        truth: bool (N, C), see `par_metrics`.
        is_colour: whether "none" is correct for an image without a true class.

    Returns:
        bool (N,).

    Examples:
        >>> truth = torch.tensor([[True, False], [False, False]])
        >>> correct_with_none(torch.tensor([0, -1]), truth, True).tolist()
        [True, True]
    """
    right = (truth & (prediction[:, None] == torch.arange(truth.shape[1]))).any(dim=1)
    return right | (prediction < 0) & ~truth.any(dim=1) if is_colour else right


def par_metrics(
    predictions: Tensor, truth: Sequence[Tensor], known: Tensor, is_colour: Sequence[bool]
) -> PARResult:
    """Evaluate predicted attributes by all conventions.

    Args:
        predictions: int64 (N, M), the predicted class of each column; -1 for none.
        truth: M tensors bool (N, C_m), from `AttributeSchema.column_truth`.
        known: bool (N, M), False where the label is missing; the image is then excluded from the column.
        is_colour: M flags, True for a colour column.

    Raises:
        ValueError: if shapes do not match or a prediction is outside the classes of its column.

    Examples:
        >>> truth = [torch.tensor([[True, False], [False, True]]), torch.tensor([[True, False], [False, False]])]
        >>> result = par_metrics(torch.tensor([[0, 0], [0, -1]]), truth, torch.ones(2, 2).bool(), [False, True])
        >>> result.official.tolist(), result.with_none.tolist()  # the second image has no listed colour
        ([0.5, 0.5], [0.5, 1.0])
    """
    _check(predictions, truth, known, is_colour)
    said_of, truth_of, known_of = _as_labels(predictions.cpu(), truth, known.cpu(), is_colour)  # M of (N, L_m) each
    labels = label_metrics(*(torch.cat(part, dim=1) for part in (said_of, truth_of, known_of)))
    balanced = labels.balanced.split([part.shape[1] for part in truth_of])
    rows = []
    for m, colour in enumerate(is_colour):
        keep = known[:, m].cpu()
        answer, true = predictions[:, m].cpu()[keep], truth[m].cpu()[keep]  # (n,), (n, C_m)
        said = answer[:, None] == torch.arange(true.shape[1])  # (n, C_m)
        right = (said & true).any(dim=1)  # (n,)
        official = _share(right)
        rows.append({
            "official": official,
            "with_none": _share(correct_with_none(answer, true, colour)),
            "binary": _share(said == true).mean() if colour else official,
            "balanced": balanced[m].nanmean(),
            "ceiling": _share(true.any(dim=1)),
        })
    columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}  # (M,) each
    return PARResult(
        **columns,
        mA_official=columns["official"].nanmean().item(),
        mA_with_none=columns["with_none"].nanmean().item(),
        mA_binary=columns["binary"].nanmean().item(),
        mA_balanced=labels.balanced.nanmean().item(),
        num_undefined_bits=int(labels.balanced.isnan().sum()),
        num_bits=len(labels.balanced),
        labels=labels,
    )


def majority_answers(truth: Sequence[Tensor], known: Tensor, is_colour: Sequence[bool] = ()) -> Tensor:
    """Return the predictions of the majority-class baseline: the most frequent class of each column.

    Args:
        truth: M tensors bool (N, C_m), of training identities or images.
        known: bool (N, M).
        is_colour: M flags; in columns with True, the prediction is -1 ("none") if this is more frequent than each
            class. Default: "none" is never predicted for a colour column.

    Returns:
        int64 (M,); the first of equally frequent classes; -1 for a column without labels.

    Examples:
        >>> truth, known = [torch.tensor([[True, False], [False, False], [False, False]])], torch.ones(3, 1).bool()
        >>> majority_answers(truth, known).tolist(), majority_answers(truth, known, [True]).tolist()
        ([0], [-1])
    """
    answers = []
    for m, true in enumerate(truth):
        own = true[known[:, m]]
        counts = own.sum(dim=0)  # (C_m,)
        none = (~own.any(dim=1)).sum() if is_colour and is_colour[m] else 0
        answers.append(torch.where((counts.max() > 0) & (counts.max() >= none), counts.argmax(), -1))
    return torch.stack(answers)


def _share(flags: Tensor) -> Tensor:
    """Share of True over the images: bool (n, ...) -> float64 (...); NaN for zero images."""
    return flags.double().mean(dim=0)


def _as_labels(predictions: Tensor, truth: Sequence[Tensor], known: Tensor,
               is_colour: Sequence[bool]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Predictions, ground truth and known flags as binary labels: M tensors bool (N, L_m) each."""
    said, true, knowing = [], [], []
    for m, colour in enumerate(is_colour):
        answer, own = predictions[:, m, None], truth[m].cpu()  # (N, 1), (N, C_m)
        yes = answer == torch.arange(own.shape[1])  # (N, C_m)
        if not colour and own.shape[1] == 2:
            # One label instead of two complementary ones. The prediction -1 counts as wrong.
            own = own[:, 1:]
            yes = torch.where(answer < 0, ~own, yes[:, 1:])
        said.append(yes)
        true.append(own)
        knowing.append(known[:, m, None].expand_as(own))
    return said, true, knowing


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
                             f"-1..{true.shape[1] - 1}; classes start at 0, and -1 means none")
