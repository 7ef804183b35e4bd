"""`make demo`: draw synthetic people, train `cerberus_plus` with FastReID's trainer, evaluate, draw a contact sheet.

All files are written to runs/demo. After an interruption, the same command continues.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installing the package

FOLDER = Path("runs/demo")
DATA = FOLDER / "data"
os.environ["FASTREID_DATASETS"] = str(DATA)  # FastReID reads it when it is imported

import train_net  # noqa: E402
from cerberus_plugin.experiments.figures import rank_list  # noqa: E402
from cerberus_plugin.synthetic.dataset import draw_dataset  # noqa: E402
from cerberus_plugin.utils.commands import run_command  # noqa: E402

from fastreid.engine import default_argument_parser  # noqa: E402

CONFIG = Path(__file__).resolve().parents[2] / "configs/Market1501/cerberus_plus_demo.yml"


def draw() -> None:
    """Draw the people of the demo and the comparison, unless they exist."""
    counts = draw_dataset(DATA, train_ids=240, test_ids=60, images_per_id=6, distractors=40, junk=20, difficulty=0.2,
                          progress=True)
    print(f"synthetic people in {DATA}: {counts}")


def main() -> None:
    start = time.monotonic()
    draw()
    options = ["--config-file", str(CONFIG), "--resume", "OUTPUT_DIR", str(FOLDER)]
    train_net.main(default_argument_parser().parse_args(options))
    rank_list.main([str(FOLDER)])
    print((FOLDER / "results.txt").read_text())
    print(f"{(time.monotonic() - start) / 60:.1f} minutes. In {FOLDER}: model_final.pth, metrics.json, results.json, "
          "results.txt (the table above), rank_list.png (a contact sheet)\n\nSearch these people in a browser:\n"
          f"    .venv/bin/cerberus index --run {FOLDER} --images {DATA}/Market-1501-v15.09.15/bounding_box_test "
          f"--out {FOLDER}/gallery\n    .venv/bin/cerberus serve {FOLDER}/gallery --run {FOLDER} --open")


if __name__ == "__main__":
    run_command(main)
