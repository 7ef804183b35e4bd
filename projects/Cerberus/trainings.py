"""Train several models one after the other with train_net.py.

An interrupted training continues; a finished one is only evaluated.
"""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"


def train_each(runs: Mapping[Path, Path]) -> None:
    """Train each configuration file in its run folder.

    Args:
        runs: configuration files by run folder.
    """
    start = time.monotonic()
    for i, (folder, config) in enumerate(runs.items(), start=1):
        print(f"[{i}/{len(runs)}] {config.stem}: training in {folder}, {minutes(start)} so far", flush=True)
        subprocess.run([sys.executable, str(HERE / "train_net.py"), "--config-file", str(config), "--resume",
                        "OUTPUT_DIR", str(folder)], check=True)


def minutes(start: float) -> str:
    """Return the time since `start` of `time.monotonic`, as text."""
    return f"{(time.monotonic() - start) / 60:.1f} minutes"
