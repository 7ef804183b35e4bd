"""Search by Milvus: a path is a gallery kept beside this process (Milvus Lite), an address one on a cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .base import Space, check_metric, padded

SENT_BYTES = 16 * 2**20  # of rows in one message; a cluster takes 64 MiB
NAMED_IDS = 50_000  # ids in one expression
MOST_HITS = 16_384  # what Milvus returns of one query
MILVUS_METRICS = {"cosine": "IP", "euclidean": "L2"}


@dataclass(frozen=True)
class Milvus:
    """Search by Milvus, see `MilvusEngine`; the collection is named after the index."""

    address: str
    kind: str = "FLAT"
    token: str = field(default="", repr=False)
    timeout: float = 30.0

    def __call__(self, space: Space) -> MilvusEngine:
        return MilvusEngine(self.address, f"cerberus_{space.id}", space.dim, space.metric, self.kind, self.token,
                            self.timeout)


class MilvusEngine:
    """`Engine` on a collection of Milvus; the same calls for a path and for a cluster.

    Args:
        address: "gallery.db", a path in a folder that exists (one process at a time), or "http://host:19530".
        collection: its name; made where there is none.
        dim: E.
        metric: see `FaissEngine`.
        kind: an index type of Milvus. "FLAT" compares with all rows; a cluster of many machines will want "HNSW" or
            "DISKANN", whose recall is below one.
        token: "user:password" or an API key, where the cluster asks for one.
        timeout: seconds that an answer is waited for.
    """

    most_hits = MOST_HITS

    def __init__(self, address: str, collection: str, dim: int, metric: str = "cosine", kind: str = "FLAT",
                 token: str = "", timeout: float = 30.0) -> None:
        check_metric(metric)
        try:
            from pymilvus import MilvusClient
            from pymilvus.exceptions import MilvusException
        except ImportError as error:
            raise ImportError("Milvus: pymilvus is not installed; pip install pymilvus milvus-lite") from error
        if "://" not in address and not Path(address).absolute().parent.is_dir():
            raise FileNotFoundError(f"{Path(address).parent}: no such folder; Milvus keeps {Path(address).name} there")
        self.address, self.collection, self.dim, self.metric, self.kind = address, collection, dim, metric, kind
        self.exact = kind == "FLAT"
        reasons = _Reasons()
        lite = logging.getLogger("milvus_lite")
        lite.addHandler(reasons)
        try:
            self._client = MilvusClient(address, token=token, timeout=timeout)
        except MilvusException as error:
            raise self._unopened(reasons.last, error) from error
        finally:
            lite.removeHandler(reasons)
        with self._named():
            if not self._client.has_collection(collection):
                self._create()
            self._check_dim()
            self._client.load_collection(collection)

    def _unopened(self, reason: BaseException | None, error: Exception) -> OSError:
        if "://" in self.address:
            return ConnectionError(f"{self.address}: Milvus does not answer there ({error.message}); start it, or give "
                                   "the path of a file for a gallery on this machine")
        if type(reason).__name__ == "DataDirLockedError":
            return ConnectionError(f"{self.address}: locked by another process, and Milvus Lite serves one at a time; "
                                   "wait for that process to end, or give another file or a Milvus server")
        return ConnectionError(f"{self.address}: Milvus Lite cannot open it ({reason or error.message}); delete it, it "
                               "is filled again from the index, or give another file")

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of Milvus with its address and what to do."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            remedy = ("see that the server runs and try again" if "://" in self.address else
                      "if that happens again, delete the file, it is filled again from the index")
            raise ConnectionError(f"{self.address}: Milvus failed ({error.message}); {remedy}") from error

    def _create(self) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=self.dim)
        index = self._client.prepare_index_params()
        index.add_index("embedding", index_type=self.kind, metric_type=MILVUS_METRICS[self.metric])
        # Strong: what was added is found, and what was removed is not, from the next search on.
        self._client.create_collection(self.collection, schema=schema, index_params=index, consistency_level="Strong")

    def _check_dim(self) -> None:
        fields = {field["name"]: field for field in self._client.describe_collection(self.collection)["fields"]}
        dim = int(fields.get("embedding", {}).get("params", {}).get("dim", 0))
        if dim != self.dim:
            raise ValueError(f"{self.address}: its collection '{self.collection}' holds rows of {dim} values, expected "
                             f"{self.dim}; give another name, or drop that collection")

    def __len__(self) -> int:
        return len(self.ids())

    def close(self) -> None:
        self._client.close()

    def wants_training(self, count: int) -> int:
        return 0

    def train(self, rows: np.ndarray) -> None:
        """Milvus trains its indexes by itself."""

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        step = max(1, SENT_BYTES // (4 * self.dim))
        rows = np.asarray(rows, dtype=np.float32)
        for first in range(0, len(ids), step):
            with self._named():
                self._client.upsert(self.collection, [{"id": int(i), "embedding": row} for i, row in
                                                      zip(ids[first:first + step], rows[first:first + step])])

    def remove(self, ids: np.ndarray) -> None:
        for some in _chunks(ids):
            with self._named():
                self._client.delete(self.collection, ids=some)

    def ids(self) -> np.ndarray:
        found = []
        with self._named():
            pages = self._client.query_iterator(self.collection, batch_size=MOST_HITS, output_fields=["id"])
            while page := pages.next():
                found += [row["id"] for row in page]
            pages.close()
        return np.array(found, dtype=np.int64)

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        if k > self.most_hits:
            raise ValueError(f"Milvus: {k} hits of a query are asked for, it returns at most {self.most_hits}")
        queries = np.asarray(queries, dtype=np.float32)
        if among is None:
            return self._search(queries, k, "")
        scores, ids = padded(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), k)
        for some in _chunks(among):  # the best of each chunk hold the best of all
            more = self._search(queries, k, f"id in {some}")
            scores, ids = (np.concatenate(pair, axis=1) for pair in zip((scores, ids), more))
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
        return scores, ids

    def _search(self, queries: np.ndarray, k: int, expression: str) -> tuple[np.ndarray, np.ndarray]:
        with self._named():
            found = self._client.search(self.collection, data=list(queries), limit=k, filter=expression,
                                        output_fields=["id"], anns_field="embedding",
                                        search_params={"metric_type": MILVUS_METRICS[self.metric]})
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        for row, hits in enumerate(found):
            ids[row, :len(hits)] = [hit["id"] for hit in hits]
            values = np.array([hit["distance"] for hit in hits], dtype=np.float32)
            scores[row, :len(hits)] = values if self.metric == "cosine" else -values
        return scores, ids

    def save(self) -> None:
        with self._named():
            self._client.flush(self.collection)


class _Reasons(logging.Handler):
    """The last exception that Milvus Lite has logged: it is not part of the error that pymilvus raises."""

    last: BaseException | None = None

    def emit(self, entry: logging.LogRecord) -> None:
        if entry.exc_info:
            self.last = entry.exc_info[1]


def _chunks(ids: np.ndarray) -> list[Sequence[int]]:
    whole = np.asarray(ids, dtype=np.int64).tolist()
    return [whole[first:first + NAMED_IDS] for first in range(0, len(whole), NAMED_IDS)]
