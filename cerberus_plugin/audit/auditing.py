"""Run an audit: read the data, collect the findings, and write them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..own_data.overlay import OVERLAY, read_overlay
from ..own_data.people import labels_of, read_people, read_wording, split_people
from ..utils.commands import printable
from ..utils.text import counted
from .contradictions import contradictions, unknown_labels
from .findings import KINDS, Finding, in_order, write_findings
from .trust import HEADER, Reading, Trust

MOST_EXAMPLES = 3


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        data: the data as the user named it.
        findings: findings, highest confidence first.
        notes: messages for the user.
        trust: accuracy of the models; None without models.
    """

    data: str
    findings: list[Finding] = field(repr=False)
    notes: tuple[str, ...] = ()
    trust: Trust | None = None


def audit(data: str, out: str | Path, *, run: str = "", pictures: bool = True, name_pattern: str = "", folds: int = 3,
          seed: int = 0, epochs: int = 0, given: Mapping[str, str] | None = None) -> Audit:
    """Find labels that are probably wrong, and write `audit.csv`, `audit.json` and `audit.html`.

    Args:
        data: table or folder, see `read_people`.
        out: folder to write to; it also stores the models of the folds.
        run: folder of a trained model, which is used instead of models of folds.
        pictures: if False, only compare labels with each other, without images.
        name_pattern: regular expression for file names, see `read_people`.
        folds: number of folds of people.
        seed: seed of the folds.
        epochs: epochs of the trainings of folds; 0 to choose them.
        given: additional configuration keys and values of these trainings.

    Returns:
        the findings.

    Raises:
        FileNotFoundError: if the data or the run does not exist.
        ValueError: if the data or an option is not valid, with the place, the allowed values, and a remedy.
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
            units = (lambda n: "") if not own.identified else lambda n: f" of {counted(n, 'person', 'people')}"
            notes.append("unknown labels: " + ", ".join(f"{name} for {counted(count, 'image')}{units(people)}"
                                                        for name, count, people in unknown))
    elif not pictures:
        raise ValueError(f"{own.source}: has no attributes, so there is nothing to compare without images. Omit "
                         "--no-images, or add attributes to the table.")
    if pictures:
        from .labels import label_findings
        from .people import copies, people_findings
        from .predictions import predict_by_folds, predict_by_run

        if wording is None and not run:
            notes.append("the data has no attributes to train on, so people were not compared; give a trained model by "
                         "--run")
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
    """Format the accuracy of the models and the findings by kind for a terminal."""
    from tabulate import tabulate

    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for one in found.findings:
        by_kind[one.kind].append(one)
    rows = [(kind, KINDS[kind], len(by_kind[kind]), "; ".join(_example(one) for one in by_kind[kind][:MOST_EXAMPLES]))
            for kind in KINDS if by_kind[kind]]
    parts = []
    if found.trust is not None:
        parts.append("Accuracy of the models on people that they were not trained on")
        if found.trust.attributes:
            parts.append(tabulate([[printable(cell) for cell in row] for row in found.trust.rows()], HEADER,
                                  disable_numparse=True))
        parts += [printable(one) for one in found.trust.sentences()]
    parts.append(tabulate([[printable(str(cell)) for cell in row] for row in rows], (
        "kind", "finding", "count", "highest confidence"), maxcolwidths=[None, 26, None, 60])
                 if rows else "No findings.")
    return "\n\n".join([*parts, *(f"note: {printable(note)}" for note in found.notes)])


def _example(one: Finding) -> str:
    label, proposed = one.label or "unknown", one.proposed or "unknown"
    return f"{one.person}: {one.attribute} {label} -> {proposed} ({one.confidence:.2f})"
