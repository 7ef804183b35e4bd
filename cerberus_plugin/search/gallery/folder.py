"""Changes of an image folder since it was indexed, and person, camera and time in file names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from ...utils.folders import Picture

# Named groups of a name pattern, as for own data. The outfit is not stored; identity is an older name of person.
NAME_GROUPS = ("person", "camera", "time", "outfit", "identity")
# Times are sortable per camera. Market-1501 counts frames per sequence, so the time begins with the sequence.
KNOWN_NAMES = (
    r"(?:^|/)(?P<identity>-1|\d+)_c(?P<camera>\d+)(?P<time>s\d+_\d{6})_\d{2}\.[^/]*$",  # Market-1501
    r"(?:^|/)(?P<identity>\d+)_c(?P<camera>\d+)_f(?P<time>\d{7,8})\.[^/]*$",  # DukeMTMC-reID
)


class Changes(NamedTuple):
    """Differences between an index and its image folder.

    Attributes:
        new, changed: files to embed.
        deleted: paths of deleted files.
    """

    new: list[Picture]
    changed: list[Picture]
    deleted: list[str]


class Named(NamedTuple):
    """Person, camera and time of a file name, as text; None if the name does not contain them."""

    identity: str | None = None
    camera: str | None = None
    time: str | None = None


def compare(found: Iterable[Picture], known: Mapping[str, tuple[int, int]], refused: Collection[str] = ()) -> Changes:
    """Compare the files of a folder with the indexed files.

    Args:
        found: files of the folder.
        known: size in bytes and modification time in nanoseconds of the indexed files, by path.
        refused: files and folders that could not be read, see `walk`; they do not count as deleted. Read after the
            iteration over `found`, which may fill it.

    Examples:
        >>> changes = compare([Picture("a.jpg", 10, 5), Picture("b.jpg", 10, 5)], {"b.jpg": (10, 4), "c.jpg": (9, 1)})
        >>> [each.path for each in changes.new], [each.path for each in changes.changed], changes.deleted
        (['a.jpg'], ['b.jpg'], ['c.jpg'])
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
    """Reads person, camera and time from file names.

    Args:
        pattern: regular expression with named groups of `NAME_GROUPS`, searched in the path relative to the folder; ""
            for the names of Market-1501 and DukeMTMC-reID.

    Raises:
        ValueError: if the pattern is not a regular expression, or has other groups or none.

    Examples:
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
        """Read one name.

        Args:
            path: relative to the folder, with "/" between folders.
        """
        for expression in self._expressions:
            match = expression.search(path)
            if match:
                found = match.groupdict()
                return Named(found.get("person", found.get("identity")), found.get("camera"), found.get("time"))
        return Named()
