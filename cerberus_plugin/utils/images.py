"""Reading of image files, for training, evaluation, searches and plots.

Shapes: N images, H x W the model's input.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from .commands import blurs_faces

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
INTERPOLATIONS = ("bicubic", "bilinear")  # values of INPUT.INTERPOLATION
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MOST_SCANS, MOST_SEGMENTS = 100, 10_000  # of a JPEG; programs write about 10 scans
SEGMENT, SCAN, END = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), b"\xff\xda", b"\xff\xd9"  # markers with a length

HEAD = 0.5  # upper share of a person crop that is blurred; contains 99 % of heads, see tests/utils/test_blur.py
CELLS = 4  # averaged cells across the width; a head is one to two cells wide


@dataclass(frozen=True)
class Limits:
    """Limits of an image file.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width times height.
        min_side: shorter side in pixels.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    min_side: int = 4


class Unreadable(ValueError):
    """An image file that cannot be read.

    Attributes:
        path: the file.
        reason: end of the message.
        passing: whether the cause is outside the file, such as an unavailable disk, so that a later attempt may
            succeed. Otherwise the file is unreadable until it changes.
    """

    def __init__(self, path: str, reason: str, passing: bool = False) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.passing = path, reason, passing

    def __reduce__(self) -> tuple:
        return Unreadable, (self.path, self.reason, self.passing)  # sent by worker processes


def read_image(source: str | os.PathLike | bytes, limits: Limits | None = None, name: str = "upload") -> Image:
    """Read an image as RGB (see `to_rgb`), rotated according to its EXIF orientation.

    The size is checked before pixels are decoded.

    Args:
        source: a path, or the content of a file.
        limits: maximum and minimum sizes; `Limits()` if None.
        name: name in error messages for an image that is given as bytes.

    Raises:
        Unreadable: if the image cannot be read.
    """
    limits = limits or Limits()
    if isinstance(source, bytes):
        data = source
    else:
        name = os.fspath(source)
        data = read_bytes(name, limits.max_bytes)
    if len(data) > limits.max_bytes:
        raise Unreadable(name, f"is a file of more than {limits.max_bytes} bytes")
    if not data:
        raise Unreadable(name, "is empty")
    try:
        return _decode(data, limits, name)
    except MemoryError as error:  # not the fault of the file
        raise Unreadable(name, "needs more memory than there is", passing=True) from error


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Read the width and height in pixels from the header of a file, before its EXIF orientation is applied.

    Raises:
        Unreadable: as in `read_image`, as far as the header shows the reason.
    """
    name = os.fspath(path)
    with _open_file(name) as file:
        return _header(file, Limits(), name).size


def to_rgb(image: Image) -> Image:
    """Convert an image of any mode to 8-bit RGB; an RGB image is returned unchanged.

    Palettes and CMYK are converted, and transparency is removed. For 16-bit grey the upper byte is used: Pillow's own
    conversion clips the values, so that almost every pixel would become white.

    Raises:
        ValueError: for floating-point pixels and for integers outside 0..65535, because their range is unknown.

    Examples:
        >>> from PIL import Image
        >>> to_rgb(Image.new("L", (2, 2), 7)).getpixel((0, 0))
        (7, 7, 7)
    """
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit PNG is "I" in older versions of Pillow
        values = np.asarray(image)
        if image.mode == "I" and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError(f"image has values from {values.min()} to {values.max()}, expected 0 to 65535 (16 bits); "
                             "convert it to 8 bits")
        from PIL import Image as images

        image = images.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("image has floating-point pixels (mode F), expected integers; convert it to 8 bits")
    elif "transparency" in image.info:  # of a palette; Pillow would warn that RGB loses it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def for_display(image: Image) -> Image:
    """Return an image of a person for a page, a contact sheet or a figure, with a blurred head if this is enabled.

    All code that shows images calls this function; images for a model are never passed through it. It is enabled by
    `utils.commands.faces_blurred`.
    """
    return blur_head(image) if blurs_faces() else image


def blur_head(image: Image) -> Image:
    """Replace the upper part of a person crop, which contains the head, by a few averaged colours, in a copy.

    The upper share `HEAD` of the image is averaged in square cells, `CELLS` across the width, and the averages are
    interpolated. The part cannot be restored, because the result depends only on the averages.

    Examples:
        >>> from PIL import Image
        >>> image = Image.new("RGB", (64, 128), "white")
        >>> image.putpixel((32, 20), (0, 0, 0))
        >>> blur_head(image).getpixel((32, 20))
        (254, 254, 254)
    """
    from PIL.Image import Resampling

    blurred = image.convert("RGB")
    blurred = blurred.copy() if blurred is image else blurred
    width, height = image.width, math.ceil(HEAD * image.height)
    head = blurred.crop((0, 0, width, height))
    rows = max(1, round(CELLS * height / width))
    averages = head.resize((min(CELLS, width), min(rows, CELLS, height)), Resampling.BOX)
    blurred.paste(averages.resize(head.size, Resampling.BICUBIC), (0, 0))
    return blurred


def to_array(images: Sequence[Image], size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Resize images to a model's input size, as the transforms of FastReID do.

    Args:
        images: of any size and mode.
        size: height and width in pixels.
        interpolation: INPUT.INTERPOLATION of the run, one of `INTERPOLATIONS`.

    Returns:
        uint8 (N, 3, H, W), RGB.

    Examples:
        >>> from PIL import Image
        >>> to_array([Image.new("RGB", (10, 20), (255, 0, 0))], (4, 2), "bilinear")[0, :, 0, 0].tolist()
        [255, 0, 0]
    """
    from PIL.Image import Resampling

    resample = Resampling[interpolation.upper()]

    array = np.empty((len(images), 3, *size), dtype=np.uint8)
    for row, image in zip(array, images):
        row[:] = np.asarray(to_rgb(image).resize(size[::-1], resample)).transpose(2, 0, 1)
    return array


