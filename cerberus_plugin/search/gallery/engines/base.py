"""The interface of search engines, their synchronisation with an index, and their recall.

Shapes: N rows, Q queries, E values of a row, k results per query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ...portable.verification import METRICS


class Engine(Protocol):
    """Nearest-neighbour search by inner product or distance, over rows with ids. docs/extend/engine.md has an example.

    Attributes:
        exact: whether it returns the exact nearest neighbours.
        most_hits: maximum number of results per query.
    """

    exact: bool
    most_hits: int

    def wants_training(self, count: int) -> int:
        """Return the number of rows to train on for an engine with `count` rows; 0 if no training is needed."""

    def train(self, rows: np.ndarray) -> None:
        """Train the compression on rows, float32 (n, E); removes all rows of the engine."""

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Add rows, float32 (n, E), with new ids, int64 (n,)."""

    def remove(self, ids: np.ndarray) -> None:
        """Remove the rows with these ids, int64 (n,)."""

    def ids(self) -> np.ndarray:
        """Return the ids of all rows, int64 (N,), in any order, with duplicates if rows are stored twice."""

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest rows of each query.

        Args:
            queries: float32 (Q, E).
            k: number of results per query.
            among: int64 (n,), ids to search; all rows if None.

        Returns:
            scores: float32 (Q, k), higher is more similar: the inner product, or minus the squared distance.
            ids: int64 (Q, k); -1 with a score of minus infinity if there are fewer than k rows.
        """

    def save(self) -> None:
        """Save the rows for the next process, if the engine has a file."""


class Space(NamedTuple):
    """The properties of an index that an engine needs.

    Attributes:
        id: of the index.
        folder: of the index.
        dim: E.
        metric: "cosine" or "euclidean".
    """

    id: str
    folder: Path
    dim: int
    metric: str


MakeEngine = Callable[[Space], Engine]


class Rows(Protocol):
    """A source of rows, see `Store`."""

    ids: np.ndarray

    def pieces(self, ids: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...

    def embeddings(self, ids: np.ndarray) -> np.ndarray: ...


def synchronise(engine: Engine, rows: Rows, held: np.ndarray | None = None) -> bool:
    """Add missing rows to an engine, and remove deleted rows.

    Rows that are stored more than once are removed and added again: Milvus Lite has duplicates if the process was
    killed while it wrote to the file.

    Args:
        engine: to synchronise.
        rows: of the index.
        held: `engine.ids()` before `rows` were read, if other processes also add rows to the engine. They write rows to
            the index first, so these rows are contained in `rows` and are not removed.

    Returns:
        whether the engine has changed.
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
    """Measure the recall at k of an engine.

    Args:
        engine: to measure.
        exact: an exact engine with the same rows.
        queries: float32 (Q, E).
        k: number of nearest rows.
        own: int64 (Q,), ids of queries that are rows of the gallery; they are excluded from their own results.

    Returns:
        the share of the exact k nearest rows that are among the k nearest rows of the engine, as the mean over queries;
        NaN without queries or other rows.
    """
    own = np.full(len(queries), -1) if own is None else own
    shares = []
    for query, found, wanted in zip(own, engine.search(queries, k + 1)[1], exact.search(queries, k + 1)[1]):
        wanted = wanted[(wanted >= 0) & (wanted != query)][:k]
        if len(wanted):
            shares.append(np.isin(wanted, found[found != query][:k]).mean())
    return float(np.mean(shares)) if shares else math.nan


def padded(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad results to k columns with score minus infinity and id -1.

    Args:
        scores, ids: (Q, n) with n of at most k.
        k: number of columns.

    Returns:
        scores and ids, (Q, k).

    Examples:
        >>> padded(np.array([[0.5]]), np.array([[7]]), 2)
        (array([[ 0.5, -inf]]), array([[ 7, -1]]))
    """
    missing = ((0, 0), (0, k - ids.shape[1]))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(ids, missing, constant_values=-1)


def check_metric(metric: str) -> None:
    """Raise ValueError if the metric is not supported."""
    if metric not in METRICS:
        raise ValueError(f"search engine: the metric is '{metric}', expected one of {', '.join(METRICS)}")
