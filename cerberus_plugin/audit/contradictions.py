"""Find labels that contradict each other; this needs no images.

Shapes: N images, A label fields, M columns.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from ..attributes.schema import MISSING, NONE, AttributeSchema
from ..own_data.people import OwnData
from ..own_data.schema_file import Wording
from ..own_data.tables import EMPTY
from .findings import Choice, Finding, of_unit

MOST_SHOWN = 8  # images of a group


def contradictions(own: OwnData, wording: Wording, labels: np.ndarray) -> list[Finding]:
    """Find three kinds of contradictions among labels.

    These are exclusive attributes of which several are yes; labels that differ within a person or an outfit; and images
    whose attributes all have their first value.

    Args:
        own: N images.
        wording: the schema.
        labels: int16 (N, A), returned by `labels_of`.
    """
    return [*_exclusive(own, wording.schema, labels), *_differing(own, wording.schema, labels),
            *_first_values(own, wording.schema, labels)]


def unknown_labels(own: OwnData, schema: AttributeSchema, labels: np.ndarray) -> list[tuple[str, int, int]]:
    """List the columns with unknown labels.

    Args:
        own: N images.
        schema: A label fields, M columns.
        labels: int16 (N, A), returned by `labels_of`.

    Returns:
        name of the column, number of images, and number of people of these.
    """
    _, known = schema.column_truth(labels)
    return [(column.name, int((~known[:, m]).sum()), len(np.unique(own.person.codes[~known[:, m]])))
            for m, column in enumerate(schema.columns) if not known[:, m].all()]


def _word(own: OwnData, name: str, row: int) -> str:
    return own.attributes[name][row]


def _units(own: OwnData, chosen: np.ndarray) -> list[tuple[str, str, list[int]]]:
    """Group rows by person, and by outfit if known: person, outfit, rows."""
    units: dict[tuple[int, int], list[int]] = defaultdict(list)
    outfit = np.full(len(own), EMPTY) if own.outfit is None else own.outfit.codes
    for row in np.flatnonzero(chosen).tolist():
        units[int(own.person.codes[row]), int(outfit[row])].append(row)
    return [(own.person.words[person], own.outfit.words[worn] if own.outfit is not None and worn != EMPTY else "", rows)
            for (person, worn), rows in units.items()]


def _shown(own: OwnData, rows: list[int]) -> tuple[str, ...]:
    return tuple(own.files[row] for row in rows[:MOST_SHOWN])


def _exclusive(own: OwnData, schema: AttributeSchema, labels: np.ndarray) -> list[Finding]:
    found = []
    for names in schema.exclusive:
        fields = [schema.index(name) for name in names]
        several = (labels[:, fields] == 1).sum(axis=1) > 1
        for person, outfit, rows in _units(own, several):
            said = [name for name, field in zip(names, fields) if labels[rows[0], field] == 1]
            choices = [Choice(f"only {kept}", tuple(
                row for name in said if name != kept
                for row in of_unit(own, rows, outfit, name, _word(own, name, rows[0]),
                                   schema.column(name).classes[:1])[0].rows)) for kept in said]
            found.append(Finding("exclusive", 1.0, person, ", ".join(said), "yes", "no",
                                 f"{' and '.join(said)} are yes, but at most one of {', '.join(names)} can be yes",
                                 ((person, _shown(own, rows)),), tuple(choices)))
    return found


def _differing(own: OwnData, schema: AttributeSchema, labels: np.ndarray) -> list[Finding]:
    """Labels of lasting groups that differ within a person, and all labels that differ within an outfit."""
    found = []
    _, known = schema.column_truth(labels)
    for m, column in enumerate(schema.columns):
        lasting = column.group in schema.lasting_groups
        if not lasting and own.outfit is None:
            continue
        chosen = known[:, m] & (lasting or (own.outfit is not None and own.outfit.codes != EMPTY))
        keys = own.person.codes.astype(np.int64)
        if not lasting and own.outfit is not None:
            keys = keys * (len(own.outfit.words) + 1) + own.outfit.codes
        rows = np.flatnonzero(chosen)
        number = np.unique(labels[rows][:, list(column.fields)], axis=0, return_inverse=True)[1].ravel()
        distinct = np.unique(np.stack([keys[rows], number], axis=1), axis=0)[:, 0]
        several = np.unique(distinct[:-1][distinct[1:] == distinct[:-1]])
        members: dict[int, list[int]] = defaultdict(list)
        for row in rows[np.isin(keys[rows], several)].tolist():
            members[int(keys[row])].append(row)
        for own_rows in members.values():
            by_word: dict[str, list[int]] = defaultdict(list)
            for row in own_rows:
                by_word[_word(own, column.name, row)].append(row)
            counts = Counter({word: len(places) for word, places in by_word.items()})
            (most, many), *others = counts.most_common()
            rare = [row for word, _ in others for row in by_word[word]]
            person = own.person[own_rows[0]]
            words = [most, *(word for word, _ in others)]
            choices = [Choice(f"{word} for all", tuple((own.files[row], "", "", column.name, word,
                                                       _word(own, column.name, row)) for row in own_rows
                                                      if _word(own, column.name, row) != word)) for word in words]
            found.append(Finding(
                "differs", many / len(own_rows), person, column.name,
                ", ".join(f"{word} {counts[word]}" for word in words), most,
                f"'{column.display}' should be the same for all images of {'a person' if lasting else 'an outfit'}, "
                "but the labels are " + ", ".join(f"{word} ({counts[word]})" for word in words),
                ((", ".join(word for word, _ in others), _shown(own, rare)), (most, _shown(own, by_word[most]))),
                tuple(choices)))
    return found


def _first_values(own: OwnData, schema: AttributeSchema, labels: np.ndarray) -> list[Finding]:
    """Images whose attributes all have their first value, such as "no", or "none"."""
    if len(schema.columns) < 4:
        return []
    found = []
    _, known = schema.column_truth(labels)
    for person, outfit, rows in _units(own, known.any(axis=1) & ((labels == 0) | (labels == MISSING)).all(axis=1)):
        words = {column.name: _word(own, column.name, rows[0]) for m, column in enumerate(schema.columns)
                 if known[rows[0], m]}
        found.append(Finding(
            "all first values", 0.5, person, "all", NONE, "",
            "every attribute has its first value; if unknown was written as 0, the labels are unknown",
            ((person, _shown(own, rows)),),
            (Choice("unknown", tuple(choice for name, word in words.items()
                                     for choice in of_unit(own, rows, outfit, name, word, [""])[0].rows)),)))
    return found
