"""What an experiment on a finished run asks first: one pass over a test data set, and identities to choose on."""

from __future__ import annotations

import argparse

import torch
from fastreid.evaluation import inference_on_dataset
from torch import Tensor

from ..data.splits import HELD_OUT
from ..engine.trainer import CerberusTrainer
from ..evaluation.embeddings import Gathered
from ..evaluation.manifest import of_test
from ..predictor import CerberusPredictor


def tested_on(predictor: CerberusPredictor, asked: str | None, parser: argparse.ArgumentParser) -> str:
    """The test data set that was asked for, or the run's first: its held-out identities are to choose on."""
    tests = [name for name in predictor.cfg.DATASETS.TESTS if name != HELD_OUT]
    if not (asked or tests):
        parser.error("the run was tested on held-out identities alone; name a test data set by --dataset")
    return asked or tests[0]


def gather(predictor: CerberusPredictor, name: str) -> Gathered:
    """One pass of a trained model over a test data set."""
    return gather_with_account(predictor, name)[0]


def gather_with_account(predictor: CerberusPredictor, name: str) -> tuple[Gathered, dict]:
    """The same, and what it was over: `manifest.of_test`."""
    found: list[Gathered] = []

    def keep(gathered: Gathered) -> dict:
        found.append(gathered)
        return {}

    cfg, model = predictor.cfg, predictor.model
    loader, evaluator = CerberusTrainer.build_evaluator(cfg, name, model=model, tasks=[keep])
    inference_on_dataset(model, loader, evaluator, flip_test=cfg.TEST.FLIP.ENABLED)
    return found[0], of_test(loader.dataset, evaluator.num_query, evaluator.num_left_out)


def halves(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Two disjoint halves of identities, drawn with a fixed seed."""
    distinct = identities.unique()
    order = distinct[torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0))]
    return order[:len(order) // 2], order[len(order) // 2:]
