"""Reading images ahead with threads; the number of pixels in memory is limited."""

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
MOST_PIXELS = 2**27  # maximum number in memory, 3 bytes each, in addition to one image that each thread is reading


class Batch(NamedTuple):
    """A batch of image files.

    Attributes:
        pictures: readable files.
        images: their contents, in the same order.
        refused: unreadable files with the reason.
    """

    pictures: list[Picture]
    images: list[Image]
    refused: list[tuple[Picture, str]]

    def __len__(self) -> int:
        return len(self.pictures) + len(self.refused)


def read_ahead(folder: Path, pictures: Sequence[Picture], batch_size: int, workers: int,
               read: Callable[[Path], Image]) -> Iterator[Batch]:
    """Read images with threads, and yield batches in order.

    The caller must release the images of a batch before it requests the next one.

    Args:
        folder: of the images.
        pictures: files in the folder.
        batch_size: maximum number of files per batch; batches of very large images are smaller.
        workers: number of threads.
        read: opens an image.
    """
    budget, coming, rest = _PixelBudget(MOST_PIXELS), deque(), enumerate(pictures)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                batch, pixels = Batch([], [], []), 0
                while len(batch) < batch_size and pixels <= MOST_PIXELS // (AHEAD + 1):
                    for number, picture in islice(rest, AHEAD * batch_size - len(coming)):
                        coming.append(pool.submit(_attempt, budget, number, folder, picture, read))
                    if not coming:
                        break
                    pixels += _take(batch, *coming.popleft().result())
                if not len(batch):
                    return
                yield batch
                budget.release(pixels)
        finally:
            budget.open()
            for future in coming:
                future.cancel()


class _PixelBudget:
    """Limits the number of pixels in memory: an image may be read while there are fewer than `most`, in order.

    The order prevents a deadlock: later images cannot block the image that the consumer waits for.
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

    def release(self, pixels: int) -> None:
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def open(self) -> None:
        """Remove the limit, so that all waiting threads end."""
        with self._changed:
            self._most = self._next = float("inf")
            self._changed.notify_all()


def _attempt(budget: _PixelBudget, number: int, folder: Path, picture: Picture,
             read: Callable[[Path], Image]) -> tuple[Picture, Image | None, str]:
    """Read an image; returns None and the reason if it cannot be read."""
    budget.enter(number)
    try:
        image = read(folder / picture.path)
    except (OSError, ValueError, MemoryError) as error:
        passing = getattr(error, "passing", not isinstance(error, ValueError))
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Picture(picture.path, None, None) if passing else picture, None, reason
    budget.hold(_pixels(image))
    return picture, image, ""


def _take(batch: Batch, picture: Picture, image: Image | None, reason: str) -> int:
    """Add the result of `_attempt` to a batch; returns its number of pixels."""
    if image is None:
        batch.refused.append((picture, reason))
        return 0
    batch.pictures.append(picture)
    batch.images.append(image)
    return _pixels(image)


def _pixels(image: Image) -> int:
    return image.size[0] * image.size[1]
