"""Choose APR's lambda, the weight of the identity losses, on held-out training identities, as in the paper.

    python -m cerberus_plugin.experiments.choose_lambda --config-file configs/Market1501/apr_R50.yml \\
        OUTPUT_DIR logs/market1501/apr_lambda

The command trains one model per lambda, all with the same seed, and evaluates each on 100 training identities that are
held out (DATASETS.HOLD_OUT). No test image is used. After an interruption, the same command continues and repeats no
finished run. To share the work among several GPUs, start it on each with some of --lambdas and the same SEED, then once
with all of them. It writes lambda.json with the chosen value, and a report: report.html and report.md.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastreid.config import CfgNode

from ..config import with_values
from ..data.splits import HELD_OUT
from ..engine.trainer import read_config, start
from ..evaluation import report
from ..utils.commands import run_command
from ..utils.files import write_json
from . import page, study
from .study import Study, Variant

LAMBDAS = tuple(tenths / 10 for tenths in range(11))
HOLD_OUT = 100  # of the 751 of Market-1501, as in the paper
# Higher is better; the plot of the report shows the first three.
FIGURES = tuple(dict.fromkeys(("mAP", "PAR/mA_official", "APS/mAP", *report.REID,
                               *(f"PAR/mA_{rule}" for rule in report.MEANS), "APS/Rank-1")))


def study_of(lambdas: Sequence[float]) -> Study:
    """Create the study, with one variant per lambda."""
    variants = tuple(Variant(f"lambda {value:g}", {"MODEL.APR.LAMBDA": float(value)}, curve="lambda", x=value)
                     for value in lambdas)
    return Study("lambdas", "APR: lambda, the weight of the identity losses",
                 "Which lambda gives the best results on held-out people?", variants, FIGURES,
                 against=variants[-1].name)


def choose(cfg: CfgNode, lambdas: Sequence[float] = LAMBDAS, by: str = "mAP", *, command: str = "") -> float:
    """Train APR with each lambda, and write lambda.json and the report.

    Args:
        cfg: configuration of APR, with DATASETS.HOLD_OUT and a SEED; its OUTPUT_DIR is the folder of the study.
        lambdas: values to train with.
        by: key of the metric to maximise on the held-out identities.
        command: that started the study, for the report.

    Returns:
        The best lambda; the largest one if several are equal.

    Raises:
        ValueError: If the runs were tested differently, or the metric is undefined.
    """
    def read(variant: Variant, seed: int) -> CfgNode:
        return with_values(cfg, variant.options)

    found = study.run(study_of(lambdas), read, [cfg.SEED], cfg.OUTPUT_DIR, command=command)
    if found["refused"]:
        raise ValueError(f"{cfg.OUTPUT_DIR}: lambda cannot be chosen: {found['refused']}")
    runs = {row["x"]: run for row in found["variants"] for run in row["runs"] if run["seed"] == cfg.SEED}
    figures = {value: run["results"][HELD_OUT] for value, run in runs.items()}
    best = best_lambda({value: row[by] for value, row in figures.items()}, by)
    write_json(os.path.join(cfg.OUTPUT_DIR, "lambda.json"), {
        "chosen": best, "by": by, "held-out identities": cfg.DATASETS.HOLD_OUT,
        "hold-out seed": cfg.DATASETS.HOLD_OUT_SEED, "seed": cfg.SEED,
        "runs": [{"lambda": value, "folder": runs[value]["folder"], "results": row}
                 for value, row in sorted(figures.items())]})
    page.write(cfg.OUTPUT_DIR)
    print(f"{page.text(Path(cfg.OUTPUT_DIR, 'lambdas.json'))}\n\n{_conclusion(cfg, best, by, figures)}")
    return best


def best_lambda(figures: Mapping[float, float], by: str) -> float:
    """Return the lambda with the highest metric; the largest one, with most weight on identities, if several are equal.

    Args:
        figures: values of the metric by lambda.
        by: name of the metric, for the error message.

    Raises:
        ValueError: If the metric is NaN for a lambda.

    Examples:
        >>> best_lambda({0.1: 55.9, 0.5: 56.1, 0.9: 56.1}, "mAP")
        0.9
    """
    undefined = [f"{value:g}" for value, figure in figures.items() if math.isnan(figure)]
    if undefined:
        raise ValueError(f"--by {by} is undefined for lambda {', '.join(undefined)}: the held-out "
                         "identities have no matches or labels for it. Hold out more identities (DATASETS.HOLD_OUT), "
                         "or choose by another metric.")
    return max(figures, key=lambda value: (figures[value], value))


def check_lambdas(lambdas: Sequence[float]) -> None:
    """Raise ValueError for values outside [0, 1], and for values whose run folders would have the same name."""
    outside = [value for value in lambdas if not 0 <= value <= 1]
    if outside:
        raise ValueError(f"--lambdas has {', '.join(map(str, outside))}, expected numbers between 0 and 1")
    names = [f"{value:g}" for value in lambdas]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--lambdas has {', '.join(twice)} more than once; give each lambda once")


def prepare(cfg: CfgNode) -> CfgNode:
    """Set the held-out identities as the test dataset, and the seed to that of existing runs.

    Args:
        cfg: configuration of APR.

    Returns:
        A copy of `cfg`.

    Raises:
        ValueError: If the model is not APR, or OUTPUT_DIR contains a training run.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name != "APR":
        raise ValueError(f"MODEL.META_ARCHITECTURE is '{name}', which has no lambda; expected APR, as in "
                         "configs/Market1501/apr_R50.yml")
    study.check_output(cfg.OUTPUT_DIR)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.HOLD_OUT = cfg.DATASETS.HOLD_OUT or HOLD_OUT
    cfg.DATASETS.TESTS = (HELD_OUT,)
    if cfg.SEED < 0:
        earlier = sorted(Path(cfg.OUTPUT_DIR, study.RUNS).glob("lambda_*/seed_*"))
        cfg.SEED = int(earlier[0].name.removeprefix("seed_")) if earlier else cfg.SEED
    return cfg