def _open_file(path: str) -> IO[bytes]:
    if not Path(path).is_file():  # opening a named pipe would block
        raise Unreadable(path, "is not a file" if Path(path).exists() else "not found", passing=True)
    try:
        return open(path, "rb")
    except OSError as error:
        raise Unreadable(path, f"cannot be opened ({error.strerror})", passing=True) from error


def read_bytes(path: str, max_bytes: int) -> bytes:
    """Read the content of a file; of a larger file, only the first `max_bytes` + 1 bytes.

    Raises:
        Unreadable: if it cannot be read, or is not a regular file: opening a named pipe would block.
    """
    with _open_file(path) as file:
        try:
            # Allocating a buffer of `max_bytes` would cost more than reading a small file.
            return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
        except OSError as error:
            raise Unreadable(path, f"cannot be read ({error.strerror})", passing=True) from error


def _check_segments(data: bytes, name: str) -> None:
    """Reject a JPEG that would take minutes to decode: each scan, however short, is applied to all pixels."""
    if not data.startswith(b"\xff\xd8"):
        return
    scans, at = 0, 0
    for _ in range(MOST_SEGMENTS):
        found = SEGMENT.search(data, at)
        if found is None or found[0] == END:  # further images or a video may follow
            return
        scans += found[0] == SCAN
        if scans > MOST_SCANS:
            raise Unreadable(name, f"has too many scans, more than {MOST_SCANS}; save it again")
        at = found.end() + int.from_bytes(data[found.end():found.end() + 2], "big")
    raise Unreadable(name, f"has too many segments, more than {MOST_SEGMENTS}; save it again")


def _header(file: IO[bytes], limits: Limits, name: str) -> Image:
    """Open an image without decoding its pixels, and check the limits."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(name, f"has more than {limits.max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise Unreadable(name, f"is not an image of a supported format ({', '.join(FORMATS)})") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise errors of any kind for broken data
        raise Unreadable(name, f"is broken or truncated ({error})") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise Unreadable(name, f"has more than {limits.max_pixels} pixels ({width} x {height})")
    if min(width, height) < limits.min_side:
        raise Unreadable(name, f"is smaller than {limits.min_side} x {limits.min_side} pixels ({width} x {height})")
    return image


def _decode(data: bytes, limits: Limits, name: str) -> Image:
    _check_segments(data, name)
    image = _header(BytesIO(data), limits, name)
    try:
        image.load()
        return to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:
        raise Unreadable(name, f"is broken or truncated ({error})") from error


def _upright(image: Image) -> Image:
    """Rotate an image according to its EXIF orientation; return it unchanged if the EXIF block is broken."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of any kind
        return image
