"""Show the manifest of a run, or the differences between the manifests of two runs.

    python -m cerberus_plugin.experiments.manifest_diff logs/market1501/cerberus_R50
    python -m cerberus_plugin.experiments.manifest_diff RUN RUN/evaluation

Equal hashes mean equal images (list), labels, configuration or weights (checkpoint), whatever their location.
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
    """Read the manifest of a run folder.

    Test datasets have their names without "Attributes". Older manifests have no ranking rules; then these are those of
    the record's protocol.

    Raises:
        ValueError: If results.json has no manifest.
    """
    record = report.read_results(str(folder))
    found = with_current_texts(record.get("manifest"))
    if not found:
        raise ValueError(f"{os.path.join(folder, report.RESULTS_FILE)}: has no manifest; it was written by an older "
                         "version, or without a manifest. Evaluate the run again: train_net.py --eval-only writes "
                         "RUN/evaluation with one.")
    rules = record.get("protocol", {}).get("reid", {})
    ranking = {key: rules[key] for key in ("re-ranking", "query expansion") if key in rules}
    tests = {name.removesuffix("Attributes"): tested for name, tested in found["tests"].items()}
    return {"ranking": ranking} | found | {"tests": tests}


def show(manifest: Mapping) -> str:
    """Format a manifest as YAML."""
    return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=110)


def differences(first: Mapping, second: Mapping) -> list[tuple[str, object, object]]:
    """List the entries that differ between two manifests.

    Returns:
        Name and both values of each entry; None if a manifest has no such entry.

    Examples:
        >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
        [('a: b', 1, 3)]
    """
    one, other = flat(first, ": "), flat(second, ": ")
    return [(name, one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)]


def difference_table(folders: tuple[str, str], different: list[tuple[str, object, object]]) -> str:
    """Format the differences of two run folders."""
    if not different:
        return f"{folders[0]} and {folders[1]}: no differences"
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
    parser.add_argument("other", nargs="?", metavar="run2", help="folder of a second run: print the differences")
    args = parser.parse_args(arguments)
    manifests = [read(folder) for folder in (args.run, args.other) if folder]
    if args.other:
        print(difference_table((args.run, args.other), differences(*manifests)))
    else:
        print(show(manifests[0]), end="")


if __name__ == "__main__":
    run_command(main)
