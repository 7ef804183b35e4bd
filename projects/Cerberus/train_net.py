"""Train and evaluate Cerberus, or any model of FastReID, with FastReID's trainer.

    python projects/Cerberus/train_net.py --config-file configs/Market1501/cerberus_R50.yml
    python projects/Cerberus/train_net.py --config-file ... --resume
    python projects/Cerberus/train_net.py --config-file ... --eval-only MODEL.WEIGHTS logs/.../model_final.pth
"""

import os
import sys
from pathlib import Path

# OpenMP reads it when torch is imported. Waiting threads then free the CPU for other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works without installing the package

import cerberus_plugin  # noqa: E402, F401  before fastreid: adapts it and registers the plugin
from cerberus_plugin.engine import CerberusTrainer, evaluate, setup  # noqa: E402
from cerberus_plugin.utils.commands import run_command  # noqa: E402

from fastreid.engine import default_argument_parser, launch  # noqa: E402


def main(args):
    try:
        cfg = setup(args)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"{error}")
    if args.eval_only:
        return evaluate(cfg)
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    run_command(lambda: launch(main, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank,
                               dist_url=args.dist_url, args=(args,)),
                stopped="stopped; the same command with --resume continues after the last checkpoint")
