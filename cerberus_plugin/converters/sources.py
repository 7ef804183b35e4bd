"""What converters share in reading: files where they are published, and labels checked one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..attributes.matlab import read_matlab
from .questions import UNKNOWN

MOST_BYTES = 2**28  # of an annotation file; that of RAPv2 has 103 MB where it is not compressed


def find(source: Path, *places: str, folder: bool = False) -> Path:
    """The first of these places below the folder of a set that is there.

    Raises:
        FileNotFoundError: with all of them.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder. Give the folder of the data set as it is unpacked.")
    for place in places:
        path = source / place
        if path.is_dir() if folder else path.is_file():
            return path
    raise FileNotFoundError(f"{source}: has no {' and no '.join(places)}. Give the folder of the data set as it is "
                            "unpacked, complete.")


def read_annotation(path: Path, *names: str) -> list:
    """The variables of a MATLAB file, or the fields of its one struct, by name.

    Raises:
        ValueError: if it cannot be read, or has no variable of a name.
    """
    found = _variables(path)
    if len(found) == 1 and isinstance(content := next(iter(found.values())), dict):
        found = content
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path}: has no '{missing[0]}', only {', '.join(found) or 'nothing'}. Is this the annotation "
                         "file of another data set?")
    return [found[name] for name in names]


def read_fields(path: Path, *kinds: str) -> list:
    """Fields of the one struct of a MATLAB file by their place, of which some reader of the set tells.

    Args:
        kinds: names for the error, one for each of the first fields; "" for one that is not needed.
    """
    found = _variables(path)
    structs = [value for value in found.values() if isinstance(value, dict)]
    if len(structs) != 1 or len(structs[0]) < len(kinds):
        raise ValueError(f"{path}: expected one struct with {', '.join(filter(None, kinds))}, found "
                         f"{', '.join(found) or 'nothing'}. Is this the annotation file of another data set?")
    return [value for value, kind in zip(structs[0].values(), kinds) if kind]


def _variables(path: Path) -> dict[str, Any]:
    try:
        return read_matlab(path, MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable MATLAB file ({error}). Expected the annotation file as published; it "
                         "may be truncated: copy it again.") from error


def texts(path: Path, what: str, values) -> list[str]:
    """A list of texts, without spaces around them.

    Raises:
        ValueError: if it is something else.
    """
    found = np.atleast_1d(np.asarray(values, object)).ravel().tolist()
    wrong = next((value for value in found if not isinstance(value, str)), None)
    if wrong is not None or not found:
        raise ValueError(f"{path}: {what} hold {'nothing' if wrong is None else repr(wrong)[:60]}, expected texts. "
                         "Use the file as published.")
    return [text.strip() for text in found]


def matrix(path: Path, values, rows: int | None, columns: int) -> np.ndarray:
    """A matrix of numbers with so many rows, or any number, and at least so many columns.

    Raises:
        ValueError: if it is something else.
    """
    found = np.atleast_2d(np.asarray(values))
    if found.dtype.kind not in "buif" or found.ndim != 2 or found.shape[1] < columns or rows not in (None, len(found)):
        raise ValueError(f"{path}: labels are {found.dtype.name}, {' x '.join(map(str, found.shape))}, expected "
                         f"numbers, {'any number of' if rows is None else rows} rows x {columns} or more. Use the file "
                         "as published.")
    return found


def check_names(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse names of attributes, or an order, that are not the published ones: labels would be misnamed."""
    for place, (own, other) in enumerate(zip([*found, "nothing"], expected), start=1):
        if own != other:
            raise ValueError(f"{path}: attribute {place} is '{own}', expected '{other}'. The labels would get wrong "
                             "names; use the file as published.")


def check_labels(path: Path, labels, files: Sequence[str], names: Sequence[str],
                 uncertain: Sequence[int] = ()) -> np.ndarray:
    """Yes/no labels as int8 (N, B), those that the set calls uncertain as `UNKNOWN`.

    Raises:
        ValueError: for another shape, or with the picture and attribute of a label that is neither 0 nor 1.
    """
    labels = np.atleast_2d(np.asarray(labels))
    if labels.shape != (len(files), len(names)) or labels.dtype.kind not in "buif":
        raise ValueError(f"{path}: labels are {' x '.join(map(str, labels.shape))}, expected {len(files)} pictures x "
                         f"{len(names)} attributes. Use the file as published.")
    wrong = ~np.isin(labels, (0, 1, *uncertain))
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(f"{path}: '{names[column]}' of {files[row]} is {labels[row, column]}, expected 0 or 1"
                         f"{''.join(f' ({value}: uncertain)' for value in uncertain)}; {int(wrong.sum())} labels are "
                         "wrong. Use the file as published.")
    return np.where(np.isin(labels, uncertain), UNKNOWN, labels).astype(np.int8)


def split_of(path: Path, parts: Mapping[str, object], count: int) -> list[str]:
    """The part of each of `count` pictures; "" for those in none.

    Args:
        parts: numbers of pictures, from 1, by part.
    """
    split = np.full(count, "", object)
    for part, numbers in parts.items():
        rows = np.atleast_1d(np.asarray(numbers)).ravel()
        if rows.dtype.kind not in "uif" or not ((rows >= 1) & (rows <= count)).all():
            raise ValueError(f"{path}: the partition '{part}' has picture numbers outside 1 to {count}. Use the file "
                             "as published.")
        rows = rows.astype(np.int64) - 1
        twice = rows[split[rows] != ""]
        if len(twice) or len(np.unique(rows)) < len(rows):
            raise ValueError(f"{path}: picture {int(twice[0] if len(twice) else rows[0]) + 1} is in the partition "
                             f"'{part}' and in another one, or twice. Use the file as published.")
        split[rows] = part
    return split.tolist()


def chosen(path: Path, partitions, number: int) -> Any:
    """One of the partitions of a set, counted from 1."""
    several = np.atleast_1d(np.asarray(partitions, object)).ravel()
    if not 1 <= number <= len(several):
        raise ValueError(f"{path}: has the partitions 1 to {len(several)}, got {number}. Give another --partition.")
    return several[number - 1]


def chosen_parts(path: Path, partitions, number: int, fields: Mapping[str, str | int]) -> dict[str, object]:
    """Picture numbers by part, of one of the partitions that are structs.

    Args:
        fields: name or place of the field of each part.
    """
    own = chosen(path, partitions, number)
    found = {} if not isinstance(own, dict) else own | dict(enumerate(own.values()))
    missing = [part for part, name in fields.items() if name not in found]
    if missing:
        raise ValueError(f"{path}: partition {number} has no '{missing[0]}'. Use the file as published.")
    return {part: found[name] for part, name in fields.items()}
