"""Image items with attributes, and training batches that are seeded by their number.

Items have the host's batch keys, and `attributes` where the data set has labels.
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

LEFT_OUT_PID = -1  # stands for an image that could not be read; evaluations leave it out

ON_UNREADABLE = ("stop", "skip")

# What a seed is for, so that no two uses share their random numbers.
FOR_EPOCH, FOR_BATCH = 0, 1


def seed_of(seed: int, *key: int) -> int:
    """A seed below 2^32 that depends on the run's seed, at least 0, and on what it is for."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


class SeparateGenerators:
    """Context in which the global generators of Python, NumPy and torch (CPU) are in a state of their own.

    It begins with `seed`; entering again continues where the context was left. Outside, the generators are as if
    nothing had been drawn.
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
    """Indices of a batch's images, with the seed of everything that is drawn for them."""

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        super().__init__(indices)
        self.seed = seed


class SeededBatches(BatchSampler):
    """The batches of the host's endless sampler, from any iteration on, as `SeededBatch`.

    Batch n of a run has the same images and the same augmentation wherever the iteration began, whatever else draws
    random numbers, and with any number of loader processes. Seeds differ between the processes of a training.

    Args:
        batches: the host's.   seed: of the run, at least 0.
    """

    def __init__(self, batches: BatchSampler, seed: int) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        self.seed = seed
        self.start = 0  # number of the first batch of the next iteration

    def __iter__(self) -> Iterator[SeededBatch]:
        generators = SeparateGenerators(self.seed)  # the host's samplers use the global ones
        batches = super().__iter__()
        with generators:
            skipped = sum(1 for _ in itertools.islice(batches, self.start))
        for number in itertools.count(skipped):
            with generators:
                indices = next(batches)
            yield SeededBatch(indices, seed_of(self.seed, FOR_BATCH, comm.get_rank(), number))


class AttributeDataset(CommDataset):
    """The host's item data set with labels by identity, outfit or image, and a choice for images that cannot be read.

    Images are read by `utils.images.read_image`, as everywhere in the plugin: the host's own reader leaves palettes,
    CMYK and 16-bit grey unconverted.

    Items: {"images", "targets", "camids", "img_paths"} as the host's, and "attributes" int64 (A,), their semantic IDs
    "sids" int64 (G,), and "outfits" int, the number of the outfit among those of this data set.
    `labels` are int64 (rows, A), or None: a row a class index, as the host numbers identities, or a row a unit.
    `sids` are int64 (rows, G), the semantic IDs of the labels; None until they are set.

    Args:
        img_items: 3-tuples (path, pid, camid).
        labels_of: identity, or unit as `unit_of` numbers it -> int64 (A,); None for a data set without labels.
        unit_of: path -> number of the outfit, or of the images with labels in common, that the labels are of; None for
            labels of identities.
        annotations: the annotation files that the labels are from, for what is asked of a whole data set.
        on_unreadable: "stop" raises with the file's name. "skip" trains on the next readable image of the same
            identity, and evaluates a black image with the identity -1, which evaluators leave out.
        outfit_of: path -> number of the outfit; None for a data set without outfits.
        settings: of an evaluation by outfits, for what is asked of a whole data set.
        folders: of the data sets, so that an image has one name on every machine.
        distractors: identities that stand for no person.
        without: who was left out of these items and why, for the account of a training; None for nobody.
        identified: whether it is known who is on the images; if not, each is an identity of its own, and classes that
            a model could learn there are none.
    """

    def __init__(self, img_items: list[tuple], transform=None, relabel: bool = True,
                 labels_of: Callable[[str | int], Tensor] | None = None, annotations: Sequence[Annotations] = (),
                 on_unreadable: str = "stop", outfit_of: Callable[[str], int] | None = None,
                 unit_of: Callable[[str], int] | None = None,
                 settings: Sequence[str] = (), folders: Sequence[str] = (),
                 distractors: Collection[int] = (), without: Mapping | None = None, identified: bool = True) -> None:
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
            index, item = self._instead_of(index, error)
        return item | self.known_of(item["img_paths"], self.img_items[index][1])

    @property
    def num_classes(self) -> int:
        """Training identities, as the host counts them; 0 where they are not known."""
        return len(self.pids) if self.identified else 0

    def left_out(self) -> set[int]:
        """Indices of the test images that an evaluation leaves out because they cannot be read.

        Empty under "stop"; under "skip" every file is read.
        """
        if self.on_unreadable == "stop":
            return set()
        return {index for index in range(len(self)) if self._readable(index) is None}

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """Items of a batch, as torch's loader asks for them."""
        if not isinstance(indices, SeededBatch):
            return [self[index] for index in indices]
        with SeparateGenerators(indices.seed):
            return [self[index] for index in indices]

    def known_of(self, path: str, pid: str | int) -> dict:
        """What is known of an image beside the host's fields: "attributes", "sids" and "outfits", where there are any.

        Args:
            path: of the image itself where another stands in for an unreadable one.   pid: its identity.
        """
        known = {"outfits": self._outfit_rows[self.outfit_of(path)]} if self.outfit_of else {}
        if self.labels is not None:
            row = self._label_rows[self.unit_of(path) if self.unit_of else pid]
            known["attributes"] = self.labels[row]
            if self.sids is not None:
                known["sids"] = self.sids[row]
        return known

    def under(self, transform) -> AttributeDataset:
        """The same images under another transform; images that cannot be read are counted apart."""
        other = copy.copy(self)
        other.transform = transform
        other.num_unreadable = torch.zeros_like(self.num_unreadable).share_memory_()
        return other

    def _read(self, index: int) -> dict:
        """The host's fields of an item; raises `Unreadable`."""
        path, pid, camid = self.img_items[index]
        image = read_image(path)
        if self.transform is not None:
            image = self.transform(image)
        if self.relabel:
            pid, camid = self.pid_dict[pid], self.cam_dict[camid]
        return {"images": image, "targets": pid, "camids": camid, "img_paths": path}

    def _instead_of(self, index: int, error: Unreadable) -> tuple[int, dict]:
        """The item that stands in for one that cannot be read, and the number of the one whose labels it has."""
        path, pid, camid = self.img_items[index]
        if self.on_unreadable == "stop":
            raise RuntimeError(f"{error}. Replace the file, or set DATALOADER.ON_UNREADABLE skip to go on without "
                               "it.") from error
        self.num_unreadable += 1
        logger.warning(f"{error}; skipped")
        if self.relabel:
            return self._same_identity(index, pid) if self.identified else self._another(index)
        readable = next((item for item in map(self._readable, range(len(self))) if item is not None), None)
        if readable is None:
            raise RuntimeError(f"{error}; none of the {len(self)} test images can be read")
        return index, {"images": torch.zeros_like(readable["images"]), "targets": LEFT_OUT_PID, "camids": camid,
                       "img_paths": path}

    def _another(self, index: int) -> tuple[int, dict]:
        """The next readable image, with its own labels."""
        for other in (*range(index + 1, len(self)), *range(index)):
            item = self._readable(other)
            if item is not None:
                return other, item
        raise RuntimeError(f"none of the {len(self)} training images can be read")

    def _same_identity(self, index: int, pid) -> tuple[int, dict]:
        """The next readable image of the same identity, so that a batch keeps its P x K form."""
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
