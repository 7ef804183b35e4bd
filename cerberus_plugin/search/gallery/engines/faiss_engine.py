"""Search in the memory of this process with FAISS, exactly or compressed.

Bytes a row of E values: exact 4 E, float16 2 E, int8 E, pq E / 8 (and 8 for its id).
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ....utils.files import write_whole
from .base import Space, check_metric, padded

FORMS = ("exact", "float16", "int8", "pq")
PQ_VALUES, PQ_CODES = 8, 256  # values that one byte stands for, and the codes it chooses from
TRAINING_ROWS = {"int8": 10_000, "pq": 10_000}  # FAISS asks for 39 rows a code
CHECKSUM_BYTES, CHUNK_BYTES = 4, 2**20
GROWN = 4  # times the rows that a form has learnt from: then it learns anew, where these were few

logger = logging.getLogger("cerberus.gallery")


@dataclass(frozen=True)
class Faiss:
    """Search in memory by one of `FORMS`; compressed forms are kept in the folder of the index."""

    form: str = "exact"

    def __call__(self, space: Space) -> FaissEngine:
        path = None if self.form == "exact" else space.folder / "engines" / f"{self.form}-{space.id}.faiss"
        return FaissEngine(space.dim, self.form, space.metric, path)


class FaissEngine:
    """`Engine` on a FAISS index, over all rows.

    Args:
        dim: E.
        form: one of `FORMS`; all but "exact" lose some recall, float16 hardly any.
        metric: "cosine" of rows whose blocks have unit length, as the inner product; or "euclidean".
        path: file that a compressed form is kept in: the number of rows that it has learnt from, the index, and a
            checksum. A file that is damaged or has other rows is made anew; where none can be written, the form is
            built in memory each time. Nothing is kept if None.
    """

    most_hits = sys.maxsize

    def __init__(self, dim: int, form: str = "exact", metric: str = "cosine", path: str | Path | None = None) -> None:
        check_metric(metric)
        if form not in FORMS:
            raise ValueError(f"FAISS: the form is '{form}', expected one of {', '.join(FORMS)}")
        if form == "pq" and dim % PQ_VALUES:
            raise ValueError(f"FAISS: embeddings of {dim} values cannot be cut into pieces of {PQ_VALUES} for the form "
                             "'pq'; take int8")
        self.dim, self.form, self.metric = dim, form, metric
        self.path = Path(path) if path is not None else None
        self.exact = form == "exact"
        self._index, self._learnt_from = self._empty(), 0
        if self.path is not None and self.path.is_file():
            self._index, self._learnt_from = self._read() or (self._index, self._learnt_from)

    def _empty(self):
        import faiss

        metric = faiss.METRIC_INNER_PRODUCT if self.metric == "cosine" else faiss.METRIC_L2
        if self.form == "exact":
            inner = faiss.IndexFlat(self.dim, metric)
        elif self.form == "pq":
            inner = faiss.IndexPQ(self.dim, self.dim // PQ_VALUES, 8, metric)
            inner.pq.cp.min_points_per_centroid = 1  # else a warning for every piece; `train` has the minimum
        else:
            kind = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[self.form]
            inner = faiss.IndexScalarQuantizer(self.dim, kind, metric)
        return faiss.IndexIDMap2(inner)

    def _read(self) -> tuple | None:
        """The index of the file and the number of rows that it has learnt from; None where it cannot be used."""
        import faiss

        try:
            with open(self.path, "rb") as file:
                if not _is_whole(file):  # checked first: FAISS does not survive every damaged file
                    return None
                learnt_from = int.from_bytes(file.read(8), "little")
                index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        except (OSError, RuntimeError):
            return None
        return (index, learnt_from) if index.d == self.dim and isinstance(index, faiss.IndexIDMap2) else None

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def bytes_a_row(self) -> int:
        """Memory of a row, its id included."""
        import faiss

        return int(faiss.downcast_index(self._index.index).sa_code_size()) + 8

    def wants_training(self, count: int) -> int:
        most = TRAINING_ROWS.get(self.form, 0)
        few = self._learnt_from < most and count >= GROWN * self._learnt_from
        return min(count, most) if few else 0

    def train(self, rows: np.ndarray) -> None:
        if self.form == "pq" and len(rows) < PQ_CODES:
            raise ValueError(f"FAISS: the form 'pq' learns from at least {PQ_CODES} pictures, there are {len(rows)}; "
                             "take int8")
        self._index, self._learnt_from = self._empty(), len(rows)
        self._index.train(rows)

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        if not self._index.is_trained:
            self.train(rows)
        self._index.add_with_ids(np.ascontiguousarray(rows, dtype=np.float32), np.asarray(ids, dtype=np.int64))

    def remove(self, ids: np.ndarray) -> None:
        self._index.remove_ids(np.asarray(ids, dtype=np.int64))

    def ids(self) -> np.ndarray:
        import faiss

        return faiss.vector_to_array(self._index.id_map)

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        most = min(k, len(self) if among is None else len(among))
        if most == 0:
            return padded(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), k)
        chosen = None
        if among is not None:
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.asarray(among, dtype=np.int64)))
        scores, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), most, params=chosen)
        scores = np.where(ids < 0, -np.inf, scores if self.metric == "cosine" else -scores)
        return padded(scores.astype(np.float32), ids, k)

    def save(self) -> None:
        """The exact form is read from the parts as soon as from a file of its own, so it has none."""
        import faiss

        if self.path is None or self.exact:
            return

        def write(file: BinaryIO) -> None:
            checksum = 0

            def put(data: bytes) -> None:
                nonlocal checksum
                checksum = zlib.crc32(data, checksum)
                file.write(data)

            put(self._learnt_from.to_bytes(8, "little"))
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(put))
            file.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))

        try:
            write_whole(self.path, write)
        except OSError as error:  # such as an index on a disk that can only be read
            logger.warning("%s; the form %s is built in memory each time", error, self.form)


def _is_whole(file: BinaryIO) -> bool:
    """Whether the checksum at the end of a file fits what is before it; leaves the file at its beginning."""
    rest, checksum = file.seek(0, os.SEEK_END) - CHECKSUM_BYTES, 0
    file.seek(0)
    while rest > 0 and (data := file.read(min(rest, CHUNK_BYTES))):
        rest, checksum = rest - len(data), zlib.crc32(data, checksum)
    whole = rest == 0 and checksum == int.from_bytes(file.read(CHECKSUM_BYTES), "little")
    file.seek(0)
    return whole
