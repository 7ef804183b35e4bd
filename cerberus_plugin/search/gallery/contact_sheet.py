"""Export of search results: a CSV table, or a self-contained HTML page with the images."""

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
from ...utils.text import counted
from .query import Hit, Prefilter, Query
from .thumbnails import thumbnail

if TYPE_CHECKING:
    from jinja2 import Environment

    from ...attributes.attribute_model import AttributeModel

UNCALIBRATED = ("attributes are not calibrated: probabilities are plain softmax outputs, and no attribute is reported "
                "as uncertain. Calibrate with python -m cerberus_plugin.experiments.calibrate RUN. `cerberus train` "
                "calibrates automatically if there are enough identities; its report.html shows how many are needed")
FORMULA = tuple("=+-@＝＋－＠\t\r\n")  # first characters by which spreadsheets detect a formula


def display_names(vocabulary: AttributeModel | None) -> dict[str, str]:
    """Return the display names of attributes, by their names in the annotation file; {} without a vocabulary."""
    return {column.name: column.display for column in vocabulary.columns} if vocabulary is not None else {}


def with_display_names(hits: Sequence[Hit], names: Mapping[str, str]) -> list[Hit]:
    """Return hits with renamed attributes.

    Args:
        hits: of a search.
        names: display names, see `display_names`.
    """
    return [replace(hit, attributes={names.get(name, name): answer for name, answer in hit.attributes.items()})
            for hit in hits]


def rows_of(hits: Sequence[Hit], below: Path | None = None) -> list[dict[str, str]]:
    """Convert hits to rows of a CSV table: `line_of`, and one column per attribute.

    Args:
        hits: of a search, best first.
        below: folder; paths inside it are shown relative to it.

    Returns:
        one dictionary per hit, all with the same keys.
    """
    lines = []
    for place, hit in enumerate(hits, start=1):
        line = line_of(place, hit, below)
        for name, answer in hit.attributes.items():
            line[name if name not in line else f"{name} (recognised)"] = answer_text(answer)
        lines.append(line)
    return lines


def line_of(place: int, hit: Hit, below: Path | None = None) -> dict[str, str]:
    """Convert a hit to a table row without attributes.

    Args:
        place: rank, from 1.
        hit: of a search.
        below: folder; paths inside it are shown relative to it.

    Returns:
        rank, path, score, similarity of each group, probability of the same person if calibrated, and person, camera
        and time of the file name.
    """
    return {"place": str(place), "picture": shown_path(hit, below), "score": f"{hit.score:.3f}",
            **{group: f"{value:.2f}" for group, value in hit.similarities.items()},
            **({} if hit.same_person is None else {"same person": f"{hit.same_person:.6g}"}),
            "person": hit.identity or "", "camera": hit.camera or "", "time": hit.time or ""}


