"""What a search has found as a file: lines of a table in CSV, or one page of HTML with the pictures in it."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...attributes.attribute_model import Answer
from ...utils.images import Unreadable, read_image
from .query import Hit, Prefilter, Query
from .thumbnails import thumbnail

if TYPE_CHECKING:
    from jinja2 import Environment

    from ...attributes.attribute_model import AttributeModel

UNCALIBRATED = ("probabilities are those of the bare softmax and the model never abstains: calibrate by "
                "python -m cerberus_plugin.experiments.calibrate RUN; `cerberus train` does so by itself where there "
                "are enough people, and its report.html says how many")
FORMULA = tuple("=+-@＝＋－＠\t\r\n")  # spreadsheets run a cell that begins with one of these


def display_names(vocabulary: AttributeModel | None) -> dict[str, str]:
    """Names of attributes for people, by those of the annotation file."""
    return {column.name: column.display for column in vocabulary.columns} if vocabulary is not None else {}


def with_display_names(hits: Sequence[Hit], names: Mapping[str, str]) -> list[Hit]:
    """Hits with these names of attributes, see `display_names`."""
    return [replace(hit, attributes={names.get(name, name): answer for name, answer in hit.attributes.items()})
            for hit in hits]


def rows_of(hits: Sequence[Hit], below: Path | None = None) -> list[dict[str, str]]:
    """A line a hit: that of `line_of`, and each attribute by its name in the annotation file.

    Args:
        below: shows paths below this folder in place of whole ones.
    """
    lines = []
    for place, hit in enumerate(hits, start=1):
        line = line_of(place, hit, below)
        for name, answer in hit.attributes.items():
            line[name if name not in line else f"{name} (recognised)"] = answer_text(answer)
        lines.append(line)
    return lines


def line_of(place: int, hit: Hit, below: Path | None = None) -> dict[str, str]:
    """Place, picture, score, similarity of each group, which tell by what it matches, the probability of the same
    person if it is known, and what its name tells."""
    return {"place": str(place), "picture": shown_path(hit, below), "score": f"{hit.score:.3f}",
            **{group: f"{value:.2f}" for group, value in hit.similarities.items()},
            **({} if hit.same_person is None else {"same person": f"{hit.same_person:.6g}"}),
            "person": hit.identity or "", "camera": hit.camera or "", "time": hit.time or ""}


def csv_text(rows: Sequence[dict[str, str]]) -> str:
    """Lines of one form as CSV; no cell is taken for a formula by a spreadsheet. Of no lines, nothing."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], quoting=csv.QUOTE_ALL)
    if rows:
        writer.writeheader()
        writer.writerows({name: _harmless(name, value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def html_text(hits: Sequence[Hit], conditions: Sequence[str], below: Path | None = None, picture: bytes | None = None,
              notes: Sequence[str] = ()) -> str:
    """Hits with their pictures as one page that needs nothing beside itself, neither a network nor the gallery.

    Args:
        conditions: of the query, see `conditions_of`.
        below: as in `rows_of`.
        picture: that was searched for, a JPEG.
        notes: that belong to what is shown, see `notes_of`.
    """
    found = [{"hit": hit, "path": shown_path(hit, below), "crop": _crop(hit)} for hit in hits]
    return templates().get_template("sheet.html.j2").render(
        found=found, conditions=conditions, picture=picture and _data_uri(picture), notes=notes)


def templates(*folders: Path) -> Environment:
    """Templates of these folders and of this one; what they show is escaped, and what they lack an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader([*folders, Path(__file__).parent]), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals |= {"answer_text": answer_text, "likely": likely}
    return environment


def conditions_of(query: Query, picture: str = "", prefilter: Prefilter | None = None,
              clothes: Collection[str] = (), names: Mapping[str, str] | None = None) -> list[str]:
    """A query in words to show, one item for each condition.

    Args:
        picture: the name of the query's picture, where it has one.
        clothes: groups that are left out where clothes may have been changed; they are not listed again then.
        names: of attributes, see `display_names`.
    """
    changed = query.may_have_changed_clothes
    gone = {*query.leave_out, *(clothes if changed else ())}
    weights = {group: weight for group, weight in query.weights.items() if weight != 1 and group not in gone}
    return [*([f"like {picture}"] if query.embedding is not None else []),
            *(f"{(names or {}).get(name, name)}: {value}" for name, value in query.words.items()),
            *(["may have changed clothes"] if changed else []),
            *(f"{group} counts {weight:g} times" for group, weight in weights.items()),
            *(f"{group} does not count" for group in query.leave_out if not (changed and group in clothes)),
            *([] if prefilter is None else [f"without what surely contradicts, from {prefilter.threshold:.6g} on"]),
            *([] if query.false_match_rate is None else [f"false-match rate {query.false_match_rate:g}"])]


def shown_path(hit: Hit, below: Path | None = None) -> str:
    """The path of a picture, below a folder if it lies there."""
    path = Path(hit.path)
    return path.relative_to(below).as_posix() if below is not None and path.is_relative_to(below) else hit.path


def answer_text(answer: Answer) -> str:
    """An answer with its probability; `UNCALIBRATED` is a note about all of them and is not repeated in each."""
    return str(answer._replace(calibrated=True))


def likely(probability: float) -> str:
    """A probability of the same person, which is never shown as certain."""
    return "over 99%" if probability > 0.99 else "under 1%" if probability < 0.01 else f"{probability:.0%}"


def notes_of(hits: Sequence[Hit], prior: float) -> list[str]:
    """What has to be known of the probabilities of hits, where they have any.

    Args:
        prior: of the same person, that of the query or else of the index.
    """
    notes = [UNCALIBRATED] if uncalibrated(hits) else []
    if any(hit.same_person is not None for hit in hits):
        one_in = f"{1 / prior:,.{1 if prior > 0.1 else 0}f}"
        notes.append(f"same person: how probable that is if before looking it is one in {one_in} for each picture")
    return notes


def uncalibrated(hits: Sequence[Hit]) -> bool:
    return any(not answer.calibrated for hit in hits for answer in hit.attributes.values())


def _harmless(name: str, value: str) -> str:
    """A picture stays the path that it is; other text gets the mark by which spreadsheets know text."""
    if not value.startswith(FORMULA) or _is_number(value):
        return value
    return f"./{value}" if name == "picture" else f"'{value}"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _crop(hit: Hit) -> str:
    """The picture itself, "" where it cannot be shown any more."""
    try:
        return _data_uri(thumbnail(read_image(hit.path)))
    except Unreadable:
        return ""


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
