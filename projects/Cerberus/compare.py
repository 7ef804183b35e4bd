"""`make compare`: IDE, ARN, APR, bag of tricks, Cerberus and `cerberus_plus` on the demo's people in one table.

All are trained alike; `cerberus_plus` is the run of `make demo`. Then the gallery is searched with APR and with
`cerberus_plus`, filtered by attributes at a range of thresholds. After an interruption, the same command continues.
"""

import time
from pathlib import Path

import demo  # before the plugin: sets FASTREID_DATASETS to the demo's people
from cerberus_plugin.experiments import accelerate, compare
from cerberus_plugin.utils.commands import run_command

from trainings import CONFIGS, minutes, train_each

RUNS = {name: Path(f"runs/{name}_demo") for name in ("ide", "arn", "apr", "bot", "cerberus")}
RUNS["cerberus_plus"] = demo.FOLDER
OUTPUT = Path("runs/compare")


def main() -> None:
    start = time.monotonic()
    demo.draw()
    train_each({folder: CONFIGS / f"Market1501/{name}_demo.yml" for name, folder in RUNS.items()})
    for name in ("apr", "cerberus_plus"):
        accelerate.main([str(RUNS[name]), "--output", str(OUTPUT / f"acceleration_{name}")])
    compare.main([*map(str, RUNS.values()), "--output", str(OUTPUT)])
    print(f"{minutes(start)}. In {OUTPUT}: comparison.md (the table above), and the threshold sweeps of the attribute "
          "filter, acceleration_*/acceleration.png")


if __name__ == "__main__":
    run_command(main)
