"""Calibrate the probabilities of a trained run.

    python -m cerberus_plugin.experiments.calibrate logs/market1501/cerberus_R50 --false-match-rate 1e-3 1e-4

The command fits a temperature for each attribute, the probability below which the prediction is "uncertain", the
probability that two images show the same person, and thresholds for false-match rates. It fits them on the held-out
identities of the run (DATASETS.HOLD_OUT), or on half of the test identities if none were held out, and measures them on
the other test identities. It writes calibration.txt, calibration.png and calibration.json. `CerberusPredictor` reads
calibration.json.
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
    """Select all images of some identities, queries and gallery.

    Args:
        gathered: embeddings and labels of a dataset.
        identities: int64 (I,).
    """
    return gathered.rows(torch.isin(gathered.pids, identities).nonzero().flatten())


def fit_and_measure_on(predictor: CerberusPredictor, dataset: str) -> tuple[Gathered, Gathered, str]:
    """Embed the images to fit on and the images to measure on, which show different people.

    Images are embedded without the flip test, as `CerberusPredictor` does.

    Args:
        predictor: of the run.
        dataset: name of a test dataset.

    Returns:
        The images to fit on, the images to measure on, and a description of the people to fit on.

    Raises:
        ValueError: If `dataset` is the held-out identities.
    """
    if dataset == HELD_OUT:
        raise ValueError(f"--dataset {HELD_OUT}: the calibration is fitted on these identities, so it cannot be "
                         "measured on them; name a test dataset")
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
    """Predictions and labels of the attributes of some images.

    Args:
        reader: with `column_scores` and `calibrated`.
        gathered: with attributes.
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
        """Compare the predictions with the labels.

        Returns:
            For each column the probability of the prediction, whether it is right, and the identity: (N,) each, N
            images with a label of this column.
        """
        classes, probabilities = (torch.cat(part).cpu()
                                  for part in zip(*(reader.confidences(chunk) for chunk in self._chunks())))
        rows = []
        for m, (right, known) in enumerate(zip(self.right, self.known.T)):
            hit = right.gather(1, classes[:, m, None] + 1)[:, 0]
            rows.append((probabilities[known, m], hit[known], self.identities[known]))
        return rows

    def fit(self, m: int) -> float:
        """Fit the temperature of column m."""
        known = self.known[:, m]
        return calibration.fit_temperature(self.scores[m][known], self._right_scores(m)[known], self.identities[known])

    def negative_log_likelihood(self, m: int, temperature: float) -> float | None:
        """Compute the loss of column m over the images whose label the model can predict; None if there are none."""
        right = self._right_scores(m)
        usable = self.known[:, m] & (right & self.scores[m].isfinite()).any(dim=1)
        if not usable.any():
            return None
        return calibration.negative_log_likelihood(self.scores[m][usable], right[usable], temperature)

    def _right_scores(self, m: int) -> Tensor:
        return self.right[m][:, self.answers[m] + 1]  # (N, K)


def calibrate_columns(reader, fitting: Gathered, measuring: Gathered, accuracy: float,
                      confidence: float = calibration.CONFIDENCE) -> tuple[dict, Curves]:
    """Fit and measure the temperature and the threshold of each attribute.

    Args:
        reader: of the model.
        fitting: images to fit on.
        measuring: images to measure on, of other people.
        accuracy: wanted share of right predictions among those that are at least as probable as the threshold.
        confidence: of the guarantee for this accuracy.

    Returns:
        By attribute, the record of calibration.json, and the predictions on `measuring` before and after.
    """
    own, others = Columns(reader, fitting), Columns(reader, measuring)
    names = [column.name for column in reader.schema.columns]
    usable = [m for m in range(len(names))
              if own.negative_log_likelihood(m, 1.0) is not None and others.known[:, m].any()]
    if len(usable) < len(names):
        missing = ", ".join(name for m, name in enumerate(names) if m not in usable)
        logger.warning(f"{missing}: no labels in the images to fit on or to measure on; not calibrated")
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
    """Fit and measure the probability that two images show the same person, and thresholds for false-match rates.

    Args:
        predictor: of the run.
        fitting: images to fit on.
        measuring: images to measure on, of other people.
        rates: wanted false-match rates.
        prior: probability of the same person before looking at the images.
        confidence: of the thresholds.

    Returns:
        The entry "same person" of calibration.json, and the scored pairs of `measuring`.
    """
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
    """Choose and measure the threshold of a false-match rate, or record why it is rejected."""
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
    """Whether attributes can be calibrated; warns if the model or the dataset has none."""
    if not hasattr(predictor.reader, "column_scores"):
        logger.warning(f"{predictor.cfg.MODEL.WEIGHTS}: does not predict attributes; only pairs of images are "
                       "calibrated")
    elif fitting.attributes is None or measuring.attributes is None:
        logger.warning(f"{dataset}: has no attributes; only pairs of images are calibrated")
    else:
        return True
    return False


def run(predictor: CerberusPredictor, dataset: str, rates: Sequence[float], accuracy: float, prior: float,
        output: Path, confidence: float = calibration.CONFIDENCE) -> dict:
    """Run the calibration and write its files to `output`.

    Args:
        predictor: of the run.
        dataset: name of the test dataset to measure on.
        rates: wanted false-match rates.
        accuracy: wanted share of right predictions of each attribute.
        prior: probability of the same person before looking at the images.
        output: folder of the files.
        confidence: of the guarantees.

    Returns:
        The contents of calibration.json.

    Raises:
        ValueError: If there are too few people to fit on.
    """
    fitting, measuring, fitted_on = fit_and_measure_on(predictor, dataset)
    columns, curves = {}, {}
    try:
        if _can_be_calibrated(predictor, dataset, fitting, measuring):
            columns, curves = calibrate_columns(predictor.reader, fitting, measuring, accuracy, confidence)
        pairs, measured = calibrate_pairs(predictor, fitting, measuring, rates, prior, confidence)
    except ValueError as error:
        raise ValueError(f"{dataset}, fitted on {fitted_on}: {error}. Fit on more people (DATASETS.HOLD_OUT in "
                         "training, or another --dataset), or lower --accuracy or --confidence.") from error
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
                        help="allowed shares of pairs of different people above the threshold "
                             f"(default: {' '.join(f'{rate:g}' for rate in FALSE_MATCH_RATES)})")
    parser.add_argument("--accuracy", type=share, default=ACCURACY,
                        help="wanted share of right predictions; less probable ones become \"uncertain\" "
                             "(default: %(default)s)")
    parser.add_argument("--confidence", type=share, default=calibration.CONFIDENCE,
                        help="probability, over samples of people to fit on, that the accuracy and the rates hold for "
                             "other people of the same kind (default: %(default)s); a lower value needs fewer people")
    parser.add_argument("--prior", type=share, default=PRIOR,
                        help="probability that two images show the same person, before looking at them "
                             "(default: %(default)s)")
    args = parser.parse_args(arguments)
    predictor, dataset, output = opened(args)
    record = run(predictor, dataset, sorted(set(args.false_match_rate), reverse=True), args.accuracy, args.prior,
                 output, args.confidence)
    print(table(record))
    print(f"In {output}: calibration.txt, calibration.json, calibration.png")


if __name__ == "__main__":
    run_command(main)
