"""The converters that there are, by the name of their set."""

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
    """How a set is read.

    Attributes:
        read: a function of the folder of the set, with options as keywords.
        title, licence: of the set.   rule: by which it is evaluated in the literature.
    """

    name: str
    read: Callable[..., Converted]
    title: str
    licence: str
    rule: str

    @property
    def options(self) -> tuple[str, ...]:
        """Keywords that the function takes."""
        return tuple(name for name, each in inspect.signature(self.read).parameters.items()
                     if each.kind is inspect.Parameter.KEYWORD_ONLY)

    def __call__(self, source: Path, **options) -> Converted:
        wrong = [name for name in options if name not in self.options]
        if wrong:
            raise ValueError(f"{self.name} has no option --{wrong[0].replace('_', '-')}"
                             + (f"; it has {', '.join('--' + name.replace('_', '-') for name in self.options)}"
                                if self.options else " of its own") + ". Leave it out.")
        return self.read(source, **options)


CONVERTERS: dict[str, Converter] = {}


def register_converter(name: str, *, title: str, licence: str, rule: str):
    """Make a function known as the converter of a set: `read(source: Path, *, option=...) -> Converted`.

    Raises:
        ValueError: if there is one of this name.
    """
    def register(read: Callable[..., Converted]) -> Callable[..., Converted]:
        if name in CONVERTERS:
            raise ValueError(f"converter '{name}': another one of this name is registered; known: "
                             f"{', '.join(CONVERTERS)}")
        CONVERTERS[name] = Converter(name, read, title, licence, rule)
        return read

    return register


def find_converter(name: str) -> Converter:
    if name not in CONVERTERS:
        raise ValueError(f"set is '{name}', expected one of {', '.join(CONVERTERS)}. docs/converters.md shows how to "
                         "write a converter of another set.")
    return CONVERTERS[name]
