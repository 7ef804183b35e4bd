"""Market-1501 and DukeMTMC-reID with attributes, read as by `Market1501Attributes` and `DukeMTMCAttributes`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import cerberus_plugin

from ..attributes.schema import DUKEMTMC, MARKET1501, AttributeSchema
from ..own_data.schema_file import Wording
from .registry import register_converter
from .sources import find
from .writing import Converted

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
DISTRACTOR = 0
RULE = ("re-identification by CMC and mAP, single query, matches under the query's own camera ignored; attributes on "
        "the gallery images, {} yes/no labels")


@register_converter("market1501", title="Market-1501 (Zheng et al., 2015) with attributes (Lin et al., 2019)",
                    licence="none given; research", rule=RULE.format(30) + " in 12 columns")
def read_market(source: Path) -> Converted:
    """Read market_attribute.mat, and bounding_box_train/, query/ and bounding_box_test/.

    Junk images (-1) are excluded, as in FastReID. Distractors (0000) stay in the gallery, listed as `nobody` in the
    schema.
    """
    return _read(source, MARKET1501, "market_attribute.mat", "Market-1501-v15.09.15",
                 {"train pictures": 12_936, "query pictures": 3_368, "gallery pictures": 15_913, "train people": 751,
                  "test people": 750})


@register_converter("dukemtmc", title="DukeMTMC-reID (Ristani et al., 2016; Zheng et al., 2017) with attributes (Lin "
                    "et al., 2019)", licence="withdrawn by its authors in 2019",
                    rule=RULE.format(23) + " in 10 columns")
def read_duke(source: Path) -> Converted:
    """Read duke_attribute.mat, and bounding_box_train/, query/ and bounding_box_test/."""
    return _read(source, DUKEMTMC, "duke_attribute.mat", "DukeMTMC-reID",
                 {"train pictures": 16_522, "query pictures": 2_228, "gallery pictures": 17_661, "train people": 702,
                  "test people": 1_110})


def _read(source: Path, schema: AttributeSchema, annotations: str, folder: str,
          published: Mapping[str, int]) -> Converted:
    cerberus_plugin.use_torch()
    from ..attributes import read_annotations
    from ..data.listing import list_market_images

    source = source / folder if (source / folder).is_dir() else source
    path = find(source, annotations, f"attribute/{annotations}")
    labels = read_annotations(path, schema)
    files: list[str] = []
    columns: dict[str, list[str]] = {"person": [], "camera": [], "split": []}
    people: dict[str, tuple[str, int]] = {}  # part and identity that give its labels
    for part, name in FOLDERS.items():
        split = "train" if part == "train" else "test"
        for image, *numbers in list_market_images(str(find(source, name, folder=True))):
            pid, camera = map(int, numbers)
            person = f"{pid:04d}"
            if pid != DISTRACTOR and pid not in getattr(labels, split):
                raise ValueError(f"{path}: no {split} labels for identity {person} ({image}). Images and annotations "
                                 "must belong to the same dataset.")
            if people.setdefault(person, (split, pid)) != (split, pid):
                raise ValueError(f"{image}: identity {person} is in both training and test; expected the folders as "
                                 "published.")
            files.append(f"{name}/{os.path.basename(image)}")
            for column, value in zip(columns.values(), (person, str(camera + 1), part)):
                column.append(value)
    people.pop(f"{DISTRACTOR:04d}", None)
    words = {person: schema.describe(getattr(labels, split)[pid]) for person, (split, pid) in sorted(people.items())}
    distractors = columns["person"].count(f"{DISTRACTOR:04d}")
    nobody = (f"{DISTRACTOR:04d}",) * bool(distractors)
    return Converted(source, files, columns, Wording(schema, {}, nobody=nobody), path,
                     people={"person": list(words), **{column.name: [own.get(column.name, "") for own in words.values()]
                                                       for column in schema.columns}},
                     binaries=_binaries(schema), published=published,
                     about={"distractors": f"{distractors} pictures, person 0000"} if distractors else {})


def _binaries(schema: AttributeSchema) -> list[tuple[str, str, str]]:
    """The bits of the semantic IDs: one for a field of two values, otherwise one for each value."""
    found = []
    for field in schema.fields:
        if field.column:
            found.append((field.name, field.column, field.word))
        elif len(field.values) == 2:
            found.append((field.name, field.name, field.values[1]))
        else:
            found += [(f"{field.name} {value}", field.name, value) for value in field.values]
    return found
