"""Evaluate finished runs on other datasets, from the checkpoint; attributes are matched by name and value.

    RUN/evaluation/DATA/results.json and .txt    all metrics of one dataset
    RUN/evaluation/summary.json and .txt         the table of all datasets of one command
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from ..attributes.matching import Matching
from ..config import with_values
from ..data.splits import HELD_OUT
from ..engine.trainer import TestSets, build_test_sets, evaluate
from ..evaluation.report import percent, read_results
from ..predictor import CerberusPredictor
from ..utils.files import write_json, write_text
from ..utils.text import counted
from .log import short_log

FOLDER, SUMMARY = "evaluation", "summary"
FIGURES = {"reID mAP": "mAP", "Rank-1": "Rank-1", "PAR accuracy": "PAR/mA_with_none", "balanced": "PAR/mA_balanced",
           "APS mAP": "APS/mAP", "APS Rank-1": "APS/Rank-1"}
TRANSFER = ("reID mAP", "PAR accuracy", "APS mAP")  # metrics in the table of several runs

logger = logging.getLogger("fastreid.cerberus")


@dataclass
class Evaluation:
    """Metrics of a run on a dataset.

    Attributes:
        run: folder of the run.
        data: name or path of the dataset.
        own: whether it is the run's own test set.
        figures: metrics, as `TaskEvaluator` returns them.
        attributes: number of the run's attributes that the dataset labels, and number of the run's attributes; None
            for a run without attributes.
        left_out: messages about attributes and values without a counterpart.
    """

    run: Path
    data: str
    own: bool
    figures: dict = field(default_factory=dict)
    attributes: tuple[int, int] | None = None
    left_out: list[str] = field(default_factory=list)

    def row(self, names: Sequence[str]) -> list[str]:
        """Return table cells of metrics, keys of `FIGURES`, in percent; empty for metrics that were not measured."""
        return [percent(self.figures.get(FIGURES[name])) for name in names]


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Divide arguments into runs and datasets: leading folders with a config.yaml are runs.

    Args:
        arguments: paths, or names of datasets.

    Returns:
        folders of runs, and datasets; paths of datasets are absolute.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if there is no dataset.
    """
    runs = []
    for argument in arguments:
        if not os.path.isfile(os.path.join(argument, "config.yaml")):
            break
        runs.append(Path(argument))
    data = list(arguments[len(runs):])
    if not runs:
        raise FileNotFoundError(f"{arguments[0]}: is not a run, since it has no config.yaml. Give the --out folder of "
                                "cerberus train, or the OUTPUT_DIR of train_net.py, and then datasets.")
    if not data:
        raise ValueError(f"{runs[-1]}: no dataset is given. Give datasets after the runs: folders, tables, or names "
                         "such as Market1501Attributes.")
    return runs, [os.path.abspath(name) if os.path.exists(name) else name for name in data]


def evaluate_runs(runs: Sequence[Path], data: Sequence[str], name_pattern: str = "") -> list[Evaluation]:
    """Evaluate each run on each dataset, and add the metrics on its own test set.

    All runs and datasets are read before the first evaluation.

    Args:
        runs: folders of runs.
        data: names or paths of datasets.
        name_pattern: regular expression for file names, see `read_people`.

    Raises:
        FileNotFoundError: if a run is not finished, or a dataset does not exist.
        ValueError: if a dataset cannot be evaluated.
    """
    found = []
    names = names_of(data)
    with short_log():
        jobs = [(run, predictor, *_prepared(run, predictor, data, names, name_pattern))
                for run, predictor in ((run, CerberusPredictor(run)) for run in runs)]
        total, done = sum(len(cfgs) for _, _, cfgs, _ in jobs), 0
        for run, predictor, cfgs, test_sets in jobs:
            if predictor.cfg.DATASETS.TESTS:  # empty for models of `cerberus import`
                found.append(_own(run, predictor.cfg.DATASETS.TESTS[0], predictor))
            for cfg, tests in zip(cfgs, test_sets):
                done += 1
                (name, (dataset, _)), = tests.items()
                logger.info(f"{done} of {total}: {run} on {name}, {counted(len(dataset), 'image')}")
                os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
                figures = dict(evaluate(cfg, predictor.model, tests))
                matching = dataset.annotations[0].matching if dataset.annotations else None
                found.append(Evaluation(run, name, False, figures, *_matched(predictor, bool(dataset.annotations),
                                                                             matching, name)))
    return found


def names_of(data: Sequence[str]) -> dict[str, str]:
    """Return the name of the results folder of each dataset; a number is added to names that occur repeatedly.

    Args:
        data: names or paths of datasets.

    Examples:
        >>> names_of(["a/site", "b/site", "Market1501Attributes"])
        {'a/site': 'site', 'b/site': 'site-2', 'Market1501Attributes': 'Market1501Attributes'}
    """
    names: dict[str, str] = {}
    for each in data:
        path = Path(each)
        plain = path.parent.name if path.is_file() else path.name
        same = [name for name in names.values() if name == plain or name.rpartition("-")[0] == plain]
        names.setdefault(each, f"{plain}-{len(same) + 1}" if same else plain)
    return names


