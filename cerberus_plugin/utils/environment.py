"""Execution times, free memory, block sizes, and the hardware and versions that are recorded with results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

import torch

from .processor import processor, usable_cores

MOST_AT_ONCE = 2**28  # maximum number of values per block on a GPU


def timed(function: Callable, *args, **kwargs) -> tuple[float, object]:
    """Call a function and measure its wall time, including the work it has started on a GPU.

    Args:
        function: the function to call.
        *args: its arguments.
        **kwargs: its keyword arguments.

    Returns:
        seconds, and the result of the function.
    """
    start = time.perf_counter()
    result = function(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def free_bytes(device: torch.device | str) -> int:
    """Return the free memory of a device in bytes.

    On a GPU this includes the memory that the allocator of this process has reserved but does not use.
    """
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        with open("/proc/meminfo") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def values_at_once(device: torch.device | str, on_cpu: int, value_bytes: int) -> int:
    """Return the number of values to compute in one block: small for the caches of a CPU, large for a GPU.

    On a GPU, every block costs kernel launches and a synchronisation. Its blocks use at most a quarter of the free
    memory, and have at most 2^28 values, so that indices fit int32. Their sizes are powers of two, so that they do not
    depend on small changes of the free memory.

    Args:
        device: where the values are computed.
        on_cpu: values per block on a CPU.
        value_bytes: maximum memory per value in bytes, with temporary copies.

    Examples:
        >>> values_at_once("cpu", on_cpu=4096, value_bytes=8)
        4096
    """
    if torch.device(device).type != "cuda":
        return on_cpu
    most = max(1, min(MOST_AT_ONCE, free_bytes(device) // 4 // value_bytes))
    return 1 << (most.bit_length() - 1)


def versions() -> dict[str, str]:
    """Return the versions of Python, torch, torchvision, numpy and fastreid, as far as they are installed, by name."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "fastreid"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cuda") -> dict:
    """Describe the machine: processor, usable cores, memory, and the GPU with its CUDA version.

    Args:
        device: device of the model; the GPU is omitted for "cpu".
    """
    described = {"processor": processor(), "cores": usable_cores(), "memory_gib": memory_gib()}
    if torch.cuda.is_available() and device != "cpu":
        described |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return described


def memory_gib() -> float | None:
    """Return the memory of the machine in GiB, or None if the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
