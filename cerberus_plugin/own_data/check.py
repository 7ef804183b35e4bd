"""The checks of `cerberus check`: count and validate own data, and report the findings as tables or as an HTML page.
Shapes: N images, A label fields, M columns.
"""

from __future__ import annotations

import hashlib
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..attributes.matching import plain
from ..attributes.schema import MOST_COMBINATIONS, AttributeSchema
from ..utils.commands import printable
from ..utils.files import write_text
from ..utils.images import Limits, Unreadable, read_bytes, read_image
from ..utils.processor import usable_cores
from ..utils.text import counted
from .near_duplicates import near_duplicates, picture_hash
from .people import OwnData, labels_of, read_people, read_wording, split_people
from .recipe import FEW_IMAGES, FEW_PEOPLE, UPRIGHT, Facts, Wish, choose, model_for, too_few
from .schema_file import FILE_NAME, MOST_VALUES, Wording, folded, schema_text
from .split import PARTS, SPLIT_FILE
from .tables import EMPTY, Words

MOST_EXAMPLES = 5
UNKNOWN = ("unknown", "n/a", "na", "nan", "null", "?", "??", "???", "unclear", "unsure", "not visible")


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        title: heading of the table.
        columns: names of the columns.
        rows: cells, one tuple per row.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple]


@dataclass
class Report:
    """The findings of a check.

    Attributes:
        data: the data as the user named it.
        facts: counts that determine the training configuration.
        sections: tables.
        errors: problems that make training fail.
        warnings: problems that make a model learn or measure something wrong.
        notes: how the data was read.
        advice: what to expect and what to do next.
    """

    data: str
    facts: Facts = Facts(0, 0, 0)
    sections: list[Section] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def findings(self) -> list[tuple[str, list[str]]]:
        """Non-empty kinds of findings with their texts, errors first."""
        kinds = (("error", self.errors), ("warning", self.warnings), ("note", self.notes), ("advice", self.advice))
        return [(name, texts) for name, texts in kinds if texts]


def check(data: str | Path, name_pattern: str = "", seed: int = 0, pictures: bool = True,
          skip_unreadable: bool = False) -> Report:
    """Read own data and report problems that affect training.

    Writes `split.csv` if a split is drawn, and `schema.yaml` if a schema is inferred.

    Args:
        data: table or folder, see `read_people`.
        name_pattern: regular expression for file names, see `read_people`.
        seed: seed of the split, used only if one is drawn.
        pictures: open each image; if False, only check that the files exist.
        skip_unreadable: whether training skips unreadable images; they are then warnings instead of errors.

    Returns:
        the findings.

    Raises:
        FileNotFoundError: if a table or an image does not exist.
        ValueError: if a table, a file name or the schema is wrong.
    """
    own = split_people(read_people(data, name_pattern), seed)
    report = Report(str(data), notes=list(own.notes))
    _count(report, own)
    _check_split(report, own)
    trained = own.is_in("train")
    report.facts = Facts(int(trained.sum()), len(np.unique(own.person.codes[trained])) if own.identified else None,
                         len(np.unique(own.person.codes[own.is_in("query")])), cameras=own.camera is not None)
    wording = read_wording(own)
    if wording is not None:
        _check_attributes(report, own, wording, labels_of(own, wording))
    elif own.attributes:
        report.warnings.append("none of the columns can be used as an attribute, so only identities are learned: "
                               f"{', '.join(own.attributes)}")
    if pictures:
        report.facts = replace(report.facts, size=_check_pictures(report, own, skip_unreadable))
    _advise(report, name_pattern)
    return report


