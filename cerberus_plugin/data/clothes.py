"""PRCC, LTCC and Celeb-reID, datasets of people who change clothes, registered in FastReID.

Items are FastReID's 3-tuples (path, pid, camid); outfits are looked up by the path of the image.
"""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from typing import NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset
from fastreid.utils import comm
from tabulate import tabulate
from torch import Tensor

from ..attributes import MARKET1501, Annotations
from ..attributes.outfits import FILE_NAME, outfit_name, read_outfits
from ..utils.files import decode_text
from .listing import list_images, parse_names

logger = logging.getLogger("fastreid.cerberus")

GALLERY_CAMERAS = 10**6  # first camera of the gallery if every image gets a separate camera


class Photo(NamedTuple):
    """An image with the data of its name; `outfit` identifies an outfit among those of the person, None if unknown."""

    path: str
    pid: int
    camid: int
    outfit: str | None = None


class Count(NamedTuple):
    """Counts of a part of a dataset; None if unknown or not published."""

    images: int | None = None
    persons: int | None = None
    outfits: int | None = None


class ClothesDataset(ImageDataset, ABC):
    """Base class: reads all parts of a dataset, checks them, and compares their counts with the published ones.

    The name of a part begins with its split, such as "query B"; "test" is query and gallery together.

    Args:
        root: folder of all datasets.
        allow_subset: do not warn if the counts differ from the published ones.
        **kwargs: passed to FastReID's ImageDataset.

    Attributes:
        outfits: number of the outfit by path, unique in the dataset; empty if images have no outfits.
        outfit_keys: (split, person, outfit) by number; split is "train" or "test".

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if images are missing, or a name cannot be parsed.
    """

    dataset_name: str
    folder: str  # under FASTREID_DATASETS
    layout: str
    published: dict[str, Count]
    settings: tuple[str, ...] = ()  # of the evaluation by outfits, see `ClothesTask`; without any, only reID

    def __init__(self, root: str = "datasets", allow_subset: bool = False, **kwargs) -> None:
        self.dataset_dir = os.path.join(root, self.folder)
        parts = self.read()
        for name, photos in parts.items():
            if not photos:
                raise ValueError(f"{self.dataset_dir}: no {name} images found; expected {self.layout}. Check that the "
                                 "dataset is complete.")
        train, query, gallery = ([photo for name, photos in parts.items() if name.split()[0] == split
                                  for photo in photos] for split in ("train", "query", "gallery"))
        self._check_persons({photo.pid for photo in query}, {photo.pid for photo in gallery})
        self.outfit_keys, self.outfits = _numbered(train, query + gallery)
        if comm.is_main_process():
            self._report({**parts, "test": query + gallery}, allow_subset)
        name = self.dataset_name
        super().__init__([(photo.path, f"{name}_{photo.pid}", f"{name}_{photo.camid}") for photo in train],
                         [photo[:3] for photo in query], [photo[:3] for photo in gallery], **kwargs)

    @abstractmethod
    def read(self) -> dict[str, list[Photo]]:
        """Return the photos of each part, train, query and gallery, sorted by path."""

    def outfit_of(self, path: str) -> int:
        """Return the number of the outfit on an image."""
        return self.outfits[path]

    def show_train(self) -> None:
        """Print nothing: the counts have been logged when the dataset was read."""

    show_test = show_train

    def _paths(self, *folders: str) -> list[str]:
        """Return the images of a folder in order."""
        return list_images(self._existing(*folders))

    def _persons(self, *folders: str) -> list[str]:
        """Return the names of the folders of persons in order."""
        folder = self._existing(*folders)
        return [name for name in sorted(os.listdir(folder)) if os.path.isdir(os.path.join(folder, name))]

    def _existing(self, *folders: str) -> str:
        folder = os.path.join(self.dataset_dir, *folders)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"'{folder}' does not exist; expected {self.layout}. Set FASTREID_DATASETS to the "
                                    f"folder that contains '{self.folder}'.")
        return folder

    def _check_persons(self, query: set[int], gallery: set[int]) -> None:
        if not query & gallery:
            raise ValueError(f"{self.dataset_dir}: none of the {len(query)} query persons ({min(query)}, ...) is in "
                             f"the gallery, which has {len(gallery)} ({min(gallery)}, ...). Use both from the same "
                             "dataset.")
        absent = sorted(query - gallery)
        if absent and comm.is_main_process():
            logger.warning(f"{self.dataset_dir}: {len(absent)} of {len(query)} query persons ({absent[0]}, ...) have "
                           "no gallery image, so they have no match")

    def _report(self, parts: dict[str, list[Photo]], allow_subset: bool) -> None:
        """Log a table of all counts with the published ones if they differ, and a warning about the differences."""
        rows, different = [], []
        for name, photos in parts.items():
            counted = Count(len(photos), len({photo.pid for photo in photos}),
                            len({self.outfits[photo.path] for photo in photos}) if self.outfits else None)
            cells = []
            for what, count, published in zip(Count._fields, counted, self.published.get(name, Count())):
                other = published is not None and count != published
                cells.append("" if count is None else f"{count} (published {published})" if other else f"{count}")
                if other:
                    different.append(f"{name} has {count} {what}, published are {published}")
            rows.append([name, *cells])
        table = tabulate(rows, ["", *Count._fields], disable_numparse=True, stralign="right")
        logger.info(f"{type(self).__name__}, {self.dataset_dir}\n{table}")
        if different and not allow_subset:
            logger.warning(f"{self.dataset_dir}: {'; '.join(different)}. Its results are not comparable with "
                           "published ones; set DATASETS.ALLOW_SUBSET True for an intended subset.")


