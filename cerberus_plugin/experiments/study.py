"""A study: variants of a configuration trained with several seeds, one record that grows with every finished run.

Runs lie in OUTPUT/runs/<variant>-<hash of the configuration>/seed_<n>, so that a configuration which two studies share
is trained once, and a study that was stopped goes on.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastreid.config import CfgNode

from ..config import FILLED, changed, flat, with_values
from ..engine import trainer
from ..evaluation import report, spread
from ..utils.files import json_sha256, write_json, write_text
from . import compare
from .running import FREE, check_same_images, check_same_run, is_finished, train_once

logger = logging.getLogger("fastreid.cerberus")

RUNS = "runs"
COSTS_FILE = "costs.json"
WEIGHTS = "model_final.pth"
COPIED = ("protocol", "training", "hardware", "versions", "model", "image size", "weights", "manifest")


@dataclass(frozen=True)
class Variant:
    """A row of a study.

    Args:
        options: values by configuration key, as its default's type (1.0, not 1).
        file: another configuration, by the model's name in its file name ("bot"); "" for the study's base file.
        published: figures by data set and key of results.json.   rule: that of its PAR figures, "official" or "binary".
        trained: False for a published row alone.
        weights_of: evaluate the weights of this variant with `options`, in place of training.
        reading: show PAR and APS by this reading, one of `report.READINGS`, of which every evaluation of Cerberus has
            both; a variant that differs from another in it alone shares its run. "" for the one that the run names.
        curve, x: the curve that a point belongs to, and its place on it.
    """

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    file: str = ""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rule: str = ""
    note: str = ""
    trained: bool = True
    weights_of: str = ""
    reading: str = ""
    curve: str = ""
    x: float | None = None


@dataclass(frozen=True)
class Study:
    """A table or figure of the paper as an experiment.

    Args:
        figures: keys of results.json; "PAR/official/*" stands for all that begin so.
        against: the variant that the others are compared with; "" where `pairs` says all.
        ladder: each variant is the one above with something added, and is compared with it as well.
        pairs: of names of variants to compare, in place of `against` and `ladder`.
        options: of all variants, before those of the command line.
        hours: expected hours of one run at the paper's schedule on one H100.
        costs: measure parameters, operations and times of each variant.
    """

    name: str
    title: str
    question: str
    variants: tuple[Variant, ...]
    figures: tuple[str, ...]
    against: str = ""
    hours: float = 0.5
    note: str = ""
    ladder: bool = False
    pairs: tuple[tuple[str, str], ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    costs: bool = False

    @property
    def trained(self) -> tuple[Variant, ...]:
        return tuple(variant for variant in self.variants if variant.trained)

    def compared(self) -> list[tuple[str, str]]:
        """Pairs of names of variants that claims are made of."""
        names = [variant.name for variant in self.trained]
        pairs = list(self.pairs) or [(name, self.against) for name in names if name != self.against]
        if self.ladder:
            pairs += [pair for pair in zip(names[1:], names) if pair not in pairs and pair[::-1] not in pairs]
        return pairs


@dataclass(frozen=True)
class Run:
    """A run of a study: its configuration, OUTPUT_DIR included, and that configuration's hash.

    `source` is the run whose weights it evaluates; None where it trains its own.
    """

    variant: Variant
    seed: int
    cfg: CfgNode
    sha256: str
    source: Run | None = None

    @property
    def finished(self) -> bool:
        """An evaluation is no longer one of its source's weights where these were trained anew."""
        if not is_finished(self.cfg) or self.source is None:
            return is_finished(self.cfg)
        return self.source.finished and _evaluated(self.source) in (None, _evaluated(self))


def plan(study: Study, read: Callable[[Variant, int], CfgNode], seeds: Sequence[int], output: str | Path) -> list[Run]:
    """Every run of a study, seed after seed, with the folder that it has or is to have."""
    runs, folders = [], {}
    for seed in seeds:
        for variant in study.trained:
            cfg = read(variant, seed)
            sha256 = fingerprint(cfg)
            folder = folders.setdefault(sha256, _folder(Path(output), variant, sha256))
            cfg = with_values(cfg, {"SEED": seed, "OUTPUT_DIR": str(folder / f"seed_{seed}")})
            runs.append(Run(variant, seed, cfg, sha256))
    return [_with_weights(run, runs) for run in runs]


