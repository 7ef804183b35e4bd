"""`cerberus check`: check own data before training."""

from __future__ import annotations

import argparse

from .shared import write_file

DESCRIPTION = """Counts the images, identities, cameras and attributes of a folder, and reports problems that would
affect training. Reads

    DATA/metadata.csv     columns file_name and person; optionally camera, split, outfit and time; every other column
                          is an attribute with values as text. metadata.jsonl and metadata.parquet also work. Without
                          the column person, only attributes are learned
    DATA/people.csv       attributes of each person (columns person, ...); DATA/outfits.csv of each outfit (columns
                          person, outfit, ...)
    DATA/PERSON/IMAGE     one folder per person, instead of a table; also inside train, query and gallery

and writes the files that are missing: split.csv, and schema.yaml with groups, attributes and values. Both can be
edited. Exits with code 1 if training would fail. docs/own_data.md documents all files, columns and rules.

    cerberus check crops --html check.html
    cerberus check crops --name-pattern "(?P<person>\\d+)_c(?P<camera>\\d+)"
"""


def add(jobs) -> None:
    check = jobs.add_parser("check", help="check own data before training",
                            formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    check.set_defaults(job=run)
    check.add_argument("data", help="data folder or its table")
    check.add_argument("--name-pattern", default="", metavar="PATTERN", help="regular expression for file names, "
                       "instead of a table; named group person, optionally camera, time and outfit")
    check.add_argument("--seed", type=int, default=0, help="random seed of the split, if there is none yet (default: "
                       "%(default)s)")
    check.add_argument("--images", action=argparse.BooleanOptionalAction, default=True, help="open every image and "
                       "find duplicate files (default: yes)")
    check.add_argument("--pictures", dest="images", action=argparse.BooleanOptionalAction, default=True,
                       help=argparse.SUPPRESS)  # former names
    check.add_argument("--html", metavar="FILE", help="also write the report as an HTML page")


def run(args: argparse.Namespace) -> None:
    from ..own_data import check

    report = check.check(args.data, args.name_pattern, args.seed, args.images)
    print(check.text(report))
    if args.html:
        write_file(args.html, check.html(report))
    if report.errors:
        raise SystemExit(1)
