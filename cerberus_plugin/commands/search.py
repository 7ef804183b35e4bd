"""`cerberus search`: find people by attributes, by an image, or by both."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.commands import add_blur_faces
from .shared import add_index, add_model, encoder_of, listed, open_index, print_table, write_file

if TYPE_CHECKING:
    from ..search.gallery import GalleryIndex, Hit, Prefilter, Query
    from ..search.portable import AttributeModel


def add(jobs) -> None:
    search = jobs.add_parser("search", help="find people by attributes, by an image, or by both",
                             description="Finds people in an index. A search by attributes needs no model. With an "
                             "image, attributes replace the groups that they describe: --image 0001.jpg backpack=no "
                             "finds the person of the image without a backpack.")
    search.set_defaults(job=run)
    add_index(search)
    search.add_argument("words", nargs="*", metavar="ATTRIBUTE=VALUE", help="attribute to search for, such as "
                        "gender=female; may be given several times; quote names with spaces")
    search.add_argument("--image", metavar="FILE", help="image of the person to find; needs --run or --model")
    search.add_argument("--picture", dest="image", help=argparse.SUPPRESS)  # the former name of --image
    add_model(search)
    search.add_argument("--leave-out", default="", metavar="GROUP,GROUP", help="groups to ignore in the comparison")
    search.add_argument("--may-have-changed-clothes", action="store_true", help="compare only groups that stay the "
                        "same when clothes change: those chosen for the run, or else those of its schema")
    search.add_argument("--weight", action="append", default=[], metavar="GROUP=NUMBER",
                        help="weight of a group (default: 1); may be given several times")
    search.add_argument("--false-match-rate", type=float, metavar="RATE", help="show only matches above the threshold "
                        "for this false-match rate; needs a model that is calibrated for it")
    search.add_argument("--prior", type=float, metavar="PROBABILITY", help="prior probability that an image shows "
                        "this person, used for \"same person\" (default: 1 / (N + 1) for N images)")
    search.add_argument("--reliable", type=float, metavar="PROBABILITY", help="exclude images with a predicted "
                        "attribute that contradicts the query with more than this probability")
    search.add_argument("--top", type=int, default=10, help="number of results (default: %(default)s)")
    search.add_argument("--csv", metavar="FILE", help="also write the results to this file")
    search.add_argument("--html", metavar="FILE", help="also write the results to one HTML page with the images")
    add_blur_faces(search)


def run(args: argparse.Namespace) -> None:
    from ..search.gallery import Prefilter
    from ..search.gallery.parts import EMBED_AGAIN

    index = open_index(args)
    query = _query(args, index)
    prefilter = None if args.reliable is None else Prefilter(args.reliable)
    try:
        hits = index.search(query, args.top, prefilter)
    except KeyError as error:  # rows were deleted twice during the search, or rows.sqlite is inconsistent
        raise RuntimeError(f"{error.args[0]}; if this happens again, {EMBED_AGAIN}") from error
    _render(args, index, query, prefilter, hits)


def _render(args: argparse.Namespace, index: GalleryIndex, query: Query, prefilter: Prefilter | None,
            hits: Sequence[Hit]) -> None:
    """Print the hits, and write them to the files given by --csv and --html."""
    from ..search.gallery import contact_sheet
    from ..search.gallery.thumbnails import thumbnail
    from ..utils.images import read_image

    names = contact_sheet.display_names(index.vocabulary)
    shown = contact_sheet.with_display_names(hits, names)
    notes = contact_sheet.notes_of(hits, index.prior if query.prior is None else query.prior)
    if args.csv:
        write_file(args.csv, contact_sheet.csv_text(contact_sheet.rows_of(hits)))
    if args.html:
        picture = thumbnail(read_image(args.image)) if args.image else None
        conditions = contact_sheet.conditions_of(query, Path(args.image or "").name, prefilter, index.clothing_groups,
                                                 names)
        write_file(args.html, contact_sheet.html_text(shown, conditions, picture=picture, notes=notes))
    print_table([_row(place, hit) for place, hit in enumerate(shown, start=1)])
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)


def _query(args: argparse.Namespace, index: GalleryIndex) -> Query:
    """Return the query of the options; embeds the query image, if there is one."""
    from ..search.gallery import Query

    if not (args.words or args.image):
        known = f". Attributes: {_known(index.vocabulary)}" if index.vocabulary else ""
        raise ValueError(f"search: the query is empty; give ATTRIBUTE=VALUE, --image FILE, or both{known}")
    embedding = None
    if args.image:
        if not (args.run or args.model):
            raise ValueError("search: --image needs the model of the index; give --run or --model")
        embedding = index.embed(encoder_of(args.run, args.model), args.image)
    left_out = [group.strip() for group in args.leave_out.split(",") if group.strip()]
    weights = {name: _number(name, value) for name, value in _pairs(args.weight).items()}
    return Query(embedding, _pairs(args.words), weights, left_out, args.false_match_rate, args.prior,
                 args.may_have_changed_clothes)


def _row(place: int, hit: Hit) -> dict[str, str]:
    """Return a hit as a row of the printed table."""
    from ..search.gallery import contact_sheet

    return {**contact_sheet.line_of(place, hit, Path.cwd()),
            **({} if hit.same_person is None else {"same person": contact_sheet.likely(hit.same_person)}),
            "recognised": listed(f"{name} {own.value}" for name, own in hit.attributes.items() if not own.abstained)}


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name.strip() and sign and value.strip()):
        raise ValueError(f"'{text}': expected NAME=VALUE, such as gender=female; quote names with a space")
    return name.strip(), value.strip()


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name, value in map(_pair, texts):
        if name in pairs:
            raise ValueError(f"'{name}' is given twice, {pairs[name]} and {value}; give it once, two colours as "
                             f"\"{name}={pairs[name]} and {value}\"")
        pairs[name] = value
    return pairs


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"--weight {name}={value}: expected a number, such as {name}=2") from None


def _known(vocabulary: AttributeModel) -> str:
    return "; ".join(f"{column.display}: {listed(column.classes)}" for column in vocabulary.columns)
