"""Tables in index folders, and the lock of the writing process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ...utils.files import write_whole


def write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write a tab-separated file in one step; tabs, line breaks and backslashes in cells are escaped.

    Args:
        path: of the file.
        rows: cells of each row.
    """
    write_whole(path, lambda file: file.writelines(f"{line}\n".encode() for line in
                                                   ("\t".join(map(_escaped, row)) for row in rows)))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the write lock of an index folder. On systems without `fcntl`, such as Windows, there is no lock.

    Args:
        folder: of the index.

    Raises:
        RuntimeError: if another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder}: another process is writing this index; wait until it ends") from None
        yield
