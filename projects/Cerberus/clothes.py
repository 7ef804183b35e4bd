"""`make clothes`: train BoT, Cerberus and CSSC alike on synthetic people who change their clothes, one table.

The table has two rows of Cerberus: with all groups, and with the groups chosen on held-out people for finding people in
other clothes. After an interruption, the same command continues.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installing the package

FOLDER = Path("runs/clothes")
DATA = FOLDER / "data"
os.environ["FASTREID_DATASETS"] = str(DATA)  # FastReID reads it when it is imported

from cerberus_plugin.experiments import compare, groups  # noqa: E402
from cerberus_plugin.experiments.figures import rank_list  # noqa: E402
from cerberus_plugin.synthetic.clothes import draw_clothes  # noqa: E402
from cerberus_plugin.utils.commands import run_command  # noqa: E402

from trainings import CONFIGS, minutes, train_each  # noqa: E402

RUNS = {name: FOLDER / name for name in ("bot", "cerberus", "cssc")}


def main() -> None:
    start = time.monotonic()
    # Many people with few images each: from 120 people, a small network from scratch learns only clothes.
    counts = draw_clothes(DATA, "prcc", train_ids=440, test_ids=60, images_per_camera=2, difficulty=0.0, progress=True)
    print(f"synthetic people in {DATA}: {counts}")
    train_each({folder: CONFIGS / f"PRCC/{name}_demo.yml" for name, folder in RUNS.items()})
    groups.main([str(RUNS["cerberus"])])
    rank_list.main([str(RUNS["cerberus"]), "--may-have-changed-clothes"])
    compare.main([*map(str, RUNS.values()), str(RUNS["cerberus"] / "groups"), "--output", str(FOLDER)])
    print(f"{minutes(start)}. In {FOLDER}: comparison.md (the table above); in {RUNS['cerberus']}: groups/groups.png "
          "(mAP of each choice of groups) and rank_list.png (a contact sheet)")


if __name__ == "__main__":
    run_command(main)
