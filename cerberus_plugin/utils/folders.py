"""Listing of the images in a folder tree, in the same order on every machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .images import SUFFIXES


class Picture(NamedTuple):
    """An image file that was found.

    Attributes:
        path: relative to the folder, with "/" as the separator.
        size: bytes; None for a file that cannot be read for a reason other than its content.
        mtime_ns: time of the last change, nanoseconds since 1970; None likewise.
    """

    path: str
    size: int | None
    mtime_ns: int | None


# Kinds of entries that are skipped, in addition to other suffixes.
LINKS, BROKEN, HIDDEN = "linked folders", "broken links", "hidden files and folders"
Refuse = Callable[[str, str], None]


def walk(folder: str | Path, refuse: Refuse | None = None, follow_links: bool = False,
         passed_over: Counter[str] | None = None) -> Iterator[Picture]:
    """List the images of a folder and its subfolders, each sorted by name. Hidden files and folders are skipped.

    Args:
        folder: folder to list.
        refuse: called with the path and the reason for each entry that cannot be accessed; the path of a folder ends in
            "/". If None, OSError is raised instead.
        follow_links: whether to follow links to folders; each folder is entered once, under one path.
        passed_over: counter of skipped entries, updated in place: `LINKS`, `BROKEN`, `HIDDEN`, and other files by
            suffix.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    return _Walk(str(folder), refuse or _raise, follow_links, Counter() if passed_over is None else passed_over).below()


class _Walk:
    def __init__(self, root: str, refuse: Refuse, follow_links: bool, passed_over: Counter[str]) -> None:
        self.root, self.refuse, self.follow_links, self.passed_over = root, refuse, follow_links, passed_over
        self.entered: set[str] = set()  # real paths

    def below(self, folder: str = "", prefix: str = "") -> Iterator[Picture]:
        folder = folder or self.root
        if self.follow_links:
            real = os.path.realpath(folder)
            if real in self.entered:
                return
            self.entered.add(real)
        for entry in _listed(folder, prefix, self.refuse):
            if entry.name.startswith("."):
                self.passed_over[HIDDEN] += 1
            elif entry.is_dir(follow_symlinks=False) or self._follows(entry):
                if self._is_text(f"{prefix}{entry.name}", "/"):
                    yield from self.below(entry.path, f"{prefix}{entry.name}/")
            else:
                yield from self._picture(entry, f"{prefix}{entry.name}")

    def _follows(self, entry: os.DirEntry) -> bool:
        """Return whether to enter a link to a folder; a folder below the root is entered only by its own path."""
        try:
            if not (entry.is_symlink() and entry.is_dir()):
                return False
        except OSError:  # such as a link to itself
            return False
        if not self.follow_links:
            self.passed_over[LINKS] += 1
            return False
        root = os.path.realpath(self.root)
        return os.path.commonpath([root, os.path.realpath(entry.path)]) != root

    def _picture(self, entry: os.DirEntry, path: str) -> Iterator[Picture]:
        suffix = os.path.splitext(entry.name)[1].lower()
        try:
            if suffix not in SUFFIXES:
                if entry.is_file():
                    self.passed_over[suffix] += 1
                return
            if not self._is_text(path):
                return
            state = entry.stat() if entry.is_file() else None
        except FileNotFoundError:  # deleted since it was listed
            return
        except OSError as error:
            if suffix in SUFFIXES:
                self.refuse(path, f"cannot be accessed ({error.strerror})")
            return
        if state is not None:
            yield Picture(path, state.st_size, state.st_mtime_ns)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            self.passed_over[BROKEN] += 1

    def _is_text(self, path: str, ending: str = "") -> bool:
        try:
            path.encode()
        except UnicodeEncodeError:
            self.refuse(_written(path) + ending, "its name is not valid UTF-8; rename it")
            return False
        return True


def counts_text(passed_over: Counter[str], largest: int = 5) -> str:
    """Describe the entries that `walk` has skipped.

    Args:
        passed_over: counter filled by `walk`.
        largest: number of kinds to name, the most frequent ones.

    Examples:
        >>> counts_text(Counter({".txt": 3, HIDDEN: 1}))
        'files ending in .txt (3), hidden files and folders (1)'
    """
    names = {LINKS: LINKS, BROKEN: BROKEN, HIDDEN: HIDDEN, "": "files without a suffix"}
    return ", ".join(f"{names.get(kind, f'files ending in {kind}')} ({count})"
                     for kind, count in passed_over.most_common(largest))


def _listed(folder: str, prefix: str, refuse: Refuse) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if not prefix:  # the root folder itself
            raise
        if not isinstance(error, FileNotFoundError):  # deleted since it was listed
            refuse(prefix, f"cannot be listed ({error.strerror})")
        return []


def _written(path: str) -> str:
    """Return a path that is not valid UTF-8 as a unique text; it begins with "./", as no valid path does."""
    return "./" + os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _raise(path: str, reason: str) -> None:
    raise OSError(f"{path}: {reason}")
