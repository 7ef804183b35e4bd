"""A loader that stores the images of a dataset on the device as uint8 and augments batches there.

It uses FastReID's sampler and yields batches with the same keys. The parameters of the augmentation are taken from
FastReID's transforms.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from fastreid.data.transforms import ToTensor
from fastreid.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms as T
from tqdm import tqdm

from ..host.data import batch_device
from ..utils.environment import free_bytes
from ..utils.images import Unreadable, read_size
from ..utils.processor import usable_cores
from .augment import PADDING_MODES, Augmentation, Packed, Recipe, draw, pack
from .loader import AttributeDataset, SeededBatch

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("fastreid.cerberus")

MIB = 2**20
GIB = 2**30


class NotResident(Exception):
    """The reason why the images cannot be stored on the device, so that FastReID's loader is used."""


class Resident(NamedTuple):
    """N decoded images of a dataset.

    Attributes:
        packed: the images.
        fields: other fields of the items, collated: tensors (N,) on the device, or lists of N. Labels and cameras of
            `AttributeDataset.known_of` are not included, because the same images can be used with and without them.
        num_unreadable: number of images that could not be read.
    """

    packed: Packed
    fields: dict[str, Any]
    num_unreadable: int


# Images are decoded once per process, although evaluations and PreciseBN build new loaders. Emptied by `release`.
_kept: dict[tuple, Resident] = {}


class ResidentLoader:
    """Yields the same batches as FastReID's loader, from images on the device.

    Args:
        dataset: dataset of the images; its files are not read again.
        batch_sampler: FastReID's in a test, `SeededBatches` in training.
        recipe: parameters of the augmentation.
        items: indices of the N images in the dataset, in their order.
        resident: the images.
        channels_last: memory format of the batches.
    """

    def __init__(self, dataset: AttributeDataset, batch_sampler, recipe: Recipe, items: list[int], resident: Resident,
                 channels_last: bool = False) -> None:
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.recipe = recipe
        self.resident = resident
        self.augmentation = Augmentation(recipe, resident.packed, channels_last)
        self.row_of = torch.full((len(dataset),), -1)  # -1: an item of another process
        self.row_of[torch.tensor(items)] = torch.arange(len(items))
        self.fields = dict(resident.fields)
        known = default_collate([dataset.known_of(path, dataset.img_items[i][1])
                                 for path, i in zip(resident.fields["img_paths"], items)])
        self.fields |= {name: values.to(resident.packed.pixels.device) for name, values in known.items()}
        dataset.num_unreadable += resident.num_unreadable

    @classmethod
    def in_place_of(cls, loader: DataLoader, limit_gib: float, channels_last: bool = False) -> ResidentLoader:
        """Create a loader of the same batches as FastReID's `loader`.

        Args:
            loader: FastReID's loader.
            limit_gib: maximum memory on the device in GiB for all datasets of this process together.
            channels_last: memory format of the batches.

        Raises:
            NotResident: if the images do not fit, or a transform is not supported.
        """
        dataset, sampler = loader.dataset, loader.batch_sampler.sampler
        recipe = recipe_of(dataset.transform)
        # A finite sampler yields this process's share of the test images; training samples from all images.
        items = map(int, sampler) if hasattr(sampler, "__len__") else range(len(dataset))
        # Sorted by name, so that images which two datasets list in different orders are stored once.
        items = sorted(items, key=dataset.img_items.__getitem__)
        if not items:  # more processes than test images
            raise NotResident("this process has no images")
        resident = resident_images(loader, items, recipe, batch_device(loader.local_rank), limit_gib)
        return cls(dataset, loader.batch_sampler, recipe, items, resident, channels_last)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        generator = torch.Generator()  # used only in training
        for items in self.batch_sampler:
            if isinstance(items, SeededBatch):
                generator.manual_seed(items.seed)
            rows = self.row_of[torch.tensor(items)]
            images, on_device = self.augmentation(rows, draw(self.recipe, len(rows), generator))
            batch = {"images": images}
            for name, values in self.fields.items():
                batch[name] = values[on_device] if isinstance(values, Tensor) else [values[i] for i in rows.tolist()]
            yield batch


def recipe_of(transform: T.Compose) -> Recipe:
    """Read the parameters of FastReID's transforms.

    Raises:
        NotResident: if a transform has no batched form; names the first one.
    """
    steps = list(transform.transforms)

    def next_is(*kinds: type) -> bool:
        return tuple(map(type, steps[:len(kinds)])) == kinds

    if not next_is(T.Resize):
        raise NotResident(f"the first transform is {_named(steps[0])}, not Resize")
    resize = steps.pop(0)
    if not isinstance(resize.size, Sequence) or len(resize.size) != 2:
        raise NotResident("INPUT.SIZE_TRAIN or SIZE_TEST is one number, so images would have different shapes")
    if resize.interpolation != T.InterpolationMode.BICUBIC:
        raise NotResident(f"Resize is {resize.interpolation.value}, not bicubic")
    recipe = Recipe(*resize.size)
    if next_is(T.Pad, T.RandomCrop) and list(steps[1].size) == list(resize.size):
        pad = steps[0]
        if isinstance(pad.padding, int) and pad.fill == 0 and pad.padding_mode in PADDING_MODES:
            recipe = recipe._replace(padding=pad.padding, padding_mode=pad.padding_mode)
            del steps[:2]
    if next_is(T.RandomHorizontalFlip):
        recipe = recipe._replace(flip=steps.pop(0).p)
    if next_is(ToTensor):
        del steps[0]
        if next_is(T.RandomErasing) and isinstance(steps[0].value, Sequence) and len(steps[0].value) in (1, 3):
            erasing = steps.pop(0)
            recipe = recipe._replace(erase=erasing.p, erase_value=tuple(map(float, erasing.value)),
                                     erase_scale=tuple(erasing.scale), erase_ratio=tuple(erasing.ratio))
    if steps:
        raise NotResident(f"the transform {_named(steps[0])} has no batched form")
    return recipe


