"""Read pickles of data: containers, numpy arrays and EasyDict records; nothing that runs code.

A pickle is a program that may call any function of any module. This reader looks nothing up: each name that data needs
has a stand-in here, and another one is refused with its name before anything is called. Arrays are made of their bytes
alone, since numpy's own way in trusts what a pickle says of them.
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
    """Stands for an EasyDict; its attributes repeat its items and are not read."""

    def __setstate__(self, state) -> None:
        pass


class _Type:
    """Stands for a dtype: numbers, text or objects, without fields."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, *_) -> None:
        if not re.fullmatch(r"[biufSUO]\d{0,5}", str(code)):
            raise pickle.UnpicklingError(f"it has an array of the type {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array until its contents are known."""

    __slots__ = ("values",)

    def __init__(self, *_) -> None:  # numpy writes an empty array first
        self.values: np.ndarray | None = None

    def __setstate__(self, state) -> None:
        _, shape, kind, by_columns, content = state
        if kind.dtype.hasobject:
            values = np.empty(len(content), object)
            for place, each in enumerate(content):  # all at once, numpy would look into lists
                values[place] = each
        else:  # Python 2 wrote text
            values = np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.dtype)
        self.values = values.reshape(shape, order="F" if by_columns else "C")


class _Call:
    """Stands for a function; a pickle can set no attributes of it."""

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
    return np.frombuffer(content, kind.dtype, 1)[0]  # refuses objects


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
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only containers, numpy arrays and EasyDict are "
                                         "read") from None


def read_pickle(path: str | Path):
    """What a pickle holds: dicts, lists, tuples, arrays, texts and numbers.

    Raises:
        ValueError: with the name, if it asks for anything but data; or if it is damaged or too large.
    """
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: has more than {MOST_BYTES} bytes; is this the annotation file?")
    try:
        return _plain(_Reader(io.BytesIO(data), encoding="latin1").load())
    except Exception as error:  # a damaged pickle leads to errors of any kind
        raise ValueError(f"{path}: no pickle that is read ({error}). Expected the annotation file as published."
                         ) from error


def _plain(value):
    """The value without stand-ins."""
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
