"""Read pickles of data without executing code: containers, numpy arrays and EasyDict records.

A pickle is a program that can call any function of any module. This reader imports nothing: it has a replacement for
each name that data needs, and rejects any other name before a call. It builds arrays from their bytes, since numpy's
own functions trust the contents of a pickle.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

MOST_BYTES = 2**29


class _Record(dict):
    """Replaces EasyDict. Its attributes, which repeat its items, are ignored."""

    def __setstate__(self, state) -> None:
        pass


class _Type:
    """Replaces a dtype: numbers, text or objects, without fields."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_) -> None:
        if not re.fullmatch(r"[biufSUO]\d{0,5}", str(code)):
            raise pickle.UnpicklingError(f"it contains an array of the type {code}, which is not supported")
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replaces an array until its contents are known."""

    __slots__ = ("values",)

    def __init__(self, *_) -> None:  # numpy pickles an empty array first, then its state
        self.values: np.ndarray | None = None

    def __setstate__(self, state) -> None:
        _, shape, kind, by_columns, content = state
        if kind.dtype.hasobject:
            values = np.empty(len(content), object)
            for place, each in enumerate(content):  # one by one, since numpy would unpack lists
                values[place] = each
        else:  # in pickles of Python 2, the bytes are text
            values = np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.dtype)
        self.values = values.reshape(shape, order="F" if by_columns else "C")


class _Call:
    """Replaces a function; a pickle cannot set its attributes."""

    __slots__ = ("_make",)

    def __init__(self, make) -> None:
        self._make = make

    def __call__(self, *arguments):
        return self._make(*arguments)

    def __setstate__(self, state) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")


def _of_buffer(buffer, kind: _Type, shape, order) -> _Array:
    array = _Array()
    array.values = np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)
    return array


def _scalar(kind: _Type, content: bytes):
    return np.frombuffer(content, kind.dtype, 1)[0]  # raises ValueError for objects


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], object] = {
    ("easydict", "EasyDict"): _Record, ("numpy", "ndarray"): "ndarray", ("numpy", "dtype"): _Call(_Type),
    ("builtins", "range"): _Call(range), ("__builtin__", "xrange"): _Call(range), ("_codecs", "encode"): _Call(_bytes)}
for _core in ("numpy.core", "numpy._core"):
    _STAND_INS |= {(f"{_core}.multiarray", "_reconstruct"): _Call(_Array),
                   (f"{_core}.multiarray", "scalar"): _Call(_scalar),
                   (f"{_core}.numeric", "_frombuffer"): _Call(_of_buffer)}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it uses {module}.{name}; only containers, numpy arrays and EasyDict are "
                                         "supported") from None


def read_pickle(path: str | Path):
    """Read a pickle of dicts, lists, tuples, arrays, texts and numbers.

    Args:
        path: path of the file.

    Returns:
        its contents.

    Raises:
        ValueError: if it uses anything else, with the name; or if it is damaged or too large.
    """
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: has more than {MOST_BYTES} bytes. Is this the annotation file?")
    try:
        return _plain(_Reader(io.BytesIO(data), encoding="latin1").load())
    except Exception as error:  # a damaged pickle raises exceptions of any type
        raise ValueError(f"{path}: not a readable pickle ({error}). Expected the annotation file as published."
                         ) from error


def _plain(value):
    """Return a value without the replacement classes."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(each) for each in value)
    if isinstance(value, _Array):
        value = value.values
        if value is not None and value.dtype.hasobject:
            for place, each in np.ndenumerate(value):
                value[place] = _plain(each)
    return value
