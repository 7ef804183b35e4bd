"""Part files: arrays of rows in .npy files, checked with checksums when they are read.

Files are read and not memory-mapped, since truncation of a mapped file by another program would end the process. Each
block of rows has a CRC-32, stored outside the file, which is compared whenever a row of the block is read.
Shapes: n rows of a file, B blocks of rows, k requested rows.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...utils.files import write_whole

BLOCK_BYTES = 8192  # maximum size of a block with one checksum; at least one row
CHECKED_BYTES = 2**24  # read at a time to check a whole file
GAP = 8  # up to this many unneeded blocks are read in between, since one read is faster than two
EMBED_AGAIN = "run `cerberus index` again to repair it"
BUILD_AGAIN = "restore it from a backup, or delete the index and build it again with `cerberus index`"


class Damaged(ValueError):
    """A file of an index is missing, truncated or modified.

    Args:
        path: of the file.
        reason: what is wrong with it.
        remedy: what to do.

    Attributes:
        path, reason: see above.
    """

    def __init__(self, path: Path, reason: str, remedy: str = EMBED_AGAIN) -> None:
        super().__init__(f"{path}: {reason}; {remedy}")
        self.path, self.reason = path, reason


class Recorded(NamedTuple):
    """The recorded size of a file in bytes, and the CRC-32 of each block of rows, little-endian uint32 (B,)."""

    size: int
    checksums: bytes


def write_rows(path: Path, rows: np.ndarray) -> Recorded:
    """Write an array to an .npy file in one step.

    Args:
        path: of the file.
        rows: (n, ...).

    Returns:
        size and checksums to record.
    """
    rows = np.ascontiguousarray(rows)

    def write(file) -> None:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        file.write(rows.reshape(-1).view(np.uint8))  # np.save would hide the reason of an error

        nonlocal size
        size = file.tell()

    size = 0
    write_whole(path, write)
    return Recorded(size, np.array(list(_checksums(rows)), dtype="<u4").tobytes())


class PartFile:
    """An .npy file opened for reading; safe to use from several threads.

    Args:
        path: of the file, with rows (n, *shape).
        dtype, shape: of a row.
        recorded: recorded size and checksums; if None, only the header and the size are checked.

    Raises:
        Damaged: if the file is missing, or does not fit `dtype`, `shape` or `recorded`.
    """

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...], recorded: Recorded | None = None) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._expected = None if recorded is None else np.frombuffer(recorded.checksums, dtype="<u4")
        self._lock = threading.Lock()
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by the finalizer
        except FileNotFoundError:
            raise Damaged(path, "is missing") from None
        weakref.finalize(self, self._file.close)
        try:
            version = np.lib.format.read_magic(self._file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, in_columns, of_type = read(self._file)
        except Exception as error:  # numpy raises various exceptions for invalid headers
            raise Damaged(path, "its header cannot be read") from error
        self._begin, size = self._file.tell(), os.fstat(self._file.fileno()).st_size
        if of_type != self.dtype or found[1:] != shape or in_columns:
            raise Damaged(path, f"has {of_type} rows of shape {found[1:]}, expected {self.dtype} of shape {shape}")
        self.count = found[0]
        self._row_bytes = int(self.dtype.itemsize * np.prod(shape, dtype=np.int64))
        self._block = _block_rows(self._row_bytes)
        wanted = self._begin + self.count * self._row_bytes if recorded is None else recorded.size
        if size != wanted or wanted != self._begin + self.count * self._row_bytes:
            raise Damaged(path, f"has {size} bytes, expected {wanted}")
        if self._expected is not None and len(self._expected) != -(-self.count // self._block):
            raise Damaged(path, f"has {self.count} rows, which differs from the recorded number")

    def __len__(self) -> int:
        return self.count

    def read(self, places: np.ndarray) -> np.ndarray:
        """Read rows.

        Args:
            places: int64 (k,), positions in the file, in any order.

        Returns:
            (k, *shape), in the order of `places`.

        Raises:
            Damaged: if the file is truncated, or a block does not match its checksum.
        """
        places = np.asarray(places, dtype=np.int64)
        if not len(places):
            return np.empty((0, *self.shape), dtype=self.dtype)
        if places.min() < 0 or places.max() >= self.count:
            raise Damaged(self.path, f"has {self.count} rows, but a row with position {places.max()} is recorded")
        if (np.diff(places) == 1).all():  # consecutive rows, such as a whole part
            first = int(places[0]) // self._block * self._block
            rows = self._rows(first, min((int(places[-1]) // self._block + 1) * self._block, self.count))
            return rows[places[0] - first:places[-1] - first + 1]
        out = np.empty((len(places), *self.shape), dtype=self.dtype)
        order = np.argsort(places, kind="stable")
        blocks = places[order] // self._block
        cuts = np.flatnonzero(np.diff(blocks) > GAP) + 1
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)]):
            first = int(blocks[begin]) * self._block
            rows = self._rows(first, min((int(blocks[end - 1]) + 1) * self._block, self.count))
            own = order[begin:end]
            out[own] = rows[places[own] - first]
        return out

    def check(self) -> Recorded:
        """Read and check the whole file.

        Returns:
            size and checksums to record.

        Raises:
            Damaged: as `read`.
        """
        step = self._block * max(1, CHECKED_BYTES // (self._block * self._row_bytes))
        checksums = [checksum for first in range(0, self.count, step)
                     for checksum in _checksums(self._rows(first, min(first + step, self.count)))]
        return Recorded(self._begin + self.count * self._row_bytes, np.array(checksums, dtype="<u4").tobytes())

    def _rows(self, first: int, end: int) -> np.ndarray:
        """Read the rows from `first`, the beginning of a block, to `end`, and compare their checksums."""
        rows = np.empty((end - first, *self.shape), dtype=self.dtype)
        left = memoryview(rows.reshape(-1).view(np.uint8))
        with self._lock:
            try:
                self._file.seek(self._begin + first * self._row_bytes)
                while len(left):
                    count = self._file.readinto(left)
                    if not count:
                        raise Damaged(self.path, "was truncated after it was opened")
                    left = left[count:]
            except OSError as error:
                raise Damaged(self.path, f"cannot be read ({error.strerror})") from error
        if self._expected is not None:
            for block, checksum in enumerate(_checksums(rows), first // self._block):
                if checksum != self._expected[block]:
                    place = block * self._block
                    raise Damaged(self.path, f"was modified near row {place}: the checksum differs")
        return rows


def _block_rows(row_bytes: int) -> int:
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def _checksums(rows: np.ndarray) -> Iterator[int]:
    """Compute the CRC-32 of each block; the last block may be shorter."""
    if len(rows):
        content = memoryview(rows.reshape(-1).view(np.uint8))
        step = len(content) // len(rows) * _block_rows(len(content) // len(rows))
        for first in range(0, len(content), step):
            yield zlib.crc32(content[first:first + step])
