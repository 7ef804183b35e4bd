"""Data: listing of image folders, a loader for CPU and GPU, checks of samplers, and more keys for transforms."""

import importlib
import inspect
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..utils.images import INTERPOLATIONS
from ..utils.processor import usable_cores
from .patching import replace

# None until `use_device`: then the GPU of this process where there is one.
_device: torch.device | None = None


def use_device(device: str) -> None:
    """Set the device to which all data loaders send their batches, from their next iteration on.

    FastReID's own loader always uses a GPU and ignores MODEL.DEVICE.

    Args:
        device: cfg.MODEL.DEVICE. "cuda" is the GPU of this process's local rank; "cuda:1" also becomes torch's current
            device.

    Raises:
        ValueError: for "cuda" on a machine without a GPU.
    """
    global _device
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is '{device}', but torch {torch.__version__} finds no GPU on this machine. "
            "Set MODEL.DEVICE to 'cpu' and SOLVER.AMP.ENABLED to False."
        )
    if wanted.type == "cuda" and wanted.index is not None:
        torch.cuda.set_device(wanted)
    _device = wanted


def batch_device(local_rank: int) -> torch.device:
    """Return the device for the batches of a process with this local rank."""
    device = _device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", local_rank) if device == torch.device("cuda") else device


class DeviceLoader(DataLoader):
    """Replacement of FastReID's DataLoaderX with the same arguments. Batches are sent to the device of `use_device`.

    DataLoaderX opens a CUDA stream when it is created (data/data_utils.py:151), so it fails without a GPU. It
    prefetches in a thread whose exceptions are lost: after one unreadable image, training waits forever
    (data_utils.py:126). Here torch's own workers prefetch, and their exceptions are raised in the main process.
    """

    def __init__(self, local_rank: int, **kwargs: Any) -> None:
        # Test loaders always request 4 workers (data/build.py:127); more workers than cores are slower.
        kwargs["num_workers"] = min(kwargs.get("num_workers", 0), usable_cores())
        super().__init__(**kwargs)
        self.local_rank = local_rank

    def with_batches(self, batch_sampler: Iterable[list[int]]) -> "DeviceLoader":
        """Return a copy of this loader that uses another batch sampler."""
        return type(self)(self.local_rank, dataset=self.dataset, num_workers=self.num_workers,
                          batch_sampler=batch_sampler, collate_fn=self.collate_fn)

    def __iter__(self) -> Iterator[Any]:
        device = batch_device(self.local_rank)
        # The device may be set after the loader is created.
        self.pin_memory = device.type == "cuda"
        batches = super().__iter__()
        return _ahead_on(device, batches) if device.type == "cuda" else batches


def _ahead_on(device: torch.device, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield each batch on `device`; the next batch is copied on a second stream while the current one is processed."""
    stream = torch.cuda.Stream(device)

    def release(batch: Any, copied: torch.cuda.Event) -> Any:
        current = torch.cuda.current_stream(device)
        # Wait for this batch only: the copy of the next one is already queued on the same stream.
        current.wait_event(copied)
        for value in batch.values() if isinstance(batch, Mapping) else [batch]:
            if isinstance(value, torch.Tensor):
                # Otherwise the allocator could reuse the memory for the next copy while this stream still reads it.
                value.record_stream(current)
        return batch

    waiting = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = _moved(batch, device), stream.record_event()
        if waiting is not None:
            yield release(*waiting)
        waiting = following
    if waiting is not None:
        yield release(*waiting)


def _moved(batch: Any, device: torch.device) -> Any:
    """Copy the tensors of a batch to `device`; like FastReID, only those at the top level."""
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch


def replace_loader() -> None:
    """Use `DeviceLoader` in both functions that build loaders (data/build.py:89, :150)."""
    import fastreid.data.data_utils

    replace(fastreid.data.data_utils, "DataLoaderX", lambda host_class: DeviceLoader)


def refuse_endless_samplers() -> None:
    """Check that the identity samplers can fill a batch before they are created.

    With too few identities, or a batch size that is not a multiple of NUM_INSTANCE, their `while True` loop never
    completes a batch (data/samplers/triplet_sampler.py:58, :241), and training hangs before the first step.
    """
    from fastreid.data.samplers import triplet_sampler

    def checked(sampler: str) -> None:
        def build(host_init):
            def __init__(self, data_source, mini_batch_size, num_instances, seed=None):
                check_identity_batch(sampler, data_source, mini_batch_size, num_instances)
                host_init(self, data_source, mini_batch_size, num_instances, seed)

            return __init__

        replace(getattr(triplet_sampler, sampler), "__init__", build)

    checked("NaiveIdentitySampler")
    checked("BalancedIdentitySampler")


def check_identity_batch(sampler: str, items: list[tuple], mini_batch_size: int, num_instances: int) -> None:
    """Check that a sampler can fill a batch.

    Args:
        sampler: name of the sampler class.
        items: (image path, identity, camera) of each training image.
        mini_batch_size: images per process, IMS_PER_BATCH // number of processes.
        num_instances: images per identity in a batch.

    Raises:
        ValueError: if it cannot; names the keys to change.
    """
    from fastreid.utils import comm

    world = comm.get_world_size()
    if num_instances < 1 or mini_batch_size < num_instances or mini_batch_size % num_instances:
        raise ValueError(
            f"{sampler}: {mini_batch_size} images for each of {world} process(es) (SOLVER.IMS_PER_BATCH // {world}) "
            f"with DATALOADER.NUM_INSTANCE {num_instances}, expected a multiple of NUM_INSTANCE. "
            f"Set SOLVER.IMS_PER_BATCH to a multiple of NUM_INSTANCE x {world}."
        )
    needed = mini_batch_size // num_instances * world
    images = Counter(item[1] for item in items)
    # An identity appears at most once in each process; the naive sampler repeats it while it has unused images.
    turns = [min(max(count // num_instances, 1), world) for count in images.values()]
    got = sum(turns) if sampler == "NaiveIdentitySampler" else len(images)
    if got < needed:
        raise ValueError(
            f"{sampler}: a batch needs {needed} identities (SOLVER.IMS_PER_BATCH {mini_batch_size * world} over "
            f"DATALOADER.NUM_INSTANCE {num_instances}), the training set has {len(images)}. "
            "Lower SOLVER.IMS_PER_BATCH or raise DATALOADER.NUM_INSTANCE."
        )


# Pillow's numbers of filters, as the former argument `resample` of RandomAffine took them.
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def read_pixels_quietly() -> None:
    """Ignore torch's warning about TypedStorage, which transforms/functional.py:46 causes in every process."""
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)


