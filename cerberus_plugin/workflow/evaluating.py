"""Finished runs on other data sets: figures by checkpoint alone, with attributes matched by name and value.

    RUN/evaluation/DATA/results.json and .txt    every figure of one data set
    RUN/evaluation/summary.json and .txt         the table of all that were evaluated together
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
from .log import short_log

FOLDER, SUMMARY = "evaluation", "summary"
FIGURES = {"reID mAP": "mAP", "Rank-1": "Rank-1", "PAR mA": "PAR/mA_official", "balanced": "PAR/mA_balanced",
           "APS mAP": "APS/mAP", "APS Rank-1": "APS/Rank-1"}
TRANSFER = ("reID mAP", "PAR mA", "APS mAP")  # of the table of several runs

logger = logging.getLogger("fastreid.cerberus")


@dataclass
class Evaluation:
    """A run on a data set.

    Attributes:
        run: its folder.   data: name or path of the data set.   own: whether the run was trained on it.
        figures: as `TaskEvaluator` returns them.
        attributes: how many of the run's attributes are known of the data, and how many the run has; None where the
            run has none.
        left_out: what was left out on either side, in words.
    """

    run: Path
    data: str
    own: bool
    figures: dict = field(default_factory=dict)
    attributes: tuple[int, int] | None = None
    left_out: list[str] = field(default_factory=list)

    def row(self, names: Sequence[str]) -> list[str]:
        """Figures as a table shows them, empty where there are none."""
        return [percent(self.figures.get(FIGURES[name])) for name in names]


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Leading folders with a config.yaml are runs, all others data sets.

    Raises:
        FileNotFoundError, ValueError: if there is no run, or no data set.
    """
    runs = []
    for argument in arguments:
        if not os.path.isfile(os.path.join(argument, "config.yaml")):
            break
        runs.append(Path(argument))
    data = list(arguments[len(runs):])
    if not runs:
        raise FileNotFoundError(f"{arguments[0]}: holds no config.yaml, so it is no run; give the --out of cerberus "
                                "train, or the OUTPUT_DIR of train_net.py, then data sets.")
    if not data:
        raise ValueError(f"{runs[-1]}: give data sets after the runs: folders, tables, or names such as "
                         "Market1501Attributes.")
    return runs, [os.path.abspath(name) if os.path.exists(name) else name for name in data]


def evaluate_runs(runs: Sequence[Path], data: Sequence[str], name_pattern: str = "") -> list[Evaluation]:
    """Each run on each data set, and on its own test set; everything is read before anything is evaluated.

    Raises:
        FileNotFoundError, ValueError: if a run is not finished, or a data set cannot be evaluated.
    """
    found = []
    names = names_of(data)
    with short_log():
        jobs = [(run, predictor, *_prepared(run, predictor, data, names, name_pattern))
                for run, predictor in ((run, CerberusPredictor(run)) for run in runs)]
        total, done = sum(len(cfgs) for _, _, cfgs, _ in jobs), 0
        for run, predictor, cfgs, test_sets in jobs:
            own = predictor.cfg.DATASETS.TESTS[0]
            found.append(_own(run, own, predictor))
            for cfg, tests in zip(cfgs, test_sets):
                done += 1
                (name, (dataset, _)), = tests.items()
                logger.info(f"{done} of {total}: {run} on {name}, {len(dataset)} pictures")
                os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
                figures = dict(evaluate(cfg, predictor.model, tests))
                matching = dataset.annotations[0].matching if dataset.annotations else None
                found.append(Evaluation(run, name, False, figures, *_matched(predictor, bool(dataset.annotations),
                                                                             matching, name)))
    return found


def names_of(data: Sequence[str]) -> dict[str, str]:
    """What a folder of results is called for each data set; a number tells those of equal names apart."""
    names: dict[str, str] = {}
    for each in data:
        path = Path(each)
        plain = path.parent.name if path.is_file() else path.name
        same = [name for name in names.values() if name == plain or name.rpartition("-")[0] == plain]
        names.setdefault(each, f"{plain}-{len(same) + 1}" if same else plain)
    return names


def _prepared(run: Path, predictor: CerberusPredictor, data: Sequence[str], names: dict[str, str],
              name_pattern: str) -> tuple[list, list[TestSets]]:
    """Configurations and test sets of the data sets that are not the run's own."""
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
    own = predictor.cfg.DATASETS.TESTS[0]
    return os.path.abspath(own) if os.path.exists(own) else own


def _own(run: Path, name: str, predictor: CerberusPredictor) -> Evaluation:
    """The run on its own test set, as it was evaluated at the end of training."""
    figures = read_results(str(run))["results"].get(name, {})
    size = len(predictor.reader.schema.columns) if predictor.reader else 0
    return Evaluation(run, HELD_OUT if name == HELD_OUT else _own_name(predictor), True, figures,
                      (size, size) if size else None)


def _matched(predictor: CerberusPredictor, labelled: bool, matching: Matching | None,
             name: str) -> tuple[tuple[int, int] | None, list[str]]:
    """Attributes that are known, and what is left out."""
    if predictor.reader is None:
        return None, []
    size = len(predictor.reader.schema.columns)
    if matching is not None:
        return (len(matching.columns), size), [] if matching.complete else matching.lines()
    return ((size, size), []) if labelled else ((0, size), [f"none of its attributes are known of {name}"])


def table_of(found: Sequence[Evaluation]) -> str:
    """Of one run a line a data set; of several, who transfers to whom."""
    several = len({each.run for each in found}) > 1
    return _transfer_table(found) if several else _table(found)


def _table(found: Sequence[Evaluation]) -> str:
    names = [name for name in FIGURES if any(FIGURES[name] in each.figures for each in found)]
    rows = []
    for each in found:
        attributes = "" if each.attributes is None else f"{each.attributes[0]} of {each.attributes[1]}"
        rows.append([f"{each.data}{' (own test set)' if each.own else ''}", attributes, *each.row(names)])
    return _aligned(rows, ["data set", "attributes", *names], texts=1)


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
            + "\n* the run's own test set; (known/all) attributes, where some of the run's are not known of the data")


def _aligned(rows: list[list[str]], headers: list[str], texts: int) -> str:
    return tabulate(rows, headers, disable_numparse=True,
                    colalign=["left"] * texts + ["right"] * (len(headers) - texts))


def lines_of(found: Sequence[Evaluation]) -> list[str]:
    """What was left out, a line each."""
    several = len({each.run for each in found}) > 1
    lines = [f"{f'{each.run} on ' if several else ''}{each.data}: {line}" for each in found for line in each.left_out]
    if len({each.attributes for each in found}) > 1:
        lines.append("figures of PAR and APS are of the attributes that are known of each data set")
    return lines


def write_summary(found: Sequence[Evaluation]) -> list[Path]:
    """The table as text, and its figures as JSON, in each run; the paths of the texts."""
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
