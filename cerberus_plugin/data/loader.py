"""Datasets of images with attributes, and training batches that are seeded by their number.

Items have the keys of FastReID, and "attributes" if the dataset has labels.
"""

from __future__ import annotations

import copy
import itertools
import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from fastreid.data.common import CommDataset
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import BatchSampler

from ..attributes import Annotations
from ..utils.images import Unreadable, read_image

logger = logging.getLogger("fastreid.cerberus")

UNKNOWN_CAMERA = -1
LEFT_OUT_PID = -1  # identity of an unreadable image, which evaluations ignore

ON_UNREADABLE = ("stop", "skip")

# Purposes of seeds, so that no two purposes use the same random numbers.
FOR_EPOCH, FOR_BATCH = 0, 1


def seed_of(seed: int, *key: int) -> int:
    """Derive a seed for one purpose from the seed of the run.

    Args:
        seed: seed of the run, at least 0.
        *key: purpose (`FOR_EPOCH` or `FOR_BATCH`), rank of the process, and number of the epoch or batch.

    Returns:
        a seed from 0 to 2^32 - 1.

    Examples:
        >>> seed_of(0, FOR_BATCH, 0, 7) == seed_of(0, FOR_BATCH, 0, 7) != seed_of(0, FOR_BATCH, 0, 8)
        True
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


class SeparateGenerators:
    """Context manager with separate states of the global generators of Python, NumPy and torch (CPU).

    Entering the context again continues with the state at its last exit. The states outside are not changed.

    Args:
        seed: seed of the generators at the first entry.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inside: tuple | None = None

    def __enter__(self) -> None:
        self._outside = self._states()
        if self._inside is None:
            random.seed(self._seed)
            np.random.seed(self._seed)
            torch.default_generator.manual_seed(self._seed)
        else:
            self._restore(self._inside)

    def __exit__(self, *error) -> None:
        self._inside = self._states()
        self._restore(self._outside)

    @staticmethod
    def _states() -> tuple:
        return random.getstate(), np.random.get_state(), torch.default_generator.get_state()

    @staticmethod
    def _restore(states: tuple) -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


