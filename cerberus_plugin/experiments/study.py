"""Studies: variants of a configuration, trained with several seeds and recorded after every finished run.

Runs are stored in OUTPUT/runs/<variant>-<hash of the configuration>/seed_<n>. A configuration that two studies share is
trained once, and an interrupted study continues.
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
        name: of the row.
        options: values by configuration key, of the type of its default (1.0, not 1).
        file: prefix of another configuration file, such as "bot"; "" for the base file of the study.
        published: published results by dataset and key of results.json.
        rule: of the published PAR results, "official" or "binary".
        note: shown in the report.
        trained: False if there are only published results.
        weights_of: name of a variant; its weights are evaluated with `options`, without training.
        reading: how attributes are read for PAR and APS, one of `report.READINGS`; "" for the reading of the run.
            Variants that differ only in this share their runs, since every evaluation of Cerberus has both readings.
        curve: name of the curve in the plot that the variant is a point of.
        x: position on this curve.
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
        name: of the study in commands and file names.
        title: shown in the report.
        question: that the study answers.
        variants: rows of the table.
        figures: keys of results.json to show; "PAR/official/*" means all keys with this prefix.
        against: name of the variant that the others are compared with; "" if all comparisons are in `pairs`.
        hours: expected hours of one run with the paper's schedule on one H100.
        note: shown in the report.
        ladder: each variant adds something to the previous one, and is also compared with it.
        pairs: pairs of names of variants to compare, instead of with `against`.
        options: of all variants; options of the command line override them.
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
        """Variants with runs, not only published results."""
        return tuple(variant for variant in self.variants if variant.trained)

    def compared(self) -> list[tuple[str, str]]:
        """Return the pairs of names of variants to compare."""
        names = [variant.name for variant in self.trained]
        pairs = list(self.pairs) or [(name, self.against) for name in names if name != self.against]
        if self.ladder:
            pairs += [pair for pair in zip(names[1:], names) if pair not in pairs and pair[::-1] not in pairs]
        return pairs


@dataclass(frozen=True)
class Run:
    """A run of a study.

    Args:
        variant: of the study.
        seed: of the run.
        cfg: configuration with OUTPUT_DIR.
        sha256: `fingerprint` of the configuration.
        source: the run whose weights are evaluated; None if the run is trained.
    """

    variant: Variant
    seed: int
    cfg: CfgNode
    sha256: str
    source: Run | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has results; an evaluation also has to be of the current weights of its source."""
        if not is_finished(self.cfg) or self.source is None:
            return is_finished(self.cfg)
        return self.source.finished and _evaluated(self.source) in (None, _evaluated(self))


