"""The interface of search engines, their synchronisation with an index, and their recall.

Shapes: N rows, Q queries, E values of an embedding, k hits of each query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ...portable.verification import METRICS


class Engine(Protocol):
    """Nearest-neighbour search by inner product or distance, over rows with ids. CONTRIBUTING.md has an example.

    Attributes:
        exact: whether it compares with the embeddings themselves, without loss of recall.
        most_hits: largest number of hits for one query.
    """

    exact: bool
    most_hits: int

    def wants_training(self, count: int) -> int:
        """Number of rows to train on before it holds `count` of them; 0 where no training is needed."""

    def train(self, rows: np.ndarray) -> None:
        """Train the compression on some rows, float32 (n, E); removes all rows that it holds."""

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Add rows, float32 (n, E), under new ids, int64 (n,)."""

    def remove(self, ids: np.ndarray) -> None:
        """Remove the rows of these ids."""

    def ids(self) -> np.ndarray:
        """The ids of all rows, int64 (N,), in any order, with duplicates where it holds a row twice."""

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest k rows of queries, float32 (Q, E), or of those among these ids, int64.

        Returns:
            scores: float32 (Q, k), higher is nearer: the inner product, or minus the squared distance.
            ids: int64 (Q, k), -1 with a score of minus infinity where there are fewer than k rows.
        """

    def save(self) -> None:
        """Write its state for the next process, where it has a file."""


class Space(NamedTuple):
    """What an engine has to know of an index: its id, its folder, E, and the metric, "cosine" or "euclidean"."""

    id: str
    folder: Path
    dim: int
    metric: str


MakeEngine = Callable[[Space], Engine]


class Rows(Protocol):
    """The source of rows, see `Store`."""

    ids: np.ndarray

    def pieces(self, ids: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...

    def embeddings(self, ids: np.ndarray) -> np.ndarray: ...


def synchronise(engine: Engine, rows: Rows, held: np.ndarray | None = None) -> bool:
    """Add missing rows to an engine and remove deleted ones; returns whether there were any.

    Rows that it holds more than once are removed and added again: Milvus Lite reads rows twice that were being written
    to its file when their process was killed.

    Args:
        held: `engine.ids()` from before `rows` were read, where other processes fill the engine as well: their rows
            were written to the index before, so they are among `rows` and are not removed.
    """
    held = engine.ids() if held is None else held
    wanted = engine.wants_training(len(rows.ids))
    if wanted:
        spread = np.random.default_rng(0).permutation(len(rows.ids))[:wanted]
        engine.train(rows.embeddings(rows.ids[np.sort(spread)]))
        held = held[:0]
    held, counts = np.unique(held, return_counts=True)
    single, doubled = held[counts == 1], held[counts > 1]
    gone, missing = np.union1d(np.setdiff1d(held, rows.ids), doubled), np.setdiff1d(rows.ids, single)
    if len(gone):
        engine.remove(gone)
    for ids, piece in rows.pieces(missing if len(held) else None):
        engine.add(ids, piece)
    changed = len(gone) + len(missing) > 0
    if changed:
        engine.save()
    return changed


def recall(engine: Engine, exact: Engine, queries: np.ndarray, k: int = 10, own: np.ndarray | None = None) -> float:
    """Recall at k: the share of the exact k nearest rows of queries, float32 (Q, E), among the engine's k nearest.

    NaN without queries or other rows.

    Args:
        own: int64 (Q,), the row of each query where it is in the gallery itself; it is left out, as every engine finds
            it.
    """
    own = np.full(len(queries), -1) if own is None else own
    shares = []
    for query, found, wanted in zip(own, engine.search(queries, k + 1)[1], exact.search(queries, k + 1)[1]):
        wanted = wanted[(wanted >= 0) & (wanted != query)][:k]
        if len(wanted):
            shares.append(np.isin(wanted, found[found != query][:k]).mean())
    return float(np.mean(shares)) if shares else math.nan


def padded(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad hits to k columns with id -1 and score minus infinity."""
    missing = ((0, 0), (0, k - ids.shape[1]))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(ids, missing, constant_values=-1)


def check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"search engine: the metric is '{metric}', expected one of {', '.join(METRICS)}")
