"""Files of an index that are tables, and the lock of the process that writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...utils.files import write_whole


def write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Cells between tabs, each escaped so that it keeps to its own."""
    write_whole(path, lambda file: file.writelines(f"{line}\n".encode() for line in
                                                   ("\t".join(map(_escaped, row)) for row in rows)))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Refuse where another process writes this index; where the system has no such locks, trust the user."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder}: another process is writing this index; wait for it to end") from None
        yield