def _prepared(run: Path, predictor: CerberusPredictor, data: Sequence[str], names: dict[str, str],
              name_pattern: str) -> tuple[list, list[TestSets]]:
    """Configurations and test sets of the datasets that are not the run's own."""
    cfgs, tests = [], []
    for name in names:
        if name == _own_name(predictor):
            continue
        cfg = with_values(predictor.cfg, {"DATASETS.TESTS": (name,), "DATASETS.NAME_PATTERN": name_pattern,
                                          "DATASETS.ALLOW_SUBSET": True, "DATASETS.SPLIT_FILE": "",
                                          "OUTPUT_DIR": str(run / FOLDER / names[name])})
        cfgs.append(cfg)
        tests.append(build_test_sets(cfg, predictor.reader.schema if predictor.reader else None))
    return cfgs, tests


def _own_name(predictor: CerberusPredictor) -> str:
    own = next(iter(predictor.cfg.DATASETS.TESTS), "")
    return os.path.abspath(own) if os.path.exists(own) else own


def _own(run: Path, name: str, predictor: CerberusPredictor) -> Evaluation:
    """Metrics of the run on its own test set, from the end of training."""
    figures = read_results(str(run))["results"].get(name, {})
    size = len(predictor.reader.schema.columns) if predictor.reader else 0
    return Evaluation(run, HELD_OUT if name == HELD_OUT else _own_name(predictor), True, figures,
                      (size, size) if size else None)


def _matched(predictor: CerberusPredictor, labelled: bool, matching: Matching | None,
             name: str) -> tuple[tuple[int, int] | None, list[str]]:
    """Numbers of labelled and of all attributes, and messages about those without a counterpart."""
    if predictor.reader is None:
        return None, []
    size = len(predictor.reader.schema.columns)
    if matching is not None:
        return (len(matching.columns), size), [] if matching.complete else matching.lines()
    return ((size, size), []) if labelled else ((0, size), ["has no labels of the run's attributes"])


def table_of(found: Sequence[Evaluation]) -> str:
    """Format a table: for one run, a row for each dataset; for several, a row for each run and metric."""
    several = len({each.run for each in found}) > 1
    return _transfer_table(found) if several else _table(found)


def _table(found: Sequence[Evaluation]) -> str:
    names = [name for name in FIGURES if any(FIGURES[name] in each.figures for each in found)]
    rows = []
    for each in found:
        attributes = "" if each.attributes is None else f"{each.attributes[0]} of {each.attributes[1]}"
        rows.append([f"{each.data}{' (own test set)' if each.own else ''}", attributes, *each.row(names)])
    return _aligned(rows, ["dataset", "attributes", *names], texts=1)


def _transfer_table(found: Sequence[Evaluation]) -> str:
    data = list(dict.fromkeys(each.data for each in found))
    of = {(each.run, each.data): each for each in found}
    rows = []
    for run in dict.fromkeys(each.run for each in found):
        for name in TRANSFER:
            cells = []
            for each in (of.get((run, own)) for own in data):
                cell = "" if each is None else percent(each.figures.get(FIGURES[name]))
                if each is not None and cell and name != TRANSFER[0] and each.attributes:
                    known, size = each.attributes
                    cell += f" ({known}/{size})" if known < size else ""
                cells.append(cell + "*" * bool(cell and each is not None and each.own))
            if any(cells):
                rows.append([str(run), name, *cells])
    short = names_of(data)
    return (_aligned(rows, ["run", "percent", *(short[name] for name in data)], texts=2)
            + "\n* own test set of the run; (known/all): number of the run's attributes that the dataset labels"
            + "\nPAR accuracy: mean over attributes, as `cerberus train` prints it; balanced: mA over yes/no questions")


def _aligned(rows: list[list[str]], headers: list[str], texts: int) -> str:
    return tabulate(rows, headers, disable_numparse=True,
                    colalign=["left"] * texts + ["right"] * (len(headers) - texts))


def lines_of(found: Sequence[Evaluation]) -> list[str]:
    """Return messages about attributes and values without a counterpart, one per line."""
    several = len({each.run for each in found}) > 1
    lines = [f"{f'{each.run} on ' if several else ''}{each.data}: {line}" for each in found for line in each.left_out]
    if len({each.attributes for each in found}) > 1:
        lines.append("metrics of PAR and APS use only the attributes that each dataset labels")
    return lines


def write_summary(found: Sequence[Evaluation]) -> list[Path]:
    """Write the table as text, and its metrics as JSON, into the folder of each run.

    Returns:
        paths of the text files.
    """
    text = "\n".join([table_of(found), "", *lines_of(found)]).rstrip() + "\n"
    record = [{"run": str(each.run), "data": each.data, "own test set": each.own,
               "attributes known": each.attributes and each.attributes[0],
               "attributes": each.attributes and each.attributes[1], "left out": each.left_out,
               "figures": {name: value for name, key in FIGURES.items()
                           if not math.isnan(value := each.figures.get(key, math.nan))}} for each in found]
    paths = []
    for run in dict.fromkeys(each.run for each in found):
        (run / FOLDER).mkdir(exist_ok=True)
        paths.append(run / FOLDER / f"{SUMMARY}.txt")
        write_text(str(paths[-1]), text)
        write_json(str(paths[-1].with_suffix(".json")), record)
    return paths
