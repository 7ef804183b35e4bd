"""Probabilities of a trained run that mean something: fitted on some people, measured on others.

    python -m cerberus_plugin.experiments.calibrate logs/market1501/cerberus_R50 --false-match-rate 1e-3 1e-4

For each attribute a temperature, and the probability below which the answer is "cannot tell"; for two pictures the
probability that they show the same person, and thresholds for false-match rates. Fitted on the run's held-out
identities (DATASETS.HOLD_OUT), or, where it has none, on half of the test identities; measured on the test identities
that were not fitted on. Writes calibration.txt, calibration.png, and calibration.json, which `CerberusPredictor` reads.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import with_values
from ..data.splits import HELD_OUT
from ..evaluation.embeddings import Gathered
from ..evaluation.manifest import config_sha256
from ..predictor import CerberusPredictor
from ..search import calibration
from ..search.calibration.record import CALIBRATION_FORMAT
from ..search.calibration.run_calibration import CALIBRATION_FILE
from ..search.calibration.run_calibration import read_calibration as read_calibration
from ..utils.commands import run_command
from ..utils.files import file_sha256, write_json, write_text
from .calibration_page import Curves, plot, table
from .gathering import gather, halves, opened, run_parser, share

FALSE_MATCH_RATES = (1e-2, 1e-3, 1e-4)
ACCURACY = 0.95
PRIOR = 0.5

logger = logging.getLogger("fastreid.cerberus")


def of_identities(gathered: Gathered, identities: Tensor) -> Gathered:
    """All images of some identities, queries and gallery."""
    return gathered.rows(torch.isin(gathered.pids, identities).nonzero().flatten())


def fit_and_measure_on(predictor: CerberusPredictor, dataset: str) -> tuple[Gathered, Gathered, str]:
    """Images to fit on and images to measure on, of different people who are asked for, and whom is fitted on.

    Without the flip test, as `CerberusPredictor` embeds pictures.
    """
    if dataset == HELD_OUT:
        raise ValueError(f"--dataset {HELD_OUT}: these identities are fitted on, so nothing can be measured on them; "
                         "name a test data set")
    bare = copy.copy(predictor)
    bare.cfg = with_values(predictor.cfg, {"TEST.FLIP.ENABLED": False})
    test = gather(bare, dataset)
    people = test.query.pids.unique()
    if predictor.cfg.DATASETS.HOLD_OUT:
        held_out = gather(bare, HELD_OUT)
        return held_out, of_identities(test, people), f"{len(held_out.pids.unique())} held-out training identities"
    mine, others = halves(people)
    return of_identities(test, mine), of_identities(test, others), f"{len(mine)} of the test identities"


class Columns:
    """What a reader says of labelled images, and what is right: the columns of one set of people.

    Args:
        reader: with `column_scores` and `calibrated`.   gathered: with attributes.
    """

    def __init__(self, reader, gathered: Gathered) -> None:
        self.schema = reader.schema
        labelled = self.schema.column_truth(gathered.attributes)
        self.right, self.known = [calibration.right_answers(truth) for truth in labelled[0]], labelled[1]
        self.identities, self.gathered = gathered.pids, gathered
        self.bare = self.confidences(reader)
        parts = [reader.column_scores(chunk) for chunk in self._chunks()]
        self.scores = [torch.cat([scores.cpu() for scores, _ in column]) for column in zip(*parts)]
        self.answers = [answers.cpu() for _, answers in parts[0]]

    def _chunks(self):
        return self.gathered.chunks(torch.arange(len(self.gathered.pids)))

    def confidences(self, reader) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per column and labelled image: probability of the answer, whether it is right, and whose image it is."""
        classes, probabilities = (torch.cat(part).cpu()
                                  for part in zip(*(reader.confidences(chunk) for chunk in self._chunks())))
        rows = []
        for m, (right, known) in enumerate(zip(self.right, self.known.T)):
            hit = right.gather(1, classes[:, m, None] + 1)[:, 0]
            rows.append((probabilities[known, m], hit[known], self.identities[known]))
        return rows

    def fit(self, m: int) -> float:
        """The temperature of column m."""
        known = self.known[:, m]
        return calibration.fit_temperature(self.scores[m][known], self._right_scores(m)[known], self.identities[known])

    def negative_log_likelihood(self, m: int, temperature: float) -> float | None:
        """Of the images that have a right answer among those that can be given; None where no image has."""
        right = self._right_scores(m)
        usable = self.known[:, m] & (right & self.scores[m].isfinite()).any(dim=1)
        if not usable.any():
            return None
        return calibration.negative_log_likelihood(self.scores[m][usable], right[usable], temperature)

    def _right_scores(self, m: int) -> Tensor:
        return self.right[m][:, self.answers[m] + 1]  # (N, K)


