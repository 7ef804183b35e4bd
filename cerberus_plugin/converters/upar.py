"""UPAR: 40 labels of images of Market-1501, PA-100K and PETA (and RAPv2), from CSV files or a pickle."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..attributes.schema import Group
from ..utils.files import decode_text
from .pickles import read_pickle
from .questions import Questions, binary, several
from .registry import register_converter
from .sources import check_labels, check_names, find, split_of, texts
from .writing import Converted

COLOURS = ("Black", "Blue", "Brown", "Green", "Grey", "Orange", "Pink", "Purple", "Red", "White", "Yellow", "Other")


def _colours(garment: str) -> dict[str, str]:
    return {f"{garment}-Color-{colour}": colour.lower() for colour in COLOURS}


# In the order of the labels in the files.
QUESTIONS = Questions("upar", (Group("identity", lasting=True), Group("hair", 0, lasting=True), Group("upper", 1),
                               Group("lower", 2), Group("accessories")), (
    several("age", "identity", {"Age-Young": "young", "Age-Adult": "adult", "Age-Old": "old"}),
    binary("gender", "identity", "Gender-Female", ("male", "female")),
    several("hair length", "hair", {"Hair-Length-Short": "short", "Hair-Length-Long": "long",
                                    "Hair-Length-Bald": "bald"}),
    binary("short sleeves", "upper", "UpperBody-Length-Short"),
    several("upper colour", "upper", _colours("UpperBody")),
    binary("short lower clothes", "lower", "LowerBody-Length-Short"),
    several("lower colour", "lower", _colours("LowerBody")),
    several("lower clothes", "lower", {"LowerBody-Type-Trousers&Shorts": "trousers or shorts",
                                       "LowerBody-Type-Skirt&Dress": "skirt or dress"}),
    binary("backpack", "accessories", "Accessory-Backpack"),
    binary("bag", "accessories", "Accessory-Bag"),
    binary("glasses", "accessories", "Accessory-Glasses-Normal"),
    binary("sunglasses", "accessories", "Accessory-Glasses-Sun"),
    binary("hat", "accessories", "Accessory-Hat"),
))
PICKLES = ("dataset_all.pkl", "UPAR/dataset_all.pkl", "data/UPAR/dataset_all.pkl")
TABLES = {"train": ("phase1/train/train.csv", "task1/train/gt.csv", "train/train.csv", "train.csv"),
          "test": ("task1/val/gt.csv", "val.csv")}
PLACES = ("annotations/", "data/annotations/", "data/", "")


@register_converter("upar", title="UPAR (Specker et al., 2023)", licence="annotations CC BY-NC-SA 3.0 DE; images "
                    "under the licences of their datasets",
                    rule="40 labels; mA over these and instance F1, threshold 0.5; retrieval by each distinct "
                         "combination of the 40 (3,462 validation queries)")
def read(source: Path, *, partition: int | None = None) -> Converted:
    """Read the challenge's CSV files, or with a partition, 1 to 10, the pickle.

    Images are in Market1501/, PA100k/ and PETA/. The labelled validation images become the part test, since the
    labels of the challenge's test set are not public.

    Args:
        source: folder of the dataset.
        partition: number of the split in the pickle; None to read the CSV files.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if the annotations are not as published, or there is no such partition.
    """
    if partition is not None:
        return _read_pickle(source, partition)
    paths = {"train": find(source, *(f"{place}{table}" for place in PLACES for table in TABLES["train"]))}
    notes = []
    try:
        paths["test"] = find(source, *(f"{place}{table}" for place in PLACES for table in TABLES["test"]))
    except FileNotFoundError:
        notes.append("there is no table of labelled validation images (task1/val/gt.csv), so there is no test part; "
                     "the table of 2024 contains only file names")
    files: list[str] = []
    split: list[str] = []
    labels = []
    for part, path in paths.items():
        own, values = _read_table(path)
        labels.append(check_labels(path, values, own, QUESTIONS.published))
        files += own
        split += [part] * len(own)
    published = {"train pictures": 97_669} | ({"test pictures": 33_407} if "test" in paths else {})
    return Converted(_root(source, files[0]), files,
                     {"split": split, **QUESTIONS.words(np.concatenate(labels), QUESTIONS.published)},
                     QUESTIONS.wording, paths["train"], binaries=QUESTIONS.binaries, notes=tuple(notes),
                     published=published)


def _root(source: Path, file: str) -> Path:
    """The folder that contains the images."""
    return find(source, *(f"{place}{file.split('/')[0]}" for place in ("", "data/")), folder=True).parent


def _read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of images, and their labels (N, 40)."""
    rows = list(filter(None, csv.reader(io.StringIO(decode_text(path, path.read_bytes()), newline=""))))
    if len(rows) < 2:
        raise ValueError(f"{path}: has no lines below the first one. Use the file as published.")
    # The first line has the names of the 40 labels, with or without "image" before them; it may begin with "# ".
    names = [name.removeprefix("#").strip() for name in rows[0]][-len(QUESTIONS.published):]
    check_names(path, names, QUESTIONS.published)
    wide = 1 + len(names)
    for line, row in enumerate(rows[1:], start=2):
        wrong = next((cell for cell in row[1:] if cell.strip() not in ("0", "1")), None)
        if len(row) != wide or wrong is not None:
            raise ValueError(f"{path}, line {line}: "
                             + (f"has {len(row)} cells, expected a name and {len(names)} labels" if len(row) != wide
                                else f"has the label '{wrong}', expected 0 or 1") + ". Use the file as published.")
    return [row[0].strip() for row in rows[1:]], np.array([row[1:] for row in rows[1:]]).astype(np.int8)


def _read_pickle(source: Path, partition: int) -> Converted:
    path = find(source, *PICKLES)
    content = read_pickle(path)
    wanted = ("image_name", "label", "attr_name", "partition")
    if not isinstance(content, Mapping) or not set(wanted) <= set(content):
        raise ValueError(f"{path}: expected a record with {', '.join(wanted)}, found "
                         f"{', '.join(content) if isinstance(content, Mapping) else type(content).__name__}. Is this "
                         "the file of another dataset?")
    files, names = (texts(path, name, content[name]) for name in ("image_name", "attr_name"))
    check_names(path, names, QUESTIONS.published)
    labels = check_labels(path, content["label"], files, names)
    parts = {}
    for part in ("train", "val", "test"):
        every = content["partition"].get(part) if isinstance(content["partition"], Mapping) else None
        if not isinstance(every, list):
            raise ValueError(f"{path}: has no list of partitions for {part}. Use the file as published.")
        if not 1 <= partition <= len(every):
            raise ValueError(f"{path}: has the partitions 1 to {len(every)}, got {partition}. Give another "
                             "--partition.")
        own = every[partition - 1]  # image numbers from 0, in one array or one per dataset
        parts[part] = np.concatenate([np.ravel(each) for each in (own if isinstance(own, list) else [own])]) + 1
    return Converted(_root(source, files[0]), files,
                     {"split": split_of(path, parts, len(files)), **QUESTIONS.words(labels, names)},
                     QUESTIONS.wording, path, binaries=QUESTIONS.binaries, about={"partition": partition})
