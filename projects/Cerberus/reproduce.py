"""`make reproduce`: two ablations of the paper, small, on the demo's people, and their report in runs/reproduction.

Stopped and started again, it goes on where it was.
"""

import time
from pathlib import Path

import demo  # before the plugin: it tells the host where the demo's people are
from cerberus_plugin.experiments import reproduce

from trainings import CONFIGS, minutes

STUDIES = ("parts", "margins")
OUTPUT = Path("runs/reproduction")


def main() -> None:
    start = time.monotonic()
    demo.draw()
    reproduce.main([*STUDIES, "--config-file", str(CONFIGS / "Market1501/cerberus_demo.yml"), "--seeds", "1", "2", "3",
                    "--output", str(OUTPUT), "SOLVER.MAX_EPOCH", "8", "TEST.EVAL_PERIOD", "8",
                    "TEST.UNTRAINED_FLOOR", "False"])
    print(f"{minutes(start)}. In {OUTPUT}: report.html (open it), report.md, and the runs themselves")


if __name__ == "__main__":
    main()
