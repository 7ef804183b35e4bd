"""The state of a search as a web address, so that the back button, bookmarks and links work.

    /?a.gender=female&a.upper+colour=red      attributes
    &like=7 or &picture=TOKEN                 id of a gallery image, or token of an uploaded image
    &out=lower&w.head=2&changed=1             ignored groups, weights, "may have changed clothes"
    &reliable=0.9&rate=0.001&top=48           prefilter, false-match rate, number of results
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

TOP, MOST = 24, 200  # default and maximum number of results
HEAVIEST = 16.0  # maximum weight of a group
LONGEST = 4096  # maximum bytes of path and query of an address


class Groups(NamedTuple):
    """The groups of a model.

    Attributes:
        all: all groups.
        lasting: groups that stay the same when clothes change.
    """

    all: tuple[str, ...]
    lasting: tuple[str, ...]

    @property
    def clothes(self) -> list[str]:
        """The groups that change with clothes."""
        return clothing_groups(self.all, self.lasting)


@dataclass(frozen=True)
class SearchState:
    """The search that an address describes.

    Attributes:
        words: values of attributes, by name.
        weights: of groups; 1 for groups that are not named.
        out: ignored groups.
        changed: whether clothes may have been changed, so that only lasting groups are compared.
        like: id of a gallery image to search for, or None.
        picture: token of an uploaded image to search for, or "".
        reliable: threshold of the prefilter, None for no prefilter.
        rate: false-match rate, None for no threshold.
        top: maximum number of results.
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
        """Parse the parameters of an address. Empty values, as of a partly completed form, are ignored.

        Repeated colours of one value are removed, which limits the length of valid addresses.

        Args:
            pairs: names and values.

        Raises:
            ValueError: if a name is unknown or repeated, or a value is invalid.

        Examples:
            >>> SearchState.read([("a.gender", "female"), ("top", "48")]).address()
            '/?a.gender=female&top=48'
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
                raise ValueError(f"address: unknown parameter '{name}', expected a.ATTRIBUTE, w.GROUP, out or one of "
                                 f"{', '.join(_SINGLE)}; start a new search")
        if "like" in single and "picture" in single:
            raise ValueError("address: has both like= and picture=; remove one of them")
        return cls(words, weights, tuple(dict.fromkeys(out)), **single)

    def pairs(self) -> list[tuple[str, str]]:
        """Return the parameters of the address, without default values; the inverse of `read`."""
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
        """Return the address of this search.

        Args:
            page: path, such as "/results.csv".
        """
        pairs = self.pairs()
        return f"{page}?{urlencode(pairs)}" if pairs else page

    @property
    def says_nothing(self) -> bool:
        """Whether the query is empty."""
        return not (self.words or self.has_picture)

    @property
    def has_picture(self) -> bool:
        """Whether an image is searched for."""
        return bool(self.picture) or self.like is not None

    def query(self, embedding: np.ndarray | None) -> Query:
        """Return the query of this search.

        Args:
            embedding: of the query image, float (E,); None without one.
        """
        return Query(embedding, self.words, self.weights, self.out, self.rate, may_have_changed_clothes=self.changed)

    @property
    def prefilter(self) -> Prefilter | None:
        """The prefilter of this search; None without one."""
        return None if self.reliable is None else Prefilter(self.reliable)

    def left_out(self, groups: Groups) -> list[str]:
        """Return the ignored groups of a model, in its order: excluded ones, and clothes if they may have changed."""
        return [group for group in groups.all if group in self.out or (self.changed and group in groups.clothes)]

    # Searches of the links on the page.

    def change(self, **fields) -> SearchState:
        """Return this search with other values of some attributes."""
        return replace(self, **fields)

    def says(self, name: str, value: str) -> bool:
        """Return whether the query has this value of an attribute."""
        return self.words.get(name) == value

    def toggle(self, name: str, value: str) -> SearchState:
        """Return this search with a value of an attribute, or without the attribute if it already has this value."""
        rest = {key: own for key, own in self.words.items() if key != name}
        return replace(self, words=rest if self.says(name, value) else {**self.words, name: value})

    def more_like(self, row: int) -> SearchState:
        """Return a search for a gallery image instead of attributes and image; groups, weights and the rest stay."""
        return replace(self, words={}, like=row, picture="")

    def without_picture(self) -> SearchState:
        """Return this search without the query image."""
        return replace(self, like=None, picture="")

    def weigh(self, group: str, factor: float) -> SearchState | None:
        """Return this search with the weight of a group multiplied; None if it is at the limit."""
        before = self.weights.get(group, 1.0)
        weight = min(max(before * factor, 1 / HEAVIEST), HEAVIEST)
        return replace(self, weights={**self.weights, group: weight}) if (weight - before) * (factor - 1) > 0 else None

    def unknown(self, groups: Groups) -> list[str]:
        """Return the groups of this search that the model does not have."""
        return [group for group in dict.fromkeys((*self.out, *self.weights)) if group not in groups.all]

    def without_group(self, group: str) -> SearchState:
        """Return this search without the weight and the exclusion of a group."""
        return replace(self, out=tuple(own for own in self.out if own != group),
                       weights={name: weight for name, weight in self.weights.items() if name != group})

    def switch(self, group: str, groups: Groups) -> SearchState:
        """Return this search with a group excluded, or included again; the other groups do not change."""
        gone = self.left_out(groups)
        if group not in gone:
            return replace(self, out=(*self.out, group))
        changed = self.changed and group in groups.lasting
        return replace(self, changed=changed, out=tuple(own for own in (self.out if changed else gone) if own != group))


def exact(number: float) -> str:
    """Return the shortest text that is parsed as exactly this number.

    Examples:
        >>> exact(0.9), exact(1.0), exact(0.00012345678)
        ('0.9', '1', '0.00012345678')
    """
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _once(into: dict, name: str, key: str, value) -> None:
    if key in into:
        raise ValueError(f"address: has '{name}' twice; remove one of them")
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
        raise ValueError(f"address: '{name}={value}', expected {name}=1 or no {name}")
    return True


_SINGLE: dict[str, Callable] = {
    "changed": _yes, "like": _whole(0, 2**62), "picture": lambda name, value: value,
    "reliable": lambda name, value: _number(name, value, 0, 1), "rate": lambda name, value: _number(name, value, 0, 1),
    "top": _whole(1, MOST)}
