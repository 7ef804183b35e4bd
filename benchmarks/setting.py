"""Shared by the training benchmarks: synthetic people, configurations of the plugin and of FastReID, sizes."""

import contextlib
import gc
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works without installing the package

from cerberus_plugin import CerberusTrainer, add_cerberus_config  # noqa: E402
from cerberus_plugin.synthetic.dataset import draw_dataset  # noqa: E402

import torch  # noqa: E402
from fastreid.config import get_cfg  # noqa: E402
from fastreid.data import build as host_build  # noqa: E402
from fastreid.utils.env import seed_all_rng  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[1] / "configs/Market1501"

# All speed options, off and on.
PLAIN = {"SOLVER.AUTOCAST": "", "TEST.AUTOCAST": "", "MODEL.CHANNELS_LAST": False, "SOLVER.FUSED": False,
         "MODEL.COMPILE": False, "DATALOADER.RESIDENT": False, "SOLVER.AMP.ENABLED": False}
SPEED_OPTIONS = {"fused optimizer": {"SOLVER.FUSED": True}, "bfloat16": {"SOLVER.AUTOCAST": "bfloat16"},
            "resident loader": {"DATALOADER.RESIDENT": True}, "channels last": {"MODEL.CHANNELS_LAST": True},
            "compiled": {"MODEL.COMPILE": True}}
FAST = {key: value for switch in SPEED_OPTIONS.values() for key, value in switch.items()}
ON_GPU = torch.cuda.is_available()

for part in ("engine", "data", "evaluation", "cerberus"):  # hide printed models and tables of results
    logging.getLogger(f"fastreid.{part}").setLevel(logging.WARNING)


def add_size(parser, iterations: int, depth_on_cpu: str = "50x", batch_on_cpu: int = 16) -> None:
    """Add options of the size: full on a GPU (ResNet-50, 384x128, batch 64), small on a CPU."""
    parser.add_argument("--depth", default="50x" if ON_GPU else depth_on_cpu, help="depth of the ResNet")
    parser.add_argument("--height", type=int, default=384 if ON_GPU else 96, help="image height, three times the width")
    parser.add_argument("--batch", type=int, default=64 if ON_GPU else batch_on_cpu)
    parser.add_argument("--iterations", type=int, default=iterations, help="timed steps, after a few for warm-up")
    parser.add_argument("--people", type=int, default=751 if ON_GPU else 40, help="synthetic training identities")
    parser.add_argument("--data", help="folder of datasets (FASTREID_DATASETS), instead of synthetic people")
    parser.add_argument("--output", type=Path, help="JSON file for the results")


@contextlib.contextmanager
def people(args, test_ids: int = 8):
    """Set FastReID's dataset folder to --data or to temporary synthetic people; yield a temporary folder for runs."""
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            draw_dataset(Path(folder) / "data", train_ids=args.people, test_ids=test_ids, images_per_id=12,
                         distractors=8, junk=0)
        host_build._root = args.data or os.path.join(folder, "data")
        yield Path(folder)


def config(args, folder, file: str, **changes):
    """A configuration with the size of the benchmark; `changes` are values by key, such as "MODEL.COMPILE"."""
    cfg = get_cfg()
    add_cerberus_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{file}.yml"))
    size, width = [args.height, args.height // 3], {"18x": 512, "34x": 512}.get(args.depth, 2048)
    options = {
        "MODEL.DEVICE": "cuda" if ON_GPU else "cpu", "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.BACKBONE.DEPTH": args.depth, "MODEL.BACKBONE.FEAT_DIM": width, "INPUT.SIZE_TRAIN": size,
        "INPUT.SIZE_TEST": size, "SOLVER.IMS_PER_BATCH": args.batch, "SOLVER.WARMUP_ITERS": 0, "SOLVER.MAX_EPOCH": 1,
        "SOLVER.CHECKPOINT_PERIOD": 1, "TEST.EVAL_PERIOD": 1, "MODEL.FREEZE_LAYERS": [], "SOLVER.FREEZE_ITERS": 0,
        "SOLVER.DELAY_EPOCHS": 0, "DATALOADER.NUM_INSTANCE": 4, "DATALOADER.NUM_WORKERS": 8 if ON_GPU else 0,
        "OUTPUT_DIR": str(folder / "run"), "SEED": 1, **PLAIN, **changes}
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    cfg.freeze()
    return cfg


def trainer(cfg) -> CerberusTrainer:
    """Build a trainer, after freeing the memory of earlier trainers that are no longer referenced."""
    gc.collect()  # a trainer and its hooks refer to each other
    torch.cuda.empty_cache()
    seed_all_rng(cfg.SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CerberusTrainer(cfg)

