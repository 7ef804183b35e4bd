"""Search in memory with FAISS, exact or compressed.

Bytes per row of E values: exact 4 E, float16 2 E, int8 E, pq E / 8; and 8 bytes for the id.
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
PQ_VALUES, PQ_CODES = 8, 256  # product quantisation: values per byte, and codes per byte
TRAINING_ROWS = {"int8": 10_000, "pq": 10_000}  # FAISS recommends 39 rows per code
CHECKSUM_BYTES, CHUNK_BYTES = 4, 2**20
GROWN = 4  # a form trained on fewer rows than above is trained again when the gallery has this many times the rows

logger = logging.getLogger("cerberus.gallery")


@dataclass(frozen=True)
class Faiss:
    """Configuration of `FaissEngine` for an index.

    Attributes:
        form: one of `FORMS`; compressed forms are saved in the folder of the index.
    """

    form: str = "exact"

    def __call__(self, space: Space) -> FaissEngine:
        path = None if self.form == "exact" else space.folder / "engines" / f"{self.form}-{space.id}.faiss"
        return FaissEngine(space.dim, self.form, space.metric, path)


class FaissEngine:
    """`Engine` with a FAISS index in memory.

    Args:
        dim: E.
        form: one of `FORMS`; all but "exact" lose recall, float16 almost none.
        metric: "cosine" (inner product of rows with blocks of unit length) or "euclidean".
        path: file of a compressed form: number of training rows, FAISS index and checksum. A file that is damaged or
            has another dimension is written again. If the file cannot be written, the form is built in memory each
            time. None: do not save.

    Raises:
        ValueError: if the metric or the form is not supported, or `dim` is not divisible by 8 for "pq".
    """

    most_hits = sys.maxsize

    def __init__(self, dim: int, form: str = "exact", metric: str = "cosine", path: str | Path | None = None) -> None:
        check_metric(metric)
        if form not in FORMS:
            raise ValueError(f"FAISS: the form is '{form}', expected one of {', '.join(FORMS)}")
        if form == "pq" and dim % PQ_VALUES:
            raise ValueError(f"FAISS: the form 'pq' needs a number of values divisible by {PQ_VALUES}, but rows have "
                             f"{dim}; use int8")
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
            inner.pq.cp.min_points_per_centroid = 1  # avoids a warning per piece; `train` checks the minimum
        else:
            kind = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}[self.form]
            inner = faiss.IndexScalarQuantizer(self.dim, kind, metric)
        return faiss.IndexIDMap2(inner)

    def _read(self) -> tuple | None:
        """Read the file; returns the FAISS index and the number of training rows, None if the file cannot be used."""
        import faiss

        try:
            with open(self.path, "rb") as file:
                if not _is_whole(file):  # checked first, since FAISS may crash on a damaged file
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
        """Memory per row in bytes, including the id."""
        import faiss

        return int(faiss.downcast_index(self._index.index).sa_code_size()) + 8

    def wants_training(self, count: int) -> int:
        """See `Engine`."""
        most = TRAINING_ROWS.get(self.form, 0)
        few = self._learnt_from < most and count >= GROWN * self._learnt_from
        return min(count, most) if few else 0

    def train(self, rows: np.ndarray) -> None:
        """See `Engine`.

        Raises:
            ValueError: if there are fewer than 256 rows for "pq".
        """
        if self.form == "pq" and len(rows) < PQ_CODES:
            raise ValueError(f"FAISS: the form 'pq' needs at least {PQ_CODES} images for training, but there are "
                             f"{len(rows)}; use int8")
        self._index, self._learnt_from = self._empty(), len(rows)
        self._index.train(rows)

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """See `Engine`."""
        if not self._index.is_trained:
            self.train(rows)
        self._index.add_with_ids(np.ascontiguousarray(rows, dtype=np.float32), np.asarray(ids, dtype=np.int64))

    def remove(self, ids: np.ndarray) -> None:
        """See `Engine`."""
        self._index.remove_ids(np.asarray(ids, dtype=np.int64))

    def ids(self) -> np.ndarray:
        """See `Engine`."""
        import faiss

        return faiss.vector_to_array(self._index.id_map)

    def search(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine`."""
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
        """Save a compressed form. The exact form is not saved, since reading the part files is equally fast."""
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
        except OSError as error:  # such as a read-only disk
            logger.warning("%s; the form %s is built in memory each time", error, self.form)


def _is_whole(file: BinaryIO) -> bool:
    """Return whether the checksum at the end of a file is correct; afterwards the file is at its beginning."""
    rest, checksum = file.seek(0, os.SEEK_END) - CHECKSUM_BYTES, 0
    file.seek(0)
    while rest > 0 and (data := file.read(min(rest, CHUNK_BYTES))):
        rest, checksum = rest - len(data), zlib.crc32(data, checksum)
    whole = rest == 0 and checksum == int.from_bytes(file.read(CHECKSUM_BYTES), "little")
    file.seek(0)
    return whole
