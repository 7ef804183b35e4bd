"""Read `market_attribute.mat` and `duke_attribute.mat`: labels of every identity, checked field by field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from .schema import DUKEMTMC, MISSING, AttributeSchema

# Label values outside their codes that the annotators have acknowledged as missing: (schema, field) -> value.
KNOWN_MISSING = {(DUKEMTMC.name, "top"): 0}


@dataclass(frozen=True)
class Annotations:
    """Labels of one data set: `train` and `test` map a pid, or an outfit's number, to int64 (A,), -1 where missing."""

    schema: AttributeSchema
    train: dict[int, Tensor]
    test: dict[int, Tensor]
    path: str = ""

    def __repr__(self) -> str:
        return f"Annotations({self.schema.name}: {len(self.train)} training and {len(self.test)} test rows)"

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
        f"{file_name} not found; looked in {places[0]} and {places[1]}. Put the attribute annotations of the data set "
        "there, or draw people with labels by `python -m cerberus_plugin.data.synthetic`.")


def read_annotations(path: str | Path, schema: AttributeSchema) -> Annotations:
    """Read one annotation file.

    The two splits list their fields in different orders, so fields are read by name; labels are unsigned bytes
    in the file, so they become int64 before 1 is taken off (0 - 1 would be 255).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        content = loadmat(path, simplify_cells=True)
    except Exception as error:  # scipy raises many kinds for a file cut short or of another format
        raise ValueError(f"{path}: not a readable MATLAB file ({type(error).__name__}: {error}). "
                         "Expected the annotation file as published; it may be truncated: copy it again.") from error
    structs = [value for key, value in content.items() if not key.startswith("__") and isinstance(value, dict)]
    if len(structs) != 1 or not {"train", "test"} <= set(structs[0]):
        names = [key for key in content if not key.startswith("__")]
        raise ValueError(f"{path}: expected one struct with the fields 'train' and 'test', found {names}. "
                         f"This is not an attribute annotation file of {schema.name}.")
    return Annotations(schema, _read_split(path, structs[0], "train", schema),
                       _read_split(path, structs[0], "test", schema), str(path))


def _read_split(path: Path, struct: dict, split: str, schema: AttributeSchema) -> dict[int, Tensor]:
    fields = struct[split]
    wanted = {"image_index", *schema.field_names}
    if not isinstance(fields, dict) or not wanted <= set(fields):
        missing = sorted(wanted - set(fields if isinstance(fields, dict) else ()))
        raise ValueError(f"{path}: {split} lacks the field(s) {', '.join(missing)} of {schema.name}. "
                         f"Is this the annotation file of another data set?")
    pids = [str(pid) for pid in np.atleast_1d(fields["image_index"])]
    bad = [pid for pid in pids if not pid.isdigit()]
    if bad or len(set(pids)) != len(pids):
        raise ValueError(f"{path}: {split}.image_index must hold distinct identity numbers, got {bad or 'repeats'}.")
    labels = torch.empty(len(pids), len(schema.fields), dtype=torch.int64)
    for column, field in enumerate(schema.fields):
        codes = np.atleast_1d(fields[field.name]).astype(np.int64)
        if codes.shape != (len(pids),):
            raise ValueError(f"{path}: {split}.{field.name} has {codes.size} labels for {len(pids)} identities.")
        labels[:, column] = torch.from_numpy(_checked(path, split, schema, field, codes, pids))
    return {int(pid): row for pid, row in zip(pids, labels)}


def _checked(path, split, schema, field, codes: np.ndarray, pids: list[str]) -> np.ndarray:
    """Codes 1, 2, ... as values 0, 1, ...; an acknowledged missing label as -1; anything else is an error."""
    values = codes - 1
    if (schema.name, field.name) in KNOWN_MISSING:
        values[codes == KNOWN_MISSING[schema.name, field.name]] = MISSING
        wrong = (values < MISSING) | (values >= len(field.values))
    else:
        wrong = (values < 0) | (values >= len(field.values))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        allowed = ", ".join(f"{i} ({word})" for i, word in enumerate(field.values, start=1))
        raise ValueError(
            f"{path}: attribute '{field.name}' of identity {pids[first]} ({split}) is {codes[first]}, expected one of "
            f"{allowed}; {int(wrong.sum())} of {len(pids)} identities affected. Correct the file, or add the value to "
            "KNOWN_MISSING in cerberus_plugin/attributes/annotations.py if it stands for a missing label.")
    return values
