"""Pedestrian attribute recognition (PAR): accuracy of one answer a column, in each convention papers report.

Letters: N images, M columns, C_m classes (answers) of column m, L yes/no labels. A colour column has one yes/no truth a
class, so that none or several can be true; every other column has exactly one true class. An answer of -1 means no
answer, or "none of the listed colours".

The yes/no labels are the bits of semantic IDs, 30 of Market-1501 and 23 of DukeMTMC: one a class of a column; a column
of two classes is one label, yes for the second class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# How the answer to an attribute becomes answers to yes/no labels.
LABELS = ("yes for the one value that is answered, no for all others; for a yes/no attribute read by probability, a "
          "threshold of 0.5")


@dataclass(frozen=True)
class LabelResult:
    """Figures of yes/no labels as multi-label recognition reports them; shares of 1, NaN where nothing defines them.

    By label, float64 (L,), over the images whose label is known:

    * `accuracy`: share of right answers. Its mean is the accuracy over 30 (23) attributes of Market-1501 (DukeMTMC);
    * `balanced`: (TPR + TNR) / 2; NaN for a label that is yes, or no, on no image. Its mean is mA;
    * `f1`: of the answer yes; NaN for a label that is yes on no image and in no answer.

    By image, with P the known labels that are yes and A those answered yes, as defined by RAP (Li et al.,
    arXiv 1603.07054): `instance_accuracy` is the mean of |P & A| / |P | A|, `instance_precision` of |P & A| / |A|,
    `instance_recall` of |P & A| / |P|; `instance_f1` is the harmonic mean of these mean precision and recall, not a
    mean over images. Images for which such a fraction is 0 / 0 are left out of its mean, as in the authors' code:
    `num_without_yes` have no P, `num_without_answer` no A, `num_without_either` neither. Rethinking_of_PAR counts them
    as 0: its figures are these times the share of the `num_images` that is counted.
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
    """Score yes/no answers to labels, such as probabilities above a threshold.

    Args:
        answers: bool (N, L), True for yes.   truth: bool (N, L).   known: bool (N, L), False for a missing label.
    """
    if not answers.shape == truth.shape == known.shape:
        raise ValueError(f"par: answers are {tuple(answers.shape)}, truth {tuple(truth.shape)} and known "
                         f"{tuple(known.shape)}; expected one shape, images by labels")
    answers, truth, known = answers.cpu(), truth.cpu(), known.cpu()
    both, either = answers & truth & known, (answers | truth) & known
    yes, no, said = truth & known, ~truth & known, answers & known

    def counts(flags: Tensor, dim: int) -> Tensor:
        return flags.sum(dim=dim).double()  # 0 / 0 is the NaN

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
    """Shares of 1, never percent; tensors are float64 (M,), NaN where nothing defines them.

    * `official`: share of the known images whose answer is true (Market-1501-attribute tool). Of several listed
      colours any counts; where no colour is listed no answer can be right;
    * `with_none`: the same, but where no colour is listed, "none" is the right answer;
    * `binary`: a colour column is the mean of its per-colour yes/no accuracies, any other column as `official`;
    * `balanced`: mean of (TPR + TNR) / 2 over the column's yes/no questions, as RAP and PETA define mA;
    * `ceiling`: the most that `official` can reach, the share of images for which some answer is true.

    `mA_official`, `mA_with_none` and `mA_binary` are plain means of the columns, `mA_balanced` of all yes/no questions
    of all columns. Columns without a known image are left out of the means. `num_undefined_bits` counts those of the
    `num_bits` yes/no questions that have no yes or no no among the images, and are left out as well. `labels` are the
    figures of the same answers as yes/no labels.
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
            "with_none": _share(right | ((answer < 0) & ~true.any(dim=1))) if colour else official,
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
    """The most frequent class of each column, the floor any model has to beat: -> int64 (M,).

    For colours the most frequent listed one; the first of equally frequent classes; -1 where a column has no label.

    Args:
        truth: M tensors bool (N, C_m), of training identities or images.   known: bool (N, M).
        is_colour: M flags of columns of which -1 for "none" is an answer as well, taken where it is more frequent than
            any class.
    """
    answers = []
    for m, true in enumerate(truth):
        own = true[known[:, m]]
        counts = own.sum(dim=0)  # (C_m,)
        none = (~own.any(dim=1)).sum() if is_colour and is_colour[m] else 0
        answers.append(torch.where((counts.max() > 0) & (counts.max() >= none), counts.argmax(), -1))
    return torch.stack(answers)


def _share(flags: Tensor) -> Tensor:
    """Share of True along the images: bool (n, ...) -> float64 (...); NaN for no image."""
    return flags.double().mean(dim=0)


def _as_labels(predictions: Tensor, truth: Sequence[Tensor], known: Tensor,
               is_colour: Sequence[bool]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Answers, truth and what is known of each column as yes/no labels: M tensors bool (N, L_m) each."""
    said, true, knowing = [], [], []
    for m, colour in enumerate(is_colour):
        answer, own = predictions[:, m, None], truth[m].cpu()  # (N, 1), (N, C_m)
        yes = answer == torch.arange(own.shape[1])  # (N, C_m)
        if not colour and own.shape[1] == 2:
            # One label, not two mirrored ones; no answer is wrong, whichever class is true.
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
                             f"-1..{true.shape[1] - 1}; answers count from 0, and -1 is none")