def _count(report: Report, own: OwnData) -> None:
    images = own.person.counts()
    rows: list[tuple] = [("images", len(own))]
    rows += [("people", len(own.person.words)),
             ("images per person", f"{images.min()} to {images.max()}, median {np.median(images):g}")
             ] if own.identified else [("people", "unknown")]
    for name, words in (("cameras", own.camera), ("outfits", own.outfit)):
        unknown = len(own) if words is None else int((words.codes == EMPTY).sum())
        rows.append((name, "unknown" if words is None else f"{len(words.words)}"
                     + (f", unknown for {counted(unknown, 'image')}" if unknown else "")))
    report.sections.append(Section(f"Images of {own.source}", ("", "count"), rows))
    if own.outfit is not None and not own.outfit.complete:
        report.notes.append("the outfit of some images is unknown, so there are no metrics by outfit")
    if own.camera is None and own.identified:
        report.notes.append("cameras are unknown, so reID also counts matches under the query's camera; its metrics "
                            "are higher than across cameras")
    for name, words in (("people", own.person if own.identified else None), ("cameras", own.camera)):
        alike = defaultdict(list)
        for word in () if words is None else words.words:
            alike[folded(word).lstrip("0")].append(word)
        several = sorted(same for same in alike.values() if len(same) > 1)
        if several:
            report.warnings.append(f"names of {name} differ only in case or leading zeros, such as "
                                   f"{' and '.join(several[0])} ({counted(len(several), 'group')} in all), and count "
                                   f"as different {name}. Use one spelling if they are the same")
    parts = [(part, int(chosen.sum()), len(np.unique(own.person.codes[chosen]))) for part in PARTS
             if (chosen := own.is_in(part)).any()]
    report.sections.append(Section("Split", ("part", "images", "people"), parts) if own.identified else
                           Section("Split", ("part", "images"), [("test" if part == "gallery" else part, count)
                                                                 for part, count, _ in parts]))


def _check_split(report: Report, own: OwnData) -> None:
    if not own.identified:
        for part, name in (("train", "train"), ("gallery", "test")):
            if not own.is_in(part).any():
                report.errors.append(f"the split has no {name} images; give the parts in a column 'split', or delete "
                                     f"{SPLIT_FILE} to draw a new split")
        return
    people = {part: set(np.unique(own.person.codes[own.is_in(part)]).tolist()) for part in PARTS}
    both = people["train"] & (people["query"] | people["gallery"])
    if both:
        report.errors.append(f"{counted(len(both), 'person is', 'people are')} in both training and test: "
                             f"{_names(own.person, both)}. Put all images of a person into one of them"
                             + (f", or delete {SPLIT_FILE} to draw a new split"
                                if f"split read from {SPLIT_FILE}" in own.notes else ""))
    for part in ("train", "query", "gallery"):
        if not people[part]:
            report.errors.append(f"the split has no {part} images. "
                                 + ("Training needs some" if part == "train" else "An evaluation needs people with at "
                                    "least two images, under two cameras if cameras are known; give the parts in a "
                                    "column 'split'" + ("" if own.camera is None else ", or delete the column "
                                                        "'camera', so that matches under the same camera count")))
    lost = people["query"] - people["gallery"]
    if lost and people["gallery"]:
        (report.errors if lost == people["query"] else report.warnings).append(
            f"{len(lost)} of {counted(len(people['query']), 'query person', 'query people')} have no gallery image, so "
            f"they cannot be found: {_names(own.person, lost)}")
    if own.camera is not None and people["query"] & people["gallery"]:
        places = [set(zip(own.person.codes[chosen].tolist(), own.camera.codes[chosen].tolist()))
                  for chosen in (own.is_in("query"), own.is_in("gallery"))]
        cameras = defaultdict(set)
        for person, camera in places[1]:
            cameras[person].add(camera)
        found = {person for person, camera in places[0] if camera == EMPTY or cameras[person] - {camera}}
        hidden = (people["query"] & people["gallery"]) - found
        if hidden:
            (report.errors if not found else report.warnings).append(
                f"{counted(len(hidden), 'query person has', 'query people have')} gallery images only under the "
                f"query's own camera, which reID ignores: {_names(own.person, hidden)}")


