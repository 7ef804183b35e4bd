"""What `cerberus check` finds in a data set of one's own, as tables for the terminal and as one HTML page.

Shapes: N pictures, A label fields, M columns.
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
    """A table: its title, the names of its columns, and its rows."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple]


@dataclass
class Report:
    """The findings. Training would fail where there are errors, and learn something wrong where there are warnings.

    `facts` are what a configuration is chosen by.
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
        """Kinds of findings that there are, with their texts, the gravest first."""
        kinds = (("error", self.errors), ("warning", self.warnings), ("note", self.notes), ("advice", self.advice))
        return [(name, texts) for name, texts in kinds if texts]


def check(data: str | Path, name_pattern: str = "", seed: int = 0, pictures: bool = True,
          skip_unreadable: bool = False) -> Report:
    """Read a data set of one's own and look for what training would stumble over.

    Writes `split.csv` where a split is drawn, and `schema.yaml` where a schema is inferred.

    Args:
        data, name_pattern: of `read_people`.   seed: of the split, where one is drawn.
        pictures: open each picture; without, files are only looked up.
        skip_unreadable: training passes over pictures that cannot be read, so they are no error.

    Raises:
        FileNotFoundError, ValueError: if tables, names or the schema are wrong.
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
        report.warnings.append("no column can be an attribute, so only identities are learned: "
                               f"{', '.join(own.attributes)}")
    if pictures:
        report.facts = replace(report.facts, size=_check_pictures(report, own, skip_unreadable))
    _advise(report, name_pattern)
    return report


def _count(report: Report, own: OwnData) -> None:
    images = own.person.counts()
    rows: list[tuple] = [("pictures", len(own))]
    rows += [("people", len(own.person.words)),
             ("pictures a person", f"{images.min()} to {images.max()}, median {np.median(images):g}")
             ] if own.identified else [("people", "none known")]
    for name, words in (("cameras", own.camera), ("outfits", own.outfit)):
        unknown = len(own) if words is None else int((words.codes == EMPTY).sum())
        rows.append((name, "none known" if words is None else f"{len(words.words)}"
                     + (f", unknown for {unknown} pictures" if unknown else "")))
    report.sections.append(Section(f"Pictures of {own.source}", ("", "count"), rows))
    if own.outfit is not None and not own.outfit.complete:
        report.notes.append("the outfit of some pictures is not known, so nothing is evaluated by outfits")
    if own.camera is None and own.identified:
        report.notes.append("no cameras are known, so reID ignores no match for its camera; figures are higher than "
                            "those across cameras")
    for name, words in (("people", own.person if own.identified else None), ("cameras", own.camera)):
        alike = defaultdict(list)
        for word in () if words is None else words.words:
            alike[folded(word).lstrip("0")].append(word)
        several = sorted(same for same in alike.values() if len(same) > 1)
        if several:
            report.warnings.append(f"{len(several)} names of {name} differ in upper and lower case or in leading zeros "
                                   f"alone and count as several, such as {' and '.join(several[0])}. Write them alike "
                                   "if they are one")
    parts = [(part, int(chosen.sum()), len(np.unique(own.person.codes[chosen]))) for part in PARTS
             if (chosen := own.is_in(part)).any()]
    report.sections.append(Section("Split", ("part", "pictures", "people"), parts) if own.identified else
                           Section("Split", ("part", "pictures"), [("test" if part == "gallery" else part, count)
                                                                   for part, count, _ in parts]))


