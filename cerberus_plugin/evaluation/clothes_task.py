"""Cloth-changing re-identification: reID metrics for each setting of a test set with outfits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.outfits import draw_single_shot
from ..metrics.ranking import ReIDResult
from .embeddings import Gathered

logger = logging.getLogger("fastreid.cerberus")

SINGLE_SHOT = "single-shot"


@dataclass(frozen=True)
class ClothesTask:
    """reID metrics by setting: "cloth-changing/mAP", "same-clothes/Rank-1" and so on, in percent.

    "single-shot" is the first protocol of PRCC, applied to each of the other settings: the gallery contains one random
    image of each identity, drawn `draws` times. The results are the mean and the sample standard deviation of Rank-1.
    It has no mAP: published mAP is multi-shot, over all gallery images.

    FastReID keeps the checkpoint with the best "metric". For this task it is the mean of mAP and Rank-1 under
    "cloth-changing", since metrics over all queries mix people who have changed their clothes with those who have not.

    Args:
        ranker: function that prepares the rankings of a test set, `ReIDTask(cfg).ranker`.
        settings: names from `metrics.outfits.SETTINGS`, or "single-shot".
        draws: number of random galleries of "single-shot".
        seed: seed of these draws.
    """

    ranker: Callable[[Gathered], Callable[..., ReIDResult]]
    settings: Sequence[str]
    draws: int = 10
    seed: int = 0

    def __call__(self, gathered: Gathered) -> dict[str, float]:
        if gathered.outfits is None:
            raise ValueError("ClothesTask: needs batches with 'outfits': build the loader with "
                             "CerberusTrainer.build_test_loader, for a dataset with outfits such as PRCC or LTCC")
        ranked = self.ranker(gathered)
        settings = [setting for setting in self.settings if setting != SINGLE_SHOT]
        figures = {}
        for setting in settings:
            result = ranked(setting)
            self._log(setting, result, len(gathered.query.pids))
            figures |= {f"{setting}/{name}": value for name, value in result.percentages().items()}
            figures[f"{setting}/queries"] = len(gathered.query.pids) - result.num_skipped
        if SINGLE_SHOT in self.settings:
            drawn = draw_single_shot(gathered.gallery.pids, self.draws, self.seed)
            for setting in settings:
                figures |= self._single_shot(setting, ranked, drawn)
            figures[f"{SINGLE_SHOT}/draws"] = self.draws
        metric = (figures.get("cloth-changing/mAP", math.nan) + figures.get("cloth-changing/Rank-1", math.nan)) / 2
        return figures if math.isnan(metric) else {**figures, "metric": metric}

    @staticmethod
    def _single_shot(setting: str, ranked: Callable[..., ReIDResult], drawn: Tensor) -> dict[str, float]:
        rank1 = torch.stack([ranked(setting, rows).cmc[0] for rows in drawn])  # (draws,)
        return {f"{SINGLE_SHOT}/{setting}/Rank-1": 100 * rank1.mean().item(),
                f"{SINGLE_SHOT}/{setting}/Rank-1_deviation": 100 * rank1.std().item()}

    @staticmethod
    def _log(setting: str, result: ReIDResult, num_query: int) -> None:
        if result.num_skipped == num_query:
            logger.warning(f"{setting}: none of {num_query} queries has a valid match, so the metrics are undefined; "
                           "check the outfits if this is the whole dataset")
        elif result.num_skipped:
            logger.info(f"{setting}: {result.num_skipped} of {num_query} queries have no valid match and are skipped")
