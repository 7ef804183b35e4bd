"""Atomic writing of files, reading of JSON and text files, and checksums."""

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
STALE = 3600.0  # seconds after the last write at which a temporary file counts as abandoned


@contextlib.contextmanager
def open_whole(path: str | Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` atomically when the block ends without an error.

    There is always either the complete old file or the complete new one. The content is written to a temporary file
    with a unique name in the same folder, so several processes and threads can write the same path at once; the last
    one to finish wins. If writing fails, the temporary file is removed and the old file is unchanged. Temporary files
    of killed processes are removed by a later write of the same path, once they are an hour old.

    Args:
        path: file to replace; missing parent folders are created.
        sync: wait until the content is on disk, so that it survives a power failure.

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
        # torch's zip writer raises a RuntimeError about file positions in place of the disk's error.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(reason, OSError) or reason.filename not in (None, str(temporary)):  # about another file
            raise
        raise OSError(reason.errno or errno.EIO, f"could not be written ({reason.strerror or reason}); a file that was "
                      "there before is unchanged", str(path)) from error


def write_whole(path: str | Path, write: Callable[[BinaryIO], object], sync: bool = True) -> None:
    """Replace a file atomically, see `open_whole`.

    Args:
        path: file to replace.
        write: function that writes the content to the binary file that it is given.
        sync: see `open_whole`.
    """
    with open_whole(path, sync) as file:
        write(file)


def _remove_stale(path: Path) -> None:
    with contextlib.suppress(OSError):  # the folder cannot be listed, or a file was just renamed
        for other in os.listdir(path.parent):
            if other.startswith(f"{path.name}.") and other.endswith(ENDING):
                temporary = path.with_name(other)
                if time.time() - temporary.stat().st_mtime > STALE:
                    temporary.unlink()


def read_json(path: str | os.PathLike, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: file to read.
        remedy: end of the error message, what to do if the file is damaged.

    Raises:
        ValueError: if the file is not valid JSON; names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {remedy}") from error


def decode_text(path: str | Path, data: bytes) -> str:
    """Decode a text file: UTF-8, or UTF-16 if there is a byte order mark. The mark is removed.

    Other encodings are not guessed, because a wrong guess would change names.

    Args:
        path: for the error message.
        data: content of the file.

    Raises:
        ValueError: for other encodings; with file, line and remedy.

    Examples:
        >>> decode_text("a.csv", "\\u00e9".encode("utf-8-sig")) == "\\u00e9"
        True
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
                         "without its byte order mark or in a damaged file. Save the file in UTF-8; Excel calls it "
                         "'CSV UTF-8'.")
    return text


def file_sha256(path: str | None) -> str | None:
    """Return the SHA-256 of a file as hexadecimal text, or None if the file cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path or "", "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def json_sha256(record: object) -> str:
    """Return the SHA-256 of a record as JSON with sorted keys.

    Examples:
        >>> json_sha256({"a": 1, "b": 2}) == json_sha256({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_json(path: str, record) -> None:
    """Write a JSON file atomically. NaN and infinite numbers are written as null, because JSON does not have them."""
    write_text(path, json.dumps(_without_nan(record), indent=1))


def write_text(path: str, text: str) -> None:
    """Write a text file atomically in UTF-8."""
    write_whole(Path(path), lambda file: file.write(text.encode()))


def _without_nan(value):
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_figure(path: str | Path, figure: Figure, dpi: int) -> None:
    """Write a matplotlib figure atomically, in the format given by the suffix.

    Args:
        path: file to write.
        figure: the figure.
        dpi: dots per inch.
    """
    write_whole(path, lambda file: figure.savefig(file, dpi=dpi, format=Path(path).suffix[1:] or None))
