"""The pictures of a folder tree, in one order on every machine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .images import SUFFIXES


class Picture(NamedTuple):
    """A file as it was found: its path below the folder with "/" between names, bytes, nanoseconds since 1970.

    Size and time are None where they say nothing of why it cannot be read.
    """

    path: str
    size: int | None
    mtime_ns: int | None


# What a walk passes over, beside other suffixes.
LINKS, BROKEN, HIDDEN = "linked folders", "broken links", "hidden files and folders"
Refuse = Callable[[str, str], None]


def walk(folder: str | Path, refuse: Refuse | None = None, follow_links: bool = False,
         passed_over: Counter[str] | None = None) -> Iterator[Picture]:
    """Pictures of a folder and those below it, sorted by name in each; hidden files and folders are passed over.

    Args:
        refuse: called with the path and the reason of what cannot be looked at, a folder's path ending in "/"; if None,
            an OSError ends the walk.
        follow_links: whether links to folders are followed; each folder is entered once, under one path.
        passed_over: counts `LINKS`, `BROKEN`, `HIDDEN`, and other files by suffix.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of pictures")
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
        """Whether this is a link to a folder to enter; one of the walk's own folder is entered by its own path."""
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
                self.refuse(path, f"cannot be looked at ({error.strerror})")
            return
        if state is not None:
            yield Picture(path, state.st_size, state.st_mtime_ns)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            self.passed_over[BROKEN] += 1

    def _is_text(self, path: str, ending: str = "") -> bool:
        try:
            path.encode()
        except UnicodeEncodeError:
            self.refuse(_written(path) + ending, "its name is no text (UTF-8); rename it")
            return False
        return True


def counts_text(passed_over: Counter[str], largest: int = 5) -> str:
    """What a walk has passed over, in words; the most frequent kinds."""
    names = {LINKS: LINKS, BROKEN: BROKEN, HIDDEN: HIDDEN, "": "files without a suffix"}
    return ", ".join(f"{names.get(kind, f'files ending in {kind}')} ({count})"
                     for kind, count in passed_over.most_common(largest))


def _listed(folder: str, prefix: str, refuse: Refuse) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if not prefix:  # nothing is known of any picture
            raise
        if not isinstance(error, FileNotFoundError):  # deleted since it was listed
            refuse(prefix, f"cannot be looked into ({error.strerror})")
        return []


def _written(path: str) -> str:
    """A path that is no text, in a form which no other path takes; none that is text begins with "./"."""
    return "./" + os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _raise(path: str, reason: str) -> None:
    raise OSError(f"{path}: {reason}")
