"""`cerberus evaluate`: evaluate finished runs on other datasets."""

from __future__ import annotations

import argparse
import os

import cerberus_plugin

from ..utils.commands import printable_lines

DESCRIPTION = """Evaluates trained runs on the query and gallery images of other datasets: folders of own data, or names
of datasets in the folder FASTREID_DATASETS, such as Market1501Attributes. Only the checkpoint of a run is needed, not
its training data. Attributes are matched by name and value. Attributes and values that only one side has are listed
and excluded from all metrics. Leading arguments that are folders with a config.yaml are the runs. Writes

    RUN/evaluation/DATA/results.txt   all tables of one dataset; results.json has the metrics
    RUN/evaluation/summary.txt        the printed table, runs by datasets; summary.json has the metrics

    cerberus evaluate runs/shop data/airport
    cerberus evaluate runs/shop runs/airport data/shop data/airport
"""


def add(jobs) -> None:
    evaluate = jobs.add_parser("evaluate", help="evaluate runs on other data",
                               formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    evaluate.set_defaults(job=run)
    evaluate.add_argument("runs_and_data", nargs="+", metavar="RUN | DATA", help="runs, followed by datasets")
    evaluate.add_argument("--name-pattern", default="", metavar="PATTERN", help="as in `cerberus check`; used for all "
                          "datasets that are folders without a table")


def run(args: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    cerberus_plugin.use_torch()
    from ..workflow import evaluating

    found = evaluating.evaluate_runs(*evaluating.split_arguments(args.runs_and_data), args.name_pattern)
    paths = evaluating.write_summary(found)
    print(f"\n{printable_lines(evaluating.table_of(found))}\n")
    print(*map(printable_lines, evaluating.lines_of(found)), sep="\n", end="\n\n" if evaluating.lines_of(found) else "")
    print(f"wrote {', '.join(map(str, paths))}; results.txt of each dataset is in a subfolder of the same folder")
