"""`cerberus convert`: convert a published attribute dataset to the own-data format."""

from __future__ import annotations

import argparse

DESCRIPTION = """Converts a published dataset to the own-data format: a table with values as text, a schema, the
published split, and links to the images. The counts are compared with the published ones. Datasets:

    peta pa100k rapv1 rapv2 upar      attributes of images, without identities
    agreid market1501 dukemtmc        attributes of identities

    cerberus convert pa100k PA-100K --out data/pa100k
    cerberus convert peta PETA --out data/peta-2 --partition 2

docs/converters.md documents each dataset, and how to write a converter for another one.
"""


def add(jobs) -> None:
    convert = jobs.add_parser("convert", help="convert a published attribute dataset to the own-data format",
                              formatter_class=argparse.RawDescriptionHelpFormatter, description=DESCRIPTION)
    convert.set_defaults(job=run)
    convert.add_argument("set", metavar="DATASET", help="one of the datasets above")
    convert.add_argument("source", metavar="SOURCE", help="folder of the unpacked dataset")
    convert.add_argument("--out", required=True, metavar="FOLDER", help="output folder")
    convert.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    convert.add_argument("--allow-subset", action="store_true", help="accept counts that differ from the published "
                         "ones, and skip missing images")
    options = convert.add_argument_group("options of single datasets")
    options.add_argument("--partition", type=int, metavar="N", help="peta, rapv1, rapv2: number of the random split, 1 "
                         "to 5 (default: 1); upar: number of the split in the pickle file, 1 to 10, instead of the "
                         "CSV files")
    options.add_argument("--uncertain", choices=("unknown", "no"), help="rapv1, rapv2: value of labels that the "
                         "annotators marked as uncertain (2) (default: unknown; other public loaders use no)")
    options.add_argument("--setting", choices=("aerial-to-ground", "ground-to-aerial"), help="agreid: cameras of the "
                         "query and of the gallery (default: aerial-to-ground)")
    options.add_argument("--with-ethnicity", action="store_true", default=None, help="agreid: include the attribute "
                         "ethnicity; it is excluded by default, since it is often labelled incorrectly and searching "
                         "by it can do harm")


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