def _check_split(report: Report, own: OwnData) -> None:
    if not own.identified:
        for part, name in (("train", "train"), ("gallery", "test")):
            if not own.is_in(part).any():
                report.errors.append(f"no pictures are in {name}; name the parts in a column 'split', or delete "
                                     f"{SPLIT_FILE} to have them drawn")
        return
    people = {part: set(np.unique(own.person.codes[own.is_in(part)]).tolist()) for part in PARTS}
    both = people["train"] & (people["query"] | people["gallery"])
    if both:
        report.errors.append(f"{len(both)} people are in training and in the test: {_names(own.person, both)}. Put all "
                             "pictures of a person into one of them")
    for part in ("train", "query", "gallery"):
        if not people[part]:
            report.errors.append(f"no pictures are in {part}. "
                                 + ("Training needs some" if part == "train" else "An evaluation needs people with two "
                                    "pictures or more, under two cameras where these are known; name the parts in a "
                                    "column 'split'" + ("" if own.camera is None else ", or leave out the cameras, so "
                                                        "that matches under one camera count")))
    lost = people["query"] - people["gallery"]
    if lost and people["gallery"]:
        (report.errors if lost == people["query"] else report.warnings).append(
            f"{len(lost)} of {len(people['query'])} query people have no gallery picture, so nobody can find them: "
            f"{_names(own.person, lost)}")
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
                f"{len(hidden)} query people have gallery pictures under the query's own camera alone, which reID "
                f"ignores: {_names(own.person, hidden)}")


def _check_attributes(report: Report, own: OwnData, wording: Wording, labels: np.ndarray) -> None:
    schema = wording.schema
    for name, reason in (wording.left_out or {}).items():
        report.notes.append(f"column '{name}' is no attribute: it {reason}")
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
            report.warnings.append(f"'{column.name}' is not known of anybody, so it is not learned")
        elif len(held) == 1:
            report.warnings.append(f"'{column.name}' is {held[0]} wherever it is known, so it is not learned. Fill in "
                                   "other values, or take it out")
        else:
            absent = [word for word, count in answers if not count and word != "none"]
            if absent:
                report.warnings.append(f"'{column.name}': nobody has {_some(absent)}")
            in_training = truth[m][known[:, m] & trained].any(axis=0)
            seen = truth[m][known[:, m] & trained]
            learned += bool((seen != seen[:1]).any())
            unseen = [word for word, count, seen in zip(column.classes, counts.tolist(), in_training.tolist())
                      if count and not seen]
            if unseen:
                report.warnings.append(f"'{column.name}': nobody in training has {_some(unseen)}")
        doubtful = [word for word in held if folded(word) in UNKNOWN]
        if doubtful:
            report.warnings.append(f"'{column.name}' has the value {_some(doubtful)}, which is learned like any other. "
                                   "Leave the cell empty where it is not known")
        alike = defaultdict(list)
        for word in column.classes:
            alike[plain(word)].append(word)
        for same in (words for words in alike.values() if len(words) > 1):
            report.warnings.append(f"'{column.name}' has {' and '.join(same)}, which are learned as different values. "
                                   "Write them alike if they are one")
        if own.identified:
            contradictions += _contradictions(own, column, labels[:, list(column.fields)], known[:, m],
                                              column.group in schema.lasting_groups)
    report.sections.append(Section("Attributes (pictures of each value)", ("attribute", "group", "values", "unknown"),
                                   rows))
    if contradictions:
        report.sections.append(Section(
            "Pictures of one person that differ", ("attribute", "people", "for example"),
            [(name, count, example) for name, count, example, _ in contradictions]))
        wrong = [f"'{name}' ({count})" for name, count, _, lasting in contradictions if lasting]
        if wrong:
            report.warnings.append(f"attributes of lasting groups differ within people: {', '.join(wrong)}")
    unlabelled = set(range(len(own.person.words))) - set(np.unique(own.person.codes[known.any(axis=1)]).tolist())
    unlabelled -= {code for code, name in enumerate(own.person.words) if name in wording.nobody}
    if unlabelled:
        report.warnings.append(f"nothing is known of {len(unlabelled)} "
                               f"{'people' if own.identified else 'pictures'}: {_names(own.person, unlabelled)}")
    for group in schema.group_names:
        complete = schema.is_complete(labels[trained], group)
        if trained.any() and complete.mean() < 0.5:
            report.warnings.append(f"group '{group}' is known in full of {int(complete.sum())} of {len(complete)} "
                                   "training pictures, and Cerberus learns from these alone. Fill in its attributes, "
                                   "or give those that are often empty a group of their own")
    reason, crowded = limits_of(schema)
    for group in crowded:
        report.warnings.append(f"the values of group '{group}' have {schema.num_combinations(group)} combinations, "
                               f"more than the {MOST_COMBINATIONS} that Cerberus makes prototypes for; it learns those "
                               "that training people carry. Put its attributes into several groups to search by all")
    if reason:
        report.warnings.append(reason)
    report.facts = replace(report.facts, attributes=learned, not_for_cerberus=reason, crowded=crowded)
    if not wording.path:
        path = own.folder / FILE_NAME
        try:
            write_text(str(path), schema_text(wording))
            report.notes.append(f"wrote {path} from the words of the tables; correct it where it is wrong")
        except OSError as error:
            report.notes.append(f"{error}; the schema is inferred each time")


