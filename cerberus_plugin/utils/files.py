"""Write files atomically, and read JSON files and texts."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDING = ".tmp"  # of temporary files
STALE = 3600.0  # seconds since the last write to a temporary file after which its process is taken for dead


@contextlib.contextmanager
def open_whole(path: str | Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` atomically when the block ends without an error.

    Readers and a killed process see the old file or the new one, never a mixture. The content goes to a temporary file
    beside `path` under a name of its own, so that several processes and threads can write the same path at once; the
    last one to finish wins. If writing fails, the temporary file is removed and the old file stays. A later write of
    the path removes temporary files that killed processes left behind, once they are an hour old.

    Args:
        path: the file to replace; missing parent folders are created.
        sync: wait until the content is on the disk, so that it also survives a power failure.

    Raises:
        OSError: names the file and the cause, such as a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _remove_stale(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}{ENDING}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # torch's zip writer hides the disk's error behind a RuntimeError about positions.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(reason, OSError) or reason.filename not in (None, str(temporary)):  # of another file
            raise
        raise OSError(reason.errno or errno.EIO, f"could not be written ({reason.strerror or reason}); a file that was "
                      "there before is unchanged", str(path)) from error


def write_whole(path: str | Path, write: Callable[[BinaryIO], object], sync: bool = True) -> None:
    """Replace a file by what `write` writes to the binary file that it is given, see `open_whole`."""
    with open_whole(path, sync) as file:
        write(file)


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(OSError):  # of a folder that may be written but not listed, or of a file just renamed
        for other in os.listdir(path.parent):
            if other.startswith(f"{path.name}.") and other.endswith(ENDING):
                temporary = path.with_name(other)
                if time.time() - temporary.stat().st_mtime > STALE:
                    temporary.unlink()


def read_json(path: str | os.PathLike, remedy: str) -> Any:
    """What a JSON file holds; a ValueError names the file and ends with the remedy where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON that can be read ({error}); {remedy}") from error


def decode_text(path: str | Path, data: bytes) -> str:
    """Bytes of a text file in UTF-8, or in UTF-16 if they begin with its mark, as a text without a mark.

    Raises:
        ValueError: with file, line and remedy, if they are in another encoding: to guess it could change names.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data[:error.start].count(b"\n")
        raise ValueError(f"{path}, line {line}: byte 0x{data[error.start]:02x} is not "
                         f"{'UTF-16' if marked else 'UTF-8'}. Save the file in UTF-8; Excel calls it 'CSV UTF-8', "
                         "LibreOffice asks for it as the character set.") from error
    if "\0" in text:
        raise ValueError(f"{path}, line {1 + text[:text.index(chr(0))].count(chr(10))}: a NUL character, as in UTF-16 "
                         "without its mark or in a damaged file. Save the file in UTF-8; Excel calls it 'CSV UTF-8'.")
    return text


def file_sha256(path: str | None) -> str | None:
    """Of a file's contents; None where there is no file: results are worth keeping without it."""
    digest = hashlib.sha256()
    try:
        with open(path or "", "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def json_sha256(record: object) -> str:
    """Of a record as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_json(path: str, record) -> None:
    # NaN is not JSON; an undefined figure is null.
    write_text(path, json.dumps(_without_nan(record), indent=1))


def write_text(path: str, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old one or the new one."""
    write_whole(Path(path), lambda file: file.write(text.encode()))


def _without_nan(value):
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figure(path: str | Path, figure: Figure, dpi: int) -> None:
    """Write a figure of matplotlib atomically, in the format of the suffix."""
    write_whole(path, lambda file: figure.savefig(file, dpi=dpi, format=Path(path).suffix[1:] or None))
