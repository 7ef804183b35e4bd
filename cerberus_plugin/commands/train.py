"""`cerberus train`: train, evaluate and calibrate a model on own data."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import cerberus_plugin

from ..utils.commands import add_blur_faces, printable, printable_lines

DESCRIPTION = """Checks a folder of own data, chooses a configuration for the data and the hardware, prints the choices
with their reasons, trains, evaluates, calibrates the probabilities if there are enough identities, and writes

    RUN/report.html     choices, metrics with their baselines, example search results, next steps
    RUN/results.txt     all tables of the evaluation; results.json has the metrics
    RUN/model_card.md   data, metrics by attribute value, limits and intended use
    RUN/config.yaml     complete configuration; RUN/model_final.pth weights; RUN/log.txt log

Run "cerberus check --help" for the data format. The log shows the remaining training time as "eta".

    cerberus train crops --out runs/shop
    cerberus train crops --out runs/shop --resume             after an interruption
    cerberus train crops --out runs/plain --model bot --epochs 60
    cerberus train crops --out runs/camera --size tiny --weights mobilenet_v2.pth
    cerberus train crops --out runs/large INPUT.SIZE_TRAIN "[256,128]" INPUT.SIZE_TEST "[256,128]"
"""


def add(jobs) -> None:
    from ..own_data.recipe import MODELS, SIZES  # has no slow imports

    train = jobs.add_parser("train", help="train on own data",
                            formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    train.set_defaults(job=run)
    train.add_argument("data", help="data folder or its table, in the format of `cerberus check`")
    train.add_argument("options", nargs="*", metavar="KEY VALUE", help="configuration keys; they override the "
                       "automatic choices")
    train.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    train.add_argument("--model", choices=tuple(MODELS), default="", help="plus and cerberus learn identities and "
                       "attributes, apr and arn use attribute classifiers, the others learn identities only (default: "
                       "plus if the data has suitable attributes, else bot)")
    train.add_argument("--size", choices=tuple(SIZES), default="", help="backbone and image size: tiny is MobileNetV2 "
                       "(OSNet without pretrained weights), small ResNet-18, base ResNet-50 (default: ResNet-50 on a "
                       "GPU, ResNet-18 on a CPU)")
    train.add_argument("--epochs", type=int, help="number of epochs (default: depends on the number of images)")
    train.add_argument("--weights", default="", metavar="FILE", help="pretrained weights of a ResNet, a ResNet "
                       "with IBN, MobileNetV2 or OSNet (default: ImageNet weights on a GPU, downloaded once; none on a "
                       "CPU)")
    train.add_argument("--resume", action="store_true", help="continue the run in RUN with the same choices")
    train.add_argument("--name-pattern", default="", metavar="PATTERN", help="as in `cerberus check`")
    add_blur_faces(train)


def run(args: argparse.Namespace) -> None:
    # Idle OpenMP threads then yield their core to other processes. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    given = given_keys(args.options)
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs {args.epochs}: expected 1 or more")
    cerberus_plugin.use_torch()
    from ..workflow import training

    folder = Path(args.out)
    said = {"data": os.path.abspath(args.data), "model": args.model, "size": args.size, "epochs": args.epochs,
            "weights": args.weights and os.path.abspath(args.weights), "name pattern": args.name_pattern,
            "KEY VALUE": args.options}
    record = training.check_folder(folder, args.resume)
    if record is None:
        record = _begin(args, folder, given, said)
    else:
        training.refuse_other_choices(folder, record, said)
        print(f"{folder}: continuing with the choices of the interrupted run")
    training.train(folder, record)
    _tell(folder)


def _begin(args: argparse.Namespace, folder: Path, given: dict[str, str], said: dict) -> dict:
    """Check the data, choose the configuration, and print the choices."""
    from ..own_data.check import check
    from ..own_data.recipe import Wish, choose
    from ..utils.processor import usable_cores
    from ..workflow import training

    gpu = training.has_gpu(given)
    weights, backbone = training.pretrained_weights(args.weights, gpu, given, args.size)  # reports missing files
    report = check(args.data, args.name_pattern, skip_unreadable=given.get("DATALOADER.ON_UNREADABLE") == "skip")
    for kind, texts in report.findings:
        if kind != "advice":
            print(*(f"{kind}: {printable(text)}" for text in texts), sep="\n")
    if report.errors:
        raise SystemExit(1)
    wish = Wish(args.model, args.epochs or 0, weights, backbone, given, args.size)
    recipe = choose(report.facts, gpu, usable_cores(), wish)
    record = training.begin(folder, args.data, args.name_pattern, wish, recipe, report.findings, said)
    print(f"\n{printable_lines(training.table_of(record))}\n", flush=True)
    return record


def _tell(folder: Path) -> None:
    from ..workflow import training

    print(f"\n{printable_lines(training.figures_of(folder))}\n\nIn {folder}: report.html (open it in a browser), "
          "results.txt (all tables), results.json, model_final.pth, log.txt")


def given_keys(options: Sequence[str]) -> dict[str, str]:
    """Parse KEY VALUE pairs of the command line.

    Args:
        options: keys and values, alternating.

    Returns:
        the values by key.

    Raises:
        ValueError: if a value is missing, a key is given twice, or the key belongs to an option of the command.

    Examples:
        >>> given_keys(["SOLVER.BASE_LR", "0.0002"])
        {'SOLVER.BASE_LR': '0.0002'}
    """
    if len(options) % 2 or any("." not in key and not key.isupper() for key in options[::2]):
        raise ValueError(f"{' '.join(options)}: expected KEY VALUE pairs, such as SOLVER.BASE_LR 0.0002; quote a "
                         "list: INPUT.SIZE_TRAIN \"[256,128]\"")
    given = dict(zip(options[::2], options[1::2]))
    if len(given) < len(options) // 2:
        raise ValueError(f"{' '.join(options)}: a key is given twice")
    if "OUTPUT_DIR" in given:
        raise ValueError(f"OUTPUT_DIR {given['OUTPUT_DIR']}: give --out instead")
    return given
