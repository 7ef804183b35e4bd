"""Pictures from anywhere, opened with care, and made into what a model takes.

Shapes: N images, H x W the model's input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MOST_SCANS, MOST_SEGMENTS = 100, 10_000  # of a JPEG; programs write about 10 scans
SEGMENT, SCAN, END = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), b"\xff\xda", b"\xff\xd9"  # those that have a length


@dataclass(frozen=True)
class Limits:
    """What a picture may measure: bytes of its file, pixels in all, and the shorter side in pixels at least."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    min_side: int = 4


class Unreadable(ValueError):
    """A picture that is not opened, and the reason.

    Attributes:
        passing: whether the reason lies outside the file, such as a disk that is away, so that it may be gone the next
            time; if not, the file stays unreadable until it changes.
    """

    def __init__(self, path: str, reason: str, passing: bool = False) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.passing = path, reason, passing

    def __reduce__(self) -> tuple:
        return Unreadable, (self.path, self.reason, self.passing)  # workers that read pictures send it to their parent


def read_image(source: str | os.PathLike | bytes, limits: Limits | None = None, name: str = "upload") -> Image:
    """A picture in RGB, turned as its EXIF orientation says; its size is checked before a pixel is decoded.

    Args:
        source: a path, or the bytes of a file.   limits: `Limits()` if None.
        name: how errors call a picture that is given by its bytes.

    Raises:
        Unreadable: with the reason.
    """
    limits = limits or Limits()
    if isinstance(source, bytes):
        data = source
    else:
        name = os.fspath(source)
        data = _read_file(name, limits.max_bytes)
    if len(data) > limits.max_bytes:
        raise Unreadable(name, f"is a file of more than {limits.max_bytes} bytes")
    if not data:
        raise Unreadable(name, "is empty")
    try:
        return _decode(data, limits, name)
    except MemoryError as error:  # says nothing of the picture
        raise Unreadable(name, "needs more memory than there is", passing=True) from error


def to_array(images: Sequence[Image], size: tuple[int, int]) -> np.ndarray:
    """Pictures at a model's input size (H, W), bicubic as in training: uint8 (N, 3, H, W)."""
    from PIL.Image import Resampling

    array = np.empty((len(images), 3, *size), dtype=np.uint8)
    for row, image in zip(array, images):
        row[:] = np.asarray(image.convert("RGB").resize(size[::-1], Resampling.BICUBIC)).transpose(2, 0, 1)
    return array


def _read_file(path: str, max_bytes: int) -> bytes:
    """At most one byte more than is allowed, so that a file that grows meanwhile is refused as well."""
    if not Path(path).is_file():  # a named pipe would be waited for without end
        raise Unreadable(path, "is not a file" if Path(path).exists() else "not found", passing=True)
    try:
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise Unreadable(path, f"cannot be opened ({error.strerror})", passing=True) from error


def _check_segments(data: bytes, name: str) -> None:
    """Refuse a JPEG that takes minutes to decode: each scan goes over all pixels, however few bytes it has."""
    if not data.startswith(b"\xff\xd8"):
        return
    scans, at = 0, 0
    for _ in range(MOST_SEGMENTS):
        found = SEGMENT.search(data, at)
        if found is None or found[0] == END:  # further images may follow, or a film
            return
        scans += found[0] == SCAN
        if scans > MOST_SCANS:
            raise Unreadable(name, f"has too many scans, more than {MOST_SCANS}; save it anew")
        at = found.end() + int.from_bytes(data[found.end():found.end() + 2], "big")
    raise Unreadable(name, f"has too many segments, more than {MOST_SEGMENTS}; save it anew")


def _decode(data: bytes, limits: Limits, name: str) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    _check_segments(data, name)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)  # reads the header
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(name, f"has more than {limits.max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise Unreadable(name, f"is no picture of a known format ({', '.join(FORMATS)})") from error
    except MemoryError:
        raise
    except Exception as error:  # broken data leads Pillow's parsers to errors of any kind
        raise Unreadable(name, f"is broken or cut short ({error})") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise Unreadable(name, f"has more than {limits.max_pixels} pixels ({width} x {height})")
    if min(width, height) < limits.min_side:
        raise Unreadable(name, f"is smaller than {limits.min_side} x {limits.min_side} pixels ({width} x {height})")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise Unreadable(name, f"is broken or cut short ({error})") from error
    try:
        image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # noqa: S110  a broken EXIF block leaves the picture as it is stored, as in training
        pass
    return image.convert("RGB")
