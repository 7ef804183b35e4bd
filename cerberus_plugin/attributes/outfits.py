"""Attributes of people who change their clothes: `outfit_attributes.csv`, a line in words for each outfit of a person.

    split,person,outfit,gender,age,...,upper colour,...
    train,7,2,female,adult,...,red,...

Columns after the first three are those of a schema in any order, values its words; an empty one is not known. Commas,
semicolons or tabs separate them, and the text is UTF-8, or UTF-16 with its mark, as spreadsheets write it.
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

Outfit = tuple[str, int, str]  # split, person, name of the outfit within the person


def read_outfits(path: str | Path, schema: AttributeSchema) -> dict[Outfit, Tensor]:
    """Labels int64 (A,) of each outfit, -1 where not known."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. It is to have a line for each outfit of a person, with the "
                                f"columns {', '.join(KEYS)} and {', '.join(column.name for column in schema.columns)}.")
    text = decode_text(path, path.read_bytes())
    # Excel writes semicolons where a comma is the decimal sign, and tabs into its "Unicode text".
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    labels: dict[Outfit, Tensor] = {}
    try:
        names = reader.fieldnames or []
        _check_columns(path, names, schema)
        for line in reader:
            if any(line.values()):  # spreadsheets write empty lines as separators alone
                outfit, row = _read_line(f"{path}, line {reader.line_num}", line, names, schema)
                if outfit in labels:
                    raise ValueError(f"{path}, line {reader.line_num}: outfit '{outfit[2]}' of person {outfit[1]} "
                                     f"({outfit[0]}) is there twice; remove one")
                labels[outfit] = row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}. Check the quotes in and before this line; "
                         "values need none unless they have a separator.") from error
    return labels


def _read_line(where: str, line: dict, names: Sequence[str], schema: AttributeSchema) -> tuple[Outfit, Tensor]:
    if None in line or None in line.values():
        raise ValueError(f"{where}: expected {len(names)} values, as in the first line; quote a value that has a "
                         "separator")
    outfit = _outfit(where, *(line.pop(key).strip() for key in KEYS))
    try:
        words = {name: word.strip() for name, word in line.items() if word.strip()}
        return outfit, torch.from_numpy(schema.parse(words))
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('search: ')}") from error


def write_outfits(path: str | Path, schema: AttributeSchema, labels: Mapping[Outfit, Tensor]) -> None:
    """The file that `read_outfits` reads, sorted, so that equal labels give equal files."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*KEYS, *(column.name for column in schema.columns)], restval="", lineterminator="\n")
    writer.writeheader()
    for outfit, row in sorted(labels.items()):
        writer.writerow(dict(zip(KEYS, outfit)) | schema.describe(row))
    Path(path).write_text(text.getvalue(), encoding="utf-8")


def outfit_name(name: str) -> str:
    """Numbers of outfits without leading zeros: '002' and '2' are one."""
    return name.lstrip("0") or "0" if re.fullmatch("[0-9]+", name) else name


def _check_columns(path: Path, names: Sequence[str], schema: AttributeSchema) -> None:
    wanted = [*KEYS, *(column.name for column in schema.columns)]
    if len(names) == 1:
        raise ValueError(f"{path}: the first line has one column, '{names[0][:40]}'; columns are separated by commas, "
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
        raise ValueError(f"{where}: got '{got}', expected {' or '.join(SPLITS)}, the number of a person and the name "
                         "of an outfit")
    return split, int(person), outfit_name(outfit)
