"""Reproduce the tables and figures of the paper: run studies and write one report.

    python -m cerberus_plugin.experiments.reproduce parts margins --config-file configs/Market1501/cerberus_R50.yml \\
        --seeds 0 1 2 --output runs/reproduction

    python -m cerberus_plugin.experiments.reproduce --list

KEY VALUE pairs at the end apply to every run. Finished runs are not repeated, and an interrupted study continues. To
share the work among several GPUs, start the command on each with some of --seeds; the record contains every seed for
which all variants are finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastreid.config import CfgNode
from tabulate import tabulate

from ..config import defaults, merge_file
from ..engine.trainer import read_config, start
from ..utils.commands import run_command
from . import catalogue, page, study
from .costs import costs
from .study import Study, Variant

logger = logging.getLogger("fastreid.cerberus")

BASE = "cerberus_"  # prefix of the names of base files


def reader(chosen: Study, base: Path, options: Sequence[str]) -> Callable[[Variant, int], CfgNode]:
    """Create a function that returns the configuration of a variant and seed.

    A variant with its own file gets the number of epochs of the base file. Options of the command line override those
    of the study, and options of the variant override both.

    Args:
        chosen: the study.
        base: configuration file of Cerberus.
        options: KEY VALUE pairs of the command line, as one list.

    Raises:
        ValueError: If the study sets an unknown key.
    """
    def read(file: Path, *more: Sequence) -> CfgNode:
        return read_config(argparse.Namespace(config_file=str(file), opts=[item for part in more for item in part]))

    common = _flat(chosen.options)
    cfg = read(base, options)
    study.check_keys(chosen, cfg)
    epochs = cfg.SOLVER.MAX_EPOCH

    def of(variant: Variant, seed: int) -> CfgNode:
        file = file_of(variant, base)
        budget = _budget(read(file, ["MODEL.DEVICE", "cpu"]), epochs) if variant.file else []
        return read(file, common, budget, options, _flat(variant.options), ["SEED", seed])

    return of


def available(chosen: Study, base: Path) -> Study:
    """Remove the variants without a configuration file from a study, and name them in its note."""
    absent = [variant for variant in chosen.trained if not file_of(variant, base).is_file()]
    if not absent:
        return chosen
    for variant in absent:
        logger.info(f"{chosen.name}: {variant.name} is skipped: {file_of(variant, base)} not found")
    named = ", ".join(variant.name for variant in absent)
    kept = tuple(dataclasses.replace(v, trained=False) if v in absent and v.published else v
                 for v in chosen.variants if v not in absent or v.published)
    return dataclasses.replace(chosen, variants=kept,
                               note=f"{chosen.note} Not trained (no configuration file): {named}.".lstrip())


def file_of(variant: Variant, base: Path) -> Path:
    """Return the path of a variant's configuration file.

    Args:
        variant: of a study.
        base: configuration file of Cerberus; other models have files with the same ending in the same folder.

    Raises:
        ValueError: If the name of `base` does not begin with "cerberus_".

    Examples:
        >>> file_of(Variant("BoT", file="bot"), Path("cerberus_R50.yml")).name
        'bot_R50.yml'
    """
    if not variant.file:
        return base
    if not base.stem.startswith(BASE):
        raise ValueError(f"--config-file {base}: the file of variant '{variant.name}' is found by the name of this "
                         f"one, which must begin with {BASE}; for example configs/Market1501/cerberus_R50.yml")
    return base.with_name(f"{variant.file}_{base.stem.removeprefix(BASE)}{base.suffix}")


def _budget(cfg: CfgNode, epochs: int) -> list:
    """Return the options that set another number of epochs, and scale steps and delay in proportion."""
    share = epochs / cfg.SOLVER.MAX_EPOCH
    steps = [max(1, round(step * share)) for step in cfg.SOLVER.STEPS]
    return ["SOLVER.MAX_EPOCH", epochs, "SOLVER.STEPS", steps,
            "SOLVER.DELAY_EPOCHS", int(cfg.SOLVER.DELAY_EPOCHS * share)]


def _flat(options: Mapping[str, object]) -> list:
    return [item for pair in options.items() for item in pair]


def listing(num_seeds: int) -> str:
    """Format a table of all studies with their numbers of runs and expected hours."""
    rows, usual = [], defaults()
    for each in catalogue.STUDIES.values():
        distinct = {(variant.file, *(f"{key} {value}" for key, value in variant.options.items()
                                     if usual.get(key) != value))
                    for variant in each.trained if not variant.weights_of}
        runs = num_seeds * len(distinct)
        rows.append([each.name, each.title, each.question, runs, f"{runs * each.hours:.1f}"])
    return tabulate(rows, ["study", "in the paper", "question", f"runs with {num_seeds} seeds", "hours on one H100"],
                    maxcolwidths=[None, 36, 44, None, None])


def dry_run(studies: Sequence[Study], base: Path, seeds: Sequence[int], output: Path, options: Sequence[str]) -> str:
    """Format a table of the runs: finished, to train or to evaluate; runs that studies share are listed once."""
    lines, hours, told = [], 0.0, set()
    for each in studies:
        for run in study.plan(each, reader(each, base, options), seeds, output):
            key = run.sha256, run.seed
            if key in told:
                continue
            told.add(key)
            to_do = "to evaluate" if run.variant.weights_of else "to train"
            lines.append([each.name, run.variant.name, run.seed, "finished" if run.finished else to_do])
            hours += 0 if run.finished or run.variant.weights_of else each.hours
    return (f"{tabulate(lines, ['study', 'variant', 'seed', 'run'])}\n\nabout {hours:.1f} hours remaining for a "
            "ResNet-50 with the paper's schedule on one H100")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate names of studies from the KEY VALUE pairs after them.

    Examples:
        >>> split_words(["parts", "margins", "SOLVER.MAX_EPOCH", "12"])
        (['parts', 'margins'], ['SOLVER.MAX_EPOCH', '12'])
    """
    first = next((i for i, word in enumerate(words) if "." in word or word != word.lower()), len(words))
    return list(words[:first]), list(words[first:])


