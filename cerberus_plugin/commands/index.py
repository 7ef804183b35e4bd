"""`cerberus index`: embed a folder of images, or update its index."""

from __future__ import annotations

import argparse
import sys

from ..utils.commands import printable
from ..utils.text import counted
from .shared import add_model, encoder_of, listed


def add(jobs) -> None:
    index = jobs.add_parser("index", help="embed a folder of images, or update its index",
                            description="Embeds the images of a folder and its subfolders. An interrupted index is "
                            "continued. Run the command again to update the index: it embeds new and changed images, "
                            "removes deleted ones, and repairs damaged files of the index. OUT/unreadable.tsv lists "
                            "the images that cannot be read, with the reason.")
    index.set_defaults(job=run)
    add_model(index, required=True)
    index.add_argument("--images", required=True, help="folder of crops, each showing one person")
    index.add_argument("--out", required=True, help="folder of the index")
    index.add_argument("--dtype", choices=("float16", "float32"), help="type of the stored embeddings (default: "
                       "unchanged for an existing index; for a new index float16, or float32 for models with Euclidean "
                       "distance)")
    index.add_argument("--name-pattern", help="regular expression for file names, with the named groups person, camera "
                       "and time; \"\" stands for the names of Market-1501 and DukeMTMC-reID (default: unchanged for "
                       "an existing index, \"\" for a new index)")
    index.add_argument("--follow-links", action=argparse.BooleanOptionalAction, help="include the images of linked "
                       "folders (default: unchanged for an existing index, no for a new index)")


def run(args: argparse.Namespace) -> None:
    from ..search.gallery import GalleryIndex
    from ..utils.folders import LINKS, counts_text
    from ..utils.images import SUFFIXES

    index = GalleryIndex.build(args.out, args.images, encoder_of(args.run, args.model), dtype=args.dtype,
                               pattern=args.name_pattern, follow_links=args.follow_links)
    done, unreadable = index.summary, len(index.unreadable)
    for lost in index.lost:
        print(f"{printable(str(lost.path))}: {lost.reason}; repaired", file=sys.stderr)
    print(f"{args.out}: {counted(done.rows, 'image')}; {done.new} new, {done.changed} changed, {done.deleted} deleted"
          + (f"; {unreadable:,} unreadable, listed in unreadable.tsv" if unreadable else ""))
    links = f"; add --follow-links to include the images of {LINKS}" if index.passed_over[LINKS] else ""
    if not done.rows:
        raise ValueError(f"{args.images}: contains no readable image. Skipped: "
                         f"{printable(counts_text(index.passed_over)) or 'nothing'}. Supported file types: "
                         f"{listed(SUFFIXES)}{links}")
    if links:
        print(f"{args.images}: skipped {LINKS} ({index.passed_over[LINKS]}){links}", file=sys.stderr)
