"""Functions for converters: find and read published files, and check every label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..attributes.matlab import read_matlab
from .questions import UNKNOWN

MOST_BYTES = 2**28  # largest annotation file; that of RAPv2 has 103 MB uncompressed


def find(source: Path, *places: str, folder: bool = False) -> Path:
    """Find a file or folder of a dataset.

    Args:
        source: folder of the dataset.
        places: paths below it, in order of preference.
        folder: whether to find a folder instead of a file.

    Returns:
        the path of the first one that exists.

    Raises:
        FileNotFoundError: if none exists, with all of them.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder. Give the folder of the unpacked dataset.")
    for place in places:
        path = source / place
        if path.is_dir() if folder else path.is_file():
            return path
    raise FileNotFoundError(f"{source}: has no {' and no '.join(places)}. Give the folder of the complete, unpacked "
                            "dataset.")


def read_annotation(path: Path, *names: str) -> list:
    """Read variables of a MATLAB file, or fields of its single struct, by name.

    Args:
        path: path of the file.
        names: names of the variables or fields.

    Returns:
        their values, in the order of `names`.

    Raises:
        ValueError: if the file cannot be read, or a name is missing.
    """
    found = _variables(path)
    if len(found) == 1 and isinstance(content := next(iter(found.values())), dict):
        found = content
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path}: has no '{missing[0]}', only {', '.join(found) or 'nothing'}. Is this the annotation "
                         "file of another dataset?")
    return [found[name] for name in names]


def read_fields(path: Path, *kinds: str) -> list:
    """Read fields of the single struct of a MATLAB file by position, for files whose field names are not documented.

    Args:
        path: path of the file.
        kinds: for each of the first fields, a name for error messages; "" for a field that is not needed.

    Returns:
        the values of the fields that have a name.

    Raises:
        ValueError: if the file does not contain one struct with these fields.
    """
    found = _variables(path)
    structs = [value for value in found.values() if isinstance(value, dict)]
    if len(structs) != 1 or len(structs[0]) < len(kinds):
        raise ValueError(f"{path}: expected one struct with {', '.join(filter(None, kinds))}, found "
                         f"{', '.join(found) or 'nothing'}. Is this the annotation file of another dataset?")
    return [value for value, kind in zip(structs[0].values(), kinds) if kind]


def _variables(path: Path) -> dict[str, Any]:
    try:
        return read_matlab(path, MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable MATLAB file ({error}). Expected the annotation file as published; it "
                         "may be truncated: copy it again.") from error


def texts(path: Path, what: str, values) -> list[str]:
    """Return a list of texts without surrounding spaces.

    Args:
        path: path of the file, for messages.
        what: name of the texts, for messages.
        values: texts, in any nesting of numpy arrays.

    Raises:
        ValueError: if there are none, or other values.
    """
    found = np.atleast_1d(np.asarray(values, object)).ravel().tolist()
    wrong = next((value for value in found if not isinstance(value, str)), None)
    if wrong is not None or not found:
        raise ValueError(f"{path}: {what} contain {'nothing' if wrong is None else repr(wrong)[:60]}, expected text. "
                         "Use the file as published.")
    return [text.strip() for text in found]


def matrix(path: Path, values, rows: int | None, columns: int) -> np.ndarray:
    """Check the shape of a matrix of numbers.

    Args:
        path: path of the file, for messages.
        values: the matrix.
        rows: number of rows; None for any number.
        columns: smallest number of columns.

    Returns:
        the matrix as an array.

    Raises:
        ValueError: if it is not such a matrix.
    """
    found = np.atleast_2d(np.asarray(values))
    if found.dtype.kind not in "buif" or found.ndim != 2 or found.shape[1] < columns or rows not in (None, len(found)):
        raise ValueError(f"{path}: labels are {found.dtype.name}, {' x '.join(map(str, found.shape))}, expected "
                         f"numbers, {'any number of' if rows is None else rows} rows x {columns} or more. Use the file "
                         "as published.")
    return found


