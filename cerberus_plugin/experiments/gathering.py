"""What experiments on a finished run share: their options, one pass over a test data set, identities to choose on."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from fastreid.evaluation import inference_on_dataset
from torch import Tensor

from ..config import with_values
from ..data.splits import HELD_OUT
from ..engine.trainer import CerberusTrainer
from ..evaluation.embeddings import Gathered
from ..evaluation.manifest import of_test
from ..predictor import CerberusPredictor


def run_parser(description: str, model: str, folder: str, data: str = "test data set") -> argparse.ArgumentParser:
    """Options of every experiment on a run of some model, which writes to a folder in it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help=f"folder of a trained {model}")
    parser.add_argument("--weights", help="another checkpoint of it")
    parser.add_argument("--dataset", help=f"{data}; the run's first if left out")
    parser.add_argument("--output", type=Path, help=f"folder of the results; RUN/{folder} if left out")
    parser.add_argument("--device", help="cuda or cpu; what there is if left out")
    parser.set_defaults(folder=folder)
    return parser


def share(text: str) -> float:
    """A number between 0 and 1, without both, for `add_argument`."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share between 0 and 1, without both")
    return value


def opened(args: argparse.Namespace) -> tuple[CerberusPredictor, str, Path]:
    """The run of `run_parser`, its test data set, and the folder of the results, which is made."""
    predictor = CerberusPredictor(args.run, args.weights, args.device)
    tests = [name for name in predictor.cfg.DATASETS.TESTS if name != HELD_OUT]  # those identities are to choose on
    if not (args.dataset or tests):
        raise ValueError(f"{args.run}: tested on held-out identities alone; name a test data set by --dataset")
    output = args.output or args.run / args.folder
    output.mkdir(parents=True, exist_ok=True)
    return predictor, args.dataset or tests[0], output


def gather(predictor: CerberusPredictor, name: str) -> Gathered:
    """One pass of a trained model over a test data set."""
    return gather_with_account(predictor, name)[0]


def gather_with_account(predictor: CerberusPredictor, name: str) -> tuple[Gathered, dict]:
    """The same, and what it was over: `manifest.of_test`."""
    found: list[Gathered] = []

    def keep(gathered: Gathered) -> dict:
        found.append(gathered)
        return {}

    # Calibrations and chosen groups are used by searches, which do not know the cameras of images.
    cfg, model = with_values(predictor.cfg, {"MODEL.BACKBONE.SIE_CAMERAS": 0}), predictor.model
    loader, evaluator = CerberusTrainer.build_evaluator(cfg, name, model=model, tasks=[keep])
    inference_on_dataset(model, loader, evaluator, flip_test=cfg.TEST.FLIP.ENABLED)
    return found[0], of_test(loader.dataset, evaluator.num_query, evaluator.num_left_out)


def halves(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Two disjoint halves of identities, drawn with a fixed seed."""
    distinct = identities.unique()
    order = distinct[torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0))]
    return order[:len(order) // 2], order[len(order) // 2:]