def run(study: Study, read: Callable[[Variant, int], CfgNode], seeds: Sequence[int], output: str | Path, *,
        command: str = "", config: str = "", measure: Callable[[CfgNode], Mapping] | None = None) -> dict:
    """Train every variant with every seed; the record of OUTPUT/<study>.json, which is written after every run.

    Args:
        read: the configuration of a variant and seed.
        command, config: how the study was started, for the record.
        measure: costs of a trained configuration; taken once a variant.
    """
    planned = plan(study, read, seeds, output)
    for each in planned:  # before hours of training, not after
        if each.source is None:
            check_same_run(each.cfg)
    check_same_images([each.cfg for each in planned + other_seeds(study, read, seeds, output)])
    waiting, took = len({each.cfg.OUTPUT_DIR for each in planned if not each.finished}), []
    logger.info(f"{study.name}: {len(planned)} runs, {waiting} of them to do")
    found = record(study, planned, output, command, config)
    for place, each in enumerate(planned, start=1):
        said, begun = "finished before", time.monotonic()
        if not each.finished:
            _finish(each)
            took.append(time.monotonic() - begun)
            left = sum(took) / len(took) * (waiting - len(took))
            said = f"{took[-1] / 60:.1f} minutes, about {left / 60:.0f} minutes to go"
        if measure is not None and each.source is None and not _costs_path(each).is_file():
            write_json(str(_costs_path(each)), measure(each.cfg))
        # Another process may have finished its seeds by now.
        found = record(study, planned + other_seeds(study, read, seeds, output), output, command, config)
        write_json(os.path.join(output, f"{study.name}.json"), found)
        logger.info(f"{study.name}, {each.variant.name}, seed {each.seed}, run {place} of {len(planned)}: {said}")
    return found


