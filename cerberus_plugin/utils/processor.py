"""What this machine's processor is and offers."""

from __future__ import annotations

import os
import platform
from pathlib import Path

INFO = Path("/proc/cpuinfo")


def processor() -> str:
    """Its name, as far as the system tells."""
    if INFO.is_file():
        for line in INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def processor_has(*flags: str) -> bool:
    """Whether the system lists one of these features of the processor; False where it lists none."""
    try:
        words = set(INFO.read_text(encoding="utf-8").split())
    except OSError:
        return False
    return any(flag in words for flag in flags)


def usable_cores() -> int:
    """Cores this process may use, fewer than the machine's where it is confined to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
