"""What an audit finds: one record a finding, with the rows of an overlay that follow from accepting it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..own_data.overlay import PERSON
from ..own_data.people import OwnData
from ..utils.files import write_json, write_text

# Kinds in the order in which they are shown, and what each says.
KINDS = {
    "label": "all views contradict the label",
    "view": "one camera contradicts the label",
    "same person": "two people are probably one",
    "two people": "one person is probably two",
    "other person": "a picture lies with another person",
    "copies": "nearly the same picture under two people",
    "exclusive": "attributes of which one can be yes at most",
    "differs": "a label that should not differ within a person",
    "all first values": "all labels are the first value, as where unknown is written so",
}
HEADER = ("kind", "confidence", "person", "attribute", "label", "proposed", "files", "reason")


@dataclass(frozen=True)
class Choice:
    """What accepting a finding can mean, in words, and rows of an overlay: values in the order of its `COLUMNS`."""

    text: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Finding:
    """Something that is probably wrong.

    Attributes:
        kind: of `KINDS`.
        confidence: from 0 to 1; docs/audit.md says what it is for each kind.
        person: whose label or pictures it is about.
        attribute, label, proposed: the column, its present words, and those that are more likely; "person" for who is
            on a picture.
        reason: a sentence.
        pictures: names of files to look at, in groups with a title.
        choices: what can be done, the likeliest first.
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
        """The pictures that the finding is about: those of its first group."""
        return self.pictures[0][1] if self.pictures else ()


def of_unit(own: OwnData, rows: Sequence[int], outfit: str, attribute: str, was: str,
            values: Sequence[str]) -> tuple[Choice, ...]:
    """New values for the pictures of a person, or of an outfit, that have a label; "" is unknown.

    Args:
        rows: of these pictures, which are named themselves where nobody's identity is known.
    """
    if not own.identified:
        return of_pictures([own.files[row] for row in rows], attribute, [was] * len(rows), values)
    return tuple(Choice(value or "unknown", (("", own.person[rows[0]], outfit, attribute, value, was),))
                 for value in values)


def of_pictures(files: Sequence[str], attribute: str, was: Sequence[str], values: Sequence[str]) -> tuple[Choice, ...]:
    """New values for pictures, each with its present label."""
    return tuple(Choice(value or "unknown", tuple((file, "", "", attribute, value, before)
                                                  for file, before in zip(files, was) if before != value))
                 for value in values)


def moves(files: Sequence[str], was: str, goal: str, text: str) -> Choice:
    """Pictures of one person given to another."""
    return Choice(text, tuple((file, "", "", PERSON, goal, was) for file in files))


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """The surest first."""
    kinds = list(KINDS)
    return sorted(findings, key=lambda one: (-one.confidence, kinds.index(one.kind), one.person, one.attribute))


def write_findings(folder: Path, findings: Sequence[Finding], record: dict) -> None:
    """`audit.csv`, one line a finding, and `audit.json` with all of each.

    Args:
        record: what else the JSON file is to hold.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for own in findings:
        writer.writerow((own.kind, f"{own.confidence:.4f}", own.person, own.attribute, own.label, own.proposed,
                         " | ".join(own.files), own.reason))
    write_text(str(folder / "audit.csv"), text.getvalue())
    write_json(str(folder / "audit.json"), record | {"findings": [asdict(own) for own in findings]})