def _check_attributes(report: Report, own: OwnData, wording: Wording, labels: np.ndarray) -> None:
    schema = wording.schema
    for name, reason in (wording.left_out or {}).items():
        report.notes.append(f"column '{name}' is not used as an attribute: it {reason}")
    for name in own.attributes:
        if name not in {column.name for column in schema.columns} and name not in (wording.left_out or {}):
            report.notes.append(f"column '{name}' is not in {wording.path or FILE_NAME} and is not read")
    trained = own.is_in("train")
    truth, known = schema.column_truth(labels)
    rows, contradictions, learned = [], [], 0
    for m, column in enumerate(schema.columns):
        counts = truth[m][known[:, m]].sum(axis=0)
        answers = list(zip(column.classes, counts.tolist()))
        if column.is_colour:
            answers.append(("none", int((~truth[m].any(axis=1) & known[:, m]).sum())))
        held = [word for word, count in answers if count]
        rows.append((column.display, column.group, ", ".join(f"{word} {count}" for word, count in answers[:MOST_VALUES])
                     + (", ..." if len(answers) > MOST_VALUES else ""),
                     f"{1 - known[:, m].mean():.0%}"))
        if not known[:, m].any():
            report.warnings.append(f"'{column.name}' is unknown for all images, so it is not learned")
        elif len(held) == 1:
            report.warnings.append(f"'{column.name}' is always {held[0]} where it is known, so it is not learned. Fill "
                                   "in other values, or remove the attribute")
        else:
            absent = [word for word, count in answers if not count and word != "none"]
            if absent:
                report.warnings.append(f"'{column.name}': no image has the value {_some(absent)}. Delete it from "
                                       f"{FILE_NAME} if it was a mistake")
            in_training = truth[m][known[:, m] & trained].any(axis=0)
            seen = truth[m][known[:, m] & trained]
            learned += bool((seen != seen[:1]).any())
            unseen = [word for word, count, seen in zip(column.classes, counts.tolist(), in_training.tolist())
                      if count and not seen]
            if unseen:
                report.warnings.append(f"'{column.name}': no training image has the value {_some(unseen)}")
        doubtful = [word for word in held if folded(word) in UNKNOWN]
        if doubtful:
            report.warnings.append(f"'{column.name}' has the value {_some(doubtful)}, which is learned like any other. "
                                   "Leave the cell empty if the value is unknown")
        alike = defaultdict(list)
        for word in column.classes:
            alike[plain(word)].append(word)
        for same in (words for words in alike.values() if len(words) > 1):
            report.warnings.append(f"'{column.name}' has {' and '.join(same)}, which are learned as different values. "
                                   "Use one spelling if they are the same")
        if own.identified:
            contradictions += _contradictions(own, column, labels[:, list(column.fields)], known[:, m],
                                              column.group in schema.lasting_groups)
    report.sections.append(Section("Attributes (images of each value)", ("attribute", "group", "values", "unknown"),
                                   rows))
    if contradictions:
        report.sections.append(Section(
            "Attributes that differ between images of a person", ("attribute", "people", "for example"),
            [(name, count, example) for name, count, example, _ in contradictions]))
        wrong = [f"'{name}' ({count})" for name, count, _, lasting in contradictions if lasting]
        if wrong:
            report.warnings.append("attributes of lasting groups differ between images of a person (number of people): "
                                   f"{', '.join(wrong)}")
    unlabelled = set(range(len(own.person.words))) - set(np.unique(own.person.codes[known.any(axis=1)]).tolist())
    unlabelled -= {code for code, name in enumerate(own.person.words) if name in wording.nobody}
    if unlabelled:
        names = ("person has", "people have") if own.identified else ("image has", "images have")
        report.warnings.append(f"{counted(len(unlabelled), *names)} no attributes: {_names(own.person, unlabelled)}")
    for group in schema.group_names:
        complete = schema.is_complete(labels[trained], group)
        if trained.any() and complete.mean() < 0.5:
            report.warnings.append(f"all attributes of group '{group}' are known for {int(complete.sum())} of "
                                   f"{counted(len(complete), 'training image')}, and Cerberus learns the group only "
                                   "from these. Fill in the attributes, or move those that are often empty to a "
                                   "separate group")
    reason, crowded = limits_of(schema)
    for group in crowded:
        report.warnings.append(f"the values of group '{group}' have {schema.num_combinations(group)} combinations, "
                               f"more than the {MOST_COMBINATIONS} for which Cerberus makes prototypes; it learns only "
                               "those that occur in training. Divide its attributes into several groups to search for "
                               "any combination")
    if reason:
        report.warnings.append(reason)
    report.facts = replace(report.facts, attributes=learned, not_for_cerberus=reason, crowded=crowded)
    if not wording.path:
        path = own.folder / FILE_NAME
        try:
            write_text(str(path), schema_text(wording))
            report.notes.append(f"wrote {path}, inferred from the tables; check it and correct it")
        except OSError as error:
            report.notes.append(f"{error}; the schema is inferred again each time")


def limits_of(schema: AttributeSchema) -> tuple[str, tuple[str, ...]]:
    """Check whether Cerberus can learn a schema.

    Returns:
        the reason why it cannot, "" if it can; and the groups with more than `MOST_COMBINATIONS` combinations.
    """
    crowded = tuple(group for group in schema.group_names if schema.num_combinations(group) > MOST_COMBINATIONS)
    strips = [group.strip is None for group in schema.groups]
    if not all(strips) and any(strips):
        return "", crowded
    return ("Cerberus needs a group of a strip and a group of the whole image; "
            + (f"change the region of one of {', '.join(schema.group_names)} in {FILE_NAME}" if len(strips) > 1
               else f"divide the attributes into two groups in {FILE_NAME}" if len(schema.columns) > 1 else
               "there is only one attribute")), crowded


