"""Attribute labels for cloth-changing datasets: `outfit_attributes.csv`, one line per outfit of an identity.

    split,person,outfit,gender,age,...,upper colour,...
    train,7,2,female,adult,...,red,...

The columns after the first three are those of a schema, in any order, with its values as text. An empty cell is
unknown. The separator is a comma, a semicolon or a tab. The encoding is UTF-8, or UTF-16 with a byte order mark, as
written by spreadsheet programs.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..utils.files import decode_text
from .schema import AttributeSchema

FILE_NAME = "outfit_attributes.csv"
KEYS = ("split", "person", "outfit")
SPLITS = ("train", "test")

Outfit = tuple[str, int, str]  # split, pid, name of the outfit


def read_outfits(path: str | Path, schema: AttributeSchema) -> dict[Outfit, Tensor]:
    """Read the labels of outfits.

    Args:
        path: path of the CSV file.
        schema: defines columns and values.

    Returns:
        from each outfit to its labels int64 (A,), -1 where unknown.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a column or value does not belong to the schema, or an outfit is listed twice; with the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected one line per outfit of a person, with the columns "
                                f"{', '.join(KEYS)} and {', '.join(column.name for column in schema.columns)}.")
    text = decode_text(path, path.read_bytes())
    # Excel writes semicolons in locales with a decimal comma, and tabs in "Unicode text".
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    labels: dict[Outfit, Tensor] = {}
    try:
        names = reader.fieldnames or []
        _check_columns(path, names, schema)
        for line in reader:
            if any(line.values()):  # spreadsheet programs write empty lines as separators
                outfit, row = _read_line(f"{path}, line {reader.line_num}", line, names, schema)
                if outfit in labels:
                    raise ValueError(f"{path}, line {reader.line_num}: outfit '{outfit[2]}' of person {outfit[1]} "
                                     f"({outfit[0]}) is listed twice; remove one of the lines")
                labels[outfit] = row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}. Check the quotes in and before this line; "
                         "only values that contain a separator need quotes.") from error
    return labels


def _read_line(where: str, line: dict, names: Sequence[str], schema: AttributeSchema) -> tuple[Outfit, Tensor]:
    if None in line or None in line.values():
        raise ValueError(f"{where}: expected {len(names)} values, as in the first line; quote values that contain a "
                         "separator")
    outfit = _outfit(where, *(line.pop(key).strip() for key in KEYS))
    try:
        words = {name: word.strip() for name, word in line.items() if word.strip()}
        return outfit, torch.from_numpy(schema.parse(words))
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('search: ')}") from error


def write_outfits(path: str | Path, schema: AttributeSchema, labels: Mapping[Outfit, Tensor]) -> None:
    """Write the file that `read_outfits` reads. Lines are sorted, so that equal labels give equal files.

    Args:
        path: path of the CSV file.
        schema: schema of the labels.
        labels: maps each outfit to labels int64 (A,), -1 where unknown.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [*KEYS, *(column.name for column in schema.columns)], restval="", lineterminator="\n")
    writer.writeheader()
    for outfit, row in sorted(labels.items()):
        writer.writerow(dict(zip(KEYS, outfit)) | schema.describe(row))
    Path(path).write_text(text.getvalue(), encoding="utf-8")


def outfit_name(name: str) -> str:
    """Remove leading zeros from the number of an outfit; other names are unchanged.

    Examples:
        >>> outfit_name("002"), outfit_name("000"), outfit_name("summer")
        ('2', '0', 'summer')
    """
    return name.lstrip("0") or "0" if re.fullmatch("[0-9]+", name) else name


def _check_columns(path: Path, names: Sequence[str], schema: AttributeSchema) -> None:
    wanted = [*KEYS, *(column.name for column in schema.columns)]
    if len(names) == 1:
        raise ValueError(f"{path}: the first line has one column, '{names[0][:40]}'; separate columns by commas, "
                         "semicolons or tabs")
    for what, wrong in (("lacks", [name for name in wanted if name not in names]),
                        ("has unknown or repeated", [name for i, name in enumerate(names)
                                                     if name not in wanted or name in names[:i]])):
        if wrong:
            raise ValueError(f"{path}: the first line {what} column(s) {', '.join(wrong)}; expected "
                             f"{', '.join(wanted)} of {schema.name}")


def _outfit(where: str, split: str, person: str, outfit: str) -> Outfit:
    if split not in SPLITS or not re.fullmatch("[0-9]{1,9}", person) or not outfit:
        got = ",".join((split, person, outfit))[:80]
        raise ValueError(f"{where}: got '{got}', expected {' or '.join(SPLITS)}, the number of a person, and the name "
                         "of an outfit")
    return split, int(person), outfit_name(outfit)
