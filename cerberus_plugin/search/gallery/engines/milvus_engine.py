"""Search with Milvus: in a local file (Milvus Lite), or on a server or cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .base import Space, check_metric, padded

SENT_BYTES = 16 * 2**20  # of rows per message; a cluster accepts 64 MiB
NAMED_IDS = 50_000  # ids per filter expression
MOST_HITS = 16_384  # maximum number of results per query of Milvus
MILVUS_METRICS = {"cosine": "IP", "euclidean": "L2"}


@dataclass(frozen=True)
class Milvus:
    """Configuration of `MilvusEngine` for an index; the collection is named after the id of the index.

    Attributes:
        address, kind, token, timeout: see `MilvusEngine`.
    """

    address: str
    kind: str = "FLAT"
    token: str = field(default="", repr=False)
    timeout: float = 30.0

    def __call__(self, space: Space) -> MilvusEngine:
        return MilvusEngine(self.address, f"cerberus_{space.id}", space.dim, space.metric, self.kind, self.token,
                            self.timeout)


class MilvusEngine:
    """`Engine` with a Milvus collection.

    Args:
        address: path of a file, such as "gallery.db", in an existing folder (one process at a time); or address of a
            server, such as "http://host:19530".
        collection: name of the collection; created if it does not exist.
        dim: E.
        metric: see `FaissEngine`.
        kind: index type of Milvus. "FLAT" is exact; "HNSW" and "DISKANN" are faster on large clusters, with a recall
            below 1.
        token: "user:password" or an API key, if the server requires one.
        timeout: in seconds.

    Raises:
        ImportError: if pymilvus is not installed.
        FileNotFoundError: if the folder of the file does not exist.
        ConnectionError: if the server does not respond, or the file is locked or damaged.
        ValueError: if the metric is not supported, or the collection has another dimension.
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
            raise FileNotFoundError(f"{Path(address).parent}: no such folder; create it for {Path(address).name}")
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
            return ConnectionError(f"{self.address}: Milvus does not respond ({error.message}); start it, or give the "
                                   "path of a file for Milvus Lite")
        if type(reason).__name__ == "DataDirLockedError":
            return ConnectionError(f"{self.address}: locked by another process; Milvus Lite supports one process at a "
                                   "time. Wait until that process ends, or give another file or a Milvus server")
        return ConnectionError(f"{self.address}: Milvus Lite cannot open it ({reason or error.message}); delete the "
                               "file, it is rebuilt from the index, or give another file")

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Raise Milvus errors again with the address and what to do."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            remedy = ("check that the server is running, then try again" if "://" in self.address else
                      "if this happens again, delete the file, it is rebuilt from the index")
            raise ConnectionError(f"{self.address}: Milvus failed ({error.message}); {remedy}") from error

    def _create(self) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=self.dim)
        index = self._client.prepare_index_params()
        index.add_index("embedding", index_type=self.kind, metric_type=MILVUS_METRICS[self.metric])
        # "Strong" consistency: changes are visible in the next search.
        self._client.create_collection(self.collection, schema=schema, index_params=index, consistency_level="Strong")

    def _check_dim(self) -> None:
        fields = {field["name"]: field for field in self._client.describe_collection(self.collection)["fields"]}
        dim = int(fields.get("embedding", {}).get("params", {}).get("dim", 0))
        if dim != self.dim:
            raise ValueError(f"{self.address}: its collection '{self.collection}' has rows of {dim} values, expected "
                             f"{self.dim}; give another name, or drop the collection")

    def __len__(self) -> int:
        return len(self.ids())

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def wants_training(self, count: int) -> int:
        """See `Engine`; always 0."""
        return 0

    def train(self, rows: np.ndarray) -> None:
        """See `Engine`; does nothing, since Milvus trains its indexes itself."""

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """See `Engine`."""
        step = max(1, SENT_BYTES // (4 * self.dim))
        rows = np.asarray(rows, dtype=np.float32)
        for first in range(0, len(ids), step):
            with self._named():
                self._client.upsert(self.collection, [{"id": int(i), "embedding": row} for i, row in
                                                      zip(ids[first:first + step], rows[first:first + step])])

    def remove(self, ids: np.ndarray) -> None:
        """See `Engine`."""
        for some in _chunks(ids):
            with self._named():
                self._client.delete(self.collection, ids=some)

    def ids(self) -> np.ndarray:
        """See `Engine`."""
        found = []
        with self._named():
            pages = self._client.query_iterator(self.collection, batch_size=MOST_HITS, output_fields=["id"])
            while page := pages.next():
                found += [row["id"] for row in page]
            pages.close()
        return np.array(found, dtype=np.int64)

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine`.

        Raises:
            ValueError: if `k` exceeds `most_hits`.
        """
        if k > self.most_hits:
            raise ValueError(f"Milvus: {k} results per query were requested, the maximum is {self.most_hits}")
        queries = np.asarray(queries, dtype=np.float32)
        if among is None:
            return self._search(queries, k, "")
        scores, ids = padded(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), k)
        for some in _chunks(among):  # the overall best are among the best of the chunks
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
        """See `Engine`."""
        with self._named():
            self._client.flush(self.collection)


class _Reasons(logging.Handler):
    """Stores the last exception logged by Milvus Lite, since the error raised by pymilvus does not contain it."""

    last: BaseException | None = None

    def emit(self, entry: logging.LogRecord) -> None:
        if entry.exc_info:
            self.last = entry.exc_info[1]


def _chunks(ids: np.ndarray) -> list[Sequence[int]]:
    whole = np.asarray(ids, dtype=np.int64).tolist()
    return [whole[first:first + NAMED_IDS] for first in range(0, len(whole), NAMED_IDS)]
