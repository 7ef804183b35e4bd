"""Synthetic datasets of people who change their clothes, with the folders of PRCC or LTCC and labels of each outfit.

    python -m cerberus_plugin.synthetic --output DIR --form prcc
    python -m cerberus_plugin.synthetic --output DIR --form ltcc --outfits 4

A person keeps build, face, hair, skin, gait, gender and age; clothes, shoes, hat and bag change with the outfit.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..attributes.outfits import FILE_NAME, Outfit, write_outfits
from ..attributes.schema import MARKET1501
from ..utils.files import json_sha256
from .folder import DIFFICULTY, VERSION, check_common, check_numbers, fill, known_person, passers
from .people import generator
from .scene import NUM_CAMERAS, draw_person, make_camera, sample_view
from .wardrobe import MOST_OUTFITS, Labels, sample_wardrobes

ROOTS = {"prcc": Path("prcc", "rgb"), "ltcc": Path("LTCC_ReID")}
OUTFITS = 4
_LAST_PID = 999  # three digits; training and test persons are numbered together
_MOST_IMAGES = 600
_PRCC_CAMERAS = {"A": 2, "B": 5, "C": 6}  # numbers of shop, hall and wall in `scene`
_TRACK = 3  # images of one walk past a camera
_TURN = (5**0.5 - 1) / 2  # of a full turn from one walk to the next, so that all directions differ

Wardrobes = dict[int, tuple[Labels, ...]]  # labels of each outfit, by person number


class Shot(NamedTuple):
    """One image: labels of the outfit, person, outfit (from 0), camera (1 to 6), and number of the walk past it."""

    labels: Labels
    pid: int
    outfit: int
    camera: int
    walk: int


def draw_clothes(
    output: str | Path,
    form: str,
    *,
    train_ids: int = 100,
    test_ids: int = 100,
    images_per_camera: int = 6,
    outfits: int | None = None,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """Create a synthetic dataset in `output`/prcc/rgb or `output`/LTCC_ReID.

    If the command was interrupted, a second call with the same settings draws the missing images. Images depend only on
    the settings, not on the number of workers.

    Args:
        output: folder of the datasets.
        form: "prcc": cameras A and B see the first outfit of each person, C the second one. "ltcc": two of three
            persons change clothes, and two to four of six cameras see each outfit.
        train_ids: number of training persons.
        test_ids: number of test persons.
        images_per_camera: images of each outfit under each camera that sees it; in the test set of LTCC, there is one
            query in addition.
        outfits: LTCC only: largest number of outfits of a person, 2 to 9; None for 4.
        seed: seed of the dataset.
        difficulty: 0 to 1, see `draw_dataset`; it does not affect faces.
        workers: number of processes; None for one per core.
        progress: show a progress bar on stderr.

    Returns:
        numbers of persons, outfits and images by name.

    Raises:
        ValueError: if a setting is out of range, or the folder was created with other settings.
    """
    if form not in ROOTS:
        raise ValueError(f"synthetic: form is '{form}', expected {' or '.join(ROOTS)}; change --form.")
    if form == "prcc" and outfits is not None:
        raise ValueError("synthetic: --form prcc does not support --outfits, its people have two; omit the option.")
    outfits = OUTFITS if outfits is None else outfits
    check_numbers(train_ids=(train_ids, 1, _LAST_PID - 1), test_ids=(test_ids, 1, _LAST_PID - train_ids),
                  images_per_camera=(images_per_camera, 1, _MOST_IMAGES), outfits=(outfits, 2, MOST_OUTFITS))
    check_common(seed, difficulty, workers)
    people = _sampled_people(form, train_ids, test_ids, outfits, seed)
    shots = _prcc(people, images_per_camera) if form == "prcc" else _ltcc(people, images_per_camera, seed)
    shots = dict(sorted(shots.items()))
    counts = _counts(form, people, shots)
    settings = {"version": VERSION, "form": form, "seed": seed, "difficulty": float(difficulty), **counts,
                "people_and_names": json_sha256(list(shots.items()))[:16]}
    files = _files(form, people)
    folders = sorted({name.rpartition("/")[0] for name in (*shots, *files)})
    fill(Path(output) / ROOTS[form], settings, folders, files, shots,
         partial(draw_shot, seed=seed, difficulty=float(difficulty)), workers=workers, progress=progress)
    return counts


def draw_shot(
    name: str, labels: Labels, pid: int, outfit: int, camera: int, walk: int, seed: int, difficulty: float
) -> np.ndarray:
    """Draw the image of one file name.

    Args:
        name: path of the image in the dataset; it seeds the view.
        labels: ints (A,), see `Shot`.
        pid: number of the person.
        outfit: number of the outfit, from 0.
        camera: 1 to 6.
        walk: number of the walk past the camera.
        seed: seed of the dataset.
        difficulty: 0 to 1.

    Returns:
        uint8 RGB (128, 64, 3).
    """
    seen_by, rng = make_camera(camera, seed, difficulty), generator(seed, name)
    strangers = passers(seed, difficulty, face=True)
    others = [strangers[i] for i in rng.choice(len(strangers), 2, replace=False)]
    start = generator(seed, "walks", pid, outfit, camera).random()
    where = generator(seed, "walk", pid, outfit, camera, walk).random()
    view = sample_view(seen_by, rng, turn=2 * pi * (start + walk * _TURN), where=where, others=others)
    return draw_person(known_person(labels, pid, seed, difficulty, outfit, face=True), seen_by, view, rng)


def table(form: str, counts: dict[str, int], output: str | Path) -> str:
    """Format the counts of a dataset for the terminal."""
    rows = [f"{Path(output) / ROOTS[form]}", f"{'split':<8}{'persons':>9}{'outfits':>9}{'images':>9}"]
    rows += [f"{split:<8}" + "".join(f"{counts[f'{split}_{what}']:>9,}" for what in ("ids", "outfits", "images"))
             for split in ("train", "test")]
    if form == "ltcc":
        rows.append(f"{counts['queries']:,} test images are queries; {counts['changing']:,} persons change clothes")
    return "\n".join(rows)


def _sampled_people(form: str, train_ids: int, test_ids: int, outfits: int, seed: int) -> dict[str, Wardrobes]:
    """Assign numbers from 1 to the two splits at random; in LTCC, every third person has one outfit only."""
    pids = (generator(seed, "pids", form).permutation(train_ids + test_ids) + 1).tolist()
    people = {}
    for split, mine in (("train", sorted(pids[:train_ids])), ("test", sorted(pids[train_ids:]))):
        rng = generator(seed, "outfits", form, split)
        several = [2 if form == "prcc" else int(number) for number in rng.integers(2, outfits + 1, len(mine))]
        counts = [1 if form == "ltcc" and i % 3 == 2 else count for i, count in enumerate(several)]
        people[split] = dict(zip(mine, sample_wardrobes(counts, seed, split)))
    return people


def _prcc(people: dict[str, Wardrobes], images: int) -> dict[str, Shot]:
    shots = {}
    for split, wardrobes in people.items():
        for pid, labels in wardrobes.items():
            for letter, camera in _PRCC_CAMERAS.items():
                outfit = int(letter == "C")
                for k in range(images):
                    name = f"{pid:03d}/{letter}_" if split == "train" else f"{letter}/{pid:03d}/"
                    shots[f"{split}/{name}cropped_rgb{k + 1:03d}.jpg"] = Shot(labels[outfit], pid, outfit, camera,
                                                                             k // _TRACK)
    return shots


def _ltcc(people: dict[str, Wardrobes], images: int, seed: int) -> dict[str, Shot]:
    """Two to four cameras see each outfit, so that every query has matches under another camera."""
    shots = {}
    for split, wardrobes in people.items():
        for pid, outfits in wardrobes.items():
            for outfit, labels in enumerate(outfits):
                rng = generator(seed, "cameras", pid, outfit)
                for camera in sorted((rng.permutation(NUM_CAMERAS)[: int(rng.integers(2, 5))] + 1).tolist()):
                    frame = int(rng.integers(1, 4000)) * 25
                    stem = f"{pid:03d}_{outfit + 1}_c{camera}"
                    for k in range(images):
                        shots[f"{split}/{stem}_{frame + 12 * k:06d}.png"] = Shot(labels, pid, outfit, camera,
                                                                                k // _TRACK)
                    if split == "test":  # a separate walk
                        shots[f"query/{stem}_{frame + 12 * images:06d}.png"] = Shot(labels, pid, outfit, camera,
                                                                                   -(-images // _TRACK))
    return shots


def _counts(form: str, people: dict[str, Wardrobes], shots: dict[str, Shot]) -> dict[str, int]:
    counts = {}
    for split, wardrobes in people.items():
        counts[f"{split}_ids"] = len(wardrobes)
        counts[f"{split}_outfits"] = sum(map(len, wardrobes.values()))
        counts[f"{split}_images"] = sum(shot.pid in wardrobes for shot in shots.values())
    if form == "ltcc":
        counts["queries"] = sum(name.startswith("query/") for name in shots)
        counts["changing"] = sum(len(outfits) > 1 for wardrobes in people.values() for outfits in wardrobes.values())
    return counts | {"images": len(shots)}


def _files(form: str, people: dict[str, Wardrobes]) -> dict:
    """Return writers of the outfits' labels and, for LTCC, of the lists of persons who change clothes or do not."""
    labels = {_key(form, split, pid, outfit): torch.tensor(row) for split, wardrobes in people.items()
              for pid, outfits in wardrobes.items() for outfit, row in enumerate(outfits)}
    files = {FILE_NAME: partial(write_outfits, schema=MARKET1501, labels=labels)}
    if form == "ltcc":
        for split, wardrobes in people.items():
            for kind, changes in (("change", True), ("unchange", False)):
                pids = [pid for pid, outfits in wardrobes.items() if (len(outfits) > 1) == changes]
                files[f"info/cloth-{kind}_id_{split}.txt"] = partial(_write_list, pids=pids)
    return files


def _key(form: str, split: str, pid: int, outfit: int) -> Outfit:
    return split, pid, ("A and B", "C")[outfit] if form == "prcc" else str(outfit + 1)


def _write_list(path: Path, pids: Iterable[int]) -> None:
    """Write one number per line."""
    path.write_text("".join(f"{pid}\n" for pid in pids))
