"""Several models trained one after the other through train_net.py; a stopped one goes on, a finished one is evaluated.
"""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"


def train_each(runs: Mapping[Path, Path]) -> None:
    """Configuration files by the run folder that each is trained in."""
    start = time.monotonic()
    for i, (folder, config) in enumerate(runs.items(), start=1):
        print(f"[{i}/{len(runs)}] {config.stem}: training in {folder}, {minutes(start)} so far", flush=True)
        subprocess.run([sys.executable, str(HERE / "train_net.py"), "--config-file", str(config), "--resume",
                        "OUTPUT_DIR", str(folder)], check=True)


def minutes(start: float) -> str:
    """Since a time of `time.monotonic`."""
    return f"{(time.monotonic() - start) / 60:.1f} minutes"