def check_names(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Check that names of attributes and their order are as published, since labels would otherwise get wrong names.

    Raises:
        ValueError: if they differ, with the first difference.
    """
    for place, (own, other) in enumerate(zip([*found, "nothing"], expected), start=1):
        if own != other:
            raise ValueError(f"{path}: attribute {place} is '{own}', expected '{other}'. The labels would get wrong "
                             "names; use the file as published.")


def check_labels(path: Path, labels, files: Sequence[str], names: Sequence[str],
                 uncertain: Sequence[int] = ()) -> np.ndarray:
    """Check yes/no labels.

    Args:
        path: path of the file, for messages.
        labels: (N, B), 0, 1 or one of `uncertain`.
        files: N names of images.
        names: B names of labels.
        uncertain: codes of labels that the dataset marks as uncertain.

    Returns:
        int8 (N, B), 0, 1 or `UNKNOWN`.

    Raises:
        ValueError: for another shape, or another label; with its image and name.
    """
    labels = np.atleast_2d(np.asarray(labels))
    if labels.shape != (len(files), len(names)) or labels.dtype.kind not in "buif":
        raise ValueError(f"{path}: labels are {' x '.join(map(str, labels.shape))}, expected {len(files)} images x "
                         f"{len(names)} attributes. Use the file as published.")
    wrong = ~np.isin(labels, (0, 1, *uncertain))
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise ValueError(f"{path}: '{names[column]}' for {files[row]} is {labels[row, column]}, expected 0 or 1"
                         f"{''.join(f' ({value}: uncertain)' for value in uncertain)}; {int(wrong.sum())} labels are "
                         "wrong. Use the file as published.")
    return np.where(np.isin(labels, uncertain), UNKNOWN, labels).astype(np.int8)


def split_of(path: Path, parts: Mapping[str, object], count: int) -> list[str]:
    """Return the part of the split of each image.

    Args:
        path: path of the file, for messages.
        parts: numbers of images, from 1, by part.
        count: number of images.

    Returns:
        `count` parts; "" for images in no part.

    Raises:
        ValueError: if a number is outside 1 to `count`, or in two parts.

    Examples:
        >>> split_of(Path("set.mat"), {"train": [1, 3], "test": [2]}, 4)
        ['train', 'test', 'train', '']
    """
    split = np.full(count, "", object)
    for part, numbers in parts.items():
        rows = np.atleast_1d(np.asarray(numbers)).ravel()
        if rows.dtype.kind not in "uif" or not ((rows >= 1) & (rows <= count)).all():
            raise ValueError(f"{path}: the partition '{part}' has image numbers outside 1 to {count}. Use the file as "
                             "published.")
        rows = rows.astype(np.int64) - 1
        twice = rows[split[rows] != ""]
        if len(twice) or len(np.unique(rows)) < len(rows):
            raise ValueError(f"{path}: image {int(twice[0] if len(twice) else rows[0]) + 1} is in the partition "
                             f"'{part}' twice, or also in another one. Use the file as published.")
        split[rows] = part
    return split.tolist()


def chosen(path: Path, partitions, number: int) -> Any:
    """Return one of the partitions of a dataset.

    Args:
        path: path of the file, for messages.
        partitions: all partitions.
        number: number of the partition, from 1.

    Raises:
        ValueError: if there is no such partition.
    """
    several = np.atleast_1d(np.asarray(partitions, object)).ravel()
    if not 1 <= number <= len(several):
        raise ValueError(f"{path}: has the partitions 1 to {len(several)}, got {number}. Give another --partition.")
    return several[number - 1]


def chosen_parts(path: Path, partitions, number: int, fields: Mapping[str, str | int]) -> dict[str, object]:
    """Return the image numbers of a partition that is a struct.

    Args:
        path: path of the file, for messages.
        partitions: all partitions.
        number: number of the partition, from 1.
        fields: name or position of the field, by part.

    Returns:
        image numbers by part.

    Raises:
        ValueError: if there is no such partition, or a field is missing.
    """
    own = chosen(path, partitions, number)
    found = {} if not isinstance(own, dict) else own | dict(enumerate(own.values()))
    missing = [part for part, name in fields.items() if name not in found]
    if missing:
        raise ValueError(f"{path}: partition {number} has no '{missing[0]}'. Use the file as published.")
    return {part: found[name] for part, name in fields.items()}
