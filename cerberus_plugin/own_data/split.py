"""The split into training and test: drawn with a seed and stored in `split.csv`."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..attributes.matching import folded
from ..utils.files import write_text
from ..utils.text import counted
from .tables import EMPTY, Words, read_table

PARTS = ("train", "query", "gallery", "val")
TEST = "test"  # query and gallery together; `divide_test` divides it
SPLIT_FILE = "split.csv"
FEWEST = 4  # smallest number of people who can be found again; with fewer, all are for training
TEST_SHARE = 0.2  # share of test images if identities are unknown


def query_and_gallery(items: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """Divide test items as in Market-1501: the first image of an identity under each camera is a query.

    All other images are the gallery. The only image of an identity under a camera is also a gallery image, so that it
    can be found. An identity without any query then has its first image as query.

    Args:
        items: (path, pid, camid).

    Returns:
        queries and gallery, each sorted by path.

    Examples:
        >>> query_and_gallery([("a.jpg", 1, 0), ("b.jpg", 1, 0), ("c.jpg", 1, 1)])
        ([('a.jpg', 1, 0)], [('b.jpg', 1, 0), ('c.jpg', 1, 1)])
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
    """Draw a split by people: half of the people who can be found again into the test, all others into training.

    A person can be found again with at least two images, under two cameras if cameras are known. One test image per
    person and camera is a query, the others are the gallery.

    Args:
        path: file to write; None to write no file.
        files: N file names.
        person: N people.
        camera: N cameras, None if unknown.
        seed: seed of the random generator.

    Returns:
        N parts of the split, and notes.
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
    notes = [f"split drawn with seed {seed}: {counted(len(order) - len(tested), 'person', 'people')} for training, "
             f"{counted(len(tested), 'other person', 'other people')} for the test"]
    _keep(path, files, split, notes)
    single = int((images == 1).sum())
    if single:
        notes.append(f"{counted(single, 'person has', 'people have')} only one image: used for training only")
    elsewhere = sum(1 for code in order if images[code] > 1 and cameras[code] < 2)
    if elsewhere:
        notes.append(f"{counted(elsewhere, 'person appears', 'people appear')} under only one camera: used for "
                     "training only")
    return split, notes


def draw_pictures(path: Path | None, files: Sequence[str], seed: int) -> tuple[Words, list[str]]:
    """Draw a split by images, for data without identities: `TEST_SHARE` of them into the test.

    Args:
        path: file to write; None to write no file.
        files: N file names.
        seed: seed of the random generator.

    Returns:
        N parts of the split, and notes.
    """
    order = np.random.default_rng(seed).permutation(np.argsort(np.array(files)))
    tested = np.zeros(len(files), np.int32)
    tested[order[:round(TEST_SHARE * len(files))]] = 1
    split = Words(tested, ("train", TEST))
    notes = [f"split drawn with seed {seed}: {counted(int((1 - tested).sum()), 'image')} for training, "
             f"{counted(int(tested.sum()), 'image')} for the test"]
    _keep(path, files, split, notes)
    return split, [*notes, "images of the same person may be in both training and test, so metrics may be too high; "
                           "if you know which images belong together, add a column 'person' or 'split'"]


def _keep(path: Path | None, files: Sequence[str], split: Words, notes: list[str]) -> None:
    """Write a drawn split, and add its file to the first note."""
    if path is not None:
        try:
            write_split(path, files, split)
            notes[0] += f"; written to {path.name}"
        except OSError as error:
            notes[0] += f"; not written ({error}), so it is drawn again each time, and changes when images are added"


def divide_test(split: Words, files: Sequence[str], person: Words, camera: Words | None) -> Words:
    """Divide the part `TEST` of a split into query and gallery, with one query per person and camera.

    Args:
        split: N parts of the split, `TEST` among them.
        files: N file names.
        person: N people.
        camera: N cameras; None if unknown, for one query per person.

    Returns:
        N parts of the split, without `TEST`.
    """
    places = _camids(files, camera) if camera is not None else np.zeros(len(files), np.int64)  # one query per person
    rows = np.flatnonzero(split.codes == split.words.index(TEST)).tolist()
    query, gallery = query_and_gallery([(files[row], int(person.codes[row]), int(places[row])) for row in rows])
    row_of = {files[row]: row for row in rows}
    names = split.to_list()
    for name, items in (("query", query), ("gallery", gallery)):
        for file, *_ in items:
            names[row_of[file]] = name
    return Words.of(names)


def _camids(files: Sequence[str], camera: Words | None) -> np.ndarray:
    """Cameras int64 (N,); an unknown camera is a separate one for each image."""
    unknown = -1 - np.arange(len(files))
    return unknown if camera is None else np.where(camera.codes == EMPTY, unknown, camera.codes)


def write_split(path: Path, files: Sequence[str], split: Words) -> None:
    """Write `split.csv`.

    Args:
        path: file to write.
        files: N file names.
        split: N parts of the split.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file_name", "split"))
    writer.writerows(zip(files, split.to_list()))
    write_text(str(path), text.getvalue())


def read_split(path: Path, files: Sequence[str]) -> tuple[Words, list[str]]:
    """Read `split.csv`.

    Args:
        path: path of the file.
        files: N file names.

    Returns:
        N parts of the split, and notes.

    Raises:
        ValueError: if an image is missing or repeated, or a part is not valid.
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
            raise ValueError(f"{table.where(row)}: '{name}' is also in {table.where(lines[name])}. Delete one of the "
                             "two.")
    known = dict(zip(lines, split.to_list()))
    new = [name for name in files if name not in known]
    if new:
        raise ValueError(f"{path}: has no line for '{new[0]}' ({len(new)} of {len(files)} images). Add lines with one "
                         f"of {', '.join((*PARTS, TEST))}, or delete the file to draw a new split. Metrics of a new "
                         "split are not comparable with earlier ones.")
    gone = len(known) - len(files)
    notes = [f"split read from {path.name}"]
    if gone:
        notes.append(f"{path.name}: {counted(gone, 'line')} skipped, since the image no longer exists")
    return Words.of([known[name] for name in files]), notes
