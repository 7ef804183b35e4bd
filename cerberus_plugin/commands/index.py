"""`cerberus index`: embed a folder of pictures, or update its index."""

from __future__ import annotations

import argparse
import sys

from ..utils.commands import printable
from .shared import add_model, encoder_of, listed


def add(jobs) -> None:
    index = jobs.add_parser("index", help="embed a folder of pictures, or update its index",
                            description="Embeds the pictures of a folder and its subfolders. After an interruption it "
                            "continues; run again later, it embeds new and changed pictures, removes deleted ones, "
                            "and repairs damaged files of the index. OUT/unreadable.tsv lists pictures that cannot be "
                            "read, with the reason.")
    index.set_defaults(job=run)
    add_model(index, required=True)
    index.add_argument("--images", required=True, help="folder of crops, one person each")
    index.add_argument("--out", required=True, help="folder of the index")
    index.add_argument("--dtype", choices=("float16", "float32"), help="of stored embeddings (default: that of the "
                       "index; for a new one float16, or float32 for models that are compared by distance)")
    index.add_argument("--name-pattern", help="regular expression with groups person, camera and time, for names in "
                       "another form than Market-1501's and DukeMTMC's; \"\" is for these two (default: that of the "
                       "index)")
    index.add_argument("--follow-links", action=argparse.BooleanOptionalAction, help="include the pictures of linked "
                       "folders (default: as before; off for a new index)")


def run(args: argparse.Namespace) -> None:
    from ..search.gallery import GalleryIndex
    from ..utils.folders import LINKS, counts_text
    from ..utils.images import SUFFIXES

    index = GalleryIndex.build(args.out, args.images, encoder_of(args.run, args.model), dtype=args.dtype,
                               pattern=args.name_pattern, follow_links=args.follow_links)
    done, unreadable = index.summary, len(index.unreadable)
    for lost in index.lost:
        print(f"{printable(str(lost.path))}: {lost.reason}; made anew", file=sys.stderr)
    print(f"{args.out}: {done.rows} pictures; {done.new} new, {done.changed} changed, {done.deleted} deleted"
          + (f"; {unreadable} of these cannot be read, unreadable.tsv says why" if done.unreadable else
             f"; {unreadable} others cannot be read, unreadable.tsv says why" if unreadable else ""))
    links = f"; --follow-links takes in the pictures of {LINKS}" if index.passed_over[LINKS] else ""
    if not done.rows:
        raise ValueError(f"{args.images}: no picture was found that can be read. Passed over: "
                         f"{printable(counts_text(index.passed_over)) or 'nothing'}; pictures end in "
                         f"{listed(SUFFIXES)}{links}")
    if links:
        print(f"{args.images}: passed over {LINKS} ({index.passed_over[LINKS]}){links}", file=sys.stderr)
