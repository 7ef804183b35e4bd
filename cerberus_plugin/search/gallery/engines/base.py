"""What a search engine is, and what goes for any: bringing it up to date with an index, and its recall.

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
    """The nearest rows of a query, by inner product or by distance; rows are known by their ids.

    Attributes:
        exact: whether it compares with the embeddings themselves, so that it finds what comparing all would find.
        most_hits: that it returns of one query.
    """

    exact: bool
    most_hits: int

    def wants_training(self, count: int) -> int:
        """Rows it wants to learn from before it holds `count` of them; 0 where it needs none, or has had enough."""

    def train(self, rows: np.ndarray) -> None:
        """Learn how to compress from some rows, float32 (n, E); those that it holds are forgotten."""

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Take rows, float32 (n, E), under new ids, int64 (n,)."""

    def remove(self, ids: np.ndarray) -> None:
        """Forget the rows of these ids."""

    def ids(self) -> np.ndarray:
        """The ids it holds, int64 (N,), in any order; one that it holds twice comes twice."""

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The nearest k rows of queries, float32 (Q, E), or of those among these ids, int64.

        Returns:
            scores: float32 (Q, k), higher is nearer: the inner product, or minus the squared distance.
            ids: int64 (Q, k), -1 with a score of minus infinity where there are fewer than k rows.
        """

    def save(self) -> None:
        """Keep what it holds for the next process, where it has a place for it."""


class Space(NamedTuple):
    """What an engine has to know of an index: its id, its folder, E, and the metric, "cosine" or "euclidean"."""

    id: str
    folder: Path
    dim: int
    metric: str


MakeEngine = Callable[[Space], Engine]


class Rows(Protocol):
    """Where the embeddings lie, `Store`."""

    ids: np.ndarray

    def pieces(self, ids: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...

    def embeddings(self, ids: np.ndarray) -> np.ndarray: ...


def synchronise(engine: Engine, rows: Rows, held: np.ndarray | None = None) -> bool:
    """Give an engine the rows that it lacks and take those that are gone; whether there were any.

    Rows that it holds more than once are taken and given again: Milvus Lite reads rows twice that were being written to
    its file when their process was killed.

    Args:
        held: `engine.ids()` from before `rows` were looked at, where others fill the engine as well: whatever they have
            given it was written before, so that it is among `rows` and is not taken for gone.
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
    """Share of the nearest k rows of queries, float32 (Q, E), that an engine finds among its own nearest k.

    NaN where there is nothing to find: no queries, or no other rows.

    Args:
        own: int64 (Q,), the row of each query where it is one itself; that does not count, since any engine finds it.
    """
    own = np.full(len(queries), -1) if own is None else own
    shares = []
    for query, found, wanted in zip(own, engine.search(queries, k + 1)[1], exact.search(queries, k + 1)[1]):
        wanted = wanted[(wanted >= 0) & (wanted != query)][:k]
        if len(wanted):
            shares.append(np.isin(wanted, found[found != query][:k]).mean())
    return float(np.mean(shares)) if shares else math.nan


def padded(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill hits up to k columns with rows that are none."""
    missing = ((0, 0), (0, k - ids.shape[1]))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(ids, missing, constant_values=-1)


def check_metric(metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"search engine: the metric is '{metric}', expected one of {', '.join(METRICS)}")
