"""Count the device operations of one training step and one evaluation batch, and compare them with `budget.json`.

    PYTHONPATH=tests python -m gpu_rehearsal -m gpu_rehearsal.budget [MODEL ...] [--write]

The models use ResNet-50 without compilation and batches of 8; the counts do not depend on the image size. They are
valid for the version of torch in the table. Without --write, counts that differ from the table are printed with the
locations of waits and uploads, and the exit status is 1.
"""

import argparse
import contextlib
import gc
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from cerberus_plugin import CerberusTrainer, add_cerberus_config

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.evaluation import inference_on_dataset
from fastreid.utils.env import seed_all_rng
from fastreid.utils.events import EventStorage
from support.data import market_labels, write_market_folder

from .watch import ROOT, Watch

TABLE = Path(__file__).with_name("budget.json")
MODELS = {name: f"Market1501/{name}_R50.yml"
          for name in ("cerberus", "cerberus_plus", "apr", "arn", "ide", "bot", "agw", "sbs", "mgn")}
MODELS["cssc"] = "PRCC/cssc_R50.yml"
OPTIONS = (
    "MODEL.DEVICE", "cuda", "MODEL.COMPILE", False, "MODEL.BACKBONE.PRETRAIN", False, "SEED", 1,
    "DATASETS.NAMES", ["Market1501Attributes"], "DATASETS.TESTS", ["Market1501Attributes"],
    "MODEL.FREEZE_LAYERS", [], "SOLVER.FREEZE_ITERS", 0,
    "INPUT.SIZE_TRAIN", [128, 64], "INPUT.SIZE_TEST", [128, 64], "DATALOADER.NUM_WORKERS", 0,
    "DATALOADER.NUM_INSTANCE", 4, "SOLVER.IMS_PER_BATCH", 8, "TEST.IMS_PER_BATCH", 8,
    "SOLVER.MAX_EPOCH", 2, "SOLVER.WARMUP_ITERS", 0, "SOLVER.DELAY_EPOCHS", 0)


class SecondBatch:
    """A loader whose second batch is watched, from its creation until the third batch is requested."""

    def __init__(self, loader: Iterable, watch: Watch) -> None:
        self.loader, self.watch = loader, watch

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        yield next(batches)
        with self.watch:
            yield next(batches)
        yield from batches


def trainer_of(name: str, folder: Path, *options) -> CerberusTrainer:
    """Return a trainer on the device before its first step."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / MODELS[name]))
    cfg.merge_from_list([*OPTIONS, "OUTPUT_DIR", str(folder / name), *options])
    cfg.freeze()
    seed_all_rng(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(folder))
        if not any(folder.iterdir()):
            write_market_folder(folder, *market_labels())
        return CerberusTrainer(cfg)


def train(trainer: CerberusTrainer, steps: int, watch: Watch | None = None) -> None:
    """Run the first steps of the first epoch with their hooks, and watch the last one."""
    with EventStorage(0) as trainer.storage:
        trainer.epoch = trainer.iter = trainer.start_iter = 0
        trainer.before_train()
        trainer.before_epoch()
        for trainer.iter in range(steps):
            with watch if watch and trainer.iter == steps - 1 else contextlib.nullcontext():
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()


def measure(name: str, folder: Path) -> dict[str, Watch]:
    """Watch the second step of a training, including its hooks, and the second batch of an evaluation."""
    trainer = trainer_of(name, folder)
    step, evaluation = Watch(), Watch()
    train(trainer, 2, step)
    loader, evaluator = trainer.build_evaluator(trainer.cfg, *trainer.cfg.DATASETS.TESTS, model=trainer.model,
                                                test_set=next(iter(trainer.test_sets.values())))
    inference_on_dataset(trainer.model, SecondBatch(loader, evaluation), evaluator,
                         flip_test=trainer.cfg.TEST.FLIP.ENABLED)
    return {"step": step, "evaluation": evaluation}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", help="; ".join(MODELS), metavar="MODEL")
    parser.add_argument("--write", action="store_true", help="write the counts to the table")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {"torch": "", "models": {}}
    version = torch.__version__.partition("+")[0]
    if table["torch"] != version and not args.write:
        sys.exit(f"{TABLE.name} is for torch {table['torch']}, this is {version}")
    table["torch"] = version
    differ = False
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models or MODELS:
            gc.collect()  # of the previous trainer and its hooks
            for part, watch in measure(name, Path(folder)).items():
                counts, allowed = watch.counts(), table["models"].get(name, {}).get(part)
                print(f"{name:14} {part:10}", *(f"{count:5} {kind}" for kind, count in counts.items()), flush=True)
                if args.write:
                    table["models"].setdefault(name, {})[part] = counts
                elif counts != allowed:
                    differ = True
                    print(f"  the table has {allowed}.", *_places(watch), sep="\n  ")
            if args.write:
                TABLE.write_text(json.dumps(table, indent=1) + "\n")
    if differ:
        print("Higher counts than in the table are a regression, at the locations above. If the change is intended, "
              "run `make budget` to update the table.")
    return int(differ)


def _places(watch: Watch) -> list[str]:
    return [f"{count} {kind}: {place}" for kind in ("waits", "uploads")
            for place, count in getattr(watch, kind).most_common()]


if __name__ == "__main__":
    sys.exit(main())
