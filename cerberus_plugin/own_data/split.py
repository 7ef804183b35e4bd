"""Which pictures are trained on and which are tested on: drawn by a seed, and kept in `split.csv`."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..attributes.matching import folded
from ..utils.files import write_text
from .tables import EMPTY, Words, read_table

PARTS = ("train", "query", "gallery", "val")
TEST = "test"  # of query and gallery together, which are then drawn
SPLIT_FILE = "split.csv"
FEWEST = 4  # people with pictures enough to be tested on; of fewer nobody is
TEST_SHARE = 0.2  # of pictures without identities


def query_and_gallery(items: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """Items (path, pid, camid) as Market-1501 is made: an identity's first image under each camera asks, others answer.

    Where a camera has one image of an identity, it is searched, so that there is something to find; an identity without
    any other is asked for by its first image.
    """
    places, people = defaultdict(list), defaultdict(list)
    for item in sorted(items):
        places[item[1:]].append(item)
        people[item[1]].append(item)
    asking = {own[0] for own in places.values() if len(own) > 1}
    asking |= {own[0] for own in people.values() if not asking.intersection(own)}
    return [item for item in sorted(items) if item in asking], [item for item in sorted(items) if item not in asking]


def draw_split(path: Path | None, files: Sequence[str], person: Words, camera: Words | None,
               seed: int) -> tuple[Words, list[str]]:
    """Half of the people who can be found again into the test, all others into training.

    Somebody can be found again with two pictures, under two cameras where cameras are known. One picture a person and
    camera is a query, the others are the gallery.

    Args:
        path: of the file to write; None writes none.

    Returns:
        the part of each picture, and what is to be said of it.
    """
    seen = np.unique(np.stack([person.codes.astype(np.int64), _camids(files, camera)], axis=1), axis=0)
    cameras = np.bincount(seen[:, 0], minlength=len(person.words))
    images = person.counts()
    order = sorted(range(len(person.words)), key=lambda code: person.words[code])
    able = [code for code in order if cameras[code] > 1]
    drawn = np.random.default_rng(seed).permutation(able)[:len(able) // 2].tolist()
    tested = set() if len(able) < FEWEST else set(drawn)
    split = Words(np.isin(person.codes, list(tested)).astype(np.int32), ("train", TEST))
    split = divide_test(split, files, person, camera)
    notes = [f"split drawn by seed {seed}: {len(order) - len(tested)} people to train on, {len(tested)} others to test "
             "on"]
    _keep(path, files, split, notes)
    single = int((images == 1).sum())
    if single:
        notes.append(f"{single} people have one picture: used for training only")
    elsewhere = sum(1 for code in order if images[code] > 1 and cameras[code] < 2)
    if elsewhere:
        notes.append(f"{elsewhere} people are seen by one camera alone: used for training only")
    return split, notes


def draw_pictures(path: Path | None, files: Sequence[str], seed: int) -> tuple[Words, list[str]]:
    """`TEST_SHARE` of pictures without identities into the test, all others into training; otherwise as `draw_split`.
    """
    order = np.random.default_rng(seed).permutation(np.argsort(np.array(files)))
    tested = np.zeros(len(files), np.int32)
    tested[order[:round(TEST_SHARE * len(files))]] = 1
    split = Words(tested, ("train", TEST))
    notes = [f"split drawn by seed {seed}: {int((1 - tested).sum())} pictures to train on, {int(tested.sum())} to test "
             "on"]
    _keep(path, files, split, notes)
    return split, [*notes, "pictures of one person may be trained and tested on, which makes figures too high; where "
                           "you know which belong together, say so in a column 'person' or 'split'"]


def _keep(path: Path | None, files: Sequence[str], split: Words, notes: list[str]) -> None:
    """Write a split that was drawn, and add to the first note where it is."""
    if path is not None:
        try:
            write_split(path, files, split)
            notes[0] += f"; kept in {path.name}"
        except OSError as error:
            notes[0] += f"; {error}: it is drawn each time, and changes when pictures are added"


def divide_test(split: Words, files: Sequence[str], person: Words, camera: Words | None) -> Words:
    """A split in which pictures of the part `TEST` are queries, one a person and camera, and gallery."""
    places = _camids(files, camera) if camera is not None else np.zeros(len(files), np.int64)  # one query a person
    rows = np.flatnonzero(split.codes == split.words.index(TEST)).tolist()
    query, gallery = query_and_gallery([(files[row], int(person.codes[row]), int(places[row])) for row in rows])
    row_of = {files[row]: row for row in rows}
    names = split.to_list()
    for name, items in (("query", query), ("gallery", gallery)):
        for file, *_ in items:
            names[row_of[file]] = name
    return Words.of(names)


def _camids(files: Sequence[str], camera: Words | None) -> np.ndarray:
    """Cameras int64 (N,); a picture whose camera is not known has one of its own."""
    unknown = -1 - np.arange(len(files))
    return unknown if camera is None else np.where(camera.codes == EMPTY, unknown, camera.codes)


def write_split(path: Path, files: Sequence[str], split: Words) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file_name", "split"))
    writer.writerows(zip(files, split.to_list()))
    write_text(str(path), text.getvalue())


def read_split(path: Path, files: Sequence[str]) -> tuple[Words, list[str]]:
    """The split that was kept.

    Raises:
        ValueError: if a picture is not in it, or twice, or a part is none.
    """
    table = read_table(path, ("file_name", "split"))
    split = table.columns["split"]
    split = split.renamed({word: folded(word) for word in split.words})
    for code, word in enumerate((*split.words, "")):
        if word not in (*PARTS, TEST) and (split.codes == (code if word else EMPTY)).any():
            row = int(np.flatnonzero(split.codes == (code if word else EMPTY))[0])
            raise ValueError(f"{table.where(row)}: split is '{word}', expected one of "
                             f"{', '.join((*PARTS, TEST))}. Correct the cell.")
    lines: dict[str, int] = {}
    for row, name in enumerate(table.columns["file_name"].to_list()):
        if lines.setdefault(name, row) != row:
            raise ValueError(f"{table.where(row)}: '{name}' is also in {table.where(lines[name])}. Delete one.")
    known = dict(zip(lines, split.to_list()))
    new = [name for name in files if name not in known]
    if new:
        raise ValueError(f"{path}: has no line for '{new[0]}' ({len(new)} of {len(files)} pictures). Add lines, with "
                         f"one of {', '.join((*PARTS, TEST))}, or delete the file to have a split drawn anew, whose "
                         "figures do not compare with earlier ones.")
    gone = len(known) - len(files)
    notes = [f"split as in {path.name}"]
    if gone:
        notes.append(f"{path.name}: {gone} lines are of pictures that are gone")
    return Words.of([known[name] for name in files]), notes
