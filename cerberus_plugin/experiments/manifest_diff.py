"""Show what a run's figures were taken on and by, or in what two runs differ.

    python -m cerberus_plugin.experiments.manifest_diff logs/market1501/cerberus_R50
    python -m cerberus_plugin.experiments.manifest_diff RUN RUN/evaluation

Equal hashes mean equal images (list), labels, configuration or weights (checkpoint), wherever the folders lie.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from tabulate import tabulate

from ..config import flat
from ..evaluation import report
from ..evaluation.manifest import with_current_texts
from ..utils.commands import run_command

SHOWN = 16  # digits of a hash in tables and messages


def read(folder: str | Path) -> dict:
    """The manifest of a run folder, test data sets by the name that they have without attributes as well.

    Of a record whose manifest has no rules of ranking yet, those of its protocol.
    """
    record = report.read_results(str(folder))
    found = with_current_texts(record.get("manifest"))
    if not found:
        raise ValueError(f"{os.path.join(folder, report.RESULTS_FILE)}: has no manifest; it was written before there "
                         "were any, or without one. Evaluate the run again: train_net.py --eval-only writes "
                         "RUN/evaluation with one.")
    rules = record.get("protocol", {}).get("reid", {})
    ranking = {key: rules[key] for key in ("re-ranking", "query expansion") if key in rules}
    tests = {name.removesuffix("Attributes"): tested for name, tested in found["tests"].items()}
    return {"ranking": ranking} | found | {"tests": tests}


def show(manifest: Mapping) -> str:
    """A manifest as indented lines."""
    return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=110)


def differences(first: Mapping, second: Mapping) -> list[tuple[str, object, object]]:
    """Entries that are not the same, by their way through the manifest; None where one has no such entry."""
    one, other = flat(first, ": "), flat(second, ": ")
    return [(name, one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)]


def difference_table(folders: tuple[str, str], different: list[tuple[str, object, object]]) -> str:
    if not different:
        return f"{folders[0]} and {folders[1]}: nothing differs"
    return tabulate([(name, _cell(name, one), _cell(name, other)) for name, one, other in different],
                    ["", *folders], disable_numparse=True)


def _cell(name: str, value) -> str:
    if value is None:
        return "none"
    return str(value)[:SHOWN] if name.endswith("sha256") else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m cerberus_plugin.experiments.manifest_diff", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder with the results.json of a finished run or an evaluation")
    parser.add_argument("other", nargs="?", metavar="run2", help="another: print what differs")
    args = parser.parse_args(arguments)
    manifests = [read(folder) for folder in (args.run, args.other) if folder]
    if args.other:
        print(difference_table((args.run, args.other), differences(*manifests)))
    else:
        print(show(manifests[0]), end="")


if __name__ == "__main__":
    run_command(main)
