"""Name, features and usable cores of the processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path

INFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the name of the processor, or an empty text if the system does not report it."""
    if INFO.is_file():
        for line in INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def processor_has(*flags: str) -> bool:
    """Return whether the processor has at least one of these features.

    Args:
        *flags: names of features as in /proc/cpuinfo, such as "avx512_vnni".

    Returns:
        False if the system does not list features.
    """
    try:
        listed = set(INFO.read_text(encoding="utf-8").split())
    except OSError:
        return False
    return any(flag in listed for flag in flags)


def usable_cores() -> int:
    """Return the number of cores that this process may use, which can be fewer than those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
