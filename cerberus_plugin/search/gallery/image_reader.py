"""Pictures of a folder read ahead by threads, as many as a bound on their pixels lets in."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...utils.folders import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

AHEAD = 2  # batches that are read while one is embedded
MOST_PIXELS = 2**27  # of pictures in memory, 3 bytes each; beside them each thread holds the one it reads


class Batch(NamedTuple):
    """Readable pictures, what they show, and the others with the reason."""

    pictures: list[Picture]
    images: list[Image]
    refused: list[tuple[Picture, str]]

    def __len__(self) -> int:
        return len(self.pictures) + len(self.refused)


def read_ahead(folder: Path, pictures: Sequence[Picture], batch_size: int, workers: int,
               read: Callable[[Path], Image]) -> Iterator[Batch]:
    """Batches in the order of the pictures, of fewer than `batch_size` where pictures are very large.

    Whoever takes a batch lets go of its images before asking for the next one.
    """
    room, coming, rest = _Room(MOST_PIXELS), deque(), enumerate(pictures)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                batch, pixels = Batch([], [], []), 0
                while len(batch) < batch_size and pixels <= MOST_PIXELS // (AHEAD + 1):
                    for number, picture in islice(rest, AHEAD * batch_size - len(coming)):
                        coming.append(pool.submit(_attempt, room, number, folder, picture, read))
                    if not coming:
                        break
                    pixels += _take(batch, *coming.popleft().result())
                if not len(batch):
                    return
                yield batch
                room.leave(pixels)
        finally:
            room.open()
            for future in coming:
                future.cancel()


class _Room:
    """Pixels in memory: a picture is let in while there are fewer than `most`, and after those before it.

    That order keeps the picture which is waited for from being kept out by later ones.
    """

    def __init__(self, most: int) -> None:
        self._most, self._held, self._next, self._changed = most, 0, 0, threading.Condition()

    def enter(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._next >= number and self._held < self._most)
            self._next = number + 1
            self._changed.notify_all()

    def hold(self, pixels: int) -> None:
        with self._changed:
            self._held += pixels

    def leave(self, pixels: int) -> None:
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def open(self) -> None:
        """Let all in who wait, at the end."""
        with self._changed:
            self._most = self._next = float("inf")
            self._changed.notify_all()


def _attempt(room: _Room, number: int, folder: Path, picture: Picture,
             read: Callable[[Path], Image]) -> tuple[Picture, Image | None, str]:
    """A picture and what it shows, or none and the reason."""
    room.enter(number)
    try:
        image = read(folder / picture.path)
    except (OSError, ValueError, MemoryError) as error:
        passing = getattr(error, "passing", not isinstance(error, ValueError))
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Picture(picture.path, None, None) if passing else picture, None, reason
    room.hold(_pixels(image))
    return picture, image, ""


def _take(batch: Batch, picture: Picture, image: Image | None, reason: str) -> int:
    """Put what was read into a batch; the pixels that it adds."""
    if image is None:
        batch.refused.append((picture, reason))
        return 0
    batch.pictures.append(picture)
    batch.images.append(image)
    return _pixels(image)


def _pixels(image: Image) -> int:
    return image.size[0] * image.size[1]