def _contradictions(own: OwnData, column, labels: np.ndarray, known: np.ndarray, lasting: bool) -> list[tuple]:
    """At most one row: attribute, number of people whose images differ, an example, whether its group is lasting."""
    words = own.attributes[column.name]
    rows = np.flatnonzero(known)
    if not len(rows):
        return []
    first = np.zeros(len(words.words), np.int64)  # one row with each word
    first[words.codes[rows]] = rows
    codes = np.unique(labels[first], axis=0, return_inverse=True)[1].ravel()[words.codes[rows]]  # by label, not word
    people = own.person.codes[rows]
    begin = np.full(len(own.person.words), EMPTY, np.int64)  # index in `rows` of each person's first image
    begin[people[::-1]] = np.arange(len(rows))[::-1]
    differ = np.flatnonzero(codes != codes[begin[people]])
    if not len(differ):
        return []
    person = people[differ[0]]
    example = ", ".join(f"{words[row]} in {own.files[row]}" for row in (rows[begin[person]], rows[differ[0]]))
    return [(column.display, len(np.unique(people[differ])), f"{own.person.words[person]}: {example}", lasting)]


def _check_pictures(report: Report, own: OwnData, skip_unreadable: bool) -> tuple[float, float] | None:
    """Open all images and report problems; return their median height and width, None if none can be read."""
    from tqdm import tqdm

    limits = Limits()

    def look(row: int) -> tuple[bytes | None, tuple[int, int], str, np.ndarray | None]:
        path = own.path(row)
        try:
            data = read_bytes(path, limits.max_bytes)
            image = read_image(data, limits, path)
            return (hashlib.blake2b(data, digest_size=16).digest(), (image.height, image.width), "",
                    picture_hash(image))
        except Unreadable as error:
            return None, (0, 0), error.reason, None

    with ThreadPoolExecutor(usable_cores()) as threads:
        found = list(tqdm(threads.map(look, range(len(own))), total=len(own), desc="checking", unit=" images"))
    bad = [(own.files[row], reason) for row, (_, _, reason, _) in enumerate(found) if reason]
    if bad:
        report.sections.append(Section("Unreadable images", ("image", "reason"), bad[:50]))
        (report.warnings if skip_unreadable else report.errors).append(
            f"{counted(len(bad), 'image')} cannot be read, such as {bad[0][0]} ({bad[0][1]}). Replace them, delete "
            "their lines, or train with DATALOADER.ON_UNREADABLE skip")
    alike: dict[bytes, list[int]] = defaultdict(list)
    for row, (digest, _, _, _) in enumerate(found):
        if digest is not None:
            alike[digest].append(row)
    _report_duplicates(report, own, [rows for rows in alike.values() if len(rows) > 1])
    firsts = sorted(rows[0] for rows in alike.values())  # copies of a file have been reported above
    if len(firsts) > 1:
        _report_near(report, own, np.array(firsts), np.stack([found[row][3] for row in firsts]))
    sizes = [size for _, size, reason, _ in found if not reason]
    return tuple(np.median(sizes, axis=0).tolist()) if sizes else None


def _report_duplicates(report: Report, own: OwnData, copies: Sequence[list[int]]) -> None:
    side = _sides(own)
    rows, people, parts = [], 0, 0
    for same in copies:
        other_people = own.identified and len({own.person.codes[row] for row in same}) > 1
        other_parts = len({side[row] for row in same}) > 1
        people, parts = people + other_people, parts + other_parts
        where = [name for name, yes in (("several people", other_people), ("training and test", other_parts)) if yes]
        names = [f"{own.files[row]} ({own.person[row]})" if own.identified else own.files[row]
                 for row in same[:MOST_EXAMPLES]]
        rows.append((", ".join(names), len(same), " and ".join(where) or ("one person" if own.identified else "")))
    if not rows:
        return
    rows.sort(key=lambda row: row[2] in ("one person", ""))
    report.sections.append(Section("Identical files", ("images", "copies", "in"), rows[:50]))
    if people:
        report.warnings.append(f"{counted(people, 'image has', 'images have')} identical copies under other people; "
                               "at most one of the people is right")
    if parts:
        report.warnings.append(f"{counted(parts, 'image is', 'images are')} in both training and test, so metrics are "
                               "too high")
    if len(rows) > people:
        report.notes.append(f"{counted(len(rows), 'image has', 'images have')} identical copies")