def accept_affine() -> None:
    """Make INPUT.AFFINE work with torchvision 0.12 and newer.

    FastReID passes `resample` and `fillcolor` (data/transforms/build.py:81), which were renamed. That module gets a
    copy of torchvision.transforms in which RandomAffine accepts the old names.
    """
    import torchvision.transforms as T

    build = importlib.import_module("fastreid.data.transforms.build")
    if "resample" in inspect.signature(T.RandomAffine).parameters:
        return

    def random_affine(resample=False, fillcolor=0, **kwargs):
        return T.RandomAffine(interpolation=T.InterpolationMode(_FILTERS[int(resample)]), fill=fillcolor, **kwargs)

    build.T = types.SimpleNamespace(**{**vars(T), "RandomAffine": random_affine})


def use_listing(list_images: Callable[[str, str | None], list[tuple]]) -> None:
    """Replace the function by which Market1501, DukeMTMC and their subclasses list a folder of images.

    FastReID's own (data/datasets/market1501.py:72, dukemtmcreid.py:56) finds only `*.jpg` in lower case, fails if the
    path contains brackets, searches the whole path for the identity and a one-digit camera, and fails with bare
    assertions.

    Args:
        list_images: function of a folder and, for training, the name of the dataset; returns (path, pid, camid).
    """
    from fastreid.data.datasets import dukemtmcreid, market1501

    def replaced(host_method):
        def process_dir(self, dir_path, is_train=True):
            return list_images(dir_path, self.dataset_name if is_train else None)

        return process_dir

    replace(market1501.Market1501, "process_dir", replaced)
    replace(dukemtmcreid.DukeMTMC, "process_dir", replaced)


def read_transform_keys() -> None:
    """Make the keys INPUT.INTERPOLATION, INPUT.REA.SCALE and INPUT.REA.RATIO take effect.

    In FastReID, resizing is bicubic and random erasing uses the defaults of torchvision (data/transforms/build.py). For
    a configuration without these keys nothing changes.
    """
    import torchvision.transforms as T

    def build(host_build):
        def build_transforms(cfg, is_train=True):
            node = cfg.INPUT
            interpolation = node.get("INTERPOLATION", "bicubic")
            if interpolation not in INTERPOLATIONS:
                raise ValueError(f"INPUT.INTERPOLATION is '{interpolation}', expected one of "
                                 f"{', '.join(INTERPOLATIONS)}")
            composed = host_build(cfg, is_train)
            for step in composed.transforms:
                if isinstance(step, T.Resize | T.RandomResizedCrop):
                    step.interpolation = T.InterpolationMode(interpolation)
                elif isinstance(step, T.RandomErasing) and "SCALE" in node.REA:
                    step.scale, step.ratio = (_ascending(f"INPUT.REA.{key}", node.REA[key]) for key in
                                              ("SCALE", "RATIO"))
            return composed

        return build_transforms

    replace(importlib.import_module("fastreid.data.transforms.build"), "build_transforms", build)


def _ascending(key: str, bounds) -> tuple[float, float]:
    """Check that `bounds` are two positive numbers in ascending order, and return them."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{key} is {list(bounds)}, expected two positive numbers, the smaller one first")
    return tuple(bounds)