def limits_of(schema: AttributeSchema) -> tuple[str, tuple[str, ...]]:
    """Why a Cerberus cannot learn a schema, "" where it can; groups with too many combinations for a prototype each."""
    crowded = tuple(group for group in schema.group_names if schema.num_combinations(group) > MOST_COMBINATIONS)
    strips = [group.strip is None for group in schema.groups]
    if not all(strips) and any(strips):
        return "", crowded
    return ("Cerberus needs a group that reads a strip and one that reads the whole picture; "
            + (f"change the region of one of {', '.join(schema.group_names)} in {FILE_NAME}" if len(strips) > 1
               else f"make two groups of the attributes in {FILE_NAME}" if len(schema.columns) > 1 else
               "there is one attribute")), crowded


def _contradictions(own: OwnData, column, labels: np.ndarray, known: np.ndarray, lasting: bool) -> list[tuple]:
    """Attribute, number of people whose pictures differ, an example, whether it is one that lasts."""
    words = own.attributes[column.name]
    rows = np.flatnonzero(known)
    if not len(rows):
        return []
    first = np.zeros(len(words.words), np.int64)  # a row with each word
    first[words.codes[rows]] = rows
    codes = np.unique(labels[first], axis=0, return_inverse=True)[1].ravel()[words.codes[rows]]  # of equal labels
    people = own.person.codes[rows]
    begin = np.full(len(own.person.words), EMPTY, np.int64)  # a person's first place among `rows`
    begin[people[::-1]] = np.arange(len(rows))[::-1]
    differ = np.flatnonzero(codes != codes[begin[people]])
    if not len(differ):
        return []
    person = people[differ[0]]
    example = ", ".join(f"{words[row]} in {own.files[row]}" for row in (rows[begin[person]], rows[differ[0]]))
    return [(column.display, len(np.unique(people[differ])), f"{own.person.words[person]}: {example}", lasting)]


def _check_pictures(report: Report, own: OwnData, skip_unreadable: bool) -> tuple[float, float] | None:
    """Open all pictures; their median height and width."""
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
        found = list(tqdm(threads.map(look, range(len(own))), total=len(own), desc="checking", unit=" pictures"))
    bad = [(own.files[row], reason) for row, (_, _, reason, _) in enumerate(found) if reason]
    if bad:
        report.sections.append(Section("Pictures that cannot be read", ("picture", "reason"), bad[:50]))
        (report.warnings if skip_unreadable else report.errors).append(
            f"{len(bad)} pictures cannot be read, such as {bad[0][0]} ({bad[0][1]}). Replace them, delete their lines, "
            "or train with DATALOADER.ON_UNREADABLE skip")
    alike: dict[bytes, list[int]] = defaultdict(list)
    for row, (digest, _, _, _) in enumerate(found):
        if digest is not None:
            alike[digest].append(row)
    _report_duplicates(report, own, [rows for rows in alike.values() if len(rows) > 1])
    firsts = sorted(rows[0] for rows in alike.values())  # copies of a file are reported by themselves
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
    report.sections.append(Section("The same file more than once", ("pictures", "copies", "of"), rows[:50]))
    if people:
        report.warnings.append(f"{people} pictures are under several people; one of the names is wrong")
    if parts:
        report.warnings.append(f"{parts} pictures are in training and in the test, so figures are too high")
    if len(rows) > people:
        report.notes.append(f"{len(rows)} pictures are there more than once")


