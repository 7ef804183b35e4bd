"""Read `market_attribute.mat` and `duke_attribute.mat`: labels of every identity, checked field by field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .matching import Matching, Readings, relabel
from .matlab import read_matlab
from .schema import DUKEMTMC, MISSING, AttributeSchema

# Label values outside their codes that the annotators have acknowledged as missing: (schema, field) -> value.
KNOWN_MISSING = {(DUKEMTMC.name, "top"): 0}


@dataclass(frozen=True)
class Annotations:
    """Labels of one dataset: `train` and `test` map a pid, or an outfit's number, to int64 (A,), -1 where missing.

    `digest` is a hash of all labels where more than the file `path` holds them. `matching` tells what was left out
    where the labels are those of another schema, read under `schema`.
    """

    schema: AttributeSchema
    train: dict[int, Tensor]
    test: dict[int, Tensor]
    path: str = ""
    digest: str | None = None
    matching: Matching | None = None

    def __repr__(self) -> str:
        return f"Annotations({self.schema.name}: {len(self.train)} training and {len(self.test)} test rows)"

    def under(self, schema: AttributeSchema, readings: Readings | None = None) -> Annotations:
        """The same labels under another schema, see `matching.relabel`; what was left out before is still told."""
        tables = [self.train, self.test]
        rows = [row for table in tables for row in table.values()]
        whole = torch.stack(rows) if rows else torch.empty(0, len(self.schema.fields), dtype=torch.int64)
        labels, report = relabel(whole, self.schema, schema, readings)
        train, test = (dict(zip(table, part)) for table, part in
                       zip(tables, labels.split([len(table) for table in tables])))
        return Annotations(schema, train, test, self.path, self.digest, self.matching or report)

    def lookup(self, split: str, pids) -> Tensor:
        """Labels of many identities of a split: int64 (N, A); rows of unlabelled identities are all -1."""
        table = getattr(self, split)
        unlabelled = torch.full((len(self.schema.fields),), MISSING, dtype=torch.int64)
        rows = [table.get(int(pid), unlabelled) for pid in pids]
        return torch.stack(rows) if rows else unlabelled.new_empty(0, len(self.schema.fields))


def find_annotations(dataset_dir: str | Path, file_name: str) -> Path:
    """The annotation file in the two places where people keep it: beside the image folders, or in `attribute/`."""
    places = [Path(dataset_dir) / file_name, Path(dataset_dir) / "attribute" / file_name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{file_name} not found; looked in {places[0]} and {places[1]}. Put the attribute annotations of the dataset "
        "there, or draw people with labels by `python -m cerberus_plugin.synthetic`.")


def read_annotations(path: str | Path, schema: AttributeSchema) -> Annotations:
    """Read one annotation file.

    The two splits list their fields in different orders, so fields are read by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with file, field, identity, value and allowed values, if the file is damaged or of another kind, or
            a label is anything but the code of a value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        content = read_matlab(path)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable MATLAB file ({error}). "
                         "Expected the annotation file as published; it may be truncated: copy it again.") from error
    structs = [value for value in content.values() if isinstance(value, dict)]
    if len(structs) != 1 or not {"train", "test"} <= set(structs[0]):
        raise ValueError(f"{path}: expected one struct with the fields 'train' and 'test', found {list(content)}. "
                         f"This is not an attribute annotation file of {schema.name}.")
    return Annotations(schema, _read_split(path, structs[0], "train", schema),
                       _read_split(path, structs[0], "test", schema), str(path))


def _read_split(path: Path, struct: dict, split: str, schema: AttributeSchema) -> dict[int, Tensor]:
    fields = struct[split]
    wanted = {"image_index", *schema.field_names}
    if not isinstance(fields, dict) or not wanted <= set(fields):
        missing = sorted(wanted - set(fields if isinstance(fields, dict) else ()))
        raise ValueError(f"{path}: {split} lacks the field(s) {', '.join(missing)} of {schema.name}. "
                         f"Is this the annotation file of another dataset?")
    pids = [str(pid) for pid in np.atleast_1d(fields["image_index"]).ravel()]
    bad = [pid for pid in pids if not re.fullmatch("[0-9]{1,9}", pid)]
    if bad or len({int(pid) for pid in pids}) != len(pids):
        raise ValueError(f"{path}: {split}.image_index must hold distinct identity numbers of up to 9 digits, got "
                         f"{_shortened(bad) if bad else 'repeats'}.")
    labels = torch.empty(len(pids), len(schema.fields), dtype=torch.int64)
    for column, field in enumerate(schema.fields):
        written = np.atleast_1d(np.asarray(fields[field.name], dtype=object))
        if written.shape != (len(pids),):
            raise ValueError(f"{path}: {split}.{field.name} has {written.size} labels for {len(pids)} identities, "
                             "expected one each; the file is damaged: use the published one, or write it anew.")
        labels[:, column] = torch.tensor(_checked(path, split, schema, field, written.tolist(), pids))
    return {int(pid): row for pid, row in zip(pids, labels)}


def _checked(path, split, schema, field, written: list, pids: list[str]) -> list[int]:
    """Codes 1, 2, ... as values 0, 1, ...; an acknowledged missing label as -1; anything else is an error."""
    codes = {code: code - 1 for code in range(1, len(field.values) + 1)}
    if (schema.name, field.name) in KNOWN_MISSING:
        codes[KNOWN_MISSING[schema.name, field.name]] = MISSING
    # A fraction or NaN equals no code, and text is no number; true would equal 1.
    wrong = [i for i, value in enumerate(written) if not isinstance(value, int | float) or isinstance(value, bool)
             or value not in codes]
    if wrong:
        allowed = ", ".join(f"{i} ({word})" for i, word in enumerate(field.values, start=1))
        raise ValueError(
            f"{path}: attribute '{field.name}' of identity {pids[wrong[0]]} ({split}) is "
            f"{_shortened(written[wrong[0]])}, expected one of {allowed}; {len(wrong)} of {len(pids)} identities "
            "affected. Correct the file, or add the value to KNOWN_MISSING in "
            "cerberus_plugin/attributes/annotations.py if it stands for a missing label.")
    return [codes[value] for value in written]


def _shortened(value) -> str:
    """A value as it is written, or its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