def plan(study: Study, read: Callable[[Variant, int], CfgNode], seeds: Sequence[int], output: str | Path) -> list[Run]:
    """List every run of a study, seed by seed, with its folder.

    Args:
        study: to run.
        read: returns the configuration of a variant and seed.
        seeds: of the runs.
        output: folder of the study.
    """
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
    """Train every variant with every seed; write OUTPUT/<study>.json after every run.

    Args:
        study: to run.
        read: returns the configuration of a variant and seed.
        seeds: of the runs.
        output: folder of the study.
        command: that started the study, for the record.
        config: base configuration file, for the record.
        measure: returns the costs of a trained configuration; called once per variant.

    Returns:
        The contents of OUTPUT/<study>.json, see `record`.

    Raises:
        ValueError: If a folder contains a run of another configuration, or of images or labels that have changed.
    """
    planned = plan(study, read, seeds, output)
    for each in planned:  # before training, which may take hours
        if each.source is None:
            check_same_run(each.cfg)
    check_same_images([each.cfg for each in planned + other_seeds(study, read, seeds, output)])
    waiting, took = len({each.cfg.OUTPUT_DIR for each in planned if not each.finished}), []
    logger.info(f"{study.name}: {len(planned)} runs, {waiting} of them remaining")
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
    """Return the contents of OUTPUT/<study>.json.

    It contains the results of the finished runs; the others are listed under "missing". If the runs cannot be compared,
    "refused" is the reason, and "claims" is empty.

    Args:
        study: of the runs.
        planned: runs of the study.
        output: folder of the study.
        command: that started the study.
        config: base configuration file.
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
    """Return the metrics on a test dataset by variant, seed and key.

    Args:
        rows: "variants" of a record.
        test: name of the test dataset.
    """
    return {row["name"]: {each["seed"]: each["results"][test] for each in row["runs"] if test in each["results"]}
            for row in rows}


def fingerprint(cfg: CfgNode) -> str:
    """Return the sha256 of a configuration, without the seed, the folder and keys that do not affect the results.

    Keys with their default values are omitted, so keys that a later version adds do not change the hash.
    """
    return json_sha256({key: value for key, value in changed(cfg).items() if key not in (*FILLED, *FREE, "SEED")})


def check_keys(study: Study, cfg: CfgNode) -> None:
    """Raise ValueError if a study sets an unknown configuration key."""
    known = flat(cfg)
    for name, options in [("all variants", study.options), *((f"'{v.name}'", v.options) for v in study.variants)]:
        unknown = [key for key in options if key not in known]
        if unknown:
            raise ValueError(f"study '{study.name}': {name} set{'' if name == 'all variants' else 's'} {unknown[0]}, "
                             "which is not a configuration key; the keys are in cerberus_plugin/config.py")


def check_output(output: str | Path) -> None:
    """Raise ValueError if a folder contains a training run."""
    if Path(output, "last_checkpoint").is_file():
        raise ValueError(f"{output}: contains a training run, whose config.yaml would be overwritten; choose another "
                         "folder")


def _folder(output: Path, variant: Variant, sha256: str) -> Path:
    """Folder of a configuration: an existing one with its hash, under any name, or else a new one."""
    earlier = sorted((output / RUNS).glob(f"*-{sha256[:8]}"))
    slug = re.sub(r"[^a-z0-9.]+", "_", variant.name.lower()).strip("_")
    return earlier[0] if earlier else output / RUNS / f"{slug}-{sha256[:8]}"


def _with_weights(run: Run, runs: Sequence[Run]) -> Run:
    """Set MODEL.WEIGHTS and `source` of a run that evaluates the weights of another."""
    if not run.variant.weights_of:
        return run
    source = next(other for other in runs if other.variant.name == run.variant.weights_of and other.seed == run.seed)
    cfg = with_values(run.cfg, {"MODEL.WEIGHTS": os.path.join(source.cfg.OUTPUT_DIR, WEIGHTS)})
    return Run(run.variant, run.seed, cfg, run.sha256, source)


def _evaluated(run: Run) -> str | None:
    """Hash of the weights that a finished run was evaluated with; None if it was not recorded."""
    return (report.read_results(run.cfg.OUTPUT_DIR).get("manifest") or {}).get("checkpoint sha256")


def other_seeds(study: Study, read: Callable[[Variant, int], CfgNode], seeds: Sequence[int],
                 output: str | Path) -> list[Run]:
    """Find the runs of other seeds, for seeds that are finished for every variant (means need the same seeds)."""
    names = {path.name.removeprefix("seed_") for path in (Path(output) / RUNS).glob("*/seed_*")}
    found = []
    for seed in sorted({int(name) for name in names if name.isdigit()} - set(seeds)):
        runs = plan(study, read, [seed], output)
        found += runs if all(each.finished for each in runs) else []
    return found


def _finish(run: Run) -> None:
    """Train a run, or evaluate the weights of its source."""
    if run.source is not None:
        write_text(os.path.join(run.cfg.OUTPUT_DIR, "config.yaml"), run.cfg.dump())
        trainer.evaluate(run.cfg)
    else:
        train_once(run.cfg)
        _keep_last_checkpoint(Path(run.cfg.OUTPUT_DIR))


def _keep_last_checkpoint(folder: Path) -> None:
    """Delete all checkpoints of a finished run except the last, to save disk space."""
    for path in folder.glob("model_*.pth"):
        if path.name != WEIGHTS:
            path.unlink()


def _row(variant: Variant, planned: Sequence[Run], output: str | Path) -> dict:
    """Entry of a variant in the record, with all metrics of results.json."""
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
    """Last values of the losses and of the alignment; empty for an evaluation without training."""
    path, last = Path(folder) / "metrics.json", {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            last |= json.loads(line)
        except ValueError:
            continue  # incomplete line of an interrupted run
    return {key: value for key, value in last.items() if key.startswith(("loss_", "alignment/"))}


def _refusal(rows: Sequence[Mapping]) -> str:
    """Reason why the runs of a record cannot be compared, empty if they can."""
    try:
        compare.check_alike([(f"{row['name']}, seed {each['seed']} ({each['folder']})", each["conditions"])
                             for row in rows for each in row["runs"]])
    except ValueError as error:
        return str(error)
    return ""


def _keys(study: Study, rows: Sequence[Mapping]) -> list[str]:
    """Keys to show, with each "*" expanded by the keys that were measured, or published if nothing was measured."""
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