def _numbered(train: list[Photo], test: list[Photo]) -> tuple[list[tuple[str, int, str]], dict[str, int]]:
    """Number the outfits, first those of training, then by person; return keys by number, and numbers by path.

    Both are empty if an outfit is unknown.
    """
    keys = {photo.path: (split, photo.pid, photo.outfit)
            for split, photos in (("train", train), ("test", test)) for photo in photos}
    if any(outfit is None for *_, outfit in keys.values()):
        return [], {}
    ordered = sorted(set(keys.values()), key=lambda key: (key[0] == "test", *key[1:]))
    numbers = {key: number for number, key in enumerate(ordered)}
    return ordered, {path: numbers[key] for path, key in keys.items()}


class OutfitsAnnotated:
    """Mixin that adds the labels of outfits from `outfit_attributes.csv`; put it before the class of the dataset.

    Args:
        root: folder of all datasets.
        allow_subset: also accept labelled outfits without images.
        **kwargs: passed to the class of the dataset.

    Raises:
        ValueError: if an outfit has images but no labels, or labels but no images.
    """

    schema = MARKET1501
    by_outfit = True

    def __init__(self, root: str = "datasets", allow_subset: bool = False, **kwargs) -> None:
        super().__init__(root=root, allow_subset=allow_subset, **kwargs)
        path = os.path.join(self.dataset_dir, FILE_NAME)
        labels = read_outfits(path, self.schema)
        worn = [(split, person, outfit_name(outfit)) for split, person, outfit in self.outfit_keys]
        unlabelled, absent = sorted(set(worn) - set(labels)), sorted(set(labels) - set(worn))
        for missing, what in ((unlabelled, "has images but no line"), (absent, "has a line but no image")):
            if missing and not (missing is absent and allow_subset):
                split, person, outfit = missing[0]
                raise ValueError(f"{path}: outfit '{outfit}' of person {person} ({split}) {what} ({len(missing)} of "
                                 f"{len(set(worn))} outfits). Complete file and folder"
                                 + (", or set DATASETS.ALLOW_SUBSET True for an intended subset."
                                    if missing is absent else "; leave the values empty if they are "
                                    "unknown."))
        self._labels = [labels[key] for key in worn]
        train, test = ({number: self._labels[number] for number, key in enumerate(worn) if key[0] == split}
                       for split in ("train", "test"))
        self.annotations = Annotations(self.schema, train, test, path)

    def labels_of(self, outfit: int) -> Tensor:
        """Return the labels of an outfit, int64 (A,), by its number."""
        return self._labels[outfit]


@DATASET_REGISTRY.register()
class PRCC(ClothesDataset):
    """PRCC: three cameras and two outfits per person, the same in cameras A and B, another in camera C.

    The gallery is A, the queries are B and C. One evaluation covers both published settings: queries B have no match
    under "cloth-changing", queries C none under "same-clothes". Queries and gallery have no camera in common, so no
    image is ignored. The validation split is not used.
    """

    dataset_name = "prcc"
    folder = os.path.join("prcc", "rgb")
    layout = ("prcc/rgb/train/PERSON/{A,B,C}_cropped_rgbNNN.jpg and "
              "prcc/rgb/test/{A,B,C}/PERSON/cropped_rgbNNN.jpg")
    published = {"train": Count(17896, 150, 300), "query B": Count(3543, 71, 71), "query C": Count(3873, 71, 71),
                 "gallery A": Count(3384, 71, 71), "test": Count(10800, 71, 142)}
    settings = ("cloth-changing", "same-clothes", "single-shot")

    def read(self) -> dict[str, list[Photo]]:
        train = [self._photo(*found) for person in self._persons("train")
                 for found in parse_names(self._paths("train", person), r"(\d{1,9})/([ABC])_[^/]*",
                                          "PERSON/{A,B,C}_..., a number and a camera", depth=2)]
        test = {camera: [self._photo(path, person, camera) for folder in self._persons("test", camera)
                         for path, person in parse_names(self._paths("test", camera, folder), r"(\d{1,9})/[^/]*",
                                                         "PERSON/..., a number", depth=2)]
                for camera in "ABC"}
        return {"train": train, "query B": test["B"], "query C": test["C"], "gallery A": test["A"]}

    @staticmethod
    def _photo(path: str, person: str, camera: str) -> Photo:
        return Photo(path, int(person), "ABC".index(camera), "C" if camera == "C" else "A and B")