def _conclusion(cfg: CfgNode, best: float, by: str, figures: Mapping[float, Mapping[str, float]]) -> str:
    others = {value: row[by] for value, row in figures.items() if value != best}
    found = f"{report.percent(figures[best][by])}"
    if others:
        second = best_lambda(others, by)
        found += f", next {report.percent(others[second])} with {second:g}"
    return (f"chosen: lambda = {best:g} (highest {by} on {cfg.DATASETS.HOLD_OUT} held-out identities: {found}; one run "
            f"each, seed {cfg.SEED})")


def _split(words: Sequence[str]) -> tuple[list[float], list[str]]:
    """Separate the numbers from KEY VALUE pairs after them, which argparse adds to the same option."""
    first = next((place for place, word in enumerate(words) if word[:1].isalpha()), len(words))
    return [float(word) for word in words[:first]], list(words[first:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True,
                        help="configuration of APR, such as configs/Market1501/apr_R50.yml")
    parser.add_argument("--lambdas", nargs="+", default=list(map(str, LAMBDAS)),
                        help="values to try (default: 0 0.1 ... 1)")
    parser.add_argument("--by", default="mAP", choices=FIGURES,
                        help="metric to maximise on the held-out identities (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE",
                        help="options of the configuration, at the end")
    args = parser.parse_args(arguments)
    try:
        lambdas, options = _split(args.lambdas)
    except ValueError as error:
        parser.error(f"--lambdas: {error}")
    args.opts = options + args.opts
    check_lambdas(lambdas)
    command = shlex.join(["python", "-m", "cerberus_plugin.experiments.choose_lambda",
                          *(sys.argv[1:] if arguments is None else arguments)])
    choose(start(prepare(read_config(args)), args), lambdas, args.by, command=command)


if __name__ == "__main__":
    run_command(main)
