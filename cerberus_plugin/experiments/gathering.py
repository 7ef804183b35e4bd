"""Command-line options, embedding of a test dataset, and splits of identities for experiments on a trained run."""

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


def run_parser(description: str, model: str, folder: str, data: str = "test dataset") -> argparse.ArgumentParser:
    """Create a parser with the options of every experiment on a trained run.

    Args:
        description: of the command; its docstring.
        model: name of the models that the experiment supports, for the help.
        folder: default folder of the results, in the run folder.
        data: kind of dataset, for the help.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help=f"folder of a trained {model}")
    parser.add_argument("--weights", help="checkpoint (default: model_final.pth, or else model_best.pth, of the run)")
    parser.add_argument("--dataset", help=f"{data} (default: the first of the run)")
    parser.add_argument("--output", type=Path, help=f"folder of the results (default: RUN/{folder})")
    parser.add_argument("--device", help="cuda or cpu (default: cuda if available)")
    parser.set_defaults(folder=folder)
    return parser


def share(text: str) -> float:
    """Convert an argument to a number between 0 and 1, exclusive.

    Examples:
        >>> share("0.9")
        0.9
    """
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number between 0 and 1, exclusive")
    return value


def opened(args: argparse.Namespace) -> tuple[CerberusPredictor, str, Path]:
    """Load the run that is named by the options of `run_parser`, and create the folder of the results.

    Returns:
        Predictor of the run, name of the test dataset, folder of the results.

    Raises:
        ValueError: If the run has no test dataset and none is named.
    """
    predictor = CerberusPredictor(args.run, args.weights, args.device)
    tests = [name for name in predictor.cfg.DATASETS.TESTS if name != HELD_OUT]
    if not (args.dataset or tests):
        raise ValueError(f"{args.run}: tested on held-out identities only; name a test dataset by --dataset")
    output = args.output or args.run / args.folder
    output.mkdir(parents=True, exist_ok=True)
    return predictor, args.dataset or tests[0], output


def gather(predictor: CerberusPredictor, name: str) -> Gathered:
    """Embed all images of a test dataset."""
    return gather_with_account(predictor, name)[0]


def gather_with_account(predictor: CerberusPredictor, name: str) -> tuple[Gathered, dict]:
    """Embed all images of a test dataset, and describe them as in the manifest (`manifest.of_test`)."""
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
    """Split identities into two disjoint halves, with a fixed seed.

    Args:
        identities: int64 (N,), may contain duplicates.

    Returns:
        Two int64 tensors without duplicates; the second is longer by one if the number of identities is odd.

    Examples:
        >>> first, second = halves(torch.tensor([4, 4, 7, 9]))
        >>> len(first), len(second)
        (1, 2)
    """
    distinct = identities.unique()
    order = distinct[torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0))]
    return order[:len(order) // 2], order[len(order) // 2:]
