"""`make reproduce`: ablations and figures of the paper, small, on the demo's people; the report in runs/reproduction.

`make reproduce STUDIES="plus unseen"` for others. Stopped and started again, it goes on where it was.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import demo  # before the plugin: it tells the host where the demo's people are
from cerberus_plugin.experiments import page, reproduce
from cerberus_plugin.experiments.figures import __main__ as figures

from trainings import CONFIGS, HERE, minutes

STUDIES = ("parts", "margins")
OUTPUT = Path("runs/reproduction")
# Figures of the runs that are there, each of these variants' first seed.
DRAWN = {"alignment": [("parts", "+ regulariser")], "attention": [("parts", "+ regulariser")],
         "sheets": [("parts", "+ regulariser")],
         "neighbours": [("margins", "margin 0"), ("margins", "adaptive margin")]}


def main(studies: list[str]) -> None:
    start = time.monotonic()
    demo.draw()
    shutil.copytree(HERE / "findings", OUTPUT / "findings", dirs_exist_ok=True)  # what was made of these studies
    reproduce.main([*(studies or STUDIES), "--config-file", str(CONFIGS / "Market1501/cerberus_demo.yml"),
                    "--seeds", "1", "2", "3", "--output", str(OUTPUT),
                    "SOLVER.MAX_EPOCH", "8", "TEST.EVAL_PERIOD", "8", "TEST.UNTRAINED_FLOOR", "False"])
    for name, variants in DRAWN.items():
        if all((OUTPUT / f"{study}.json").is_file() for study, _ in variants):
            figures.main([name, *(folder_of(*variant) for variant in variants), "--output", str(OUTPUT)])
    page.write(OUTPUT)
    print(f"{minutes(start)}. In {OUTPUT}: report.html (open it), report.md, and the runs themselves")


def folder_of(study: str, variant: str) -> str:
    """The run folder of a variant's first seed."""
    record = json.loads((OUTPUT / f"{study}.json").read_text())
    row = next(row for row in record["variants"] if row["name"] == variant)
    return str(OUTPUT / row["runs"][0]["folder"])


if __name__ == "__main__":
    main(sys.argv[1:])
