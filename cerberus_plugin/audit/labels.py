"""Find labels that the model contradicts which was not trained on the person: in all views, or under one camera.

Shapes: N images, A label fields, C classes of a column, U units of images that share a label, V views: the images of a
unit under one camera.
"""

from __future__ import annotations

import numpy as np

from ..attributes.schema import NONE, Column
from ..own_data.people import OwnData
from ..own_data.schema_file import Wording, folded
from ..own_data.tables import EMPTY
from ..utils.text import counted
from .confident import confident_classes, pooled, self_confidence, thresholds
from .findings import Finding, of_pictures, of_unit
from .predictions import Predictions
from .trust import Reading, reading

MOST_SHOWN = 8  # images of a group
LOWEST = 1e-6  # smallest probability in a geometric mean


def label_findings(own: OwnData, wording: Wording, labels: np.ndarray,
                   predictions: Predictions) -> tuple[list[Finding], list[Reading]]:
    """Find labels that are probably wrong.

    If all views of a person together contradict a label, the finding is "label". Otherwise, if one view contradicts it
    and the others agree with it, the finding is "view": these images have a wrong label, show another person, or do not
    show the attribute. Labels of lasting groups belong to a person; other labels belong to an outfit if outfits are
    known.

    Args:
        own: N images.
        wording: the schema.
        labels: int16 (N, A), returned by `labels_of`.
        predictions: predictions of the models.

    Returns:
        findings, none for attributes that the models do not recognise well enough; and the accuracy for each attribute.
    """
    found, readings = [], []
    schema = wording.schema
    truth, known = schema.column_truth(labels)
    for column, probabilities in zip(predictions.columns, predictions.probabilities):
        m = schema.columns.index(column)
        right = truth[m]
        if probabilities.shape[1] > right.shape[1]:  # the classes include "none"
            right = np.concatenate([~right.any(axis=1, keepdims=True), right], axis=1)
        rows = np.flatnonzero(known[:, m] & (predictions.model >= 0) & right.any(axis=1)
                              & np.isfinite(probabilities[:, 0]))
        if len(rows):
            of_column, how = _of_column(own, wording, column, probabilities[rows].astype(np.float64), right[rows],
                                        rows, labels[rows][:, list(column.fields)])
            found += of_column
            readings.append(how)
    return found, readings


