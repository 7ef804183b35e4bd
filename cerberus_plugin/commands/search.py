"""`cerberus search`: find people by attributes, by a picture, or by both."""

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
    search = jobs.add_parser("search", help="find people by attributes, by a picture, or by both",
                             description="A search by words needs no model. With a picture, words replace the "
                             "groups that they describe: --picture 0001.jpg backpack=no finds this person without the "
                             "backpack.")
    search.set_defaults(job=run)
    add_index(search)
    search.add_argument("words", nargs="*", metavar="ATTRIBUTE=VALUE", help="such as gender=female; any number; quote "
                        "names with a space")
    search.add_argument("--picture", help="of the wanted person; needs the model of the index")
    add_model(search)
    search.add_argument("--leave-out", default="", metavar="GROUP,GROUP", help="groups that are not compared")
    search.add_argument("--may-have-changed-clothes", action="store_true", help="compare only groups that "
                        "last when clothes change: those chosen for the run, else those of its schema")
    search.add_argument("--weight", action="append", default=[], metavar="GROUP=NUMBER",
                        help="weight of a group (default: 1); may be given several times")
    search.add_argument("--false-match-rate", type=float, metavar="RATE", help="show only pictures above the score "
                        "that this share of the pictures of other people exceeds; one of the rates of the calibration")
    search.add_argument("--prior", type=float, metavar="PROBABILITY", help="prior probability that a picture shows "
                        "this person, for \"same person\" (default: 1 / (N + 1) for N pictures)")
    search.add_argument("--reliable", type=float, metavar="PROBABILITY", help="leave out pictures with an attribute "
                        "that contradicts the query and was recognised with more than this probability")
    search.add_argument("--top", type=int, default=10, help="number of pictures (default: %(default)s)")
    search.add_argument("--csv", help="also write the results to this file")
    search.add_argument("--html", help="also write the results to this page, with the pictures in it")
    add_blur_faces(search)


def run(args: argparse.Namespace) -> None:
    from ..search.gallery import Prefilter
    from ..search.gallery.parts import EMBED_AGAIN

    index = open_index(args)
    query = _query(args, index)
    prefilter = None if args.reliable is None else Prefilter(args.reliable)
    try:
        hits = index.search(query, args.top, prefilter)
    except KeyError as error:  # rows were deleted twice during the search, or are recorded wrongly
        raise RuntimeError(f"{error.args[0]}; if that happens again, {EMBED_AGAIN}") from error
    _render(args, index, query, prefilter, hits)


def _render(args: argparse.Namespace, index: GalleryIndex, query: Query, prefilter: Prefilter | None,
            hits: Sequence[Hit]) -> None:
    """Hits to the terminal, and to files where these are given."""
    from ..search.gallery import contact_sheet
    from ..search.gallery.thumbnails import thumbnail
    from ..utils.images import read_image

    names = contact_sheet.display_names(index.vocabulary)
    shown = contact_sheet.with_display_names(hits, names)
    notes = contact_sheet.notes_of(hits, index.prior if query.prior is None else query.prior)
    if args.csv:
        write_file(args.csv, contact_sheet.csv_text(contact_sheet.rows_of(hits)))
    if args.html:
        picture = thumbnail(read_image(args.picture)) if args.picture else None
        conditions = contact_sheet.conditions_of(query, Path(args.picture or "").name, prefilter, index.clothing_groups,
                                                 names)
        write_file(args.html, contact_sheet.html_text(shown, conditions, picture=picture, notes=notes))
    print_table([_row(place, hit) for place, hit in enumerate(shown, start=1)])
    print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)


def _query(args: argparse.Namespace, index: GalleryIndex) -> Query:
    """The query of the options; embeds the picture, if there is one."""
    from ..search.gallery import Query

    if not (args.words or args.picture):
        known = f"; attributes: {_known(index.vocabulary)}" if index.vocabulary else ""
        raise ValueError(f"search: say who is looked for, by ATTRIBUTE=VALUE, by --picture, or by both{known}")
    embedding = None
    if args.picture:
        if not (args.run or args.model):
            raise ValueError("search: a picture has to be embedded; name the model of the index by --run or --model")
        embedding = index.embed(encoder_of(args.run, args.model), args.picture)
    left_out = [group.strip() for group in args.leave_out.split(",") if group.strip()]
    weights = {name: _number(name, value) for name, value in _pairs(args.weight).items()}
    return Query(embedding, _pairs(args.words), weights, left_out, args.false_match_rate, args.prior,
                 args.may_have_changed_clothes)


def _row(place: int, hit: Hit) -> dict[str, str]:
    """A hit as a line to read."""
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
            raise ValueError(f"'{name}' is said twice, {pairs[name]} and {value}; say it once, two colours as \"{name}="
                             f"{pairs[name]} and {value}\"")
        pairs[name] = value
    return pairs


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"--weight {name}={value}: expected a number, such as {name}=2") from None


def _known(vocabulary: AttributeModel) -> str:
    return "; ".join(f"{column.display}: {listed(column.classes)}" for column in vocabulary.columns)
