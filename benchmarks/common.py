"""What the benchmarks share: clock, tables and the account of machine and versions."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time

import torch
from tabulate import tabulate


def timed(function, *args, **kwargs):
    """Seconds, result; what a CUDA device was asked for is waited for."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def table(headers, rows) -> str:
    """A table in GitHub's form, numbers as they are given."""
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def write(path, record: dict) -> None:
    """A JSON file of the record and of how it came about."""
    account = {"versions": versions(), "hardware": hardware(), "torch_threads": torch.get_num_threads(),
               "command": " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])}
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | account, indent=2) + "\n")


def versions() -> dict:
    """Versions by name, of what is installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "fastreid"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict:
    """The machine: processor, cores that this process may use, memory and GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = {"processor": processor(), "cores": cores, "memory_gib": memory_gib()}
    if torch.cuda.is_available():
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return described


def processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
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


def peak_resident_bytes() -> int:
    """The most memory this process has held; a started process must not be given the peak of its parent."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
