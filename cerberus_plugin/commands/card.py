"""`cerberus card`: write the model card of a run again."""

from __future__ import annotations

import argparse

import cerberus_plugin

DESCRIPTION = """Writes RUN/model_card.md from RUN/results.json: data, metrics with baselines, metrics by attribute
value, what was not measured, intended and unsuitable use, and the laws to check. Training and evaluation write it at
their end; this command replaces it, for example after calibration. docs/model_card.md describes it.

    cerberus card runs/shop
"""


def add(jobs) -> None:
    card = jobs.add_parser("card", help="write the model card of a run again", description=DESCRIPTION,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    card.set_defaults(job=run)
    card.add_argument("runs", nargs="+", metavar="RUN", help="folder with results.json")


def run(args: argparse.Namespace) -> None:
    cerberus_plugin.use_torch()
    from ..evaluation import model_card

    for folder in args.runs:
        print(f"wrote {model_card.write(folder)}")
