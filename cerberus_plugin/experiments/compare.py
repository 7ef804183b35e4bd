"""Compare finished runs that were tested on the same data by the same rules; one table per test dataset.

    python -m cerberus_plugin.experiments.compare logs/market1501/cerberus_R50 logs/market1501/apr_R50 \\
        --output logs/market1501/comparison

Cerberus has one row per reading of attributes: by the nearest prototype, as in the paper, and by probability.
Training minutes do not include evaluations.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastreid.config import CfgNode

from ..config import merge_file
from ..data.splits import HELD_OUT
from ..evaluation import report
from ..metrics.aps import RANKS
from ..metrics.outfits import CHANGES
from ..utils.commands import run_command
from ..utils.files import write_json, write_text
from .manifest_diff import SHOWN

COLUMNS = {"mAP": "reID mAP", "Rank-1": "Rank-1", "mINP": "mINP", "PAR/mA_official": "PAR mA official",
           "PAR/mA_binary": "binary", "PAR/mA_balanced": "balanced", "PAR/person/mA_binary": "binary by person",
           "PAR/instance/F1": "instance F1",
           "APS/mAP": "APS mAP (rectangle)", "APS/mAP_trapezoid": "APS mAP (trapezoid)",
           **{f"APS/Rank-{k}": f"APS Rank-{k}" for k in RANKS},
           "APS/person/mAP": "APS mAP by person", "APS/unseen/mAP": "APS unseen mAP (rectangle)"}
# Shown first if a run was tested with outfits: the reID metrics mix people in changed and in the same clothes.
OUTFIT_COLUMNS = {"cloth-changing/mAP": "cloth-changing mAP", "cloth-changing/Rank-1": "cloth-changing Rank-1",
                  "same-clothes/mAP": "same-clothes mAP", "same-clothes/Rank-1": "same-clothes Rank-1"}
MINUTES = "training minutes"
HEADER_WIDTH = 8  # characters per line of a column header, if its words allow it; metrics have 5 or 6
# Numbers of images and queries; they must agree between the runs.
COUNTS = ("PAR/images", "APS/queries", *(f"{setting}/queries" for setting in CHANGES))


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Args:
        folder: of the run.
        record: contents of results.json.
        config: contents of config.yaml, empty if there is none.
    """

    folder: str
    record: dict
    config: dict

    @classmethod
    def read(cls, folder: str | Path) -> FinishedRun:
        """Read a run folder.

        Raises:
            FileNotFoundError: If the run is not finished.
        """
        config, values = Path(folder) / "config.yaml", {}
        if config.is_file():
            values = merge_file(CfgNode(new_allowed=True), config)
        record = report.read_results(str(folder))
        # A dataset has the same images with and without attributes.
        record["results"] = {name.removesuffix("Attributes"): figures for name, figures in record["results"].items()}
        return cls(str(folder), record, values)

    @property
    def name(self) -> str:
        """Name of the model and the folder."""
        parts = Path(self.folder).resolve().parts
        folder = "/".join(parts[-2:]) if parts[-1] == "evaluation" else parts[-1]  # the name of every --eval-only
        return f"{self.record['model']} ({folder})"

    @property
    def training(self) -> dict:
        """Seconds, epochs, seed and processes of the training; empty for an evaluation without training.

        Older records do not contain them; then epochs and seed are those of config.yaml.
        """
        if "training" in self.record:
            return self.record["training"] or {}
        seed = self.config.get("SEED", -1)
        return {"epochs": self.config.get("SOLVER", {}).get("MAX_EPOCH"), "seed": seed if seed >= 0 else None}

    def conditions(self) -> dict:
        """Conditions that must agree between runs that are compared, by name; only those of the run's tasks."""
        protocol = self.record["protocol"]
        rules = {f"reID {key}": value for key, value in protocol["reid"].items() if key not in ("metric", "groups")}
        rules["test datasets"] = sorted(self.record["results"])
        if HELD_OUT in self.record["results"]:
            data = self.config.get("DATASETS", {})
            rules |= {f"DATASETS.{key}": data.get(key) for key in ("HOLD_OUT", "HOLD_OUT_SEED")}
        for test, figures in sorted(self.record["results"].items()):
            for task, count in (("par", "PAR/images"), ("aps", "APS/queries")):
                if count in figures:
                    rules |= {f"{task.upper()} {key}": value for key, value in protocol[task].items()}
            rules |= {f"{count} of {test}": figures[count] for count in COUNTS if count in figures}
        return rules | self._images()

    def _images(self) -> dict:
        """Hashes of the test images and labels; empty for older records without a manifest.

        Labels are included only if a metric of the run depends on them.
        """
        rules = {}
        for name, tested in ((self.record.get("manifest") or {}).get("tests") or {}).items():
            test = name.removesuffix("Attributes")
            rules[f"unreadable images of {test}"] = tested["left out"]
            rules[f"list of images of {test} (sha256)"] = tested["list sha256"][:SHOWN]
            labels = tested["labels"] or {}
            if labels.get("sha256") and {"PAR/images", "APS/queries"} & set(self.record["results"].get(test, {})):
                rules[f"labels of {test} (sha256)"] = labels["sha256"][:SHOWN]
        return rules

    def description(self) -> str:
        """Epochs, image size, distance, seed, hardware and versions, as far as they are recorded, in one line."""
        training, machine = self.training, self.record.get("hardware", {})
        seed, processes = training.get("seed"), training.get("processes", 1)
        parts = [f"{training['epochs']} epochs" if training.get("epochs") else "epochs not recorded",
                 "x".join(map(str, self.record["image size"])), f"{self.record['protocol']['reid']['metric']} distance",
                 "seed not recorded" if seed is None else f"seed {seed}"]
        if machine:
            used = machine.get("gpu") or f"{machine['processor']}, {machine['cores']} core(s)"
            parts.append(f"{processes} x {used}" if processes > 1 else used)
        versions = ", ".join(f"{name} {version}" for name, version in self.record["versions"].items())
        return "; ".join([*parts, versions])


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise ValueError if the runs were tested on different data or by different rules."""
    check_alike([(run.folder, run.conditions()) for run in runs])


def check_alike(conditions: Sequence[tuple[str, Mapping]]) -> None:
    """Raise ValueError if conditions differ.

    Args:
        conditions: name and `FinishedRun.conditions` of each run.
    """
    known: dict[str, tuple[object, str]] = {}
    for folder, rules in conditions:
        different = [f"{name} is {value}, but {known[name][0]} in {known[name][1]}"
                     for name, value in rules.items() if name in known and known[name][0] != value]
        if different:
            raise ValueError(f"{folder}: cannot be compared with the other runs: {'; '.join(different)}. Evaluate both "
                             "in the same way (train_net.py --eval-only writes RUN/evaluation), or compare them in "
                             "separate tables.")
        for name, value in rules.items():
            known.setdefault(name, (value, folder))


def columns_of(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Return the metrics to show, with their headers."""
    shown = {key for run in runs for figures in run.record["results"].values() for key in figures}
    return {key: header for key, header in OUTFIT_COLUMNS.items() if key in shown} | COLUMNS


