"""Pictures of a folder tree: which are new, changed or gone, and what names tell about person, camera and time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ...utils.folders import Picture

# Those of own data; an outfit is not kept, and identity is an older name of person.
NAME_GROUPS = ("person", "camera", "time", "outfit", "identity")
# A time sorts within its camera. Market-1501 counts frames anew in each sequence, so that its time begins with one.
KNOWN_NAMES = (
    r"(?:^|/)(?P<identity>-1|\d+)_c(?P<camera>\d+)(?P<time>s\d+_\d{6})_\d{2}\.[^/]*$",  # Market-1501
    r"(?:^|/)(?P<identity>\d+)_c(?P<camera>\d+)_f(?P<time>\d{7,8})\.[^/]*$",  # DukeMTMC-reID
)


class Changes(NamedTuple):
    """What an index has to do to agree with its folder."""

    new: list[Picture]
    changed: list[Picture]
    deleted: list[str]


class Named(NamedTuple):
    """What a name tells, as it is written there; None where it does not."""

    identity: str | None = None
    camera: str | None = None
    time: str | None = None


def compare(found: Iterable[Picture], known: Mapping[str, tuple[int, int]], refused: Collection[str] = ()) -> Changes:
    """What differs between pictures that were found and the sizes and times of those known by path.

    Args:
        refused: what could not be looked at, see `walk`; a picture there is not taken for deleted. It is read when
            `found` is at its end.
    """
    new, changed, seen = [], [], set()
    for picture in found:
        seen.add(picture.path)
        before = known.get(picture.path)
        if before is None:
            new.append(picture)
        elif before != (picture.size, picture.mtime_ns):
            changed.append(picture)
    folders = tuple(path for path in refused if path.endswith("/"))
    deleted = [path for path in known if path not in seen and path not in refused and not path.startswith(folders)]
    return Changes(new, changed, deleted)


class Naming:
    """Reads names by a regular expression, searched in the path below the folder, or else by those of known data sets.

    >>> Naming().read("0002_c1s1_000451_03.jpg")
    Named(identity='0002', camera='1', time='s1_000451')
    >>> Naming(r"(?P<camera>\\w+)/(?P<time>\\d+)").read("lobby/20240131.jpg")
    Named(identity=None, camera='lobby', time='20240131')
    """

    def __init__(self, pattern: str = "") -> None:
        self.pattern = pattern
        try:
            self._expressions = [re.compile(each) for each in ([pattern] if pattern else KNOWN_NAMES)]
        except re.error as error:
            raise ValueError(f"name pattern '{pattern}': not a regular expression ({error})") from error
        groups = set(self._expressions[0].groupindex)
        if not groups or not groups <= set(NAME_GROUPS) or {"person", "identity"} <= groups:
            raise ValueError(f"name pattern '{pattern}': has the groups {', '.join(sorted(groups)) or 'none'}, "
                             f"expected one or more of {', '.join(NAME_GROUPS[:-1])}, such as (?P<camera>\\d+)")

    def read(self, path: str) -> Named:
        for expression in self._expressions:
            match = expression.search(path)
            if match:
                found = match.groupdict()
                return Named(found.get("person", found.get("identity")), found.get("camera"), found.get("time"))
        return Named()