def csv_text(rows: Sequence[dict[str, str]]) -> str:
    """Write rows as CSV, with cells escaped so that spreadsheets do not run them as formulas.

    Args:
        rows: dictionaries with the same keys.

    Returns:
        the text, with a header; "" without rows.

    Examples:
        >>> csv_text([{"name": "=1+1", "score": "-0.5"}])
        '"name","score"\\r\\n"\\'=1+1","-0.5"\\r\\n'
    """
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], quoting=csv.QUOTE_ALL)
    if rows:
        writer.writeheader()
        writer.writerows({name: _harmless(name, value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def html_text(hits: Sequence[Hit], conditions: Sequence[str], below: Path | None = None, picture: bytes | None = None,
              notes: Sequence[str] = ()) -> str:
    """Create a self-contained HTML page with the hits and their images; it needs neither a network nor the gallery.

    Args:
        hits: of a search, best first.
        conditions: of the query, see `conditions_of`.
        below: folder; paths inside it are shown relative to it.
        picture: the query image, the bytes of a JPEG file.
        notes: shown below the heading, see `notes_of`.
    """
    found = [{"hit": hit, "path": shown_path(hit, below), "crop": _crop(hit)} for hit in hits]
    return templates().get_template("sheet.html.j2").render(
        found=found, conditions=conditions, picture=picture and _data_uri(picture), notes=notes)


def templates(*folders: Path) -> Environment:
    """Return the Jinja environment for templates of these folders and of this package.

    Values are escaped; undefined variables are errors.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader([*folders, Path(__file__).parent]), autoescape=True,
                              trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals |= {"answer_text": answer_text, "counted": counted, "likely": likely}
    return environment


def conditions_of(query: Query, picture: str = "", prefilter: Prefilter | None = None,
              clothes: Collection[str] = (), names: Mapping[str, str] | None = None) -> list[str]:
    """Describe a query as text, one item per condition.

    Args:
        query: to describe.
        picture: name of the query image, if there is one.
        prefilter: of the search.
        clothes: groups that `may_have_changed_clothes` excludes; they are not listed separately.
        names: display names of attributes, see `display_names`.
    """
    changed = query.may_have_changed_clothes
    gone = {*query.leave_out, *(clothes if changed else ())}
    weights = {group: weight for group, weight in query.weights.items() if weight != 1 and group not in gone}
    return [*([f"like {picture}"] if query.embedding is not None else []),
            *(f"{(names or {}).get(name, name)}: {value}" for name, value in query.words.items()),
            *(["may have changed clothes"] if changed else []),
            *(f"weight of {group}: {weight:g}" for group, weight in weights.items()),
            *(f"without {group}" for group in query.leave_out if not (changed and group in clothes)),
            *([] if prefilter is None else [f"no contradictions above probability {prefilter.threshold:.6g}"]),
            *([] if query.false_match_rate is None else [f"false-match rate {query.false_match_rate:g}"])]


def shown_path(hit: Hit, below: Path | None = None) -> str:
    """Return the path of a hit, relative to a folder if it is inside."""
    path = Path(hit.path)
    return path.relative_to(below).as_posix() if below is not None and path.is_relative_to(below) else hit.path


def answer_text(answer: Answer) -> str:
    """Format an answer with its probability, without "not calibrated", because the note `UNCALIBRATED` states it.

    Examples:
        >>> answer_text(Answer("red", 0.93)), answer_text(Answer("red", 0.4, abstained=True))
        ('red (93%)', 'uncertain')
    """
    return str(answer._replace(calibrated=True))


def likely(probability: float) -> str:
    """Format a probability of the same person, limited to 1 % and 99 %.

    Examples:
        >>> likely(0.999), likely(0.5), likely(0.0)
        ('over 99%', '50%', 'under 1%')
    """
    return "over 99%" if probability > 0.99 else "under 1%" if probability < 0.01 else f"{probability:.0%}"


def notes_of(hits: Sequence[Hit], prior: float) -> list[str]:
    """Return notes that explain the probabilities of hits, if they have any.

    Args:
        hits: of a search.
        prior: prior probability of the same person, of the query or of the index.
    """
    notes = [UNCALIBRATED] if uncalibrated(hits) else []
    if any(hit.same_person is not None for hit in hits):
        one_in = f"{1 / prior:,.{1 if prior > 0.1 else 0}f}"
        notes.append(f"same person: probability that the image shows the person searched for, with a prior probability "
                     f"of 1 in {one_in}")
    return notes


def uncalibrated(hits: Sequence[Hit]) -> bool:
    """Return whether any predicted attribute is not calibrated."""
    return any(not answer.calibrated for hit in hits for answer in hit.attributes.values())


def _harmless(name: str, value: str) -> str:
    """Escape a cell: "./" before paths, so that they stay valid, and "'" before other text."""
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
    """Return the image of a hit as a data URI; "" if it cannot be read."""
    try:
        return _data_uri(thumbnail(read_image(hit.path)))
    except Unreadable:
        return ""


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