def rows_of(runs: Sequence[FinishedRun], test: str) -> list[list[str]]:
    """Format one row per run and reading: metrics on a test dataset in percent, and training minutes."""
    rows = []
    for run in runs:
        seconds = run.training.get("seconds")
        results = run.record["results"][test]
        for reading in report.readings_of(results) or ("",):
            figures = report.by_reading(results, reading)
            rows.append([f"{run.name}, {report.READINGS[reading]}" if reading else run.name,
                         *(report.percent(figures.get(key)) for key in columns_of(runs)),
                         "" if seconds is None else f"{seconds / 60:.1f}"])
    return rows


def table(runs: Sequence[FinishedRun], form: str = "simple") -> str:
    """Format one table per test dataset, with its name above it if there are several.

    Args:
        runs: rows of the tables.
        form: a format of `tabulate`. "simple" is for a terminal: headers are wrapped to make columns narrow.
    """
    tests = sorted(runs[0].record["results"])
    headers = ["model (folder)", *columns_of(runs).values(), MINUTES]
    if form == "simple":
        headers = [textwrap.fill(header, HEADER_WIDTH, break_long_words=False, break_on_hyphens=False)
                   for header in headers]
    tables = [report.aligned(rows_of(runs, test), headers, form) for test in tests]
    return "\n\n".join(tables if len(tests) == 1 else [f"{test}\n\n{text}" for test, text in zip(tests, tables)])


def to_json(runs: Sequence[FinishedRun]) -> list[Mapping]:
    """Return the contents of comparison.json: metrics, conditions, seconds and hardware of each run.

    "results" are those of the run's own reading of attributes, "results by reading" those of each.
    """
    tests, columns = sorted(runs[0].record["results"]), columns_of(runs)

    def shown(run: FinishedRun, reading: str = "") -> dict[str, dict[str, float]]:
        return {test: {key: value for key, value in report.by_reading(run.record["results"][test], reading).items()
                       if key in columns} for test in tests}

    return [{"folder": run.folder, "model": run.record["model"], "results": shown(run),
             "results by reading": {reading: shown(run, reading)
                                    for reading in report.readings_of(run.record["results"][tests[0]])},
             "metric": run.record["protocol"]["reid"]["metric"], "image size": run.record["image size"],
             "conditions": run.conditions(), "training": run.training, "hardware": run.record.get("hardware"),
             "versions": run.record["versions"]} for run in runs]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folders", nargs="+", metavar="RUN_FOLDER",
                        help="folder with the results.json of a finished run")
    parser.add_argument("--output", help="folder for comparison.md and comparison.json")
    args = parser.parse_args(arguments)
    runs = [FinishedRun.read(folder) for folder in args.run_folders]
    check_comparable(runs)
    lines = "\n".join(f"- {run.name}, `{run.folder}`: {run.description()}" for run in runs)
    print(f"{table(runs)}\n\n{lines}")
    if args.output:
        write_text(os.path.join(args.output, "comparison.md"), f"{table(runs, 'github')}\n\n{lines}\n")
        write_json(os.path.join(args.output, "comparison.json"), to_json(runs))


if __name__ == "__main__":
    run_command(main)