def check(names: Sequence[str], seeds: Sequence[int], output: Path, options: Sequence[str]) -> None:
    """Raise ValueError for unknown studies, invalid seeds, options that a study sets, or an unsuitable folder."""
    unknown = [name for name in names if name not in catalogue.STUDIES]
    if unknown or not names:
        raise ValueError(f"study '{', '.join(unknown)}' is not known, expected some of {', '.join(catalogue.STUDIES)}")
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds are {', '.join(map(str, seeds))}, expected different numbers, at least 0")
    own = [key for key in options[::2] if key in ("SEED", "OUTPUT_DIR")
           or any(key in catalogue.STUDIES[name].options for name in names)]
    if own:
        raise ValueError(f"{own[0]} is set by the study; set seeds and folders by --seeds and --output")
    study.check_output(output)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="STUDY", help=f"{', '.join(catalogue.STUDIES)}; options of the "
                        "configuration (KEY VALUE) at the end of the command")
    parser.add_argument("--config-file", default="configs/Market1501/cerberus_R50.yml",
                        help="configuration of Cerberus (default: %(default)s)")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], help="seeds (default: 0 1 2)")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduction"),
                        help="folder of runs and report (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the studies with runs and expected hours, and exit")
    parser.add_argument("--dry-run", action="store_true", help="list finished and remaining runs, and exit")
    args = parser.parse_intermixed_args(arguments)
    seeds = [word for word in args.seeds if word.isdigit()]
    names, options = split_words([*args.words, *args.seeds[len(seeds):]])
    seeds = list(map(int, seeds))
    if args.list:
        print(listing(len(seeds)))
        return
    check(names, seeds, args.output, options)
    base = Path(args.config_file)
    studies = [available(catalogue.STUDIES[name], base) for name in names]
    if args.dry_run:
        print(dry_run(studies, base, seeds, args.output, options))
        return
    args.opts = options
    readers = [reader(each, base, options) for each in studies]  # checks the options before the first training
    cfg = read_config(args)
    cfg.OUTPUT_DIR = str(args.output)
    start(cfg, args)
    command = shlex.join(["python", "-m", "cerberus_plugin.experiments.reproduce",
                          *(sys.argv[1:] if arguments is None else arguments)])
    for each, read in zip(studies, readers):
        study.run(each, read, seeds, args.output, command=command, config=str(base),
                  measure=_costs_of_run if each.costs else None)
        print(f"\n{page.text(args.output / f'{each.name}.json')}\n")
    print("Report: " + ", ".join(str(path) for path in page.write(args.output)))


def _costs_of_run(cfg: CfgNode) -> dict:
    """Measure the costs of a finished run; its config.yaml contains the sizes set by the dataset."""
    cfg = cfg.clone()
    cfg.defrost()
    merge_file(cfg, Path(cfg.OUTPUT_DIR) / "config.yaml")
    cfg.freeze()
    return costs(cfg)


if __name__ == "__main__":
    run_command(main)
