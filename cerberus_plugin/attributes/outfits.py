"""Attributes of people who change their clothes: `outfit_attributes.csv`, a line in words for each outfit of a person.

    split,person,outfit,gender,age,...,upper colour,...
    train,7,2,female,adult,...,red,...

Columns after the first three are those of a schema in any order, values its words; an empty one is not known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

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
    with open(path, newline="", encoding="utf-8-sig") as file:  # Excel writes the mark
        reader = csv.DictReader(file)
        _check_columns(path, reader.fieldnames or [], schema)
        labels: dict[Outfit, Tensor] = {}
        for line in reader:
            where = f"{path}, line {reader.line_num}"
            if None in line or None in line.values():
                raise ValueError(f"{where}: expected {len(reader.fieldnames)} values, as in the first line; quote "
                                 "a value that has a comma")
            outfit = _outfit(where, *(line.pop(key).strip() for key in KEYS))
            if outfit in labels:
                raise ValueError(f"{where}: outfit '{outfit[2]}' of person {outfit[1]} ({outfit[0]}) is there twice; "
                                 "remove one")
            try:
                labels[outfit] = schema.parse({name: word.strip() for name, word in line.items() if word.strip()})
            except ValueError as error:
                raise ValueError(f"{where}: {str(error).removeprefix('search: ')}") from error
    return labels


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
    return str(int(name)) if name.isdecimal() else name


def _check_columns(path: Path, names: list[str], schema: AttributeSchema) -> None:
    wanted = [*KEYS, *(column.name for column in schema.columns)]
    if len(names) == 1:
        raise ValueError(f"{path}: the first line has one column, '{names[0][:40]}'; columns are separated by commas")
    for what, wrong in (("lacks", [name for name in wanted if name not in names]),
                        ("has unknown or repeated", [name for i, name in enumerate(names)
                                                     if name not in wanted or name in names[:i]])):
        if wrong:
            raise ValueError(f"{path}: the first line {what} column(s) {', '.join(wrong)}; expected "
                             f"{', '.join(wanted)} of {schema.name}")


def _outfit(where: str, split: str, person: str, outfit: str) -> Outfit:
    if split not in SPLITS or not person.isdecimal() or not outfit:
        raise ValueError(f"{where}: got '{split},{person},{outfit}', expected {' or '.join(SPLITS)}, the number of a "
                         "person and the name of an outfit")
    return split, int(person), outfit_name(outfit)
