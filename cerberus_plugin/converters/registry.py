"""The registry of converters, by name of the dataset."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writing import Converted


@dataclass(frozen=True)
class Converter:
    """A converter of a published dataset.

    Attributes:
        name: name of the dataset on the command line.
        read: function that reads the dataset from its folder; options are keyword arguments.
        title: title and reference of the dataset.
        licence: licence of the dataset.
        rule: how the dataset is evaluated in the literature.
    """

    name: str
    read: Callable[..., Converted]
    title: str
    licence: str
    rule: str

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the keyword arguments of `read`."""
        return tuple(name for name, each in inspect.signature(self.read).parameters.items()
                     if each.kind is inspect.Parameter.KEYWORD_ONLY)

    def __call__(self, source: Path, **options) -> Converted:
        wrong = [name for name in options if name not in self.options]
        if wrong:
            raise ValueError(f"{self.name} has no option --{wrong[0].replace('_', '-')}"
                             + (f"; it has {', '.join('--' + name.replace('_', '-') for name in self.options)}"
                                if self.options else " or any other") + ". Omit it.")
        return self.read(source, **options)


CONVERTERS: dict[str, Converter] = {}


def register_converter(name: str, *, title: str, licence: str, rule: str):
    """Return a decorator that registers a converter: `read(source: Path, *, option=...) -> Converted`.

    Args:
        name: name of the dataset on the command line.
        title: title and reference of the dataset.
        licence: licence of the dataset.
        rule: how the dataset is evaluated in the literature.

    Raises:
        ValueError: if a converter of this name is registered.
    """
    def register(read: Callable[..., Converted]) -> Callable[..., Converted]:
        if name in CONVERTERS:
            raise ValueError(f"converter '{name}': a converter of this name is already registered; registered are "
                             f"{', '.join(CONVERTERS)}")
        CONVERTERS[name] = Converter(name, read, title, licence, rule)
        return read

    return register


def find_converter(name: str) -> Converter:
    """Return the converter of a dataset.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in CONVERTERS:
        raise ValueError(f"DATASET is '{name}', expected one of {', '.join(CONVERTERS)}. To write a converter for "
                         "another dataset, see docs/converters.md.")
    return CONVERTERS[name]
