"""An audit from the folder of the data to the files of its findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..own_data.overlay import OVERLAY, read_overlay
from ..own_data.people import labels_of, read_people, read_wording, split_people
from ..utils.commands import printable
from .contradictions import contradictions, unknown_labels
from .findings import KINDS, Finding, in_order, write_findings
from .trust import HEADER, Reading, Trust

MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Audit:
    """What was found, the surest first, what is to be said of it, and how far the models can be trusted, if any."""

    data: str
    findings: list[Finding] = field(repr=False)
    notes: tuple[str, ...] = ()
    trust: Trust | None = None


def audit(data: str, out: str | Path, *, run: str = "", pictures: bool = True, name_pattern: str = "", folds: int = 3,
          seed: int = 0, epochs: int = 0, given: Mapping[str, str] | None = None) -> Audit:
    """Look for wrong labels, and write `audit.csv`, `audit.json` and `audit.html`.

    Args:
        data, name_pattern: of `read_people`.   out: folder to write to; trained folds are kept there.
        run: folder of a trained model in place of models of folds.
        pictures: without, labels are compared among themselves alone.
        folds, seed: of people.   epochs, given: of `fold_config`.

    Raises:
        FileNotFoundError, ValueError: with file, value, what is allowed, and a remedy.
    """
    out = Path(out)
    own = read_people(data, name_pattern)
    wording = read_wording(own)
    labels = None if wording is None else labels_of(own, wording)
    notes = list(own.notes)
    findings: list[Finding] = []
    trust = None
    if wording is not None and labels is not None:
        findings += contradictions(own, wording, labels)
        unknown = unknown_labels(own, wording.schema, labels)
        if unknown:
            notes.append("unknown labels: " + ", ".join(f"{name} of {count} pictures of {people} people"
                                                        for name, count, people in unknown))
    elif not pictures:
        raise ValueError(f"{own.source}: has no attributes, so without pictures there is nothing to compare. Leave "
                         "--no-pictures out, or write attributes into the table.")
    if pictures:
        from .labels import label_findings
        from .people import copies, people_findings
        from .predictions import predict_by_folds, predict_by_run

        if wording is None and not run:
            notes.append("there are no attributes to train on: people were not compared; give a trained model by --run")
        else:
            if run:
                own = split_people(own, write=False)
                predictions = predict_by_run(data, own, wording, out, run)
            else:
                assert wording is not None
                predictions = predict_by_folds(data, own, wording, out, folds=folds, seed=seed, epochs=epochs,
                                               name_pattern=name_pattern, given=given)
            notes += predictions.notes
            readings: list[Reading] = []
            telling = None
            if wording is not None and labels is not None:
                of_labels, readings = label_findings(own, wording, labels, predictions)
                findings += of_labels
            if own.identified:
                of_people, telling = people_findings(own, wording.schema if wording else None, predictions)
                findings += of_people
            trust = Trust(tuple(readings), telling)
        if own.identified:
            findings += copies(own)
    found = Audit(str(data), in_order(findings), tuple(notes), trust)
    record: dict = {"data": str(own.source), "pictures": len(own), "people": len(own.person.words),
                    "notes": list(found.notes)}
    write_findings(out, found.findings, record if trust is None else record | {"models": trust.record()})
    from .page import write_page

    overlay = own.folder / OVERLAY
    write_page(out / "audit.html", own, found.findings, found.notes, trust,
               read_overlay(overlay) if overlay.is_file() else None)
    return found


def text(found: Audit) -> str:
    """What the models know, and the findings by kind, for a terminal."""
    from tabulate import tabulate

    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for one in found.findings:
        by_kind[one.kind].append(one)
    rows = [(kind, KINDS[kind], len(by_kind[kind]), "; ".join(_example(one) for one in by_kind[kind][:MOST_EXAMPLES]))
            for kind in KINDS if by_kind[kind]]
    parts = []
    if found.trust is not None:
        parts.append("What the models know, of people whom they were not trained on")
        if found.trust.attributes:
            parts.append(tabulate([[printable(cell) for cell in row] for row in found.trust.rows()], HEADER,
                                  disable_numparse=True))
        parts += [printable(one) for one in found.trust.sentences()]
    parts.append(tabulate([[printable(str(cell)) for cell in row] for row in rows], (
        "kind", "what", "found", "the surest"), maxcolwidths=[None, 26, None, 60]) if rows else "No findings.")
    return "\n\n".join([*parts, *(f"note: {printable(note)}" for note in found.notes)])


def _example(one: Finding) -> str:
    label, proposed = one.label or "unknown", one.proposed or "unknown"
    return f"{one.person}: {one.attribute} {label} -> {proposed} ({one.confidence:.2f})"