@DATASET_REGISTRY.register()
class LTCC(ClothesDataset):
    """LTCC: twelve cameras, and outfits that are numbered for each person. The gallery folder is `test` or `gallery`.

    The results of reID are those of the standard setting. "cloth-changing" and "same-clothes" are the two other
    settings in which the code of CAL (Gu et al., CVPR 2022) evaluates LTCC.
    """

    dataset_name = "ltcc"
    folder = "LTCC_ReID"
    layout = "LTCC_ReID/{train,query,test}/PERSON_OUTFIT_cCAMERA_FRAME.png and LTCC_ReID/info"
    published = {"train": Count(9576, 77), "query": Count(493), "gallery": Count(7050), "test": Count(7543, 75)}
    settings = ("cloth-changing", "same-clothes")

    def read(self) -> dict[str, list[Photo]]:
        other = os.path.isdir(os.path.join(self.dataset_dir, "gallery"))
        gallery = "gallery" if other and not os.path.isdir(os.path.join(self.dataset_dir, "test")) else "test"
        parts = {name: [Photo(path, int(person), int(camera) - 1, f"{int(outfit):06d}") for path, person, outfit, camera
                        in parse_names(self._paths(folder), r"(\d{1,9})_(\d{1,9})_c([1-9]|1[0-2])_\d+\.\w+",
                                       "PERSON_OUTFIT_cCAMERA_FRAME.png with a camera of 1 to 12")]
                 for name, folder in (("train", "train"), ("query", "query"), ("gallery", gallery))}
        self._check_lists("train", parts["train"])
        self._check_lists("test", parts["query"] + parts["gallery"])
        return parts

    def _check_lists(self, split: str, photos: list[Photo]) -> None:
        """Check that each person is in one of the lists of those who do and do not change clothes, if both exist."""
        paths = [os.path.join(self.dataset_dir, "info", f"cloth-{kind}_id_{split}.txt")
                 for kind in ("change", "unchange")]
        if not all(map(os.path.isfile, paths)):
            return
        listed = set().union(*map(_person_list, paths))
        missing = [photo for photo in photos if photo.pid not in listed]
        if missing:
            raise ValueError(f"{missing[0].path}: person {missing[0].pid} is neither in {paths[0]} nor in "
                             f"{os.path.basename(paths[1])} ({len({photo.pid for photo in missing})} persons of "
                             f"{len(missing)} images are in neither). Lists and images must belong to the same "
                             "dataset; without the lists, this is not checked.")


def _person_list(path: str) -> set[int]:
    """Read a list of persons, one number per line."""
    with open(path, "rb") as file:
        text = decode_text(path, file.read())
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    for number, line in lines:
        if not re.fullmatch("[0-9]{1,9}", line):
            raise ValueError(f"{path}, line {number}: '{line}', expected the number of a person. Restore the file.")
    return {int(line) for _, line in lines}


@DATASET_REGISTRY.register()
class PRCCAttributes(OutfitsAnnotated, PRCC):
    """PRCC with the labels of outfits "A and B" and "C"."""


@DATASET_REGISTRY.register()
class LTCCAttributes(OutfitsAnnotated, LTCC):
    """LTCC with the labels of outfits "1", "2", ... of a person."""


@DATASET_REGISTRY.register()
class CelebReID(ClothesDataset):
    """Celeb-reID: street photographs without cameras and outfits; training and test number their persons separately.

    Every image gets a separate camera, so that no match is ignored: i for queries, 10^6 + j for the gallery. This also
    holds in training, so that samplers that look for other cameras of an identity find all its other images, and
    held-out identities can be evaluated.
    """

    dataset_name = "celebreid"
    camera_names = ()  # all cameras are unknown
    folder = "Celeb-reID"
    layout = "Celeb-reID/{train,query,gallery}/PERSON_NUMBER_NUMBER.jpg"
    published = {"train": Count(20208, 632), "query": Count(2972, 420), "gallery": Count(11006, 420),
                 "test": Count(13978, 420)}

    def read(self) -> dict[str, list[Photo]]:
        return {name: [Photo(path, int(person), first + i) for i, (path, person) in enumerate(
                       parse_names(self._paths(name), r"(\d{1,9})_\d+_\d+\.\w+", "PERSON_NUMBER_NUMBER.jpg"))]
                for name, first in (("train", 0), ("query", 0), ("gallery", GALLERY_CAMERAS))}
