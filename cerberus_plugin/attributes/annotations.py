"""Read `market_attribute.mat` and `duke_attribute.mat`: the attribute labels of each identity, validated by field."""

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

# Values outside the valid codes that the annotators have confirmed as missing labels: (schema, field) -> value.
KNOWN_MISSING = {(DUKEMTMC.name, "top"): 0}


@dataclass(frozen=True)
class Annotations:
    """Attribute labels of one dataset.

    Attributes:
        schema: defines the A fields of a label row.
        train: maps a pid, or the number of an outfit, to labels int64 (A,); -1 where a label is missing.
        test: labels of the test identities, in the same form.
        path: the annotation file.
        digest: a hash of all labels, set if they come from more files than `path`.
        matching: report of the omitted attributes and values, set if the labels were converted from another schema.
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
        """Convert the labels to another schema.

        Args:
            schema: the target schema.
            readings: see `matching.relabel`.

        Returns:
            new annotations. `matching` is the report of the first conversion, if there were several.
        """
        tables = [self.train, self.test]
        rows = [row for table in tables for row in table.values()]
        whole = torch.stack(rows) if rows else torch.empty(0, len(self.schema.fields), dtype=torch.int64)
        labels, report = relabel(whole, self.schema, schema, readings)
        train, test = (dict(zip(table, part)) for table, part in
                       zip(tables, labels.split([len(table) for table in tables])))
        return Annotations(schema, train, test, self.path, self.digest, self.matching or report)

    def lookup(self, split: str, pids) -> Tensor:
        """Return the labels of identities.

        Args:
            split: "train" or "test".
            pids: N identity numbers.

        Returns:
            int64 (N, A); all -1 in the rows of identities without labels.
        """
        table = getattr(self, split)
        unlabelled = torch.full((len(self.schema.fields),), MISSING, dtype=torch.int64)
        rows = [table.get(int(pid), unlabelled) for pid in pids]
        return torch.stack(rows) if rows else unlabelled.new_empty(0, len(self.schema.fields))


def find_annotations(dataset_dir: str | Path, file_name: str) -> Path:
    """Find an annotation file in a dataset folder, or in its subfolder `attribute/`.

    Args:
        dataset_dir: folder of the dataset.
        file_name: name of the annotation file.

    Returns:
        the path of the file.

    Raises:
        FileNotFoundError: if the file is in neither folder.
    """
    places = [Path(dataset_dir) / file_name, Path(dataset_dir) / "attribute" / file_name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{file_name} not found; looked in {places[0]} and {places[1]}. Put the attribute annotations of the dataset "
        "there, or generate a labelled synthetic dataset with `python -m cerberus_plugin.synthetic`.")


def read_annotations(path: str | Path, schema: AttributeSchema) -> Annotations:
    """Read one annotation file.

    Fields are matched by name, because the two splits list them in different orders.

    Args:
        path: a MATLAB file with one struct that has the fields `train` and `test`.
        schema: the expected fields and values.

    Returns:
        labels of both splits, converted from the codes 1, 2, ... to the values 0, 1, ...

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is damaged, has another structure, or contains an invalid label. The message gives the
            file, field, identity, value and the allowed values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        content = read_matlab(path)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable MATLAB file ({error}). "
                         "The file may be truncated: copy the published annotation file again.") from error
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
                         "Is this the annotation file of another dataset?")
    pids = [str(pid) for pid in np.atleast_1d(fields["image_index"]).ravel()]
    bad = [pid for pid in pids if not re.fullmatch("[0-9]{1,9}", pid)]
    if bad or len({int(pid) for pid in pids}) != len(pids):
        raise ValueError(f"{path}: {split}.image_index must contain distinct identity numbers of up to 9 digits, got "
                         f"{_shortened(bad) if bad else 'duplicates'}.")
    labels = torch.empty(len(pids), len(schema.fields), dtype=torch.int64)
    for column, field in enumerate(schema.fields):
        written = np.atleast_1d(np.asarray(fields[field.name], dtype=object))
        if written.shape != (len(pids),):
            raise ValueError(f"{path}: {split}.{field.name} has {written.size} labels for {len(pids)} identities, "
                             "expected one per identity; the file is damaged: use the published file, or export it "
                             "again.")
        labels[:, column] = torch.tensor(_checked(path, split, schema, field, written.tolist(), pids))
    return {int(pid): row for pid, row in zip(pids, labels)}


def _checked(path, split, schema, field, written: list, pids: list[str]) -> list[int]:
    """Convert codes 1, 2, ... to values 0, 1, ... and known missing labels to -1; raise ValueError for others."""
    codes = {code: code - 1 for code in range(1, len(field.values) + 1)}
    if (schema.name, field.name) in KNOWN_MISSING:
        codes[KNOWN_MISSING[schema.name, field.name]] = MISSING
    # `in codes` rejects fractions and NaN. Booleans need their own check, because True == 1.
    wrong = [i for i, value in enumerate(written) if not isinstance(value, int | float) or isinstance(value, bool)
             or value not in codes]
    if wrong:
        allowed = ", ".join(f"{i} ({word})" for i, word in enumerate(field.values, start=1))
        raise ValueError(
            f"{path}: attribute '{field.name}' of identity {pids[wrong[0]]} ({split}) is "
            f"{_shortened(written[wrong[0]])}, expected one of {allowed}; {len(wrong)} of {len(pids)} identities "
            "affected. Correct the file, or, if the value means a missing label, add it to KNOWN_MISSING in "
            "cerberus_plugin/attributes/annotations.py.")
    return [codes[value] for value in written]


def _shortened(value) -> str:
    """The representation of a value, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