def calibrate_columns(reader, fitting: Gathered, measuring: Gathered, accuracy: float,
                      confidence: float = calibration.CONFIDENCE) -> tuple[dict, Curves]:
    """The record of each column, and its answers on the measured people before and after."""
    own, others = Columns(reader, fitting), Columns(reader, measuring)
    names = [column.name for column in reader.schema.columns]
    usable = [m for m in range(len(names))
              if own.negative_log_likelihood(m, 1.0) is not None and others.known[:, m].any()]
    if len(usable) < len(names):
        missing = ", ".join(name for m, name in enumerate(names) if m not in usable)
        logger.warning(f"{missing}: not labelled in the images to fit on and to measure on, left uncalibrated")
    temperatures = {names[m]: own.fit(m) for m in usable}
    reader = reader.calibrated(temperatures)
    fitted, measured = own.confidences(reader), others.confidences(reader)
    records = {}
    for m in usable:
        temperature = temperatures[names[m]]
        threshold = calibration.choose_withholding(*fitted[m], accuracy, confidence)
        share, right, error = calibration.answered(*measured[m], threshold)
        records[names[m]] = {
            "temperature": temperature,
            "at bound": not calibration.BOUNDS[0] * 1.01 < temperature < calibration.BOUNDS[1] / 1.01,
            **({"cosine scale": reader.scales[names[m]] / temperature}
               if hasattr(reader, "scales") else {}),
            "withhold below": threshold,
            "fitted on": _counted(fitted[m]), "measured on": _counted(measured[m]),
            "before": _figures(others.bare[m]) | {"NLL": others.negative_log_likelihood(m, 1.0)},
            "after": _figures(measured[m]) | {"NLL": others.negative_log_likelihood(m, temperature)},
            "answered": {"share": share, "accuracy": right, "accuracy error": error}}
    return records, {names[m]: (others.bare[m], measured[m]) for m in usable}


def _counted(answers: tuple[Tensor, Tensor, Tensor]) -> dict[str, int]:
    return {"images": len(answers[0]), "identities": len(answers[2].unique())}


