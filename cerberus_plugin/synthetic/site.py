"""Synthetic workers of a building site in the format of own data: a folder of crops for each person, and two tables.

    python -m cerberus_plugin.synthetic --output DIR --form site

`people.csv` contains the helmet, vest and tool of each worker as text. `metadata.csv` contains the camera and the time
of each crop. The file names contain them too, so the folder can be read without this file (`NAME_PATTERN`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import pi
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..utils.files import json_sha256
from .folder import DIFFICULTY, VERSION, check_common, check_numbers, fill, known_person, passers
from .people import ACCENTS, COLOURS, UNLISTED, Person, generator, sample_words, to_labels
from .scene import NUM_CAMERAS, draw_person, make_camera, sample_view

FOLDER = "site"
PEOPLE = 160
IMAGES = 8
NAME_PATTERN = r"(?P<person>w\d+)/(?P<camera>[a-z]+)_(?P<time>\d{4})"
NONE = "none"
ATTRIBUTES = {"helmet": (NONE, "white", "yellow", "red", "blue"), "vest": (NONE, "orange", "yellow", "green"),
              "tool": (NONE, "toolbox", "satchel", "backpack")}
_MOST_PEOPLE, _MOST_IMAGES = 9999, 100
_CAMERAS = ("gate", "shop", "yard", "road", "hall", "wall")  # in the order of the places in `scene`
_LOADS = {NONE: "", "toolbox": "handbag", "satchel": "bag", "backpack": "backpack"}
_VESTS = {"orange": UNLISTED[0], "yellow": COLOURS["yellow"], "green": COLOURS["green"]}
_HELMETS = {"white": 0, "red": 2, "blue": 3, "yellow": 5}  # indices in ACCENTS
_SHIRTS = ("black", "white", "gray", "brown")  # not the colour of any vest
_TRACK = 2  # images of one walk past a camera


class Shot(NamedTuple):
    """One crop: person, values of `ATTRIBUTES`, camera (1 to 6), and number of the walk past it."""

    person: int
    worn: tuple[str, ...]
    camera: int
    walk: int


def draw_site(
    output: str | Path,
    *,
    people: int = PEOPLE,
    images_per_id: int = IMAGES,
    seed: int = 0,
    difficulty: float = DIFFICULTY,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, int]:
    """Create a synthetic dataset in `output`/site.

    If the command was interrupted, a second call with the same settings draws the missing images. Images depend only on
    the settings, not on the number of workers. The dataset has no split: the plugin draws one when it reads the folder.

    Args:
        output: folder of the datasets.
        people: number of workers.
        images_per_id: crops of each worker, by two to four of six cameras.
        seed: seed of the dataset.
        difficulty: 0 to 1, see `draw_dataset`.
        workers: number of processes; None for one per core.
        progress: show a progress bar on stderr.

    Returns:
        numbers of people, cameras and images by name.

    Raises:
        ValueError: if a setting is out of range, or the folder was created with other settings.
    """
    check_numbers(people=(people, 1, _MOST_PEOPLE), images_per_id=(images_per_id, 1, _MOST_IMAGES))
    check_common(seed, difficulty, workers)
    worn = sample_worn(people, seed)
    shots = dict(_shots(worn, images_per_id, seed))
    counts = {"people": people, "cameras": len({shot.camera for shot in shots.values()}), "images": len(shots)}
    settings = {"version": VERSION, "form": "site", "seed": seed, "difficulty": float(difficulty), **counts,
                "people_and_names": json_sha256(list(shots.items()))[:16]}
    persons = [("person", *ATTRIBUTES), *((_name(number), *words) for number, words in enumerate(worn, start=1))]
    crops = [("file_name", "person", "camera", "time"), *(_line(name) for name in shots)]
    fill(Path(output) / FOLDER, settings, sorted({name.partition("/")[0] for name in shots}),
         {"people.csv": partial(_write_table, lines=persons), "metadata.csv": partial(_write_table, lines=crops)},
         shots, partial(draw_shot, seed=seed, difficulty=float(difficulty)), workers=workers, progress=progress)
    return counts


def sample_worn(people: int, seed: int) -> list[tuple[str, ...]]:
    """Sample the values of `ATTRIBUTES` for a number of workers, all with equal probability."""
    numbers = generator(seed, "site", "worn").random((people, len(ATTRIBUTES)))
    return [tuple(words[int(number * len(words))] for words, number in zip(ATTRIBUTES.values(), row))
            for row in numbers]


def draw_shot(
    name: str, person: int, worn: tuple[str, ...], camera: int, walk: int, seed: int, difficulty: float
) -> np.ndarray:
    """Draw the crop of one file name.

    Args:
        name: path of the crop in the dataset; it seeds the view.
        person: number of the worker.
        worn: values of `ATTRIBUTES`.
        camera: 1 to 6.
        walk: number of the walk past the camera.
        seed: seed of the dataset.
        difficulty: 0 to 1.

    Returns:
        uint8 RGB (128, 64, 3).
    """
    seen_by, rng = make_camera(camera, seed, difficulty), generator(seed, name)
    strangers = passers(seed, difficulty)
    others = [strangers[i] for i in rng.choice(len(strangers), 2, replace=False)]
    track = generator(seed, "site", "walk", person, camera, walk)
    view = sample_view(seen_by, rng, turn=2 * pi * track.random(), where=track.random(), others=others)
    return draw_person(_worker(person, worn, seed, difficulty), seen_by, view, rng)


@lru_cache(maxsize=4096)
def _worker(person: int, worn: tuple[str, ...], seed: int, difficulty: float) -> Person:
    """Create the looks of a worker: the helmet is drawn as a hat, the vest as an upper garment, the tool as a bag."""
    helmet, vest, tool = worn
    rng = generator(seed, "site", "person", person)
    shirt = _SHIRTS[int(rng.integers(len(_SHIRTS)))]
    force = {"age": int(rng.integers(1, 3)), "clothes": 1, "hat": int(helmet != NONE), "load": _LOADS[tool],
             "upper colour": shirt}
    looks = known_person(to_labels(sample_words(rng, "site", force)), person, seed, difficulty)
    details = dict(looks.details)
    if helmet != NONE:
        details |= {"hat": 0.0, "hat_colour": (_HELMETS[helmet] + 0.5) / len(ACCENTS)}  # a cap with a peak
    if vest == NONE:
        return replace(looks, details=details)
    # A plain garment with a white band around the chest.
    details |= {"print": 2.5 / 8.4 * looks.spread, "print_colour": 0.0, "print_place": 0.5, "back_print": 0.99}
    return replace(looks, details=details, upper=_VESTS[vest], upper_second=_VESTS[vest])


def _shots(worn: Sequence[tuple[str, ...]], images: int, seed: int) -> Iterable[tuple[str, Shot]]:
    """Yield names in the dataset, such as w0007/gate_0731_2.jpg, and crops, person by person."""
    for person, words in enumerate(worn, start=1):
        rng = generator(seed, "site", "cameras", person)
        cameras = (rng.permutation(NUM_CAMERAS)[: int(rng.integers(2, 5))] + 1).tolist()
        minutes = rng.permutation(10 * 60) + 7 * 60  # of a working day, a different one for each walk past a camera
        for k in range(images):
            camera, walk = cameras[k % len(cameras)], k // (len(cameras) * _TRACK)
            minute = int(minutes[walk * NUM_CAMERAS + camera - 1])
            time = f"{minute // 60:02d}{minute % 60:02d}"
            yield (f"{_name(person)}/{_CAMERAS[camera - 1]}_{time}_{k // len(cameras) % _TRACK + 1}.jpg",
                   Shot(person, words, camera, walk))


def _name(person: int) -> str:
    return f"w{person:04d}"


def _line(name: str) -> tuple[str, ...]:
    """Return the line of a crop in metadata.csv: its name, person, camera and time."""
    person, file = name.split("/")
    camera, time, _ = file.split("_")
    return name, person, camera, f"{time[:2]}:{time[2:]}"


def _write_table(path: Path, lines: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def table(counts: dict[str, int], output: str | Path) -> str:
    """Format the counts of a dataset for the terminal."""
    return (f"{Path(output) / FOLDER}: {counts['images']:,} crops of {counts['people']:,} people under "
            f"{counts['cameras']} cameras\npeople.csv: {', '.join(ATTRIBUTES)}; metadata.csv: cameras and times")
