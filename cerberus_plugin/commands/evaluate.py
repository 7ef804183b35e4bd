"""`cerberus evaluate`: finished runs on other data sets."""

from __future__ import annotations

import argparse
import os

import cerberus_plugin

from ..utils.commands import printable_lines

DESCRIPTION = """Evaluates a run by its checkpoint alone on the query and gallery pictures of other data sets: folders
of own data, or names such as Market1501Attributes below the folder FASTREID_DATASETS. Attributes are matched by name
and value; those that either side lacks are left out and named, and no figure counts them. Folders with a config.yaml at
the beginning are runs; with several runs the table tells who transfers to whom. It writes

    RUN/evaluation/DATA/results.txt   every table of a data set; results.json has its figures
    RUN/evaluation/summary.txt        the table that is printed; summary.json has its figures

    cerberus evaluate runs/shop data/airport
    cerberus evaluate runs/shop runs/airport data/shop data/airport
"""


def add(jobs) -> None:
    evaluate = jobs.add_parser("evaluate", help="evaluate runs on other data",
                               formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    evaluate.set_defaults(job=run)
    evaluate.add_argument("runs_and_data", nargs="+", metavar="RUN | DATA", help="runs, then data sets")
    evaluate.add_argument("--name-pattern", default="", metavar="PATTERN", help="regular expression, as for cerberus "
                          "check; of all data sets that are folders without a table")


def run(args: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    cerberus_plugin.use_torch()
    from ..workflow import evaluating

    found = evaluating.evaluate_runs(*evaluating.split_arguments(args.runs_and_data), args.name_pattern)
    paths = evaluating.write_summary(found)
    print(f"\n{printable_lines(evaluating.table_of(found))}\n")
    print(*map(printable_lines, evaluating.lines_of(found)), sep="\n", end="\n\n" if evaluating.lines_of(found) else "")
    print(f"wrote {', '.join(map(str, paths))}; results.txt of each data set is in a folder beside")
