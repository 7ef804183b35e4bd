"""Findings of an audit, with the corrections that accepting them makes, as rows of an overlay."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..own_data.overlay import PERSON
from ..own_data.people import OwnData
from ..utils.files import write_json, write_text

# Kinds of findings in the order in which they are shown, and their meaning.
KINDS = {
    "label": "all views together contradict the label",
    "view": "one camera contradicts the label",
    "same person": "two people are probably one",
    "two people": "one person is probably two",
    "other person": "an image probably shows another person",
    "copies": "nearly identical images of two people",
    "exclusive": "several attributes are yes, but at most one can be",
    "differs": "a label differs within a person or an outfit",
    "all first values": "all attributes have their first value, possibly instead of unknown",
}
HEADER = ("kind", "confidence", "person", "attribute", "label", "proposed", "files", "reason")


@dataclass(frozen=True)
class Choice:
    """A correction to choose from when a finding is accepted.

    Attributes:
        text: description for the user.
        rows: rows of an overlay, cells in the order of `overlay.COLUMNS`.
    """

    text: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Finding:
    """A probable mistake.

    Attributes:
        kind: a key of `KINDS`.
        confidence: from 0 to 1; docs/audit.md defines it for each kind.
        person: the person whose labels or images are concerned.
        attribute: the column, or "person" for identities.
        label, proposed: the present value and the more probable one.
        reason: a sentence for the user.
        pictures: groups of images to look at: a title, and file names.
        choices: corrections, most probable first.
    """

    kind: str
    confidence: float
    person: str
    attribute: str
    label: str
    proposed: str
    reason: str
    pictures: tuple[tuple[str, tuple[str, ...]], ...]
    choices: tuple[Choice, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """File names of the images concerned: those of the first group."""
        return self.pictures[0][1] if self.pictures else ()


def of_unit(own: OwnData, rows: Sequence[int], outfit: str, attribute: str, was: str,
            values: Sequence[str]) -> tuple[Choice, ...]:
    """Make choices that correct a label of a person or an outfit.

    Args:
        own: the data.
        rows: rows of the images with this label; without identities, the corrections are for these images.
        outfit: the outfit, "" for all.
        attribute: the column.
        was: the present value.
        values: new values, one choice each; "" for unknown.
    """
    if not own.identified:
        return of_pictures([own.files[row] for row in rows], attribute, [was] * len(rows), values)
    return tuple(Choice(value or "unknown", (("", own.person[rows[0]], outfit, attribute, value, was),))
                 for value in values)


def of_pictures(files: Sequence[str], attribute: str, was: Sequence[str], values: Sequence[str]) -> tuple[Choice, ...]:
    """Make choices that correct a label of images.

    Args:
        files: file names.
        attribute: the column.
        was: present value of each image.
        values: new values, one choice each; "" for unknown.
    """
    return tuple(Choice(value or "unknown", tuple((file, "", "", attribute, value, before)
                                                  for file, before in zip(files, was) if before != value))
                 for value in values)


def moves(files: Sequence[str], was: str, goal: str, text: str) -> Choice:
    """Make a choice that moves images to another person.

    Args:
        files: file names.
        was: the present person.
        goal: the other person.
        text: description for the user.
    """
    return Choice(text, tuple((file, "", "", PERSON, goal, was) for file in files))


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings by confidence, highest first."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda one: (-one.confidence, kinds.index(one.kind), one.person, one.attribute))


def write_findings(folder: Path, findings: Sequence[Finding], record: dict) -> None:
    """Write `audit.csv`, with one line per finding, and `audit.json`, with all details.

    Args:
        folder: folder to write to.
        findings: the findings.
        record: additional contents of the JSON file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for own in findings:
        writer.writerow((own.kind, f"{own.confidence:.4f}", own.person, own.attribute, own.label, own.proposed,
                         " | ".join(own.files), own.reason))
    write_text(str(folder / "audit.csv"), text.getvalue())
    write_json(str(folder / "audit.json"), record | {"findings": [asdict(own) for own in findings]})
