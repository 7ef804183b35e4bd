"""Filter a gallery by predicted attributes: speed-up and loss of accuracy for each threshold.

    python -m cerberus_plugin.experiments.accelerate logs/market1501/apr_R50 --survival 0.9 0.95 0.99

The command evaluates a range of thresholds on the test dataset. It also chooses thresholds that keep a true match with
given probabilities. It chooses them on the held-out identities of the run (DATASETS.HOLD_OUT), or on half of the test
identities if none were held out, and measures the share of kept matches on the other test identities. It writes
acceleration.txt, acceleration.json and acceleration.png.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from ..data.splits import HELD_OUT
from ..evaluation.embeddings import Gathered
from ..inference import (
    AcceleratedGallery,
    AttributeFilter,
    ConfidentReader,
    Predictions,
    choose_threshold,
    critical_thresholds,
    identities_needed,
)
from ..metrics.counting import Identities
from ..metrics.distances import between, pairwise, prepare, squares
from ..metrics.filtered import FilteredResult, filtered_metrics
from ..predictor import CerberusPredictor
from ..utils.commands import run_command
from ..utils.environment import timed
from ..utils.files import write_figure, write_json, write_text
from .gathering import gather, halves, opened, run_parser, share

THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
SURVIVAL = (0.9, 0.95, 0.98)
QUANTILES = (0.05, 0.5, 0.95)
TOP = 10  # results of a timed search
TIMED_QUERIES = 200  # queries that are timed one by one

logger = logging.getLogger("fastreid.cerberus")


@dataclass(frozen=True)
class CriticalPairs:
    """True matches of queries in the gallery, from other cameras.

    Args:
        critical: float (P,), the lowest threshold at which the filter keeps each match.
        identities: int64 (P,), the identity of each match.
    """

    critical: Tensor
    identities: Tensor

    def of(self, identities: Tensor) -> CriticalPairs:
        """Select the matches of some identities, int64 (I,)."""
        chosen = torch.isin(self.identities, identities)
        return CriticalPairs(self.critical[chosen], self.identities[chosen])

    def kept(self, threshold: float) -> tuple[float, float, float]:
        """Compute the share of true matches that the filter keeps at a threshold.

        Returns:
            Mean over identities, standard error of this mean, and mean over matches.

        Examples:
            >>> pairs = CriticalPairs(torch.tensor([0.2, 0.8, 0.4]), torch.tensor([1, 1, 2]))
            >>> [round(value, 2) for value in pairs.kept(0.5)]
            [0.75, 0.25, 0.67]
        """
        survive = (self.critical <= threshold).double()
        _, owner, counts = torch.unique(self.identities, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, owner, survive)
        shares = sums / counts
        return shares.mean().item(), (shares.std() / len(counts)**0.5).item(), survive.mean().item()


class Retrieval:
    """Distances and predicted attributes of the queries and the gallery of a dataset.

    Args:
        gathered: embeddings and labels of the dataset.
        reader: predicts the attributes of these embeddings.
        metric: value of TEST.METRIC.
    """

    def __init__(self, gathered: Gathered, reader: ConfidentReader, metric: str) -> None:
        self.query, self.gallery = gathered.query, gathered.gallery
        self.metric = metric
        self.sizes = reader.schema.column_sizes
        self.distances = pairwise(self.query.embeddings, self.gallery.embeddings, metric)
        predicted = [reader.confidences(chunk) for chunk in gathered.chunks(torch.arange(len(gathered.pids)))]
        predictions = Predictions(*(torch.cat(part).cpu() for part in zip(*predicted)))
        self.asked = predictions.rows(slice(None, gathered.num_query))
        self.known = predictions.rows(slice(gathered.num_query, None))
        self.ids = self.query.pids, self.query.camids, self.gallery.pids, self.gallery.camids

    def behind(self, threshold: float) -> FilteredResult:
        """Evaluate the filtered search; a threshold of 1 filters nothing."""
        chosen = AttributeFilter(self.known, self.sizes, threshold)
        return filtered_metrics(self.distances, lambda rows: chosen.keep(self.asked.rows(rows)), *self.ids)

    def matches(self) -> CriticalPairs:
        """Collect all true matches."""
        pairs = Identities(self.gallery.pids, self.gallery.camids).pairs(self.query.pids, self.query.camids)
        query, column = pairs.query[pairs.match], pairs.column[pairs.match]
        critical = critical_thresholds(self.asked.rows(query), self.known.rows(column))
        return CriticalPairs(critical, self.gallery.pids[column])

    def seconds(self, threshold: float | None) -> tuple[float, float]:
        """Time a search for the ten nearest gallery images.

        Args:
            threshold: of the attribute filter; None compares all gallery images.

        Returns:
            Seconds of a single query (median of 200 queries), and of all queries in one call.
        """
        embeddings = self.query.embeddings
        generator = torch.Generator().manual_seed(0)
        some = torch.randperm(len(embeddings), generator=generator)[:TIMED_QUERIES].tolist()
        if threshold is None:
            gallery = prepare(self.gallery.embeddings, self.metric, torch.float32)
            top, norms = min(TOP, len(gallery)), squares(gallery)

            def search(rows: slice) -> None:
                queries = prepare(embeddings[rows], self.metric, torch.float32)
                between(queries, gallery, self.metric, norms)(slice(None)).topk(top, dim=1, largest=False)
        else:
            accelerated = AcceleratedGallery(self.gallery.embeddings, self.known, self.sizes, threshold, self.metric)

            def search(rows: slice) -> None:
                accelerated.search(embeddings[rows], self.asked.rows(rows), TOP)

        each = [timed(search, slice(q, q + 1))[0] for q in some]
        return torch.tensor(each).median().item(), timed(search, slice(None))[0]


def sweep(retrieval: Retrieval, thresholds: list[float]) -> list[dict]:
    """Evaluate and time the search without a filter, then with each threshold; one row each."""
    rows = []
    for threshold in tqdm([None, *thresholds], desc="thresholds", disable=None):
        result, (one, every) = retrieval.behind(1 if threshold is None else threshold), retrieval.seconds(threshold)
        survivors = torch.quantile(result.survivors.double(), torch.tensor(QUANTILES, dtype=torch.float64))
        rows.append({"threshold": threshold, "Rank-1": 100 * result.rank1, "mAP": 100 * result.mAP,
                     "speed-up": result.speed_up, "matches kept": 100 * result.kept_matches,
                     "survivors": survivors.round().long().tolist(), "ms a query": 1000 * one, "s all queries": every})
    return rows


def promises(held_out: CriticalPairs, test: CriticalPairs, survival: list[float]) -> list[dict]:
    """Choose a threshold for each wanted share of kept matches, and measure the share on other identities.

    Args:
        held_out: matches to choose on.
        test: matches to measure on, of other identities.
        survival: wanted shares, between 0 and 1.

    Returns:
        One row per share; a share that needs more identities than there are is skipped with a warning.
    """
    rows = []
    available = len(held_out.identities.unique())
    for wanted in survival:
        needed = identities_needed(wanted)
        if available < needed:
            logger.warning(f"--survival {wanted} needs {needed} identities to choose a threshold, found {available}; "
                           "skipped")
            continue
        threshold = choose_threshold(held_out.critical, held_out.identities, wanted)
        own, (by_identity, error, by_pair) = held_out.kept(threshold)[0], test.kept(threshold)
        rows.append({"wanted": 100 * wanted, "threshold": threshold, "chosen on": 100 * own,
                     "test": 100 * by_identity, "error": 100 * error, "test pairs": 100 * by_pair})
    return rows


def tables(record: dict) -> str:
    """Format the table of all thresholds and the table of the chosen ones."""
    names = [f"{q:.0%}" for q in QUANTILES]
    lines = [["all compared" if row["threshold"] is None else f"{row['threshold']:.4g}", f"{row['Rank-1']:.2f}",
              f"{row['mAP']:.2f}", f"{row['speed-up']:.2f}", f"{row['matches kept']:.2f}", *row["survivors"],
              f"{row['ms a query']:.2f}", f"{row['s all queries']:.2f}"] for row in record["sweep"]]
    head = ["threshold", "Rank-1", "mAP", "speed-up", "true matches kept %", *(f"remaining images {n}" for n in names),
            "ms per query", "s for all queries"]
    parts = [f"{record['dataset']}: {record['queries']} queries, {record['gallery']} gallery images, "
             f"{record['embedding size']} values per embedding, {record['metric']}, {record['threads']} threads",
             tabulate(lines, head, disable_numparse=True, stralign="right"),
             f"Thresholds chosen on {record['chosen on']}; measured on {record['measured on']}. (The table above is "
             "measured on all test identities.)"]
    if not record["promises"]:
        parts[-1] = f"No threshold was chosen: {record['chosen on']} are too few for every share of --survival."
        return "\n\n".join(parts) + "\n"
    lines = [[f"{row['wanted']:.1f}", f"{row['threshold']:.4f}", f"{row['chosen on']:.2f}",
              f"{row['test']:.2f} ± {row['error']:.2f}", f"{row['test pairs']:.2f}"] for row in record["promises"]]
    head = ["wanted share of kept matches %", "threshold", "share where chosen %",
            "measured, mean over identities % ± standard error", "mean over matches %"]
    return "\n\n".join([*parts, tabulate(lines, head, disable_numparse=True, stralign="right")]) + "\n"


def plot(record: dict, held_out: CriticalPairs, test: CriticalPairs, path: Path) -> None:
    """Plot accuracy against speed-up (left), and the share of kept matches against the threshold (right)."""
    figure = Figure((11, 4.2), layout="constrained")  # pyplot would use the backend of a notebook
    left, right = figure.subplots(1, 2)
    rows = [row for row in record["sweep"] if row["threshold"] is not None]
    for name, colour in (("Rank-1", "#1f77b4"), ("mAP", "#d62728")):
        left.plot([row["speed-up"] for row in rows], [row[name] for row in rows], "o-", color=colour, label=name)
        left.axhline(record["sweep"][0][name], color=colour, linestyle=":", linewidth=1)
    for row in rows:
        if row["speed-up"] < 1.5 or len(f"{row['threshold']:g}") > 4:  # no label: crowded, or a chosen threshold
            continue
        left.annotate(f"{row['threshold']:g}", (row["speed-up"], row["Rank-1"]), xytext=(0, 6),
                      textcoords="offset points", fontsize=8, ha="center")
    left.set(xscale="log", xlabel="speed-up: gallery images / remaining images", ylabel="%",
             ylim=(0, 1.25 * max(record["sweep"][0][name] for name in ("Rank-1", "mAP"))),
             title="Accuracy against speed-up (threshold at each point)")
    left.legend()
    grid = torch.linspace(0, 1, 201).tolist()
    for pairs, label in ((held_out, f"chosen on: {record['chosen on']}"), (test, "measured on test identities")):
        right.plot(grid, [100 * pairs.kept(threshold)[0] for threshold in grid], label=label)
    for row in record["promises"]:
        right.plot(row["threshold"], row["wanted"], "k*", markersize=9)
    right.set(xlabel="threshold", ylabel="true matches kept, %",
              title="True matches kept (stars: chosen thresholds)")
    right.legend(loc="upper left", fontsize=8)
    write_figure(path, figure, 110)


def run(predictor: CerberusPredictor, dataset: str, thresholds: list[float], survival: list[float],
        output: Path) -> dict:
    """Run the experiment on a test dataset and write its files to `output`.

    Returns:
        The contents of acceleration.json.

    Raises:
        ValueError: If the model does not predict attributes with a probability.
    """
    if not hasattr(predictor.reader, "confidences"):
        raise ValueError(f"{predictor.cfg.MODEL.WEIGHTS}: this model does not predict attributes with a "
                         "probability, so the gallery cannot be filtered; use a run of Cerberus, APR or ARN.")
    metric = predictor.cfg.TEST.METRIC
    retrieval = Retrieval(gather(predictor, dataset), predictor.reader, metric)
    test = retrieval.matches()
    if predictor.cfg.DATASETS.HOLD_OUT:
        held_out = Retrieval(gather(predictor, HELD_OUT), predictor.reader, metric).matches()
        chosen_on = f"{len(held_out.identities.unique())} held-out training identities"
    else:
        mine, others = halves(test.identities)
        held_out, test = test.of(mine), test.of(others)
        chosen_on = f"{len(mine)} of the test identities"
    promised = promises(held_out, test, survival)
    chosen = [row["threshold"] for row in promised]
    rows = sweep(retrieval, sorted({*thresholds, *chosen}))
    record = {"run": predictor.cfg.OUTPUT_DIR, "model": predictor.cfg.MODEL.META_ARCHITECTURE, "dataset": dataset,
              "queries": len(retrieval.query.pids), "gallery": len(retrieval.gallery.pids),
              "embedding size": retrieval.query.embeddings.shape[1], "metric": metric,
              "threads": torch.get_num_threads(), "chosen on": chosen_on,
              "measured on": f"{len(test.identities.unique())} test identities", "sweep": rows, "promises": promised}
    write_text(str(output / "acceleration.txt"), tables(record))
    write_json(str(output / "acceleration.json"), record)
    plot(record, held_out, test, output / "acceleration.png")
    return record


def main(arguments: list[str] | None = None) -> None:
    parser = run_parser(__doc__, "Cerberus, APR or ARN", "acceleration")
    parser.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS), metavar="TAU",
                        help="thresholds to evaluate, probabilities between 0 and 1 (default: "
                             f"{' '.join(f'{threshold:g}' for threshold in THRESHOLDS)})")
    parser.add_argument("--survival", type=share, nargs="+", default=list(SURVIVAL), metavar="P",
                        help="choose thresholds that keep a true match with these probabilities "
                             f"(default: {' '.join(f'{wanted:g}' for wanted in SURVIVAL)})")
    args = parser.parse_args(arguments)
    bad = [threshold for threshold in args.thresholds if not 0 <= threshold <= 1]
    if bad:
        parser.error(f"--thresholds {bad[0]:g}: expected probabilities between 0 and 1")
    predictor, dataset, output = opened(args)
    record = run(predictor, dataset, args.thresholds, args.survival, output)
    print(tables(record))
    print(f"In {output}: acceleration.txt, acceleration.json, acceleration.png")


if __name__ == "__main__":
    run_command(main)
