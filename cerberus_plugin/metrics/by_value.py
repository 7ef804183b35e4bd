"""reID and PAR metrics by attribute value: how a model does on the images of women, of old people, of red clothes.

Letters: N images, Q queries, M columns, C_m values of column m. `truth` and `known` are those of
`AttributeSchema.column_truth`: M tensors bool (N, C_m), and bool (N, M). An image belongs to each value that is true
for it, so one with two colours belongs to both, and one without a listed colour to none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .par import correct_with_none
from .ranking import Ranking

# Metrics and counts of one value by name; metrics are shares of 1, NaN where no image defines them.
Values = list[list[dict[str, float]]]  # M lists of C_m


def reid_by_value(queries: Ranking, truth: Sequence[Tensor], known: Tensor, pids: Tensor | None = None) -> Values:
    """mAP and Rank-1 over the queries whose person has a value; the gallery is the same for all.

    Queries without a match are skipped, as in `ReIDResult`.

    Args:
        queries: metrics of each query, (Q,).
        pids: int64 (Q,), to count people; None where identities are not known.

    Returns:
        per column and value: "mAP", "Rank-1", "queries" and, with `pids`, "people".
    """
    found = queries.num_matches > 0
    return [[{"mAP": queries.ap[rows].mean().item(), "Rank-1": _share(queries.first_match[rows] == 1),
              **_counts("queries", rows, pids)} for rows in column]
            for column in _members(truth, known, found)]


def par_by_value(predictions: Tensor, truth: Sequence[Tensor], known: Tensor, is_colour: Sequence[bool],
                 pids: Tensor | None = None) -> Values:
    """Attribute recognition on the images that have a value.

    "accuracy" is the mean over all columns of the share of correct predictions on these images (rule `with_none` of
    `par_metrics`); columns without a known label there are left out of the mean. "recall" is the share of these images
    for which this value is predicted.

    Args:
        predictions: int64 (N, M), class of each column; -1 for none.
        is_colour: M flags, columns with a yes/no truth for each class.
        pids: int64 (N,), to count people; None where identities are not known.

    Returns:
        per column and value: "accuracy", "recall", "images" and, with `pids`, "people".
    """
    predictions, known = predictions.cpu(), known.cpu()
    right = torch.stack([correct_with_none(predictions[:, m], true.cpu(), is_colour[m])
                         for m, true in enumerate(truth)], dim=1)  # (N, M)
    everything = torch.ones(len(predictions), dtype=torch.bool)
    values: Values = []
    for m, column in enumerate(_members(truth, known, everything)):
        values.append([])
        for c, rows in enumerate(column):
            counted = known[rows]
            of_columns = (right[rows] & counted).sum(dim=0).double() / counted.sum(dim=0)  # (M,), 0 / 0 is NaN
            values[m].append({"accuracy": of_columns.nanmean().item(), "recall": _share(predictions[rows, m] == c),
                              **_counts("images", rows, pids)})
    return values


def _members(truth: Sequence[Tensor], known: Tensor, counted: Tensor) -> Iterator[list[Tensor]]:
    """Rows of each value, of those that are counted: int64 (n,) for each of the C_m values of each column."""
    for m, true in enumerate(truth):
        rows = true.cpu() & (known[:, m].cpu() & counted)[:, None]  # (N, C_m)
        yield [own.nonzero().flatten() for own in rows.T]


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _counts(name: str, rows: Tensor, pids: Tensor | None) -> dict[str, int]:
    return {name: len(rows), **({} if pids is None else {"people": len(pids.cpu()[rows].unique())})}
