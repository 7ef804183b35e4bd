"""Pictures into a store: read ahead by threads, embedded in batches, kept in parts as they come."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from .querying import Shape, unit_blocks
from .store import Store
from .walking import Naming, Picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..portable.encoder import Encoder

AHEAD = 2  # batches that are read while one is embedded


@dataclass(frozen=True)
class Pace:
    """How pictures are taken.

    Attributes:
        batch_size: pictures of one call of the encoder.
        workers: threads that read pictures.
        part_rows, part_seconds: a part is written when it has so many rows, or is so old; a kill costs that much.
        progress: whether a bar shows how many are done and the time left.
    """

    batch_size: int = 64
    workers: int = 4
    part_rows: int = 16_384
    part_seconds: float = 60.0
    progress: bool = True

    def __post_init__(self) -> None:
        if min(self.batch_size, self.workers, self.part_rows) < 1:
            raise ValueError(f"index: {self}: batch size, workers and rows of a part must be at least 1")


def picture_reader() -> Callable[[Path], Image]:
    from ..portable.images import read_image

    return read_image


def mark_of(vocabulary) -> str:
    """A mark that tells vocabularies apart that answer differently, "" for none; what is withheld is kept all the same.
    """
    if vocabulary is None:
        return ""
    record = {name: value for name, value in vocabulary.to_dict().items() if name != "withhold_below"}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def fill(store: Store, folder: Path, pictures: Sequence[Picture], encoder: Encoder, naming: Naming,
         pace: Pace, read: Callable[[Path], Image]) -> int:
    """Embed pictures of a folder and keep them; the number of unreadable ones.

    What was embedded is kept whatever ends this, but for a kill, which costs the part in making.
    """
    shape, mark = Shape.of(encoder), mark_of(encoder.vocabulary)
    unreadable, done = 0, _Part()
    bar = tqdm(total=len(pictures), desc="indexing", unit=" pictures", disable=not pace.progress)
    with bar, contextlib.closing(_batches(folder, pictures, pace, read)) as batches:
        try:
            for readable, images, refused in batches:
                if images:
                    done.take(readable, *_embedded(encoder, images, readable, shape, store.dtype))
                done.unreadable += refused
                unreadable += len(refused)
                bar.update(len(readable) + len(refused))
                if len(done.pictures) >= pace.part_rows or time.monotonic() - done.begun > pace.part_seconds:
                    full, done = done, _Part()
                    full.keep(store, naming, mark)
        finally:
            done.keep(store, naming, mark)
    return unreadable


class _Part:
    """What is embedded and not yet kept."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.pictures: list[Picture] = []
        self.embeddings: list[np.ndarray] = []
        self.answers: list[dict] = []
        self.unreadable: list[tuple[Picture, str]] = []

    def take(self, pictures: list[Picture], embeddings: np.ndarray, answers: list[dict]) -> None:
        self.pictures += pictures
        self.embeddings.append(embeddings)
        self.answers += answers

    def keep(self, store: Store, naming: Naming, mark: str) -> None:
        if self.pictures or self.unreadable:
            embeddings = np.concatenate(self.embeddings) if self.embeddings else np.empty((0, store.dim), store.dtype)
            store.append(self.pictures, naming, embeddings, self.answers, self.unreadable, mark)


def _embedded(encoder: Encoder, images: list[Image], pictures: list[Picture], shape: Shape,
              dtype: np.dtype) -> tuple[np.ndarray, list[dict]]:
    """Rows as they are stored, (n, E), and the answers of each."""
    embeddings = np.asarray(encoder.encode(images), dtype=np.float32)
    if embeddings.shape != (len(images), shape.dim):
        raise ValueError(f"index: the encoder gave {embeddings.shape} for {len(images)} pictures, expected "
                         f"({len(images)}, {shape.dim})")
    broken = ~np.isfinite(embeddings).all(axis=1)
    if broken.any():
        raise ValueError(f"index: the embedding of {pictures[int(broken.argmax())].path} is not finite; the model is "
                         "broken, check its weights")
    answers = encoder.vocabulary.recognise(embeddings) if encoder.vocabulary is not None else []
    with np.errstate(over="ignore"):  # it is looked for below
        rows = unit_blocks(embeddings, shape).astype(dtype)
    large = ~np.isfinite(rows).all(axis=1)
    if large.any():
        raise ValueError(f"index: the embedding of {pictures[int(large.argmax())].path} has values too large for "
                         f"{dtype}; build another index with --dtype float32 (dtype=\"float32\")")
    return rows, answers


def _batches(folder: Path, pictures: Sequence[Picture], pace: Pace,
             read: Callable[[Path], Image]) -> Iterator[tuple[list[Picture], list[Image], list[tuple[Picture, str]]]]:
    """Batch by batch the readable pictures, what they show, and the others with the reason."""
    starts = deque(range(0, len(pictures), pace.batch_size))
    with ThreadPoolExecutor(pace.workers) as pool:
        coming: deque = deque()
        try:
            while starts or coming:
                while starts and len(coming) <= AHEAD:
                    first = starts.popleft()
                    batch = pictures[first:first + pace.batch_size]
                    coming.append([pool.submit(_attempt, read, folder, each) for each in batch])
                results = [future.result() for future in coming.popleft()]
                yield ([picture for picture, image, _ in results if image is not None],
                       [image for _, image, _ in results if image is not None],
                       [(picture, reason) for picture, image, reason in results if image is None])
        finally:
            for futures in coming:
                for future in futures:
                    future.cancel()


def _attempt(read: Callable[[Path], Image], folder: Path, picture: Picture) -> tuple[Picture, Image | None, str]:
    """A picture and what it shows, or none and the reason."""
    try:
        return picture, read(folder / picture.path), ""
    except (OSError, ValueError, MemoryError) as error:
        passing = getattr(error, "passing", not isinstance(error, ValueError))
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Picture(picture.path, None, None) if passing else picture, None, reason
