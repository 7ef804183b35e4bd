"""Pictures into a store: read ahead by threads, embedded in batches, kept in parts as they come."""

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
from .folder import Naming
from .image_reader import read_ahead
from .query import Shape, stored_rows
from .store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..portable.encoder import Encoder


@dataclass(frozen=True)
class Pace:
    """How pictures are taken.

    Attributes:
        batch_size: pictures of one call of the encoder; fewer where they are very large.
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
    from ...utils.images import read_image

    return read_image


def mark_of(vocabulary) -> str:
    """A mark of what a vocabulary answers, "" for none.

    When it abstains is decided when answers are shown; names of attributes for people change no answer.
    """
    if vocabulary is None:
        return ""
    record = {name: value for name, value in vocabulary.to_dict().items() if name not in ("withhold_below", "layout")}
    return json_sha256(record)


def fill(store: Store, folder: Path, pictures: Sequence[Picture], encoder: Encoder, naming: Naming,
         pace: Pace, read: Callable[[Path], Image]) -> int:
    """Embed pictures of a folder and keep them; the number of unreadable ones.

    What was embedded is kept whatever ends this, but for a kill, which costs the part in making.
    """
    from tqdm import tqdm

    shape, mark = Shape.of(encoder.groups, encoder.dim, encoder.metric, encoder.vocabulary), mark_of(encoder.vocabulary)
    unreadable, done = 0, _Part()
    bar = tqdm(total=len(pictures), desc="indexing", unit=" pictures", disable=not pace.progress)
    batches = read_ahead(folder, pictures, pace.batch_size, pace.workers, read)
    with bar, contextlib.closing(batches):
        try:
            for batch in batches:
                if batch.images:
                    done.take(batch.pictures, *_embedded(encoder, batch.images, batch.pictures, shape, store.dtype))
                batch.images.clear()  # makes room for the next
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
        rows = stored_rows(embeddings, shape, encoder.vocabulary).astype(dtype)
    large = ~np.isfinite(rows).all(axis=1)
    if large.any():
        raise ValueError(f"index: the embedding of {pictures[int(large.argmax())].path} has values too large for "
                         f"{dtype}; build another index with --dtype float32 (dtype=\"float32\")")
    return rows, answers
