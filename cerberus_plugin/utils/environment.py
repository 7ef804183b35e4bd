"""Times, memory that is free, and the account of machine and versions that belongs beside every figure and time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

import torch

from .processor import processor, usable_cores

MOST_AT_ONCE = 2**28  # values of a block on a GPU


def timed(function: Callable, *args, **kwargs) -> tuple[float, object]:
    """Seconds of wall time and the result; what a CUDA device was asked for is waited for."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def free_bytes(device: torch.device | str) -> int:
    """Memory that can be had on a device; on a GPU with what this process's allocator holds and does not use."""
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
    """How many values to compute at a time: small blocks for the caches of a CPU, large ones for a GPU.

    A GPU waits and launches kernels for every block, however small it is. Its blocks take a quarter of its free memory
    at most and have at most 2^28 values, which keeps their numbers within int32. They are powers of two, so that they
    stay the same while the free memory changes a little.

    Args:
        on_cpu: values of a block on a CPU.   value_bytes: memory that a value takes at most, with temporary copies.
    """
    if torch.device(device).type != "cuda":
        return on_cpu
    most = max(1, min(MOST_AT_ONCE, free_bytes(device) // 4 // value_bytes))
    return 1 << (most.bit_length() - 1)


def versions() -> dict[str, str]:
    """Versions by name, of what is installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "fastreid"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cuda") -> dict:
    """The machine: processor, cores that this process may use, memory, and the GPU unless `device` is the CPU."""
    described = {"processor": processor(), "cores": usable_cores(), "memory_gib": memory_gib()}
    if torch.cuda.is_available() and device != "cpu":
        described |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return described


def memory_gib() -> float | None:
    """Memory of the machine, where the system tells it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
