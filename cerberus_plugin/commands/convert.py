"""`cerberus convert`: a published attribute set in the form of one's own data."""

from __future__ import annotations

import argparse

DESCRIPTION = """Writes a published set in the form of one's own data: a table in words, a schema, the published split,
and links to the pictures. Counts are compared with the published ones. Sets:

    peta pa100k rapv1 rapv2 upar      attributes of pictures, without identities
    agreid market1501 dukemtmc        attributes of people

    cerberus convert pa100k PA-100K --out data/pa100k
    cerberus convert peta PETA --out data/peta-2 --partition 2

docs/converters.md says what is read of each set, and how to write a converter of another one.
"""


def add(jobs) -> None:
    convert = jobs.add_parser("convert", help="write a published attribute set in the form of own data",
                              formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    convert.set_defaults(job=run)
    convert.add_argument("set", metavar="SET", help="one of those above")
    convert.add_argument("source", metavar="SOURCE", help="folder of the set, as it is unpacked")
    convert.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    convert.add_argument("--copy", action="store_true", help="copy the pictures in place of linking to them")
    convert.add_argument("--allow-subset", action="store_true", help="accept other counts than the published ones, and "
                         "leave out pictures that are missing")
    options = convert.add_argument_group("options of single sets")
    options.add_argument("--partition", type=int, metavar="N", help="peta, rapv1, rapv2: which of the five random "
                         "splits, from 1 (default: 1); upar: which of the pickle's ten, in place of the CSV files")
    options.add_argument("--uncertain", choices=("unknown", "no"), help="rapv1, rapv2: how labels that the annotators "
                         "left uncertain (2) are read (default: unknown; public readers take no)")
    options.add_argument("--setting", choices=("aerial-to-ground", "ground-to-aerial"), help="agreid: who asks and who "
                         "is searched (default: aerial-to-ground)")
    options.add_argument("--with-ethnicity", action="store_true", default=None, help="agreid: also this attribute, "
                         "which is left out since it is often guessed wrongly and a search by it can do harm")


def run(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from ..converters import CONVERTERS, convert
    from ..utils.commands import printable

    given = {name: value for name in ("partition", "uncertain", "setting", "with_ethnicity")
             if (value := getattr(args, name)) is not None}
    done = convert(args.set, args.source, args.out, copy=args.copy, allow_subset=args.allow_subset, progress=True,
                   **given)
    print(tabulate(done.counts, (str(args.out), "found", "published"), disable_numparse=True))
    for note in done.notes:
        print(f"note: {printable(note)}")
    own = CONVERTERS[args.set]
    print(f"licence: {own.licence}\nevaluation: {own.rule}\nnext: cerberus check {args.out}")
