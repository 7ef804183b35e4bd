"""Times, and the account of machine and versions that belongs beside every figure and every time."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed(function: Callable, *args, **kwargs) -> tuple[float, object]:
    """Seconds of wall time and the result; what a CUDA device was asked for is waited for."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = {"processor": processor(), "cores": cores, "memory_gib": memory_gib()}
    if torch.cuda.is_available() and device != "cpu":
        described |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return described


def processor() -> str:
    """Its name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def memory_gib() -> float | None:
    """Memory of the machine, where the system tells it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