def resident_images(loader: DataLoader, items: list[int], recipe: Recipe, device: torch.device,
                    limit_gib: float) -> Resident:
    """Return the images of a loader's dataset on the device; they are decoded once per process.

    Args:
        loader: FastReID's loader.
        items: indices of the images in the dataset.
        recipe: contains the size of the result.
        device: device of the images.
        limit_gib: maximum memory on the device in GiB for all datasets of this process together.

    Raises:
        NotResident: if the images do not fit.
    """
    dataset = loader.dataset
    key = _key(dataset, items, recipe, device)
    if key not in _kept:
        started = time.perf_counter()
        with ThreadPoolExecutor(max(1, usable_cores() // comm.get_local_size())) as threads:
            _check_space([dataset.img_items[i][0] for i in items], recipe, device, limit_gib, threads)
            _kept[key] = _decoded(loader, items, recipe, device, threads)
        logger.info(f"{len(items)} images on {device}: {_kept[key].packed.pixels.numel() / MIB:.1f} MiB "
                    f"in {time.perf_counter() - started:.1f} s")
    return _kept[key]


def release() -> None:
    """Free the memory of images that no loader uses any more; a new loader decodes them again."""
    _kept.clear()


def resident_bytes() -> int:
    """Return the number of bytes of all images that this process stores on its devices."""
    return sum(kept.packed.pixels.numel() for kept in _kept.values())


def _key(dataset: AttributeDataset, items: list[int], recipe: Recipe, device: torch.device) -> tuple:
    """Return the key of a `Resident`: all that determines its content, with size and time of each file."""
    def stamp(path: str):
        try:
            found = os.stat(path)
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    files = tuple((*item, stamp(item[0])) for item in map(dataset.img_items.__getitem__, items))
    return (files, dataset.relabel, dataset.on_unreadable, recipe.height, recipe.width, device)


def _check_space(paths: list[str], recipe: Recipe, device: torch.device, limit_gib: float,
                 threads: ThreadPoolExecutor) -> None:
    def stored(path: str) -> int:
        try:
            width, height = read_size(path)
        except Unreadable:
            return 0
        if height > recipe.height or width > recipe.width:
            height, width = recipe.height, recipe.width
        return 3 * height * width

    needed, kept, free = sum(threads.map(stored, paths)), resident_bytes(), free_bytes(device)
    if kept + needed > limit_gib * GIB:
        others = f" in addition to {kept / MIB:.1f} MiB of other datasets" if kept else ""
        raise NotResident(f"{len(paths)} images take {needed / MIB:.1f} MiB{others}, more than "
                          f"DATALOADER.RESIDENT_GIB {limit_gib} allows")
    if needed > free / 2:  # the model needs memory too
        raise NotResident(f"{len(paths)} images take {needed / MIB:.1f} MiB, more than half of the "
                          f"{free / MIB:.1f} MiB that are free on {device}")
    # Each process of the machine stores the decoded images in main memory before they are copied to the device.
    decoding, free = needed * comm.get_local_size(), free_bytes(torch.device("cpu"))
    if decoding > free / 2:
        raise NotResident(f"{len(paths)} images take {decoding / MIB:.1f} MiB while they are decoded, more than half "
                          f"of the {free / MIB:.1f} MiB of memory that are free")


def _decoded(loader: DataLoader, items: list[int], recipe: Recipe, device: torch.device,
             threads: ThreadPoolExecutor) -> Resident:
    dataset = loader.dataset.under(_as_stored(recipe))  # handles unreadable images
    dataset.labels = dataset.outfit_of = dataset.camera_of = None
    quiet = not comm.is_main_process() or len(items) < 1000
    decoded = list(tqdm(threads.map(dataset.__getitem__, items), total=len(items), desc=f"decoding to {device}",
                        unit=" images", disable=quiet))
    packed = pack([item.pop("images") for item in decoded], recipe, device)
    fields = {name: values.to(device) if isinstance(values, Tensor) else values
              for name, values in loader.collate_fn(decoded).items()}
    return Resident(packed, fields, int(dataset.num_unreadable))


def _as_stored(recipe: Recipe) -> Callable[[Image], Tensor]:
    """Return a transform from an RGB image to uint8 (h, 3, w); an image larger than the result is resized first."""
    resize = T.Resize([recipe.height, recipe.width], T.InterpolationMode.BICUBIC)

    def stored(image: Image) -> Tensor:
        if image.height > recipe.height or image.width > recipe.width:
            image = resize(image)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(0, 2, 1)))

    return stored


def _named(transform) -> str:
    """Return the class name of a transform, or of the transforms that it contains."""
    inner = [_named(step) for step in getattr(transform, "transforms", [])]
    return ", ".join(inner) or type(transform).__name__
