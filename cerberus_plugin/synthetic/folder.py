"""Create the folder of a synthetic dataset with several processes, and complete it after an interruption."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..utils.files import ENDING, write_whole
from .people import make_person, sample_people

SETTINGS = "synthetic.json"
DIFFICULTY = 0.6
VERSION = 1  # of the drawing code; a folder is completed only by the version that started it
_CHUNK = 64
_drawing = threading.Lock()
_ENCODING = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 90], ".png": []}


def fill(
    root: Path,
    settings: dict,
    folders: Iterable[str],
    files: Mapping[str, Callable[[Path], None]],
    jobs: Mapping[str, tuple],
    draw: Callable[..., np.ndarray],
    *,
    workers: int | None,
    progress: bool,
) -> None:
    """Draw the missing images of a dataset and write its other files.

    Args:
        root: folder of the dataset.
        settings: all settings that the images depend on; they are stored in the folder.
        folders: folders to create in `root`.
        files: paths of the other files in `root`, each with a function that writes it to a given path.
        jobs: paths of the images in `root`, .jpg or .png, each with further arguments of `draw`.
        draw: `draw(name, *job)` returns uint8 RGB (H, W, 3); processes must be able to import it.
        workers: number of processes; None for one per core.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: if the folder was created with other settings, or contains other files.
    """
    _claim(root, settings)
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, write in files.items():
        _write_missing(root / name, write)
    _draw_all(root, jobs, _unfinished(root, jobs), draw, workers or os.cpu_count() or 1, progress)


def check_numbers(**numbers) -> None:
    """Check that numbers are within their ranges.

    Args:
        numbers: (value, lowest, highest) by the name of the setting.

    Raises:
        ValueError: for the first number that is out of range, with the name of its option.
    """
    for name, (value, low, high) in numbers.items():
        if not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"synthetic: {name} is {value}, expected {low} to {high}; change {option}.")


def check_common(seed: int, difficulty: float, workers: int | None) -> None:
    """Check the settings that all forms have."""
    check_numbers(difficulty=(difficulty, 0, 1), seed=(seed, 0, 2**31), workers=(workers or 1, 1, 1024))


@lru_cache(maxsize=4)
def passers(seed: int, difficulty: float, face: bool = False) -> list:
    """Create 60 persons without identity, who appear in the background and in front of others."""
    people = sample_people(60, seed, "passers")
    return [make_person(labels, -2 - i, seed, difficulty, face=face) for i, labels in enumerate(people)]


# Cache of the most recent persons: the images of a person are drawn one after the other.
known_person = lru_cache(maxsize=4096)(make_person)


def _claim(root: Path, settings: dict) -> None:
    """Store the settings in a new folder, or check that an existing folder has the same settings."""
    path = root / SETTINGS
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:  # not JSON, or not an object
            raise ValueError(f"{path}: cannot be read ({error}), so it is unknown with which settings the images were "
                             "drawn. Delete the folder, or use another --output.") from error
        other = [f"{key} {found.get(key)} in the folder, {settings.get(key)} given" for key in {**settings, **found}
                 if found.get(key) != settings.get(key)]
        if other:
            raise ValueError(f"{path}: the folder was created with other settings ({'; '.join(other)}). "
                             "Use the same settings to complete it, choose another --output, or delete the folder.")
    elif root.exists() and any(not entry.name.startswith(SETTINGS) for entry in root.iterdir()):
        raise ValueError(f"{root}: contains files but no {SETTINGS}, so they were not drawn by this command. "
                         "Choose another --output: synthetic images are not added to other data.")
    _write_missing(path, lambda file: file.write_text(json.dumps(settings, indent=2) + "\n"))


def _write_missing(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically with a function that takes a path, unless the file exists."""
    if not path.exists():
        write_whole(path, lambda file: write(Path(file.name)))


def _unfinished(root: Path, names: Iterable[str]) -> list[str]:
    """Return the names of missing images, and remove incomplete files of an interrupted run."""
    for partial in root.rglob(f"*{ENDING}"):
        partial.unlink(missing_ok=True)
    names = list(names)
    folders = {os.path.dirname(name) for name in names}
    there = {f"{folder}/{entry}" for folder in folders for entry in os.listdir(root / folder)}
    return [name for name in names if name not in there]


def _draw_chunk(root: str, jobs: list[tuple], draw: Callable) -> int:
    for name, *job in jobs:
        image = cv2.cvtColor(draw(name, *job), cv2.COLOR_RGB2BGR)
        path = os.path.join(root, name)
        suffix = os.path.splitext(name)[1]
        pixels = cv2.imencode(suffix, image, _ENCODING[suffix])[1].tobytes()
        write_whole(path, lambda file, pixels=pixels: file.write(pixels), sync=False)  # sync is slow
    return len(jobs)


def _draw_all(root: Path, jobs: Mapping[str, tuple], names: list[str], draw: Callable, workers: int,
              progress: bool) -> None:
    chunks = [[(name, *jobs[name]) for name in names[i:i + _CHUNK]] for i in range(0, len(names), _CHUNK)]
    with _one_opencv_thread(), tqdm(total=len(jobs), initial=len(jobs) - len(names), unit=" images", desc="drawing",
                                    disable=not progress) as bar:
        if workers == 1 or len(chunks) < 2:
            for chunk in chunks:
                bar.update(_draw_chunk(str(root), chunk, draw))
            return
        with ProcessPoolExecutor(min(workers, len(chunks))) as pool:
            count = len(chunks)
            try:
                for done in pool.map(_draw_chunk, [str(root)] * count, chunks, [draw] * count):
                    bar.update(done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextlib.contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Limit OpenCV to one thread while processes are forked, and restore its number of threads afterwards.

    A forked process inherits the locks of OpenCV's threads, but not the threads, so it would wait forever. Only one
    thread at a time can enter this context.
    """
    with _drawing:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield
        finally:
            cv2.setNumThreads(threads)
