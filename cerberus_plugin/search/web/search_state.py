"""The state of a search as a web address, so that the back button, bookmarks and links work.

    /?a.gender=female&a.upper+colour=red      attributes
    &like=7 or &picture=TOKEN                 a row of the gallery, or a picture that was sent
    &out=lower&w.head=2&changed=1             groups that do not count, weights, "may have changed clothes"
    &reliable=0.9&rate=0.001&top=48           filter, false-match rate, and how many pictures
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import urlencode

import numpy as np

from ..gallery import Prefilter, Query
from ..portable.encoder import clothing_groups

TOP, MOST = 24, 200
HEAVIEST = 16.0
LONGEST = 4096  # bytes of an address, path and query


class Groups(NamedTuple):
    """Those of the model, and those among them that count where somebody may have changed clothes."""

    all: tuple[str, ...]
    lasting: tuple[str, ...]

    @property
    def clothes(self) -> list[str]:
        return clothing_groups(self.all, self.lasting)


@dataclass(frozen=True)
class SearchState:
    """The search of an address.

    Attributes:
        words: attributes, by column.   weights: of groups; 1 where not named.   out: groups that do not count.
        changed: whether clothes may have been changed, so that only lasting groups count.
        like: a row of the gallery that is searched for.   picture: token of a picture that was sent, and is.
        reliable: threshold of the filter, None without.   rate: false-match rate, None for all.
        top: how many pictures.
    """

    words: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    out: tuple[str, ...] = ()
    changed: bool = False
    like: int | None = None
    picture: str = ""
    reliable: float | None = None
    rate: float | None = None
    top: int = TOP

    @classmethod
    def read(cls, pairs: Iterable[tuple[str, str]]) -> SearchState:
        """From the names and values of an address; empty values, as of a form that is filled in part, are left out.

        A colour that is named twice counts once, so that an address that can be searched for is as short as its words.
        """
        words: dict[str, str] = {}
        weights: dict[str, float] = {}
        out: list[str] = []
        single: dict = {}
        for name, value in pairs:
            value = value.strip()
            if not value:
                continue
            if name == "out":
                out.append(value)
            elif name.startswith("a.") and name[2:]:
                _once(words, name, name[2:], " and ".join(dict.fromkeys(value.split(" and "))))
            elif name.startswith("w.") and name[2:]:
                _once(weights, name, name[2:], _number(name, value, 0, HEAVIEST))
            elif name in _SINGLE:
                _once(single, name, name, _SINGLE[name](name, value))
            else:
                raise ValueError(f"address: '{name}' is not known, expected a.ATTRIBUTE, w.GROUP, out or one of "
                                 f"{', '.join(_SINGLE)}; start anew")
        if "like" in single and "picture" in single:
            raise ValueError("address: has both like= and picture=, and one picture is searched for; leave out one")
        return cls(words, weights, tuple(dict.fromkeys(out)), **single)

    def pairs(self) -> list[tuple[str, str]]:
        """The inverse of `read`; defaults are left out."""
        return [*([("picture", self.picture)] if self.picture else []),
                *([("like", str(self.like))] if self.like is not None else []),
                *((f"a.{name}", value) for name, value in self.words.items()),
                *((f"w.{group}", exact(weight)) for group, weight in self.weights.items() if weight != 1),
                *(("out", group) for group in self.out),
                *([("changed", "1")] if self.changed else []),
                *([("reliable", exact(self.reliable))] if self.reliable is not None else []),
                *([("rate", exact(self.rate))] if self.rate is not None else []),
                *([("top", str(self.top))] if self.top != TOP else [])]

    def address(self, page: str = "/") -> str:
        pairs = self.pairs()
        return f"{page}?{urlencode(pairs)}" if pairs else page

    @property
    def says_nothing(self) -> bool:
        """Whether there is nobody to search for yet."""
        return not (self.words or self.has_picture)

    @property
    def has_picture(self) -> bool:
        return bool(self.picture) or self.like is not None

    def query(self, embedding: np.ndarray | None) -> Query:
        return Query(embedding, self.words, self.weights, self.out, self.rate, may_have_changed_clothes=self.changed)

    @property
    def prefilter(self) -> Prefilter | None:
        return None if self.reliable is None else Prefilter(self.reliable)

    def left_out(self, groups: Groups) -> list[str]:
        """Groups of the model that do not count, for one reason or the other, in its order."""
        return [group for group in groups.all if group in self.out or (self.changed and group in groups.clothes)]

    # Other searches, a click from this one.

    def change(self, **fields) -> SearchState:
        return replace(self, **fields)

    def says(self, name: str, value: str) -> bool:
        return self.words.get(name) == value

    def toggle(self, name: str, value: str) -> SearchState:
        """With this attribute, or without it if it has this value."""
        rest = {key: own for key, own in self.words.items() if key != name}
        return replace(self, words=rest if self.says(name, value) else {**self.words, name: value})

    def more_like(self, row: int) -> SearchState:
        """A picture of the gallery in place of words and picture; groups, weights and the rest stay."""
        return replace(self, words={}, like=row, picture="")

    def without_picture(self) -> SearchState:
        return replace(self, like=None, picture="")

    def weigh(self, group: str, factor: float) -> SearchState | None:
        """With this group counting more or less; None where it cannot do so any further."""
        before = self.weights.get(group, 1.0)
        weight = min(max(before * factor, 1 / HEAVIEST), HEAVIEST)
        return replace(self, weights={**self.weights, group: weight}) if (weight - before) * (factor - 1) > 0 else None

    def unknown(self, groups: Groups) -> list[str]:
        """Groups that are named, but that the model does not have."""
        return [group for group in dict.fromkeys((*self.out, *self.weights)) if group not in groups.all]

    def without_group(self, group: str) -> SearchState:
        """Without this group's weight and exclusion."""
        return replace(self, out=tuple(own for own in self.out if own != group),
                       weights={name: weight for name, weight in self.weights.items() if name != group})

    def switch(self, group: str, groups: Groups) -> SearchState:
        """With this group left out, or taken in again; the others stay as they are."""
        gone = self.left_out(groups)
        if group not in gone:
            return replace(self, out=(*self.out, group))
        changed = self.changed and group in groups.lasting
        return replace(self, changed=changed, out=tuple(own for own in (self.out if changed else gone) if own != group))


def exact(number: float) -> str:
    """The shortest text that reads back as this number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _once(into: dict, name: str, key: str, value) -> None:
    if key in into:
        raise ValueError(f"address: has '{name}' twice, expected it once; leave out one")
    into[key] = value


def _number(name: str, value: str, least: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ValueError(f"address: '{name}={value}', expected a number from {least:g} to {most:g}, such as {name}=1")
    return number


def _whole(least: int, most: int) -> Callable[[str, str], int]:
    def read(name: str, value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 19 and least <= int(value) <= most):
            raise ValueError(f"address: '{name}={value}', expected a whole number from {least} to {most}")
        return int(value)
    return read


def _yes(name: str, value: str) -> bool:
    if value != "1":
        raise ValueError(f"address: '{name}={value}', expected {name}=1, or none")
    return True


_SINGLE: dict[str, Callable] = {
    "changed": _yes, "like": _whole(0, 2**62), "picture": lambda name, value: value,
    "reliable": lambda name, value: _number(name, value, 0, 1), "rate": lambda name, value: _number(name, value, 0, 1),
    "top": _whole(1, MOST)}
