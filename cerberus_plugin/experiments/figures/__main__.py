"""Draw a figure of the paper for a trained run, for the report.

    python -m cerberus_plugin.experiments.figures alignment logs/market1501/cerberus_R50 --output report

Figures:
  alignment   Figure 7a: rows kept by the alignment, and the strips with and without alignment
  attention   Figure 8: contribution of each position of the feature map to the five representations
  neighbours  Figure 9: people who share a semantic ID, for one run or two runs side by side
  sheets      Figure 6: results of searches by image and by attributes, and predicted attributes

The command writes OUTPUT/figures/NAME.png, or several images, and NAME.json.
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

OPTIONS = ("people", "group", "sid", "modes", "groups", "top")  # each figure has some of them
MAKE = {"alignment": alignment.make, "attention": attention.make, "neighbours": neighbours.make, "sheets": sheets.make}


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = parser().parse_args(given)
    if args.other and args.name != "neighbours":
        raise ValueError(f"{args.name} needs one run, got {args.run} and {args.other}; only neighbours compares two "
                         "runs.")
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
    """Create the parser of the command."""
    parser = argparse.ArgumentParser(prog="python -m cerberus_plugin.experiments.figures", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MAKE, help="name of the figure")
    parser.add_argument("run", type=Path, help="folder of a trained run")
    parser.add_argument("other", type=Path, nargs="?", help="neighbours: folder of a second run")
    parser.add_argument("--output", type=Path, required=True, help="folder of the report")
    parser.add_argument("--as", dest="save_as", help="name of the files (default: name of the figure)")
    parser.add_argument("--dataset", default="", help="test dataset (default: the first of the run)")
    parser.add_argument("--people", type=int, help="number of people, or of rows of each sheet")
    parser.add_argument("--group", help="neighbours: group of the shared semantic ID")
    parser.add_argument("--sid", type=int, help="neighbours: its number in semantic_ids.json (default: the one with "
                        "the most people)")
    parser.add_argument("--modes", nargs="+", choices=sheets.MODES, help="sheets to draw (default: all that the model "
                        "supports)")
    parser.add_argument("--groups", nargs="+", help="sheets: groups that a partial search describes (default: "
                        "upper and lower, if the model has them)")
    parser.add_argument("--top", type=int, default=8, help="sheets: images per row (default: %(default)s)")
    parser.add_argument("--device", help="cuda or cpu (default: cuda if available)")
    add_blur_faces(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
