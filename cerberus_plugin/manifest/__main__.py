"""Show what a run's figures were taken on and by, or in what two runs differ.

    python -m cerberus_plugin.manifest logs/market1501/cerberus_R50
    python -m cerberus_plugin.manifest logs/market1501/cerberus_R50 logs/market1501/cerberus_R50/evaluation

Equal hashes mean equal images (list), labels, configuration or weights (checkpoint), wherever the folders lie.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..files import replace_unprintable
from .reading import difference_table, differences, read, show


def main(arguments: Sequence[str] | None = None) -> None:
    replace_unprintable()
    parser = argparse.ArgumentParser(prog="python -m cerberus_plugin.manifest", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder with the results.json of a finished run or an evaluation")
    parser.add_argument("other", nargs="?", metavar="run2", help="another: print what differs")
    args = parser.parse_args(arguments)
    try:
        manifests = [read(folder) for folder in (args.run, args.other) if folder]
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if args.other:
        print(difference_table((args.run, args.other), differences(*manifests)))
    else:
        print(show(manifests[0]), end="")


if __name__ == "__main__":
    main()