def _figures(answers: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    found, (squared, error) = calibration.reliability(*answers), calibration.brier(*answers)
    return {"accuracy": answers[1].double().mean().item(), "ECE": found.ece, "ECE error": found.error,
            "ECE by chance": found.chance, "Brier": squared, "Brier error": error}


def calibrate_pairs(predictor: CerberusPredictor, fitting: Gathered, measuring: Gathered, rates: Sequence[float],
                    prior: float, confidence: float = calibration.CONFIDENCE) -> tuple[dict, calibration.ScoredPairs]:
    """The record of "same person", and the measured pairs."""
    own, others = (calibration.collect_pairs(predictor.picture_scores, part.embeddings, part.pids, part.camids)
                   for part in (fitting, measuring))
    slope, intercept = calibration.fit_logistic(own.same, own.different)
    rows = [_rate(own, others, rate, confidence) for rate in rates]
    p = torch.cat([torch.sigmoid(slope * scores.double() + intercept) for scores in (others.same, others.different)])
    weights = torch.cat([torch.full((len(s),), 0.5 / len(s), dtype=torch.float64)
                         for s in (others.same, others.different)])
    found = calibration.reliability(p, torch.arange(len(p)) < len(others.same),
                                    torch.cat([others.owner, others.owners[:, 0]]), weights=weights)
    test = predictor.cfg.TEST
    return {"slope": slope, "intercept": intercept, "prior": prior, "metric": test.METRIC, "groups": list(test.GROUPS),
            "fitted on": _pair_counts(own), "measured on": _pair_counts(others),
            "Cllr": calibration.likelihood_ratio_cost(others.same, others.different, slope, intercept),
            "ECE": found.ece, "ECE error": found.error, "ECE by chance": found.chance,
            "false-match rates": rows}, others


def _rate(own: calibration.ScoredPairs, others: calibration.ScoredPairs, rate: float, confidence: float) -> dict:
    """A threshold that was chosen and measured, or why there is none."""
    try:
        threshold = calibration.threshold_for(own, rate, confidence)
    except ValueError as error:
        logger.warning(str(error))
        return {"rate": rate, "refused": str(error), "people": len(own.owners.unique()),
                "people needed": calibration.people_needed(rate, confidence)}
    return {"rate": rate, "threshold": threshold,
            "false matches": dict(zip(("share", "low", "high"), calibration.false_match_rate(others, threshold))),
            "true matches": dict(zip(("share", "low", "high"), calibration.true_match_rate(others, threshold)))}


def _pair_counts(pairs: calibration.ScoredPairs) -> dict[str, int]:
    return {"identities": len(torch.cat([pairs.owner, pairs.owners.flatten()]).unique()),
            "pairs of one person": len(pairs.same), "pairs of two persons": len(pairs.different),
            "pairs of two persons there": pairs.there}


def _can_be_calibrated(predictor: CerberusPredictor, dataset: str, fitting: Gathered, measuring: Gathered) -> bool:
    """Whether there are attributes to calibrate; a warning says what is missing."""
    if not hasattr(predictor.reader, "column_scores"):
        logger.warning(f"{predictor.cfg.MODEL.WEIGHTS}: predicts no attributes; only pairs of pictures are calibrated")
    elif fitting.attributes is None or measuring.attributes is None:
        logger.warning(f"{dataset}: has no attributes; only pairs of pictures are calibrated")
    else:
        return True
    return False


def run(predictor: CerberusPredictor, dataset: str, rates: Sequence[float], accuracy: float, prior: float,
        output: Path, confidence: float = calibration.CONFIDENCE) -> dict:
    """The whole experiment; returns what calibration.json holds."""
    fitting, measuring, fitted_on = fit_and_measure_on(predictor, dataset)
    columns, curves = {}, {}
    try:
        if _can_be_calibrated(predictor, dataset, fitting, measuring):
            columns, curves = calibrate_columns(predictor.reader, fitting, measuring, accuracy, confidence)
        pairs, measured = calibrate_pairs(predictor, fitting, measuring, rates, prior, confidence)
    except ValueError as error:
        raise ValueError(f"{dataset}, fitted on {fitted_on}: {error}. More people to fit on: DATASETS.HOLD_OUT in "
                         "training, or another --dataset; or ask for less by --accuracy, or --confidence.") from error
    cfg = predictor.cfg
    record = {"format": CALIBRATION_FORMAT, "run": cfg.OUTPUT_DIR, "model": cfg.MODEL.META_ARCHITECTURE,
              "dataset": dataset,
              "checkpoint": os.path.basename(cfg.MODEL.WEIGHTS), "checkpoint sha256": file_sha256(cfg.MODEL.WEIGHTS),
              "config sha256": config_sha256(cfg), "settings": predictor.settings,
              "schema": predictor.reader.schema.name if columns else None,
              "fitted on": fitted_on, "measured on": f"{len(measuring.pids.unique())} test identities",
              "wanted accuracy": accuracy, "confidence": confidence, "columns": columns, "same person": pairs}
    write_text(str(output / "calibration.txt"), table(record))
    plot(record, curves, measured, output / "calibration.png")
    write_json(str(output / Path(CALIBRATION_FILE).name), record)
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    parser = run_parser(__doc__, "model", os.path.dirname(CALIBRATION_FILE))
    parser.add_argument("--false-match-rate", type=share, nargs="+", default=list(FALSE_MATCH_RATES), metavar="RATE",
                        help="shares of pairs of two persons that may be taken for one; %(default)s if left out")
    parser.add_argument("--accuracy", type=share, default=ACCURACY,
                        help="wanted of the answers that are given; the others are \"cannot tell\"; %(default)s if "
                             "left out")
    parser.add_argument("--confidence", type=share, default=calibration.CONFIDENCE,
                        help="that what is fitted holds on other people: of so large a share of samples of people like "
                             "those it is fitted on; %(default)s if left out. Less takes fewer people, and more luck")
    parser.add_argument("--prior", type=share, default=PRIOR,
                        help="probability that two pictures show the same person before looking at them; %(default)s "
                             "if left out")
    args = parser.parse_args(arguments)
    predictor, dataset, output = opened(args)
    record = run(predictor, dataset, sorted(set(args.false_match_rate), reverse=True), args.accuracy, args.prior,
                 output, args.confidence)
    print(table(record))
    print(f"In {output}: calibration.txt, calibration.json, calibration.png (look at it)")


if __name__ == "__main__":
    run_command(main)
