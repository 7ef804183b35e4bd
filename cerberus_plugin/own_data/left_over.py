"""Find tables and images in a dataset's folder that are not read, for example because of a wrong file name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..utils.folders import HIDDEN, counts_text
from .overlay import OVERLAY
from .schema_file import FILE_NAME
from .split import PARTS, SPLIT_FILE, TEST
from .tables import SPREADSHEETS, SUFFIXES, TO_CSV

METADATA, PEOPLE, OUTFITS = "metadata.csv", "people.csv", "outfits.csv"
_TABLES = (*SUFFIXES, *SPREADSHEETS, ".tsv")
_NAMES = (*(f"metadata{suffix}" for suffix in SUFFIXES), PEOPLE, OUTFITS, SPLIT_FILE, FILE_NAME, OVERLAY)
_OTHER_NAMES = {name: Path(name).stem for name in _NAMES}
_NO_PICTURES = {HIDDEN, "", ".yaml", ".yml", ".json", ".html", ".txt", ".md", ".pdf", *_TABLES}
MOST_NAMES = 3  # listed in a note


def refuse_misnamed(folder: Path) -> None:
    """Check that no table or schema has nearly the name of a file that is read, such as `people.xlsx`.

    Args:
        folder: of the dataset.

    Raises:
        ValueError: if there is such a file, with its name and a remedy.
    """
    for place in (folder, *(folder / part for part in (*PARTS, TEST))):
        there = os.listdir(place) if place.is_dir() else []
        read = {_OTHER_NAMES[name] for name in there if name in _OTHER_NAMES}
        for name in sorted(name for name in there if name not in _OTHER_NAMES):
            stem, suffix = os.path.splitext(name.casefold())
            known = [other for other, own in _OTHER_NAMES.items() if own == stem]
            if not known or stem in read or not (place / name).is_file():
                continue
            right = FILE_NAME if known == [FILE_NAME] and suffix == ".yml" else f"{stem}{suffix}"
            if right in known:
                raise ValueError(f"{place / name}: is not read under this name. Rename it to {right}.")
            if suffix in _TABLES and known != [FILE_NAME]:
                raise ValueError(f"{place / name}: is not read, expected {' or '.join(known)}. "
                                 + (TO_CSV if suffix in SPREADSHEETS else "Save it in this format."))


def other_tables(folder: Path, read: Iterable[Path]) -> list[str]:
    """List the tables in a folder that are not read.

    Args:
        folder: of the dataset.
        read: tables of images that are read.

    Returns:
        one note, or none if all tables are read.
    """
    known = {*_NAMES, *(path.name for path in read)}
    names = sorted(name for name in os.listdir(folder) if name.casefold().endswith(_TABLES) and name not in known
                   and not name.startswith((".", "~$")) and (folder / name).is_file())
    return [f"not read: {_listed(names)}; tables are called {METADATA}, {PEOPLE} and {OUTFITS}"] if names else []


def other_files(passed_over: Counter[str]) -> str:
    """Describe skipped files that might be images, such as `.heic`.

    Args:
        passed_over: number of skipped files by kind, from `utils.folders.walk`.

    Returns:
        kinds with their counts, "" if there are none.
    """
    return counts_text(Counter({kind: count for kind, count in passed_over.items() if kind not in _NO_PICTURES}))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
