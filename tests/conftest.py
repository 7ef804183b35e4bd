"""Inputs that tests share: labels, annotation files, a drawn data set, small configurations. No data is shipped."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

import cerberus_plugin  # noqa: F401  adapts the host before any test imports it

torch.set_num_threads(2)

REAL_DATA = Path(os.environ.get("CERBERUS_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the published annotation files, which this project does not ship."""
    if not (REAL_DATA / "market_attribute.mat").is_file():
        pytest.skip(f"published annotation files not found in {REAL_DATA}; name their folder by CERBERUS_SHARED_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def market(real_data):
    from cerberus_plugin.attributes import MARKET1501, read_annotations

    return read_annotations(real_data / "market_attribute.mat", MARKET1501)


@pytest.fixture(scope="session")
def duke(real_data):
    from cerberus_plugin.attributes import DUKEMTMC, read_annotations

    return read_annotations(real_data / "duke_attribute.mat", DUKEMTMC)


def random_labels(schema, count: int, seed: int = 0) -> torch.Tensor:
    """Valid labels int64 (count, A): at most one colour a garment and one thing carried."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(field.values) for field in schema.fields]
    labels = torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)
    exclusive = [column.fields for column in schema.columns if column.is_colour]
    exclusive += [tuple(schema.index(name) for name in names) for names in schema.exclusive]
    for fields in exclusive:
        choice = torch.randint(len(fields) + 1, (count,), generator=generator)  # the last: none
        labels[:, list(fields)] = (choice[:, None] == torch.arange(len(fields))).long()
    return labels


def write_annotations(path: Path, schema, train: dict, test: dict, root: str = "market_attribute", **changes) -> Path:
    """An annotation file in the published form; `changes` replace fields of train, None removes one."""

    def split(labels: dict) -> dict:
        fields = {"image_index": np.array([f"{pid:04d}" for pid in labels], dtype=object)}
        for i, field in enumerate(schema.fields):
            fields[field.name] = np.array([int(row[i]) + 1 for row in labels.values()], dtype=np.uint8)
        return fields

    first = split(train)
    for name, value in changes.items():
        first.pop(name) if value is None else first.__setitem__(name, value)
    savemat(path, {root: {"train": first, "test": split(test)}})
    return path
