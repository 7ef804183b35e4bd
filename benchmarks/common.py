"""What every benchmark writes beside its figures: the machine, the versions, one form of table and record."""

import importlib.metadata
import json
import os
import pathlib
import platform

import torch
from tabulate import tabulate

PACKAGES = ("torch", "torchvision", "numpy", "Pillow", "fastreid")


def hardware() -> dict:
    """Processor, cores, torch's threads and the GPU where there is one."""
    return {"processor": processor(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def versions() -> dict:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def write(path: pathlib.Path, record: dict) -> None:
    pathlib.Path(path).write_text(json.dumps(record, indent=2) + "\n")


def table(headers: list[str], rows: list[list]) -> str:
    return tabulate(rows, headers, tablefmt="github")


def processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