class SeededBatch(list):
    """Indices of the images of a batch, with the seed of its random numbers.

    Args:
        indices: indices in the dataset.
        seed: from 0 to 2^32 - 1.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        super().__init__(indices)
        self.seed = seed


class SeededBatches(BatchSampler):
    """Yields the batches of FastReID's endless sampler as `SeededBatch`, starting at any batch.

    Batch n of a run has the same images and the same augmentation regardless of the first batch of the iteration, of
    other uses of random numbers, and of the number of loader processes. The processes of a training have different
    seeds.

    Args:
        batches: FastReID's batch sampler.
        seed: seed of the run, at least 0.

    Attributes:
        start: number of the first batch of the next iteration.
    """

    def __init__(self, batches: BatchSampler, seed: int) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        self.seed = seed
        self.start = 0

    def __iter__(self) -> Iterator[SeededBatch]:
        generators = SeparateGenerators(self.seed)  # FastReID's samplers use the global ones
        batches = super().__iter__()
        with generators:
            skipped = sum(1 for _ in itertools.islice(batches, self.start))
        for number in itertools.count(skipped):
            with generators:
                indices = next(batches)
            yield SeededBatch(indices, seed_of(self.seed, FOR_BATCH, comm.get_rank(), number))


class AttributeDataset(CommDataset):
    """FastReID's dataset of items with labels by identity, outfit or image, and a policy for unreadable images.

    Images are read by `utils.images.read_image`: FastReID's reader does not convert palettes, CMYK and 16-bit grey.

    Items are dictionaries with FastReID's keys "images", "targets", "camids" and "img_paths". Depending on the dataset,
    they also have "attributes" int64 (A,), their semantic IDs "sids" int64 (G,), and "outfits", the number of the
    outfit in this dataset. With `camera_of`, they have "cameras", the number of the camera in all datasets.

    Args:
        img_items: (path, pid, camid) of each image.
        transform: applied to the RGB image; None for no transform.
        relabel: replace identities and cameras by their indices, for training.
        labels_of: function from an identity, or from a unit of `unit_of`, to labels int64 (A,); None for a dataset
            without labels.
        annotations: annotation files of the labels.
        on_unreadable: "stop" raises an error that names the file. "skip" replaces the image by the next readable image
            of the same identity in training, and in a test by a black image of identity -1, which evaluators ignore.
        outfit_of: function from a path to the number of its outfit; None for a dataset without outfits.
        unit_of: function from a path to the number of the outfit or unit that its labels belong to; None for labels of
            identities.
        settings: settings of an evaluation by outfits.
        folders: folders of the datasets; paths relative to them name an image on every machine.
        distractors: identities that do not correspond to a person.
        without: record of excluded identities and the reason; None if none are excluded.
        identified: whether the persons on the images are known. If not, each image is a separate identity, and there
            are no classes to learn.
        camera_of: function from a path to the number of its camera, `UNKNOWN_CAMERA` if it is unknown; None if items
            need no "cameras".

    Attributes:
        labels: int64 (rows, A), or None. There is one row for each class index of FastReID, or for each unit.
        sids: int64 (rows, G), semantic IDs of the labels; None until they are set.
        cameras: int64 (N,), sorted numbers of the known cameras; empty without `camera_of`.
        num_unreadable: int64 (1,), number of times that an image could not be read, counted by all loader processes.
    """

    def __init__(self, img_items: list[tuple], transform=None, relabel: bool = True,
                 labels_of: Callable[[str | int], Tensor] | None = None, annotations: Sequence[Annotations] = (),
                 on_unreadable: str = "stop", outfit_of: Callable[[str], int] | None = None,
                 unit_of: Callable[[str], int] | None = None,
                 settings: Sequence[str] = (), folders: Sequence[str] = (),
                 distractors: Collection[int] = (), without: Mapping | None = None, identified: bool = True,
                 camera_of: Callable[[str], int] | None = None) -> None:
        if on_unreadable not in ON_UNREADABLE:
            raise ValueError(f"DATALOADER.ON_UNREADABLE is '{on_unreadable}', expected one of {ON_UNREADABLE}")
        super().__init__(img_items, transform, relabel)
        self.annotations = annotations
        self.on_unreadable = on_unreadable
        self.outfit_of = outfit_of
        self.unit_of = unit_of
        self.settings = settings
        self.folders = folders
        self.distractors = distractors
        self.without = without
        self.identified = identified
        self.camera_of = camera_of
        known = {camera_of(path) for path, *_ in img_items} - {UNKNOWN_CAMERA} if camera_of else set()
        self.cameras = torch.tensor(sorted(known), dtype=torch.int64)
        outfits = sorted({outfit_of(path) for path, *_ in img_items}) if outfit_of else []
        labelled = sorted({unit_of(path) for path, *_ in img_items}) if unit_of else self.pids
        self._outfit_rows = {outfit: row for row, outfit in enumerate(outfits)}
        self._label_rows = {key: row for row, key in enumerate(labelled)}
        self.labels = torch.stack([labels_of(key) for key in labelled]) if labels_of and labelled else None
        self.sids: Tensor | None = None
        self.num_unreadable = torch.zeros(1, dtype=torch.int64).share_memory_()  # counted by loader processes
        self._items_of: dict = {}
        for index, (_, pid, _) in enumerate(img_items):
            self._items_of.setdefault(pid, []).append(index)

    def __getitem__(self, index: int) -> dict:
        try:
            item = self._read(index)
        except Unreadable as error:
            index, item = self._replacement(index, error)
        return item | self.known_of(item["img_paths"], self.img_items[index][1])

    @property
    def num_classes(self) -> int:
        """Number of training identities as in FastReID; 0 if they are unknown."""
        return len(self.pids) if self.identified else 0

    def left_out(self) -> set[int]:
        """Return the indices of the unreadable test images, which an evaluation ignores.

        The set is empty for "stop". For "skip", every file is read.
        """
        if self.on_unreadable == "stop":
            return set()
        return {index for index in range(len(self)) if self._readable(index) is None}

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Return the items of a batch; called by torch's loader."""
        if not isinstance(indices, SeededBatch):
            return [self[index] for index in indices]
        with SeparateGenerators(indices.seed):
            return [self[index] for index in indices]

    def known_of(self, path: str, pid: str | int) -> dict:
        """Return the fields of an item that FastReID does not have.

        These are "attributes", "sids", "outfits" and "cameras", if they exist.

        Args:
            path: path of the image; if an unreadable image was replaced, that of the replacement.
            pid: identity of the image.
        """
        known: dict = {"outfits": self._outfit_rows[self.outfit_of(path)]} if self.outfit_of else {}
        if self.camera_of:
            known["cameras"] = self.camera_of(path)
        if self.labels is not None:
            row = self._label_rows[self.unit_of(path) if self.unit_of else pid]
            known["attributes"] = self.labels[row]
            if self.sids is not None:
                known["sids"] = self.sids[row]
        return known

    def under(self, transform) -> AttributeDataset:
        """Return a copy with another transform and a separate count of unreadable images."""
        other = copy.copy(self)
        other.transform = transform
        other.num_unreadable = torch.zeros_like(self.num_unreadable).share_memory_()
        return other

    def _read(self, index: int) -> dict:
        """Return FastReID's fields of an item; raises `Unreadable`."""
        path, pid, camid = self.img_items[index]
        image = read_image(path)
        if self.transform is not None:
            image = self.transform(image)
        if self.relabel:
            pid, camid = self.pid_dict[pid], self.cam_dict[camid]
        return {"images": image, "targets": pid, "camids": camid, "img_paths": path}

    def _replacement(self, index: int, error: Unreadable) -> tuple[int, dict]:
        """Return the index of the image that determines the labels, and the item that replaces an unreadable one."""
        path, pid, camid = self.img_items[index]
        if self.on_unreadable == "stop":
            raise RuntimeError(f"{error}. Replace the file, or set DATALOADER.ON_UNREADABLE skip to continue "
                               "without it.") from error
        self.num_unreadable += 1
        logger.warning(f"{error}; skipped")
        if self.relabel:
            return self._same_identity(index, pid) if self.identified else self._next_readable(index)
        readable = next((item for item in map(self._readable, range(len(self))) if item is not None), None)
        if readable is None:
            raise RuntimeError(f"{error}; none of the {len(self)} test images can be read")
        return index, {"images": torch.zeros_like(readable["images"]), "targets": LEFT_OUT_PID, "camids": camid,
                       "img_paths": path}

    def _next_readable(self, index: int) -> tuple[int, dict]:
        """Return the next readable image with its own labels."""
        for other in (*range(index + 1, len(self)), *range(index)):
            item = self._readable(other)
            if item is not None:
                return other, item
        raise RuntimeError(f"none of the {len(self)} training images can be read")

    def _same_identity(self, index: int, pid) -> tuple[int, dict]:
        """Return the next readable image of the same identity, so that batches have K images of each identity."""
        own = self._items_of[pid]
        start = own.index(index)
        for other in own[start + 1:] + own[:start]:
            item = self._readable(other)
            if item is not None:
                return index, item
        raise RuntimeError(f"{self.img_items[index][0]}: no image of identity {pid} can be read "
                           f"({len(own)} files); remove the identity or replace its files.")

    def _readable(self, index: int) -> dict | None:
        try:
            return self._read(index)
        except Unreadable:
            return None
