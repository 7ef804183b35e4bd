"""Market-1501 and DukeMTMC-reID with their attribute annotations, in the host's registry."""

from __future__ import annotations

import re

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.dukemtmcreid import DukeMTMC
from fastreid.data.datasets.market1501 import Market1501
from torch import Tensor

from ..attributes import DUKEMTMC, MARKET1501, Annotations, AttributeSchema, find_annotations, read_annotations
from ..utils.images import SUFFIXES


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
        self.annotations: Annotations = read_annotations(find_annotations(folder, self.annotation_file), self.schema)
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


def _identity(pid: str | int) -> int:
    """'market1501_7' or 'market1501_test_7' or 7 -> 7."""
    return int(str(pid).rsplit("_", 1)[-1])


def _split(pid: str | int) -> str:
    """Where the labels are: training identities are strings, those that COMBINEALL adds carry '_test_'."""
    return "train" if isinstance(pid, str) and not re.search(r"_test_-?\d+$", pid) else "test"
