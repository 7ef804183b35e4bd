"""Choose the groups by which a trained Cerberus compares people who may have changed their clothes.

    python -m cerberus_plugin.experiments.groups runs/clothes/cerberus

A search can exclude groups, such as those of clothes, without another training. This command measures every choice of
groups, and chooses the one with the best mean of mAP and Rank-1 in the "cloth-changing" setting. It chooses on the
held-out identities of the run (DATASETS.HOLD_OUT), or on half of the test identities if none were held out, and
measures on the other test identities. It writes groups.txt, groups.json and groups.png. If identities were held out, it
also writes results.json of the chosen groups, for `experiments.compare`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from ..attributes import GROUPS
from ..config import with_values
from ..data.splits import HELD_OUT
from ..engine.trainer import write_results
from ..evaluation import manifest, report
from ..evaluation.clothes_task import ClothesTask
from ..evaluation.embeddings import Gathered
from ..evaluation.tasks import ReIDTask
from ..metrics.outfits import CHANGES
from ..predictor import GROUPS_FILE, CerberusPredictor
from ..utils.commands import run_command
from ..utils.files import write_figure, write_json, write_text
from .gathering import gather, gather_with_account, halves, opened, run_parser

FIGURES = ("mAP", "Rank-1")


def choices(groups: Sequence[str] = GROUPS) -> tuple[tuple[str, ...], ...]:
    """Return every non-empty choice of groups, beginning with all groups.

    Examples:
        >>> choices(("head", "upper"))
        (('head', 'upper'), ('head',), ('upper',))
    """
    return tuple(choice for size in range(len(groups), 0, -1) for choice in itertools.combinations(groups, size))


def measure(gathered: Gathered, cfg, groups: Sequence[str] = GROUPS) -> dict[tuple[str, ...], dict[str, float]]:
    """Evaluate each choice of groups with changed and with the same clothes.

    Args:
        gathered: embeddings and outfits of a dataset.
        cfg: configuration of the run.
        groups: all groups of the model.

    Returns:
        Metrics by choice, beginning with all groups.
    """
    measured = {}
    for choice in tqdm(choices(groups), desc="choices of groups", disable=None):
        ranked = ReIDTask(cfg, choice, groups).ranker(gathered)
        measured[choice] = {}
        for setting in CHANGES:
            result = ranked(setting)
            figures = {**result.percentages(), "queries": gathered.num_query - result.num_skipped}
            measured[choice] |= {f"{setting}/{name}": figures[name] for name in (*FIGURES, "queries")}
    return measured


def best_of(measured: Mapping[tuple[str, ...], Mapping[str, float]]) -> tuple[str, ...]:
    """Return the choice with the best mean of cloth-changing mAP and Rank-1, and with most groups if several are equal.
    """
    return max(measured, key=lambda choice: sum(measured[choice][f"cloth-changing/{name}"] for name in FIGURES))


def split_queries(gathered: Gathered) -> tuple[Gathered, Gathered]:
    """Split the queries into two halves by identity; both have the whole gallery."""
    is_query = torch.arange(len(gathered.pids)) < gathered.num_query
    return tuple(gathered.rows((~is_query | torch.isin(gathered.pids, half)).nonzero().flatten())
                 for half in halves(gathered.query.pids))


def named(choice: Sequence[str], groups: int = len(GROUPS)) -> str:
    """Format a choice of groups, "all" if it has all of them.

    Examples:
        >>> named(["head", "identity"])
        'head, identity'
    """
    return "all" if len(choice) == groups else ", ".join(choice)


def table(record: Mapping) -> str:
    """Format the metrics of every choice by decreasing cloth-changing mAP; marks all groups and the chosen ones."""
    rows = sorted(record["choices"], key=lambda row: -row["cloth-changing/mAP"])
    groups = record["choices"][0]["groups"]  # the first choice has all groups
    marks = {tuple(groups): "all", tuple(record["chosen"]): "chosen"}
    lines = [[named(row["groups"], len(groups)), *(report.percent(row[f"{setting}/{name}"]) for setting in CHANGES
                                      for name in FIGURES), marks.get(tuple(row["groups"]), "")] for row in rows]
    headers = ["groups compared", *(f"{setting} {name}" for setting in CHANGES for name in FIGURES), ""]
    queries = ", ".join(f"{record['choices'][0][f'{setting}/queries']:.0f} {setting}" for setting in CHANGES)
    return (f"{record['dataset']}: {queries} queries of {record['measured on']}; groups chosen on "
            f"{record['chosen on']}\n{report.aligned(lines, headers)}\n")


def plot(record: Mapping, path: Path) -> None:
    """Plot cloth-changing mAP against same-clothes mAP, one point per choice."""
    figure = Figure((6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    groups = record["choices"][0]["groups"]  # the first choice has all groups
    for row in record["choices"]:
        x, y = row["same-clothes/mAP"], row["cloth-changing/mAP"]
        emphasised = row["groups"] in (groups, record["chosen"])
        axes.plot(x, y, "o", color="#d62728" if emphasised else "#1f77b4", markersize=7 if emphasised else 4)
        if emphasised or len(row["groups"]) == 1:
            axes.annotate(named(row["groups"], len(groups)), (x, y), xytext=(5, 4), textcoords="offset points",
                          fontsize=8)
    axes.set(xlabel="mAP with the same clothes, %", ylabel="mAP with changed clothes, %",
             title="Choices of groups (red: all groups, and the chosen ones)")
    axes.margins(0.12)
    write_figure(path, figure, 110)


def run(predictor: CerberusPredictor, dataset: str, output: Path) -> dict:
    """Run the experiment on a test dataset and write its files to `output`.

    Returns:
        The contents of groups.json.

    Raises:
        ValueError: If the model is not Cerberus, or the dataset has no people who change their clothes.
    """
    cfg = predictor.cfg
    if cfg.MODEL.META_ARCHITECTURE != "Cerberus":
        raise ValueError(f"{cfg.OUTPUT_DIR}: {cfg.MODEL.META_ARCHITECTURE} has no groups to exclude; use a run of "
                         "Cerberus.")
    measuring, tested = gather_with_account(predictor, dataset)
    if measuring.outfits is None:
        raise ValueError(f"{dataset} has no outfits, so changed clothes are unknown; name a dataset with outfits by "
                         "--dataset, such as PRCC or LTCC.")
    choosing = gather(predictor, HELD_OUT) if cfg.DATASETS.HOLD_OUT else None
    held_out = choosing is not None and choosing.outfits is not None
    if not held_out:
        choosing, measuring = split_queries(measuring)
    people = "held-out training identities" if held_out else "of the test identities"
    groups = predictor.groups
    tried, measured = measure(choosing, cfg, groups), measure(measuring, cfg, groups)
    for of, figures in (("chosen on", tried), ("measured on", measured)):
        if not figures[groups]["cloth-changing/queries"]:
            raise ValueError(f"{dataset}: the people {of} have no query in other clothes than in the gallery; train "
                             "with a larger DATASETS.HOLD_OUT, or name another dataset by --dataset.")
    chosen = best_of(tried)
    record = {"run": cfg.OUTPUT_DIR, "dataset": dataset, "chosen": list(chosen),
              "chosen on": f"{len(choosing.query.pids.unique())} {people}",
              "measured on": f"{len(measuring.query.pids.unique())} test identities",
              "choices": [{"groups": list(choice), **figures} for choice, figures in measured.items()]}
    write_text(str(output / "groups.txt"), table(record))
    write_json(str(output / GROUPS_FILE), record)
    plot(record, output / "groups.png")
    if held_out:
        _write_results(predictor, dataset, chosen, measuring, tested, output)
    return record


def _write_results(predictor: CerberusPredictor, dataset: str, chosen: tuple[str, ...], gathered: Gathered,
                   tested: Mapping, output: Path) -> None:
    """Write results.json of the test dataset with the chosen groups."""
    groups = [] if len(chosen) == len(predictor.groups) else list(chosen)
    cfg = with_values(predictor.cfg, {"OUTPUT_DIR": str(output), "TEST.GROUPS": groups, "DATASETS.TESTS": [dataset]})
    task = ReIDTask(cfg, all_groups=predictor.groups)
    figures = task(gathered) | ClothesTask(task.ranker, CHANGES)(gathered)
    made = manifest.manifest(cfg, figures, {dataset: tested}, predictor.model, checkpoint=cfg.MODEL.WEIGHTS)
    write_results(cfg, figures, made=made)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = run_parser(__doc__, "Cerberus", "groups", "test dataset with outfits")
    predictor, dataset, output = opened(parser.parse_args(arguments))
    record = run(predictor, dataset, output)
    print(table(record))
    chosen = named(record["chosen"], len(predictor.groups))
    print(f"Groups to compare if clothes may have changed: {chosen}. In {output}: groups.txt, {GROUPS_FILE}, "
          "groups.png")


if __name__ == "__main__":
    run_command(main)
