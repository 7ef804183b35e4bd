"""`cerberus check`: look over own data before training."""

from __future__ import annotations

import argparse

from .shared import write_file

DESCRIPTION = """Counts pictures, people, cameras and attributes of a folder, and looks for what training would stumble
over. It reads

    DATA/metadata.csv     file_name and person; camera, split, outfit and time if known; every other column is an
                          attribute in words. Also metadata.jsonl or .parquet. Without the column person, attributes
                          alone are learned
    DATA/people.csv       attributes of people (person, ...); DATA/outfits.csv likewise (person, outfit, ...)
    DATA/PERSON/PICTURE   in place of a table; also in train, query and gallery

and writes what is not there: split.csv, and schema.yaml with groups, attributes and values, for you to correct.
The exit code is 1 where training would fail. docs/own_data.md has every file, column and rule.

    cerberus check crops --html check.html
    cerberus check crops --name-pattern "(?P<person>\\d+)_c(?P<camera>\\d+)"
"""


def add(jobs) -> None:
    check = jobs.add_parser("check", help="look over own data before training",
                            formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    check.set_defaults(job=run)
    check.add_argument("data", help="folder, or table in it")
    check.add_argument("--name-pattern", default="", metavar="PATTERN", help="regular expression with the group "
                       "person, and camera, time and outfit as far as names of pictures tell; in place of a table")
    check.add_argument("--seed", type=int, default=0, help="of the split, where one is drawn (default: %(default)s)")
    check.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True, help="open every picture, "
                       "and look for files that are there twice (default: yes)")
    check.add_argument("--html", metavar="FILE", help="also write the report to this page")


def run(args: argparse.Namespace) -> None:
    from ..own_data import check

    report = check.check(args.data, args.name_pattern, args.seed, args.pictures)
    print(check.text(report))
    if args.html:
        write_file(args.html, check.html(report))
    if report.errors:
        raise SystemExit(1)
