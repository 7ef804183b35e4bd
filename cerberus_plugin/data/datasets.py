"""Market-1501 and DukeMTMC-reID with their attribute annotations, registered in FastReID."""

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
    """Mixin that adds attribute annotations to a dataset of FastReID; put it before FastReID's class.

    Items are FastReID's 3-tuples (path, pid, camid); labels are looked up by identity.

    Args:
        root: folder of all datasets.
        allow_subset: accept labelled identities without images.
        **kwargs: passed to FastReID's class.

    Raises:
        FileNotFoundError: if the folder of the dataset does not exist.
        ValueError: if images or labels are missing.
    """

    schema: AttributeSchema
    annotation_file: str
    folder_name: str

    def __init__(self, root: str = "datasets", allow_subset: bool = False, **kwargs) -> None:
        try:
            super().__init__(root=root, **kwargs)
        except RuntimeError as error:  # FastReID's check of the folders
            raise FileNotFoundError(
                f"{error}. Set FASTREID_DATASETS to the folder that contains {self.folder_name} with its images. "
                "`python -m cerberus_plugin.synthetic --output FOLDER` makes synthetic images in the format of "
                "Market-1501."
            ) from None
        folder = getattr(self, "data_dir", self.dataset_dir)
        for name, items in (("train", self.train), ("query", self.query), ("gallery", self.gallery)):
            if not items:
                raise ValueError(f"{folder}: no {name} images ({', '.join(SUFFIXES)}) found; check that the dataset "
                                 "is complete.")
        path = find_annotations(folder, self.annotation_file)
        self.annotations: Annotations = with_overlay(read_annotations(path, self.schema), path.parent / OVERLAY)
        self._check_identities("train", {_identity(pid) for _, pid, _ in self.train if _split(pid) == "train"},
                               allow_subset)
        test = {pid for _, pid, _ in self.query + self.gallery} - set(self.schema.junk_pids)
        self._check_identities("test", test, allow_subset)

    def labels_of(self, pid: str | int) -> Tensor:
        """Return the labels of an identity, int64 (A,), all -1 for distractors; `pid` as in FastReID's items."""
        return self.annotations.lookup(_split(pid), [_identity(pid)])[0]

    def _check_identities(self, split: str, pids: set[int], allow_subset: bool) -> None:
        labelled = set(getattr(self.annotations, split))
        unlabelled, absent = sorted(pids - labelled), sorted(labelled - pids)
        if unlabelled:
            raise ValueError(f"{self.annotations.path}: no {split} labels for identity {unlabelled[0]:04d} "
                             f"({len(unlabelled)} of {len(pids)} identities in the folder have none). "
                             "Folder and annotations must belong to the same dataset.")
        if absent and not allow_subset:
            raise ValueError(f"{self.annotations.path}: identity {absent[0]:04d} is labelled for {split} but has no "
                             f"image ({len(absent)} of {len(labelled)}). Complete the folder, or set "
                             "DATASETS.ALLOW_SUBSET True for an intended subset.")


@DATASET_REGISTRY.register()
class Market1501Attributes(AttributeAnnotated, Market1501):
    """Market1501 with 27 labels per identity, from `market_attribute.mat` in the image folder or in attribute/."""

    schema = MARKET1501
    annotation_file = "market_attribute.mat"
    folder_name = "Market-1501-v15.09.15"


@DATASET_REGISTRY.register()
class DukeMTMCAttributes(AttributeAnnotated, DukeMTMC):
    """DukeMTMC with 23 labels per identity, from `duke_attribute.mat` in the image folder or in attribute/."""

    schema = DUKEMTMC
    annotation_file = "duke_attribute.mat"
    folder_name = "DukeMTMC-reID"


def with_overlay(annotations: Annotations, path: Path) -> Annotations:
    """Apply the corrections of an overlay file to annotations of identities.

    Args:
        annotations: returned unchanged if there is no such file.
        path: overlay; `person` is an identity as in the file names, with or without leading zeros.

    Raises:
        ValueError: for a row with an unknown identity, attribute or value, for a row that corrects an image or an
            outfit, and for a row made for other labels than the present ones; names the line.
    """
    if not path.is_file():
        return annotations
    overlay, schema = read_overlay(path), annotations.schema
    tables = {"train": dict(annotations.train), "test": dict(annotations.test)}
    for row in overlay.rows:
        if row.level or row.attribute == PERSON:
            overlay.refuse(row, f"corrects an image, an outfit or an identity, but labels of {schema.name} belong to "
                           "identities. Delete the row, or convert the dataset to a table of images.")
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
    """Return the split of the labels: training identities are strings; those added by COMBINEALL contain '_test_'."""
    return "train" if isinstance(pid, str) and not re.search(r"_test_-?\d+$", pid) else "test"
