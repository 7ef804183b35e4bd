"""`cerberus train`: from a folder of own data to a trained, evaluated and calibrated run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import cerberus_plugin

from ..utils.commands import add_blur_faces, printable, printable_lines

DESCRIPTION = """Checks a folder of own data, chooses a configuration by the data and the hardware, says what it chose
and why, trains, evaluates, calibrates probabilities where there are enough people, and writes

    RUN/report.html     what was chosen, the figures beside their floors, a picture of found people, what to do next
    RUN/results.txt     every table of the evaluation; results.json has its figures
    RUN/model_card.md   data, metrics by attribute value, limits and intended use
    RUN/config.yaml     every key; RUN/model_final.pth the weights; RUN/log.txt the whole log

The data is described by `cerberus check --help`. The log tells the time left as "eta".

    cerberus train crops --out runs/shop
    cerberus train crops --out runs/shop --resume             after an interruption
    cerberus train crops --out runs/plain --model bot --epochs 60
    cerberus train crops --out runs/large INPUT.SIZE_TRAIN "[256,128]" INPUT.SIZE_TEST "[256,128]"
"""


def add(jobs) -> None:
    from ..own_data.recipe import MODELS  # which imports nothing

    train = jobs.add_parser("train", help="train on own data",
                            formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    train.set_defaults(job=run)
    train.add_argument("data", help="folder, or table in it")
    train.add_argument("options", nargs="*", metavar="KEY VALUE", help="keys of the configuration, which beat what is "
                       "chosen")
    train.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    train.add_argument("--model", choices=tuple(MODELS), default="", help="plus and cerberus learn people and "
                       "attributes, apr and arn attributes as classes, the others people alone (default: plus where "
                       "the data has attributes for it, else bot)")
    train.add_argument("--epochs", type=int, help="(default: by the number of pictures)")
    train.add_argument("--weights", default="", metavar="FILE", help="pretrained weights of a ResNet, to begin with "
                       "(default: on a GPU those of ImageNet, which are downloaded once; on a CPU none)")
    train.add_argument("--resume", action="store_true", help="go on with the run in RUN as it was begun")
    train.add_argument("--name-pattern", default="", metavar="PATTERN", help="regular expression, as for cerberus "
                       "check")
    add_blur_faces(train)


def run(args: argparse.Namespace) -> None:
    # OpenMP reads it once, when torch is imported: where other processes use the cores as well, waiting threads yield.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = given_keys(args.options)
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs {args.epochs}: expected 1 or more")
    cerberus_plugin.use_torch()
    from ..workflow import training

    folder = Path(args.out)
    said = {"data": os.path.abspath(args.data), "model": args.model, "epochs": args.epochs,
            "weights": args.weights and os.path.abspath(args.weights), "name pattern": args.name_pattern,
            "KEY VALUE": args.options}
    record = training.check_folder(folder, args.resume)
    if record is None:
        record = _begin(args, folder, given, said)
    else:
        training.refuse_other_choices(folder, record, said)
        print(f"{folder}: goes on with what it was begun with")
    training.train(folder, record)
    _tell(folder)


def _begin(args: argparse.Namespace, folder: Path, given: dict[str, str], said: dict) -> dict:
    """Check the data, choose, and say so."""
    from ..own_data.check import check
    from ..own_data.recipe import Wish, choose
    from ..utils.processor import usable_cores
    from ..workflow import training

    gpu = training.has_gpu(given)
    weights, depth = training.pretrained_weights(args.weights, gpu, given)  # missing ones are found before the check
    report = check(args.data, args.name_pattern, skip_unreadable=given.get("DATALOADER.ON_UNREADABLE") == "skip")
    for kind, texts in report.findings:
        if kind != "advice":
            print(*(f"{kind}: {printable(text)}" for text in texts), sep="\n")
    if report.errors:
        raise SystemExit(1)
    wish = Wish(args.model, args.epochs or 0, weights, depth, given)
    recipe = choose(report.facts, gpu, usable_cores(), wish)
    record = training.begin(folder, args.data, args.name_pattern, wish, recipe, report.findings, said)
    print(f"\n{printable_lines(training.table_of(record))}\n", flush=True)
    return record


def _tell(folder: Path) -> None:
    from ..workflow import training

    print(f"\n{printable_lines(training.figures_of(folder))}\n\nIn {folder}: report.html (open it in a browser), "
          "results.txt (all tables), results.json, model_final.pth, log.txt")


def given_keys(options: Sequence[str]) -> dict[str, str]:
    """KEY value by key.

    Raises:
        ValueError: if a value is missing, a key is given twice, or it is one that an option says.
    """
    if len(options) % 2 or any("." not in key and not key.isupper() for key in options[::2]):
        raise ValueError(f"{' '.join(options)}: expected KEY VALUE pairs, such as SOLVER.BASE_LR 0.0002; quote a "
                         "list: INPUT.SIZE_TRAIN \"[256,128]\"")
    given = dict(zip(options[::2], options[1::2]))
    if len(given) < len(options) // 2:
        raise ValueError(f"{' '.join(options)}: a key is given twice")
    if "OUTPUT_DIR" in given:
        raise ValueError(f"OUTPUT_DIR {given['OUTPUT_DIR']}: give --out in its place")
    return given
