"""Read the variables of a MATLAB 5 to 7 file (`save -v6`, `save -v7`), every size checked against the bytes there are.

scipy's reader trusts the sizes in the file: a damaged file can crash the process or keep it busy without end, and
reading in a process of its own would cost each start half a second. The format is that of "MAT-File Format" by
MathWorks: a header of 128 bytes, then elements of a tag (type, number of bytes) and data; a matrix is an element that
holds others. Structs, cells, text and numbers are read.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAX_BYTES = 2**24  # of a file, and of all that is compressed in it; the published annotation files have 0.2 MB
MAX_DEPTH = 8  # of structs and cells in one another

MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
CELL, STRUCT, CHAR, NUMERIC = 1, 2, 4, range(6, 16)
LOGICAL, COMPLEX = 0x200, 0x800  # flags


def read_matlab(path: str | Path, max_bytes: int = MAX_BYTES) -> dict:
    """Variables by name.

    A struct is a dict; a row of text is a str; one number or logical value is Python's; several, cells (dtype object)
    and several rows of text are arrays without dimensions of size 1. None stands for what has no such form, such as a
    function.

    Args:
        max_bytes: of the file, and of all that is compressed in it.

    Raises:
        ValueError: with the reason, if the file is none of MATLAB 5 to 7, is damaged, or exceeds `max_bytes`.
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if data.startswith(b"MATLAB 7.3") or data.startswith(b"\x89HDF"):
        raise ValueError("it is of MATLAB 7.3; save it by `save -v7`")
    if order is None:
        raise ValueError("it is cut short or not of MATLAB 5 to 7")
    found, left = {}, max_bytes
    for kind, content in _elements(data[128:], order):
        if kind == COMPRESSED:
            content = _decompressed(content, left)
            left -= len(content)
            if left < 0:
                raise ValueError(f"it has more than {max_bytes} bytes when decompressed")
            kind, content = next(_elements(content, order), (0, b""))
        if kind != MATRIX:
            raise ValueError(f"a variable is of the unknown type {kind}")
        name, value = _matrix(content, order)
        if name:
            found[name] = value
    return found


def _decompressed(content: bytes, most: int) -> bytes:
    """Of a variable that is larger, one byte more than `most`."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed variable is damaged: {error}") from error
    if not stream.eof and len(content) <= most:
        raise ValueError("a compressed variable is cut short")
    return content


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and data of each element; up to 4 bytes of data may stand in the tag itself."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("it is cut short")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        begin = at + 8
        if kind >> 16:
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError(f"an element of {size} bytes is said to stand in 4")
        end = begin + size
        if end > len(data):
            raise ValueError(f"an element of {size} bytes is cut short")
        yield kind, data[begin:end]
        at = end if kind == COMPRESSED else begin + (4 if begin == at + 4 else -(-size // 8) * 8)


def _matrix(data: bytes, order: str, depth: int = 0) -> tuple[str, object]:
    """Name and value of a matrix."""
    if not data:
        return "", np.empty(0)
    if depth > MAX_DEPTH:
        raise ValueError(f"it has more than {MAX_DEPTH} structs and cells in one another")
    parts = _elements(data, order)
    flags, shape = (_numbers(*_next(parts), order) for _ in range(2))
    name = _text(*_next(parts), order)
    if not len(flags) or {flags.dtype.kind, shape.dtype.kind} & {"f"} or len(shape) < 2 or (shape < 0).any():
        raise ValueError("the head of a variable is damaged")
    flag, shape = int(flags[0]), shape.tolist()
    count, kind = math.prod(shape), flag & 0xFF
    if kind == STRUCT and count == 1:
        return name, _struct(parts, order, depth)
    if kind == CELL:
        if count > len(data) // 8:
            raise ValueError(f"a cell array of {count} cells has {len(data)} bytes")
        values = np.empty(count, dtype=object)
        for i in range(count):
            values[i] = _inner(parts, order, depth)
        return name, values.reshape(shape, order="F").squeeze()
    if kind == CHAR:
        return name, _rows(_text(*_next(parts), order), shape)
    if kind not in NUMERIC:
        return name, None
    values = _whole(parts, count, order)
    if flag & COMPLEX:
        values = values + 1j * _whole(parts, count, order)
    elif flag & LOGICAL:
        values = values.astype(bool)
    return name, values.item() if count == 1 else values.reshape(shape, order="F").squeeze()


def _struct(parts: Iterator, order: str, depth: int) -> dict:
    length = _numbers(*_next(parts), order).tolist()
    names = _next(parts)[1]
    if len(length) != 1 or not isinstance(length[0], int) or length[0] < 1 or len(names) % length[0]:
        raise ValueError("the names of a struct's fields are damaged")
    fields = [names[i:i + length[0]].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), length[0])]
    if len(set(fields)) < len(fields):
        raise ValueError("two fields of a struct have one name")
    return {field: _inner(parts, order, depth) for field in fields}


def _inner(parts: Iterator, order: str, depth: int) -> object:
    kind, content = _next(parts)
    if kind != MATRIX:
        raise ValueError(f"a struct or cell holds an element of the unknown type {kind}")
    return _matrix(content, order, depth + 1)[1]


def _next(parts: Iterator) -> tuple[int, bytes]:
    try:
        return next(parts)
    except StopIteration:
        raise ValueError("a variable is cut short") from None


def _numbers(kind: int, content: bytes, order: str) -> np.ndarray:
    dtype = np.dtype(order + NUMBERS.get(kind, "V1"))
    if kind not in NUMBERS or len(content) % dtype.itemsize:
        raise ValueError(f"an element of {len(content)} bytes has the type {kind}, which holds no numbers of that size")
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))


def _whole(parts: Iterator, count: int, order: str) -> np.ndarray:
    values = _numbers(*_next(parts), order)
    if len(values) != count:
        raise ValueError(f"a variable of {count} numbers has {len(values)}")
    return values


def _text(kind: int, content: bytes, order: str) -> str:
    if kind not in TEXTS:
        raise ValueError(f"text has the unknown type {kind}")
    encoding = TEXTS[kind] + ("-le" if order == "<" else "-be") * (TEXTS[kind] in ("utf-16", "utf-32"))
    return content.decode(encoding)  # UnicodeDecodeError is a ValueError


def _rows(text: str, shape: list[int]) -> str | np.ndarray:
    """Text is stored by columns."""
    if len(text) != math.prod(shape):
        raise ValueError(f"text of {math.prod(shape)} characters has {len(text)}")
    rows = shape[0] if text else 1
    return text if rows == 1 else np.array([text[row::rows] for row in range(rows)], dtype=object)
