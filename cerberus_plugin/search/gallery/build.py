"""Filling an index: images are read by threads, embedded in batches, and stored in parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...utils.files import json_sha256
from ...utils.folders import Picture
from ...utils.text import counted
from .folder import Naming
from .image_reader import read_ahead
from .query import Shape, stored_rows
from .store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..portable.encoder import Encoder


@dataclass(frozen=True)
class Pace:
    """Batch size, number of threads, and size of the parts of an index.

    Attributes:
        batch_size: images per call of the encoder; fewer if they are very large.
        workers: threads that read images.
        part_rows, part_seconds: a part is written when it has this number of rows, or after this number of seconds. If
            the process is killed, at most this work is lost.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if a number is less than 1.
    """

    batch_size: int = 64
    workers: int = 4
    part_rows: int = 16_384
    part_seconds: float = 60.0
    progress: bool = True

    def __post_init__(self) -> None:
        if min(self.batch_size, self.workers, self.part_rows) < 1:
            raise ValueError(f"index: {self}: batch_size, workers and part_rows must be at least 1")


def picture_reader() -> Callable[[Path], Image]:
    """Return the function that reads images; it is imported late, since a search does not need it."""
    from ...utils.images import read_image

    return read_image


def mark_of(vocabulary) -> str:
    """Return a checksum of everything in a vocabulary that affects predictions, "" without a vocabulary.

    Thresholds of abstention and display names are not included: they are applied when predictions are shown.
    """
    if vocabulary is None:
        return ""
    record = {name: value for name, value in vocabulary.to_dict().items() if name not in ("withhold_below", "layout")}
    return json_sha256(record)


def fill(store: Store, folder: Path, pictures: Sequence[Picture], encoder: Encoder, naming: Naming,
         pace: Pace, read: Callable[[Path], Image]) -> int:
    """Embed images and add them to a store.

    After an exception, all images that were embedded are stored. If the process is killed, the unfinished part is lost.

    Args:
        store: of the index.
        folder: of the images.
        pictures: files in the folder to embed.
        encoder: computes the embeddings.
        naming: reads person, camera and time from file names.
        pace: batch size, threads and parts.
        read: opens an image.

    Returns:
        the number of unreadable images.

    Raises:
        ValueError: if the encoder returns embeddings of a wrong shape, or values that are not finite or too large.
    """
    from tqdm import tqdm

    shape, mark = Shape.of(encoder.groups, encoder.dim, encoder.metric, encoder.vocabulary), mark_of(encoder.vocabulary)
    unreadable, done = 0, _Part()
    bar = tqdm(total=len(pictures), desc="indexing", unit=" images", disable=not pace.progress)
    batches = read_ahead(folder, pictures, pace.batch_size, pace.workers, read)
    with bar, contextlib.closing(batches):
        try:
            for batch in batches:
                if batch.images:
                    done.take(batch.pictures, *_embedded(encoder, batch.images, batch.pictures, shape, store.dtype))
                batch.images.clear()  # frees memory for the next batch
                done.unreadable += batch.refused
                unreadable += len(batch.refused)
                bar.update(len(batch))
                if len(done.pictures) >= pace.part_rows or time.monotonic() - done.begun > pace.part_seconds:
                    full, done = done, _Part()
                    full.keep(store, naming, mark)
        finally:
            done.keep(store, naming, mark)
    return unreadable


class _Part:
    """Embedded images that are not yet stored."""

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
    """Return the rows to store, (n, E + V), and the predicted attributes of each image."""
    embeddings = np.asarray(encoder.encode(images), dtype=np.float32)
    if embeddings.shape != (len(images), shape.dim):
        raise ValueError(f"index: the encoder returned the shape {embeddings.shape} for "
                         f"{counted(len(images), 'image')}, expected ({len(images)}, {shape.dim})")
    broken = ~np.isfinite(embeddings).all(axis=1)
    if broken.any():
        raise ValueError(f"index: the embedding of {pictures[int(broken.argmax())].path} is not finite; the weights of "
                         "the model are damaged, use another checkpoint")
    answers = encoder.vocabulary.recognise(embeddings) if encoder.vocabulary is not None else []
    with np.errstate(over="ignore"):  # checked below
        rows = stored_rows(embeddings, shape, encoder.vocabulary).astype(dtype)
    large = ~np.isfinite(rows).all(axis=1)
    if large.any():
        raise ValueError(f"index: the embedding of {pictures[int(large.argmax())].path} has values too large for "
                         f"{dtype}; build a new index with --dtype float32 (dtype=\"float32\")")
    return rows, answers
