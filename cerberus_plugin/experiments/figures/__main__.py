"""Draw a figure of the paper of a trained run, for the report:

    python -m cerberus_plugin.experiments.figures alignment logs/market1501/cerberus_R50 --output report

alignment (7a): the rows kept, and the strips with and without alignment. attention (8): where the five representations
look. neighbours (9): people who share one semantic ID, of one run or of two side by side. sheets (6): what is found by
picture and by words, right and wrong marked. Writes OUTPUT/figures/NAME.png, or several pictures, and NAME.json.
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ...utils.commands import add_blur_faces, faces_blurred, run_command
from . import alignment, attention, neighbours, sheets
from .exhibit import TestedModel, write
from .rank_list import advised

OPTIONS = ("people", "group", "sid", "modes", "groups", "top")  # of which each figure takes some
MAKE = {"alignment": alignment.make, "attention": attention.make, "neighbours": neighbours.make, "sheets": sheets.make}


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = parser().parse_args(given)
    if args.other and args.name != "neighbours":
        raise ValueError(f"{args.name} is of one run, but two are named: {args.run} and {args.other}; only neighbours "
                         "sets two side by side.")
    runs = [TestedModel.load(folder, args.dataset, args.device) for folder in (args.run, args.other) if folder]
    known = runs[0].predictor.groups
    unknown = {group for group in (args.group, *(args.groups or ())) if group} - set(known)
    if unknown:
        raise ValueError(f"{args.run}: has no group {', '.join(unknown)}, expected some of "
                         f"{', '.join(known) or 'none'}")
    make = MAKE[args.name]
    options = {name: getattr(args, name) for name in OPTIONS
               if name in inspect.signature(make).parameters and getattr(args, name) is not None}
    with advised(args.run), faces_blurred(args.blur_faces):
        exhibit = make(*runs, **options)
    command = shlex.join(["python", "-m", "cerberus_plugin.experiments.figures", *given])
    record = write(exhibit, runs, args.output, args.save_as or args.name, command)
    print(record["caption"])
    print("wrote " + ", ".join(str(args.output / picture["file"]) for picture in record["pictures"]))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cerberus_plugin.experiments.figures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MAKE, help="the figure")
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("other", type=Path, nargs="?", help="neighbours: a second run, beside the first")
    parser.add_argument("--output", type=Path, required=True, help="folder of the report")
    parser.add_argument("--as", dest="save_as", help="name of the files; that of the figure if left out")
    parser.add_argument("--dataset", default="", help="test data set; the run's first if left out")
    parser.add_argument("--people", type=int, help="people, or lines of each sheet")
    parser.add_argument("--group", help="neighbours: group of the shared semantic ID")
    parser.add_argument("--sid", type=int, help="neighbours: its number in semantic_ids.json; the one with the most "
                        "people of the group if left out")
    parser.add_argument("--modes", nargs="+", choices=sheets.MODES, help="sheets: which; all that the model can do if "
                        "left out")
    parser.add_argument("--groups", nargs="+", help="sheets: what a partial search describes; upper and lower, where "
                        "the model has them, if left out")
    parser.add_argument("--top", type=int, default=8, help="sheets: images of each line")
    parser.add_argument("--device", help="cuda or cpu; what there is if left out")
    add_blur_faces(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
