"""Data: another listing of two data sets, a loader for CPU and GPU that passes errors on, samplers that end, and more
keys for transforms."""

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
    """Send the batches of every host loader, from their next iteration on, to `device` (cfg.MODEL.DEVICE).

    The host's loader goes to a GPU whatever MODEL.DEVICE says. "cuda" means the GPU of this process's local rank. A GPU
    with a number, "cuda:1", becomes the one that torch uses where none is named.
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
    """Where the batches of a loader of this local rank go."""
    device = _device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", local_rank) if device == torch.device("cuda") else device


class DeviceLoader(DataLoader):
    """Stands in for DataLoaderX: same arguments, batches on the device of `use_device`, errors where they are read.

    DataLoaderX opens a CUDA stream when built (data/data_utils.py:151), so it fails without a GPU, and reads ahead
    in a thread whose exception nobody sees: one unreadable image and training waits for ever (data_utils.py:126).
    Reading ahead is left to torch's own workers, which raise in the main process.
    """

    def __init__(self, local_rank: int, **kwargs: Any) -> None:
        # Test loaders always ask for 4 workers, in data/build.py:127; more than there are cores only get in the way.
        kwargs["num_workers"] = min(kwargs.get("num_workers", 0), usable_cores())
        super().__init__(**kwargs)
        self.local_rank = local_rank

    def with_batches(self, batch_sampler: Iterable[list[int]]) -> "DeviceLoader":
        """The same loader over the batches of another sampler."""
        return type(self)(self.local_rank, dataset=self.dataset, num_workers=self.num_workers,
                          batch_sampler=batch_sampler, collate_fn=self.collate_fn)

    def __iter__(self) -> Iterator[Any]:
        device = batch_device(self.local_rank)
        # The device may have been chosen after the loader was built.
        self.pin_memory = device.type == "cuda"
        batches = super().__iter__()
        return _ahead_on(device, batches) if device.type == "cuda" else batches


def _ahead_on(device: torch.device, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield each batch on `device`, its copy running on a side stream while the batch before it is worked on."""
    stream = torch.cuda.Stream(device)

    def release(batch: Any, copied: torch.cuda.Event) -> Any:
        current = torch.cuda.current_stream(device)
        # This batch's event, not the whole stream: the next batch's copy is already queued there.
        current.wait_event(copied)
        for value in batch.values() if isinstance(batch, Mapping) else [batch]:
            if isinstance(value, torch.Tensor):
                # Or the allocator could hand the memory to the next copy while this stream still reads it.
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
    """The batch with its tensors, at the top level only as in the host, copied to `device`."""
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch


def replace_loader() -> None:
    """Give both loader builders (data/build.py:89 and :150) the loader above."""
    import fastreid.data.data_utils

    replace(fastreid.data.data_utils, "DataLoaderX", lambda host_class: DeviceLoader)


def refuse_endless_samplers() -> None:
    """Check what the identity samplers need before they are built.

    With too few identities, or a batch that NUM_INSTANCE does not divide, their `while True` never reaches a full
    batch (data/samplers/triplet_sampler.py:58, :241): training hangs before the first step without a message.
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
    """Raise ValueError where `sampler` could never fill a batch.

    Args:
        items: (image path, identity, camera) of each training image.
        mini_batch_size: images of one process, IMS_PER_BATCH // processes.   num_instances: images of one identity.
    """
    from fastreid.utils import comm

    world = comm.get_world_size()
    if num_instances < 1 or mini_batch_size < num_instances or mini_batch_size % num_instances:
        raise ValueError(
            f"{sampler}: {mini_batch_size} images for each of {world} process(es) (SOLVER.IMS_PER_BATCH // {world}) "
            f"with DATALOADER.NUM_INSTANCE {num_instances}, expected one or more times NUM_INSTANCE. "
            f"Set SOLVER.IMS_PER_BATCH to a multiple of NUM_INSTANCE x {world}."
        )
    needed = mini_batch_size // num_instances * world
    images = Counter(item[1] for item in items)
    # An identity appears once in the share of each process; Naive may use it again while it has unseen images.
    turns = [min(max(count // num_instances, 1), world) for count in images.values()]
    got = sum(turns) if sampler == "NaiveIdentitySampler" else len(images)
    if got < needed:
        raise ValueError(
            f"{sampler}: a batch needs {needed} identities (SOLVER.IMS_PER_BATCH {mini_batch_size * world} over "
            f"DATALOADER.NUM_INSTANCE {num_instances}), the training set has {len(images)}. "
            "Lower SOLVER.IMS_PER_BATCH or raise DATALOADER.NUM_INSTANCE."
        )


# Pillow's numbers for the filters that RandomAffine's old `resample` took.
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


def read_pixels_quietly() -> None:
    """transforms/functional.py:46 reads pixels through TypedStorage, of which torch warns in every process."""
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)


def accept_affine() -> None:
    """INPUT.AFFINE passes `resample` and `fillcolor` (data/transforms/build.py:81), renamed in torchvision 0.12.

    The host's view of torchvision.transforms becomes a copy in which RandomAffine takes the old names.
    """
    import torchvision.transforms as T

    build = importlib.import_module("fastreid.data.transforms.build")
    if "resample" in inspect.signature(T.RandomAffine).parameters:
        return

    def random_affine(resample=False, fillcolor=0, **kwargs):
        return T.RandomAffine(interpolation=T.InterpolationMode(_FILTERS[int(resample)]), fill=fillcolor, **kwargs)

    build.T = types.SimpleNamespace(**{**vars(T), "RandomAffine": random_affine})


def use_listing(list_images: Callable[[str, str | None], list[tuple]]) -> None:
    """Give the host's Market1501 and DukeMTMC, and what is derived from them, another listing of folders.

    Theirs (data/datasets/market1501.py:72, dukemtmcreid.py:56) read `*.jpg` in lower case alone, through a glob that
    brackets in the path mislead, search the whole path for identity and one digit of camera, and assert without a
    message.

    Args:
        list_images: from a folder, and the data set's name if it is for training, to items (path, pid, camid).
    """
    from fastreid.data.datasets import dukemtmcreid, market1501

    def replaced(host_method):
        def process_dir(self, dir_path, is_train=True):
            return list_images(dir_path, self.dataset_name if is_train else None)

        return process_dir

    replace(market1501.Market1501, "process_dir", replaced)
    replace(dukemtmcreid.DukeMTMC, "process_dir", replaced)


def read_transform_keys() -> None:
    """Let INPUT.INTERPOLATION, INPUT.REA.SCALE and INPUT.REA.RATIO decide what the host has fixed.

    data/transforms/build.py resizes bicubically and erases by torchvision's default share and ratio. A configuration
    without these keys, of the host alone, is built as before.
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
    """The two bounds of a range of positive numbers."""
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{key} is {list(bounds)}, expected two positive numbers, the smaller one first")
    return tuple(bounds)
