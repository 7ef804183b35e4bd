"""`make reproduce`: small ablations and figures of the paper on the demo's people; report in runs/reproduction.

`make reproduce STUDIES="plus unseen"` runs other studies. After an interruption, the same command continues.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import demo  # before the plugin: sets FASTREID_DATASETS to the demo's people
from cerberus_plugin.experiments import page, reproduce
from cerberus_plugin.experiments.figures import __main__ as figures
from cerberus_plugin.utils.commands import run_command

from trainings import CONFIGS, HERE, minutes

STUDIES = ("parts", "margins")
SEEDS = (1, 2, 3)
OUTPUT = Path("runs/reproduction")
# Figures, each drawn from the first seed of these variants if the run exists.
DRAWN = {"alignment": [("parts", "+ regulariser")], "attention": [("parts", "+ regulariser")],
         "sheets": [("parts", "+ regulariser")],
         "neighbours": [("margins", "margin 0"), ("margins", "adaptive margin")]}


def main(studies: list[str]) -> None:
    start = time.monotonic()
    demo.draw()
    copy_findings()
    reproduce.main([*(studies or STUDIES), "--config-file", str(CONFIGS / "Market1501/cerberus_demo.yml"),
                    "--seeds", *map(str, SEEDS), "--output", str(OUTPUT),
                    "SOLVER.MAX_EPOCH", "8", "TEST.EVAL_PERIOD", "8", "TEST.UNTRAINED_FLOOR", "False"])
    for name, variants in DRAWN.items():
        folders = [folder_of(*variant) for variant in variants]
        if all(folders):
            figures.main([name, *folders, "--output", str(OUTPUT)])
    page.write(OUTPUT)
    print(f"{minutes(start)}. In {OUTPUT}: report.html (open it), report.md, and the runs themselves")


def copy_findings() -> None:
    """Copy the interpretations of the studies; files of the same name are not overwritten."""
    (OUTPUT / "findings").mkdir(parents=True, exist_ok=True)
    for path in (HERE / "findings").glob("*.txt"):
        if not (OUTPUT / "findings" / path.name).exists():
            shutil.copy(path, OUTPUT / "findings")


def folder_of(study: str, variant: str) -> str:
    """Return the run folder of a variant's first seed; empty if it is not finished."""
    path = OUTPUT / f"{study}.json"
    rows = json.loads(path.read_text())["variants"] if path.is_file() else []
    runs = [run for row in rows if row["name"] == variant for run in row["runs"] if run["seed"] == SEEDS[0]]
    return str(OUTPUT / runs[0]["folder"]) if runs else ""


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
