"""Read the variables of a MATLAB 5 to 7 file (`save -v6`, `save -v7`), with all sizes validated.

SciPy's reader trusts the sizes in the file: a damaged file can crash the process or block it indefinitely, and a
separate process would delay each start by half a second. The format is documented in "MAT-File Format" by MathWorks:
a header of 128 bytes, then elements of a tag (type, number of bytes) and data; a matrix is an element that contains
other elements. Structs, cells, text and numbers are supported.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MAX_BYTES = 2**24  # of a file, and of its decompressed content; the published annotation files have 0.2 MB
MAX_DEPTH = 8  # of nested structs and cells

MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
CELL, STRUCT, CHAR, NUMERIC = 1, 2, 4, range(6, 16)
LOGICAL, COMPLEX = 0x200, 0x800  # flags


def read_matlab(path: str | Path, max_bytes: int = MAX_BYTES) -> dict:
    """Read the variables of a file.

    Args:
        path: path of the file.
        max_bytes: limit on the size of the file, and on the size of its decompressed content.

    Returns:
        variables by name. Structs are dicts, rows of text are str, single numbers and logical values are Python
        scalars. Matrices, cells (dtype object) and several rows of text are arrays without dimensions of size 1.
        Other variables, such as functions, are None.

    Raises:
        ValueError: if the file is not a MATLAB 5 to 7 file, is damaged, or exceeds `max_bytes`.
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if data.startswith(b"MATLAB 7.3") or data.startswith(b"\x89HDF"):
        raise ValueError("it is a MATLAB 7.3 file; save it with `save -v7`")
    if order is None:
        raise ValueError("it is truncated or not a MATLAB 5 to 7 file")
    found, left = {}, max_bytes
    for kind, content in _elements(data[128:], order):
        if kind == COMPRESSED:
            content = _decompressed(content, left)
            left -= len(content)
            if left < 0:
                raise ValueError(f"it has more than {max_bytes} bytes when decompressed")
            kind, content = next(_elements(content, order), (0, b""))
        if kind != MATRIX:
            raise ValueError(f"a variable has the unknown type {kind}")
        name, value = _matrix(content, order)
        if name:
            found[name] = value
    return found


def _decompressed(content: bytes, most: int) -> bytes:
    """Decompress at most `most` + 1 bytes, so that the caller can detect larger content."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed variable is damaged: {error}") from error
    if not stream.eof and len(content) <= most:
        raise ValueError("a compressed variable is truncated")
    return content


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and data of each element; up to 4 bytes of data can be stored in the tag."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("it is truncated")
        kind, size = struct.unpack_from(f"{order}II", data, at)
        begin = at + 8
        if kind >> 16:
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
            if size > 4:
                raise ValueError(f"an element in short form has {size} bytes, more than 4")
        end = begin + size
        if end > len(data):
            raise ValueError(f"an element of {size} bytes is truncated")
        yield kind, data[begin:end]
        at = end if kind == COMPRESSED else begin + (4 if begin == at + 4 else -(-size // 8) * 8)


def _matrix(data: bytes, order: str, depth: int = 0) -> tuple[str, object]:
    """Name and value of a matrix."""
    if not data:
        return "", np.empty(0)
    if depth > MAX_DEPTH:
        raise ValueError(f"it has more than {MAX_DEPTH} nested structs and cells")
    parts = _elements(data, order)
    flags, shape = (_numbers(*_next(parts), order) for _ in range(2))
    name = _text(*_next(parts), order)
    if not len(flags) or {flags.dtype.kind, shape.dtype.kind} & {"f"} or len(shape) < 2 or (shape < 0).any():
        raise ValueError("the header of a variable is damaged")
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
        raise ValueError("the field names of a struct are damaged")
    fields = [names[i:i + length[0]].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), length[0])]
    if len(set(fields)) < len(fields):
        raise ValueError("two fields of a struct have the same name")
    return {field: _inner(parts, order, depth) for field in fields}


def _inner(parts: Iterator, order: str, depth: int) -> object:
    kind, content = _next(parts)
    if kind != MATRIX:
        raise ValueError(f"a struct or cell contains an element of the unknown type {kind}")
    return _matrix(content, order, depth + 1)[1]


def _next(parts: Iterator) -> tuple[int, bytes]:
    try:
        return next(parts)
    except StopIteration:
        raise ValueError("a variable is truncated") from None


def _numbers(kind: int, content: bytes, order: str) -> np.ndarray:
    dtype = np.dtype(order + NUMBERS.get(kind, "V1"))
    if kind not in NUMBERS or len(content) % dtype.itemsize:
        raise ValueError(f"an element of {len(content)} bytes has the type {kind}, which has no numbers of that size")
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
    """Split text, which is stored column by column, into rows."""
    if len(text) != math.prod(shape):
        raise ValueError(f"text of {math.prod(shape)} characters has {len(text)}")
    rows = shape[0] if text else 1
    return text if rows == 1 else np.array([text[row::rows] for row in range(rows)], dtype=object)