def _report_near(report: Report, own: OwnData, rows: np.ndarray, hashes: np.ndarray) -> None:
    """Report images that are nearly the same.

    Args:
        rows: int64 (n,), rows of distinct images.
        hashes: uint8 (n, bytes), their hashes.
    """
    person, side = own.person.codes[rows] if own.identified else np.zeros(len(rows), np.int32), _sides(own)[rows]
    near = near_duplicates(hashes, person, side)
    if near.others:
        pairs = counted(near.others, "pair of images", "pairs of images") + " of the same person" * own.identified
        report.notes.append(f"{pairs} {'is' if near.others == 1 else 'are'} nearly identical, such as successive video "
                            "frames")
    if not len(near.pairs):
        return
    first, second = near.pairs[:, 0], near.pairs[:, 1]
    people, parts = person[first] != person[second], side[first] != side[second]
    report.sections.append(Section(
        "Nearly identical images", ("images", "in"),
        [(", ".join(f"{own.files[row]} ({own.person[row]})" if own.identified else own.files[row]
                    for row in rows[pair[:2]]),
          " and ".join(name for name, yes in (("several people", one), ("training and test", other)) if yes))
         for pair, one, other in zip(near.pairs[:50], people, parts)]))
    example = " and ".join(own.files[row] for row in rows[near.pairs[0, :2]])
    if people.any():
        report.warnings.append(f"{_pairs(people)} listed under two people, such as {example}; one of the two may be "
                               "wrong. `cerberus audit` shows them")
    if parts.any():
        report.warnings.append(f"{_pairs(parts)} divided between training and test, so metrics are too high")


def _pairs(chosen: np.ndarray) -> str:
    return counted(int(chosen.sum()), "pair of nearly identical images is", "pairs of nearly identical images are")


def _sides(own: OwnData) -> np.ndarray:
    """train, val or test for each image: str (N,)."""
    assert own.split is not None
    return np.array(["test" if word in ("query", "gallery") else word for word in own.split.words])[own.split.codes]


def _advise(report: Report, name_pattern: str) -> None:
    facts = report.facts
    if reason := too_few(facts):
        report.errors.append(reason)
    if reason or not facts.images:  # already reported as an error
        return
    if facts.people is None:
        report.advice.append("identities are unknown: Cerberus and ARN learn only the attributes, evaluated as PAR")
    elif facts.people < FEW_PEOPLE:
        report.advice.append(f"{counted(facts.people, 'person', 'people')} for training is few: re-identification "
                             "needs a few hundred people to work well. Start from pretrained weights, and do not rely "
                             "on the metrics of a single split")
    elif facts.images / facts.people < FEW_IMAGES:
        report.advice.append(f"{facts.images / facts.people:.1f} images per person is few; {FEW_IMAGES} or more per "
                             "person, from several cameras, help more than additional people")
    if facts.size is not None:
        report.advice.append(f"the median image size is {facts.size[1]:g} x {facts.size[0]:g} (width x height)"
                             + ("; upright crops of whole people are expected, about twice as high as wide"
                                if facts.size[0] / facts.size[1] < UPRIGHT else ""))
    model, why = model_for(facts)
    pattern = f" --name-pattern {shlex.quote(name_pattern)}" if name_pattern else ""
    plans = [choose(facts, gpu, wish=Wish(weights="resnet50.pth" if gpu else "")) for gpu in (True, False)]
    report.advice.append(
        f"cerberus train {shlex.quote(report.data)} --out runs/own{pattern} chooses --model {model} ({why}); it trains "
        "on a GPU for " + ", on a CPU for ".join(
            f"{counted(plan.steps, 'step')} ({counted(plan.epochs, 'epoch')})" for plan in plans))


def _names(words: Words, codes: Iterable[int]) -> str:
    return _some(sorted(words.words[code] for code in codes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_EXAMPLES]) + (", ..." if len(names) > MOST_EXAMPLES else "")


def text(report: Report) -> str:
    """Format a report for a terminal."""
    from tabulate import tabulate

    parts = []
    for section in report.sections:
        rows = [[printable(str(cell)) for cell in row] for row in section.rows]
        widths = [70 if name in ("values", "for example", "images") else None for name in section.columns]
        parts.append(f"{printable(section.title)}\n"
                     + tabulate(rows, section.columns, disable_numparse=True, maxcolwidths=widths))
    parts += ["\n".join(f"{kind}: {printable(each)}" for each in texts) for kind, texts in report.findings]
    return "\n\n".join(parts)


def html(report: Report) -> str:
    """Format a report as a self-contained HTML page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    return environment.get_template("check.html.j2").render(report=report)
