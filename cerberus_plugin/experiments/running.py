"""Training runs of an experiment: each is trained once, continued after an interruption, and reused if finished."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Mapping, Sequence

from fastreid.config import CfgNode, get_cfg
from fastreid.engine.hooks import HookBase
from fastreid.utils.env import seed_all_rng

from ..config import FILLED, add_cerberus_config, defaults, flat, merge_file
from ..data.build import build_test_set, build_train_set
from ..engine.trainer import CerberusTrainer
from ..evaluation import report
from ..evaluation.manifest import of_test, of_training
from ..host import SETTINGS
from ..utils.files import write_text

# Location, logging and data loading of a run; they do not affect its results.
FREE = ("OUTPUT_DIR", "LOG_PERIOD", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD", "DATALOADER.NUM_WORKERS",
        "DATALOADER.RESIDENT", "DATALOADER.RESIDENT_GIB", "TEST.BEST_EPOCH")


def train_once(cfg: CfgNode, hooks: Sequence[HookBase] = ()) -> dict:
    """Train a configuration in its OUTPUT_DIR, unless the run there is finished.

    An interrupted run continues from its last checkpoint.

    Args:
        cfg: of the run.
        hooks: called after those of the trainer.

    Returns:
        The contents of results.json.

    Raises:
        ValueError: If OUTPUT_DIR contains a run of another configuration.
    """
    check_same_run(cfg)
    if not is_finished(cfg):
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())
        seed_all_rng(cfg.SEED)
        trainer = CerberusTrainer(cfg)
        trainer.register_hooks(list(hooks))
        trainer.resume_or_load(resume=True)
        trainer.train()
        del trainer
        gc.collect()  # trainer and hooks refer to each other; free the device memory for the next run
    return report.read_results(cfg.OUTPUT_DIR)


def is_finished(cfg: CfgNode) -> bool:
    """Whether OUTPUT_DIR has results.json, which is written after the last epoch."""
    return os.path.isfile(os.path.join(cfg.OUTPUT_DIR, report.RESULTS_FILE))


def check_same_run(cfg: CfgNode) -> None:
    """Raise ValueError if OUTPUT_DIR contains a run of another configuration, finished or not."""
    if not is_finished(cfg) and not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: not found, so the configuration of the run in this folder is unknown; choose "
                         "another OUTPUT_DIR")
    found = get_cfg()
    add_cerberus_config(found)
    merge_file(found, path)
    found, asked = flat(found), flat(cfg)
    usual = defaults()
    different = [key for key in asked if found[key] != asked[key] and key not in FILLED + FREE
                 and not (key in SETTINGS and asked[key] == usual[key])]  # set by the weights of the run
    if different:
        named = ", ".join(f"{key} {found[key]} instead of {asked[key]}" for key in different[:5])
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ValueError(f"{path}: the run in this folder was made with {named}{more}; choose another OUTPUT_DIR, or "
                         "remove this folder")


def check_same_images(cfgs: Iterable[CfgNode]) -> None:
    """Raise ValueError if images or labels have changed since one of the finished runs."""
    accounts: dict[str, dict] = {}
    for cfg in filter(is_finished, cfgs):
        then = report.read_results(cfg.OUTPUT_DIR).get("manifest") or {}
        known = {**(then.get("tests") or {}), **({"training": then["training"]} if then.get("training") else {})}
        # The people excluded from training may depend on the seed.
        now = accounts.setdefault(cfg.DATASETS.dump() + (str(cfg.SEED) if cfg.DATASETS.LEAVE_OUT_SIDS else ""), {})
        for name, account in known.items():
            if name not in now:
                now[name] = (of_training(cfg, build_train_set(cfg)) if name == "training" else
                             of_test(*build_test_set(cfg, name), num_left_out=0))
            if _hashes(account) != _hashes(now[name]):
                raise ValueError(f"{cfg.OUTPUT_DIR}: images or labels of {name} (in FASTREID_DATASETS) have changed "
                                 "since this run; choose another output folder, or remove this one to train again")


def _hashes(account: Mapping) -> tuple[str, str | None]:
    return account["list sha256"], (account.get("labels") or {}).get("sha256")