def record(study: Study, planned: Sequence[Run], output: str | Path, command: str = "", config: str = "") -> dict:
    """What OUTPUT/<study>.json says of the runs that are finished; the others stand under "missing".

    "refused" says why the runs cannot stand in one table, and then nothing is claimed of them.
    """
    rows = [_row(variant, [each for each in planned if each.variant == variant], output) for variant in study.variants]
    keys, refused = _keys(study, rows), _refusal(rows)
    for row in rows:
        for each in row["runs"]:
            each["results"] = {test: {key: figures[key] for key in keys if key in figures}
                               for test, figures in each["results"].items()}
    tests = sorted({test for row in rows for each in row["runs"] for test in each["results"]})
    headers = {key: compare.COLUMNS.get(key, key) for key in keys if key in study.figures}
    claimed = {test: spread.claims(figures_of(rows, test), study.compared(), headers) for test in tests}
    return {
        "study": study.name, "title": study.title, "question": study.question, "note": study.note, "config": config,
        "command": command, "seeds": sorted({each.seed for each in planned}), "figures": keys, "against": study.against,
        "hours": study.hours, "variants": rows,
        "refused": refused, "claims": {} if refused else claimed,
        "missing": [{"variant": each.variant.name, "seed": each.seed, "folder": _relative(each, output)}
                    for each in planned if not each.finished],
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def figures_of(rows: Sequence[Mapping], test: str) -> dict[str, dict[int, dict[str, float]]]:
    """Figures of a record's variants on a test data set, by variant, seed and key."""
    return {row["name"]: {each["seed"]: each["results"][test] for each in row["runs"] if test in each["results"]}
            for row in rows}


def fingerprint(cfg: CfgNode) -> str:
    """The sha256 of what a configuration sets, whatever the seed and the folder.

    Keys at their defaults are left out, so that the keys of a later version leave it as it is.
    """
    return json_sha256({key: value for key, value in changed(cfg).items() if key not in (*FILLED, *FREE, "SEED")})


def check_keys(study: Study, cfg: CfgNode) -> None:
    """Refuse a study that sets what the configuration does not have."""
    known = flat(cfg)
    for name, options in [("all variants", study.options), *((f"'{v.name}'", v.options) for v in study.variants)]:
        unknown = [key for key in options if key not in known]
        if unknown:
            raise ValueError(f"study '{study.name}': {name} set{'' if name == 'all variants' else 's'} {unknown[0]}, "
                             "which is no key of the configuration; the keys are in cerberus_plugin/config.py")


def check_output(output: str | Path) -> None:
    """Refuse a folder that is that of a run."""
    if Path(output, "last_checkpoint").is_file():
        raise ValueError(f"{output}: holds a training run, whose config.yaml would be overwritten; choose another "
                         "folder")


def _folder(output: Path, variant: Variant, sha256: str) -> Path:
    """Where a configuration has been trained under whatever name, or else is to be."""
    earlier = sorted((output / RUNS).glob(f"*-{sha256[:8]}"))
    slug = re.sub(r"[^a-z0-9.]+", "_", variant.name.lower()).strip("_")
    return earlier[0] if earlier else output / RUNS / f"{slug}-{sha256[:8]}"


def _with_weights(run: Run, runs: Sequence[Run]) -> Run:
    """A run that evaluates another's weights, with their file; any other as it is."""
    if not run.variant.weights_of:
        return run
    source = next(other for other in runs if other.variant.name == run.variant.weights_of and other.seed == run.seed)
    cfg = with_values(run.cfg, {"MODEL.WEIGHTS": os.path.join(source.cfg.OUTPUT_DIR, WEIGHTS)})
    return Run(run.variant, run.seed, cfg, run.sha256, source)


def _evaluated(run: Run) -> str | None:
    """The hash of the weights that a finished run's figures are of; None where it was not recorded."""
    return (report.read_results(run.cfg.OUTPUT_DIR).get("manifest") or {}).get("checkpoint sha256")


def other_seeds(study: Study, read: Callable[[Variant, int], CfgNode], seeds: Sequence[int],
                 output: str | Path) -> list[Run]:
    """Runs of other seeds that are finished for every variant, so that all means are over the same seeds."""
    names = {path.name.removeprefix("seed_") for path in (Path(output) / RUNS).glob("*/seed_*")}
    found = []
    for seed in sorted({int(name) for name in names if name.isdigit()} - set(seeds)):
        runs = plan(study, read, [seed], output)
        found += runs if all(each.finished for each in runs) else []
    return found


def _finish(run: Run) -> None:
    """Train a run, or evaluate the weights of another."""
    if run.source is not None:
        write_text(os.path.join(run.cfg.OUTPUT_DIR, "config.yaml"), run.cfg.dump())
        trainer.evaluate(run.cfg)
    else:
        train_once(run.cfg)
        _keep_last_checkpoint(Path(run.cfg.OUTPUT_DIR))


def _keep_last_checkpoint(folder: Path) -> None:
    """Of a finished run: those of a study's epochs would fill a disk."""
    for path in folder.glob("model_*.pth"):
        if path.name != WEIGHTS:
            path.unlink()


def _row(variant: Variant, planned: Sequence[Run], output: str | Path) -> dict:
    """A variant of the record; figures are all that results.json has."""
    row = {"name": variant.name, "options": dict(variant.options), "file": variant.file, "note": variant.note,
           "published": {test: dict(figures) for test, figures in variant.published.items()}, "rule": variant.rule,
           "reading": variant.reading}
    if variant.curve:
        row |= {"curve": variant.curve, "x": variant.x}
    finished = sorted((each for each in planned if each.finished), key=lambda each: each.seed)
    costs = next((_costs_path(each) for each in finished if _costs_path(each).is_file()), None)
    if costs is not None:
        row["costs"] = json.loads(costs.read_text())
    return row | {"runs": [_run_row(each, output) for each in finished]}


def _run_row(run: Run, output: str | Path) -> dict:
    found = compare.FinishedRun.read(run.cfg.OUTPUT_DIR)
    results = {test: report.by_reading(row, run.variant.reading) for test, row in found.record["results"].items()}
    row = {"seed": run.seed, "folder": _relative(run, output), "results": results,
           "conditions": found.conditions(), "at the end of training": _end_of_training(run.cfg.OUTPUT_DIR),
           **{key: found.record.get(key) for key in COPIED}, "recipe sha256": run.sha256}
    return row | ({} if run.source is None else {"weights of": _relative(run.source, output)})


def _end_of_training(folder: str) -> dict[str, float]:
    """The last losses and what the alignment did in the last epochs; nothing of an evaluation alone."""
    path, last = Path(folder) / "metrics.json", {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            last |= json.loads(line)
        except ValueError:
            continue  # cut off where a run was killed
    return {key: value for key, value in last.items() if key.startswith(("loss_", "alignment/"))}


def _refusal(rows: Sequence[Mapping]) -> str:
    """Why the runs of a record cannot stand in one table; empty where they can."""
    try:
        compare.check_alike([(f"{row['name']}, seed {each['seed']} ({each['folder']})", each["conditions"])
                             for row in rows for each in row["runs"]])
    except ValueError as error:
        return str(error)
    return ""


def _keys(study: Study, rows: Sequence[Mapping]) -> list[str]:
    """The study's figures, with what a "*" stands for in what was measured, or else published."""
    measured = [figures for row in rows for each in row["runs"] for figures in each["results"].values()]
    published = [figures for row in rows for figures in row["published"].values()] if not measured else []
    keys: dict[str, None] = {}
    for figure in study.figures:
        if figure.endswith("*"):
            keys |= {key: None for figures in measured + published for key in figures if key.startswith(figure[:-1])}
        else:
            keys[figure] = None
    return list(keys)


def _costs_path(run: Run) -> Path:
    return Path(run.cfg.OUTPUT_DIR).parent / COSTS_FILE


def _relative(run: Run, output: str | Path) -> str:
    return Path(run.cfg.OUTPUT_DIR).relative_to(output).as_posix()