def _of_column(own: OwnData, wording: Wording, column: Column, probabilities: np.ndarray, right: np.ndarray,
               rows: np.ndarray, labels: np.ndarray) -> tuple[list[Finding], Reading]:
    """Findings of one column, and its accuracy; `probabilities`, `right` and `labels` belong to the given rows."""
    keys = [own.person.codes[rows].astype(np.int64)]
    if own.outfit is not None and column.group not in wording.schema.lasting_groups:
        keys.append(own.outfit.codes[rows].astype(np.int64))
    unit = np.unique(np.concatenate([np.stack(keys, axis=1), labels], axis=1), axis=0, return_inverse=True)[1].ravel()
    camera = -1 - rows if own.camera is None else np.where(own.camera.codes[rows] == EMPTY, -1 - rows,
                                                           own.camera.codes[rows])
    _, first_of_view, view = np.unique(np.stack([unit, camera], axis=1), axis=0, return_index=True, return_inverse=True)
    view = view.ravel()
    of_view = pooled(probabilities, view)  # (V, C)
    unit_of_view, right_of_view = unit[first_of_view], right[first_of_view]
    logs = np.log(of_view.clip(LOWEST))
    views = np.bincount(unit_of_view)
    mean = _geometric(pooled(logs, unit_of_view))  # (U, C), all cameras have the same weight
    first_of_unit = np.unique(unit, return_index=True)[1]
    right_of_unit = right[first_of_unit]
    answers = spoken(own, wording, column)[-probabilities.shape[1]:]
    how = reading(column.name, mean, right_of_unit, answers)
    if not how.judged:
        return [], how
    said = confident_classes(mean, thresholds(mean, right_of_unit))
    said_of_view = confident_classes(of_view, thresholds(of_view, right_of_view))
    against = ~_holds(right_of_view, of_view.argmax(axis=1))
    contrary = np.bincount(unit_of_view, weights=against)
    doubt = 1 - self_confidence(mean, right_of_unit)
    # A view is reported if it contradicts the label and the other views of its unit agree with the label.
    others = pooled(logs, unit_of_view)[unit_of_view] * views[unit_of_view, None] - logs
    others = _geometric(others / np.maximum(views[unit_of_view, None] - 1, 1))  # (V, C)
    doubt_of_view = (1 - self_confidence(of_view, right_of_view)) * self_confidence(others, right_of_view)
    wrong = ~_holds(right_of_unit, said) & (said >= 0)
    members = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
    found = []

    def shown(chosen: np.ndarray) -> tuple[str, ...]:
        return tuple(own.files[row] for row in rows[chosen][:MOST_SHOWN])

    for u in np.flatnonzero(wrong).tolist():
        row = rows[first_of_unit[u]]
        outfit = own.outfit[row] if len(keys) > 1 and own.outfit is not None else ""
        word, value = own.attributes[column.name][row], answers[said[u]]
        found.append(Finding(
            "label", float(doubt[u]), own.person[row], column.name, word, value,
            f"{int(contrary[u])} of {counted(int(views[u]), 'view')} contradict the label; {value} has the probability "
            f"{mean[u, said[u]]:.0%}",
            ((own.person[row], shown(members[u])),),
            of_unit(own, rows[members[u]].tolist(), outfit, column.name, word, _values(answers, word, value))))
    flagged = (~_holds(right_of_view, said_of_view) & (said_of_view >= 0) & ~wrong[unit_of_view]
               & _holds(right_of_view, others.argmax(axis=1)) & (views > 1)[unit_of_view])
    for v in np.flatnonzero(flagged).tolist():
        u, row = unit_of_view[v], rows[first_of_view[v]]
        word, value = own.attributes[column.name][row], answers[said_of_view[v]]
        seen = np.flatnonzero(view == v)
        files = [own.files[place] for place in rows[seen]]
        where = f"camera {own.camera[row]}" if own.camera is not None and own.camera[row] else "one image"
        found.append(Finding(
            "view", float(doubt_of_view[v]), own.person[row], column.name, word, value,
            f"{where}: {value} has the probability {of_view[v, said_of_view[v]]:.0%}; "
            f"{views[u] - int(contrary[u])} of {views[u]} views agree with the label",
            ((where, tuple(files[:MOST_SHOWN])),
             ("other images", shown(members[u][view[members[u]] != v]))),
            of_pictures(files, column.name, [word] * len(files), _values(answers, word, value))))
    return found, how


def _geometric(logs: np.ndarray) -> np.ndarray:
    """Probabilities from mean log-probabilities: float (n, C)."""
    p = np.exp(logs - logs.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def _holds(right: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whether a class is among the labels: bool (n, C), int64 (n,) -> bool (n,)."""
    return right[np.arange(len(right)), classes]


def spoken(own: OwnData, wording: Wording, column: Column) -> list[str]:
    """Return the values of a column, with "none" first for colours, spelt as in the tables.

    Args:
        own: the data.
        wording: the schema.
        column: a column of the schema.
    """
    there = {folded(word): word for word in own.attributes[column.name].words}
    found = []
    for answer in column.answers:
        words = wording.none.get(column.name, ()) if answer == NONE and column.is_colour else (answer,)
        found.append(next((there[folded(word)] for word in words if folded(word) in there), (*words, answer)[0]))
    return found


def _values(answers: list[str], word: str, value: str) -> list[str]:
    """Values to which a label can be corrected, the proposed value first; "" for unknown."""
    return [value, *(answer for answer in answers if answer not in (value, word)), ""]
