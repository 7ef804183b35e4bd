"""Market-1501 and DukeMTMC-reID with their attribute annotations, in the host's registry."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import torch
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from torch import Tensor

from ..attributes import (
    DUKEMTMC,
    MARKET1501,
    MISSING,
    Annotations,
    AttributeSchema,
    find_annotations,
    read_annotations,
)
from ..own_data.overlay import OVERLAY, PERSON, read_overlay
from ..utils.files import file_sha256, json_sha256
from ..utils.images import SUFFIXES

logger = logging.getLogger("fastreid.cerberus")


class AttributeAnnotated:
    """What a host data set gains by annotations; mixed in before the host's class.

    Items stay the host's 3-tuples (path, pid, camid); labels are looked up by identity.

    Args:
        allow_subset: accept labelled identities without an image.
    """

    schema: AttributeSchema
    annotation_file: str
    folder_name: str

    def __init__(self, root: str = "datasets", allow_subset: bool = False, **kwargs) -> None:
        try:
            super().__init__(root=root, **kwargs)
        except RuntimeError as error:  # the host's check of the folders
            raise FileNotFoundError(
                f"{error}; expected '{root}/{self.folder_name}'. Set FASTREID_DATASETS to the folder that holds it; "
                "`python -m cerberus_plugin.synthetic --output FOLDER` draws people in Market-1501's form."
            ) from error
        folder = getattr(self, "data_dir", self.dataset_dir)
        for name, items in (("train", self.train), ("query", self.query), ("gallery", self.gallery)):
            if not items:
                raise ValueError(f"{folder}: no {name} images ({', '.join(SUFFIXES)}) found; check that the data set "
                                 "is complete.")
        path = find_annotations(folder, self.annotation_file)
        self.annotations: Annotations = with_overlay(read_annotations(path, self.schema), path.parent / OVERLAY)
        self._check_identities("train", {_identity(pid) for _, pid, _ in self.train if _split(pid) == "train"},
                               allow_subset)
        test = {pid for _, pid, _ in self.query + self.gallery} - set(self.schema.junk_pids)
        self._check_identities("test", test, allow_subset)

    def labels_of(self, pid: str | int) -> Tensor:
        """Labels int64 (A,) of an identity as the host names it; all -1 for distractors."""
        return self.annotations.lookup(_split(pid), [_identity(pid)])[0]

    def _check_identities(self, split: str, pids: set[int], allow_subset: bool) -> None:
        labelled = set(getattr(self.annotations, split))
        unlabelled, absent = sorted(pids - labelled), sorted(labelled - pids)
        if unlabelled:
            raise ValueError(f"{self.annotations.path}: no {split} labels for identity {unlabelled[0]:04d} "
                             f"({len(unlabelled)} of {len(pids)} identities in the folder have none). "
                             "Folder and annotations must be of the same data set.")
        if absent and not allow_subset:
            raise ValueError(f"{self.annotations.path}: identity {absent[0]:04d} is labelled for {split} but has no "
                             f"image ({len(absent)} of {len(labelled)}). Complete the folder, or set "
                             "DATASETS.ALLOW_SUBSET True if it is a subset on purpose.")


@DATASET_REGISTRY.register()
class Market1501Attributes(AttributeAnnotated, Market1501):
    """The host's Market1501 with 27 labels an identity; `market_attribute.mat` beside the images or in attribute/."""

    schema = MARKET1501
    annotation_file = "market_attribute.mat"
    folder_name = "Market-1501-v15.09.15"


@DATASET_REGISTRY.register()
class DukeMTMCAttributes(AttributeAnnotated, DukeMTMC):
    """The host's DukeMTMC with 23 labels an identity; `duke_attribute.mat` beside the images or in attribute/."""

    schema = DUKEMTMC
    annotation_file = "duke_attribute.mat"
    folder_name = "DukeMTMC-reID"


def with_overlay(annotations: Annotations, path: Path) -> Annotations:
    """Annotations of people, corrected by an overlay where there is one.

    Args:
        path: of the overlay; `person` is an identity as in the names of files, with or without leading zeros.

    Raises:
        ValueError: with the line of a row that is of nobody, of a picture, of an unknown attribute or value, or stale.
    """
    if not path.is_file():
        return annotations
    overlay, schema = read_overlay(path), annotations.schema
    tables = {"train": dict(annotations.train), "test": dict(annotations.test)}
    for row in overlay.rows:
        if row.level or row.attribute == PERSON:
            overlay.refuse(row, f"corrects a picture, an outfit or who is on it, but labels of {schema.name} are those "
                           "of people. Delete the row, or convert the data set to a table of pictures.")
        holding = [table for table in tables.values() if row.person.isdecimal() and int(row.person) in table]
        if not holding:
            overlay.refuse(row, f"there is no identity '{row.person}' in {annotations.path}. Correct the number, or "
                           "delete the row.")
        try:
            column = schema.column(row.attribute)
            given = schema.parse({row.attribute: row.value}) if row.value else None
        except ValueError as error:
            overlay.refuse(row, f"{str(error).removeprefix('search: ')}. Correct or delete the row.")
        for table in holding:
            labels = table[int(row.person)].clone()
            now = schema.describe(labels).get(column.name, "")
            if now != row.was:
                overlay.refuse_stale(row, now)
            fields = list(column.fields)
            labels[fields] = MISSING if given is None else torch.from_numpy(given[fields])
            table[int(row.person)] = labels
    logger.info(f"{path}: {len(overlay.rows)} rows applied to the labels of {annotations.path}")
    digest = json_sha256([file_sha256(annotations.path), file_sha256(str(path))])
    return replace(annotations, **tables, digest=digest)


def _identity(pid: str | int) -> int:
    """'market1501_7' or 'market1501_test_7' or 7 -> 7."""
    return int(str(pid).rsplit("_", 1)[-1])


def _split(pid: str | int) -> str:
    """Where the labels are: training identities are strings, those that COMBINEALL adds carry '_test_'."""
    return "train" if isinstance(pid, str) and not re.search(r"_test_-?\d+$", pid) else "test"