def _report_near(report: Report, own: OwnData, rows: np.ndarray, hashes: np.ndarray) -> None:
    """Pictures that are nearly the same.

    Args:
        rows: int64 (n,), of pictures without copies.   hashes: uint8 (n, bytes).
    """
    person, side = own.person.codes[rows] if own.identified else np.zeros(len(rows), np.int32), _sides(own)[rows]
    near = near_duplicates(hashes, person, side)
    if near.others:
        report.notes.append(f"{near.others} pairs of pictures{' of one person' * own.identified} are nearly the same, "
                            "such as successive ones")
    if not len(near.pairs):
        return
    first, second = near.pairs[:, 0], near.pairs[:, 1]
    people, parts = person[first] != person[second], side[first] != side[second]
    report.sections.append(Section(
        "Pictures that are nearly the same", ("pictures", "of"),
        [(", ".join(f"{own.files[row]} ({own.person[row]})" if own.identified else own.files[row]
                    for row in rows[pair[:2]]),
          " and ".join(name for name, yes in (("several people", one), ("training and test", other)) if yes))
         for pair, one, other in zip(near.pairs[:50], people, parts)]))
    example = " and ".join(own.files[row] for row in rows[near.pairs[0, :2]])
    if people.any():
        report.warnings.append(f"{people.sum()} pairs of nearly the same pictures are under two people, such as "
                               f"{example}; one of the names may be wrong, which `cerberus audit` shows")
    if parts.any():
        report.warnings.append(f"{parts.sum()} pairs of nearly the same pictures are in training and in the test, so "
                               "figures are too high")


def _sides(own: OwnData) -> np.ndarray:
    """train, val or test of each picture: str (N,)."""
    assert own.split is not None
    return np.array(["test" if word in ("query", "gallery") else word for word in own.split.words])[own.split.codes]


def _advise(report: Report, name_pattern: str) -> None:
    facts = report.facts
    if reason := too_few(facts):
        report.errors.append(reason)
    if reason or not facts.images:  # which is an error already
        return
    if facts.people is None:
        report.advice.append("identities are unknown: Cerberus and ARN learn the attributes alone, evaluated by PAR")
    elif facts.people < FEW_PEOPLE:
        report.advice.append(f"{facts.people} people to train on are few: identities are told apart well from some "
                             "hundred people on. Begin with pretrained weights, and trust no figure of one split")
    elif facts.images / facts.people < FEW_IMAGES:
        report.advice.append(f"{facts.images / facts.people:.1f} pictures a person are few; {FEW_IMAGES} or more, from "
                             "several cameras, are better than more people")
    if facts.size is not None:
        report.advice.append(f"pictures are {facts.size[1]:g} x {facts.size[0]:g} in the median"
                             + ("; people are expected in upright crops, about twice as high as wide"
                                if facts.size[0] / facts.size[1] < UPRIGHT else ""))
    model, why = model_for(facts)
    pattern = f" --name-pattern {shlex.quote(name_pattern)}" if name_pattern else ""
    plans = [choose(facts, gpu, wish=Wish(weights="resnet50.pth" if gpu else "")) for gpu in (True, False)]
    report.advice.append(
        f"cerberus train {shlex.quote(report.data)} --out runs/own{pattern} takes --model {model} ({why}); on a GPU "
        + ", on a CPU ".join(f"{plan.steps} steps in {plan.epochs} epochs" for plan in plans))


def _names(words: Words, codes: Iterable[int]) -> str:
    return _some(sorted(words.words[code] for code in codes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_EXAMPLES]) + (", ..." if len(names) > MOST_EXAMPLES else "")


def text(report: Report) -> str:
    """The report for a terminal."""
    from tabulate import tabulate

    parts = []
    for section in report.sections:
        rows = [[printable(str(cell)) for cell in row] for row in section.rows]
        widths = [70 if name in ("values", "for example", "pictures") else None for name in section.columns]
        parts.append(f"{printable(section.title)}\n"
                     + tabulate(rows, section.columns, disable_numparse=True, maxcolwidths=widths))
    parts += ["\n".join(f"{kind}: {printable(each)}" for each in texts) for kind, texts in report.findings]
    return "\n\n".join(parts)


def html(report: Report) -> str:
    """The report as a page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    return environment.get_template("check.html.j2").render(report=report)
