"""APR's lambda, the share of the identity losses, chosen as the paper chooses it: on held-out training identities.

    python -m cerberus_plugin.experiments.choose_lambda --config-file configs/Market1501/apr_R50.yml \\
        OUTPUT_DIR logs/market1501/apr_lambda

A study (`experiments.study`) with one run per lambda, all from one seed and without 100 training identities
(DATASETS.HOLD_OUT), on which each is evaluated; no test image is looked at. The same command goes on after a kill and
repeats no finished run. Several GPUs may share the work: start it on each with some of --lambdas and one SEED, then
once with all of them. Writes lambda.json with the choice, and the report of the study: report.html and report.md.
"""

from __future__ import annotations

import argparse
import math
import os
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
# More is better; the picture of the report shows the first three.
FIGURES = tuple(dict.fromkeys(("mAP", "PAR/mA_official", "APS/mAP", *report.REID,
                               *(f"PAR/mA_{rule}" for rule in report.MEANS), "APS/Rank-1")))


def study_of(lambdas: Sequence[float]) -> Study:
    """A variant per lambda."""
    variants = tuple(Variant(f"lambda {value:g}", {"MODEL.APR.LAMBDA": float(value)}, curve="lambda", x=value)
                     for value in lambdas)
    return Study("lambdas", "APR: lambda, the share of the identity losses",
                 "Which lambda serves held-out people best?", variants, FIGURES, against=variants[-1].name)


def choose(cfg: CfgNode, lambdas: Sequence[float] = LAMBDAS, by: str = "mAP") -> float:
    """Train APR with each lambda, and write lambda.json and the report; the best one.

    Args:
        cfg: of APR, with DATASETS.HOLD_OUT and a SEED; the study and its runs lie in its OUTPUT_DIR.
        by: name of the figure on the held-out identities that is to be highest; of equal ones the larger lambda.
    """
    def read(variant: Variant, seed: int) -> CfgNode:
        return with_values(cfg, variant.options)

    found = study.run(study_of(lambdas), read, [cfg.SEED], cfg.OUTPUT_DIR)
    if found["refused"]:
        raise ValueError(f"{cfg.OUTPUT_DIR}: no lambda can be chosen: {found['refused']}")
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
    """The lambda of the highest figure; of equal ones the larger, which leaves more to the identities."""
    undefined = [f"{value:g}" for value, figure in figures.items() if math.isnan(figure)]
    if undefined:
        raise ValueError(f"--by {by} is undefined for lambda {', '.join(undefined)}: the held-out identities have "
                         "nothing to find. Hold more of them out (DATASETS.HOLD_OUT) or choose by another figure.")
    return max(figures, key=lambda value: (figures[value], value))


def check_lambdas(lambdas: Sequence[float]) -> None:
    """Refuse shares outside [0, 1], and those whose folders would have one name."""
    outside = [value for value in lambdas if not 0 <= value <= 1]
    if outside:
        raise ValueError(f"--lambdas has {', '.join(map(str, outside))}, expected shares between 0 and 1")
    names = [f"{value:g}" for value in lambdas]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--lambdas has {', '.join(twice)} more than once; give each lambda once")


def prepare(cfg: CfgNode) -> CfgNode:
    """The configuration with identities held out and tested on alone, and the seed of runs that are there already."""
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
    return (f"chosen: lambda = {best:g} (highest {by} on {cfg.DATASETS.HOLD_OUT} held-out identities; {found}; one run "
            f"each, seed {cfg.SEED})")


def _split(words: Sequence[str]) -> tuple[list[float], list[str]]:
    """Numbers, and the KEY VALUE that argparse takes for more of them."""
    first = next((place for place, word in enumerate(words) if word[:1].isalpha()), len(words))
    return [float(word) for word in words[:first]], list(words[first:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="of APR, such as configs/Market1501/apr_R50.yml")
    parser.add_argument("--lambdas", nargs="+", default=list(map(str, LAMBDAS)), help="0 0.1 ... 1 if not given")
    parser.add_argument("--by", default="mAP", choices=FIGURES, help="figure on held-out identities")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the configuration, last")
    args = parser.parse_args(arguments)
    try:
        lambdas, options = _split(args.lambdas)
    except ValueError as error:
        parser.error(f"--lambdas: {error}")
    args.opts = options + args.opts
    check_lambdas(lambdas)
    choose(start(prepare(read_config(args)), args), lambdas, args.by)


if __name__ == "__main__":
    run_command(main)
