"""The one reader of pictures: training, evaluation, searches and figures all open files through it.

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
SEGMENT, SCAN, END = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]"), b"\xff\xda", b"\xff\xd9"  # those that have a length

HEAD = 0.5  # upper share of a person crop that is blurred; it covers 99 % of heads, see tests/utils/test_blur.py
CELLS = 4  # colours that the blurred part keeps across the width; a head is one to two of them


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
    """A picture in RGB, see `to_rgb`, turned as its EXIF orientation says.

    Its size is checked before a pixel is decoded.

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
        data = read_bytes(name, limits.max_bytes)
    if len(data) > limits.max_bytes:
        raise Unreadable(name, f"is a file of more than {limits.max_bytes} bytes")
    if not data:
        raise Unreadable(name, "is empty")
    try:
        return _decode(data, limits, name)
    except MemoryError as error:  # says nothing of the picture
        raise Unreadable(name, "needs more memory than there is", passing=True) from error


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels from the header of a file alone, before its EXIF orientation is applied.

    Raises:
        Unreadable: as `read_image`, as far as the header shows the reason.
    """
    name = os.fspath(path)
    with _open_file(name) as file:
        return _header(file, Limits(), name).size


def to_rgb(image: Image) -> Image:
    """An image of any mode as 8-bit RGB; the image itself if it is RGB already.

    Palettes and CMYK are resolved, transparency is dropped, and of 16-bit grey the upper byte is taken: Pillow's own
    conversion clips it, so that almost every pixel becomes white.

    Raises:
        ValueError: for floating-point pixels and for integers outside 0..65535, whose range is not known.
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
    elif "transparency" in image.info:  # of a palette; Pillow warns that RGB loses it
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def for_display(image: Image) -> Image:
    """An image of a person as it is shown on a page, a sheet or a figure: with a blurred head if that is switched on.

    Every writer of images that are looked at calls it; nothing that a model gets passes through it.
    See `utils.commands.faces_blurred` for the switch.
    """
    return blur_head(image) if blurs_faces() else image


def blur_head(image: Image) -> Image:
    """Replace the part of a person crop where the head is by a few averaged colours, in a copy.

    The upper `HEAD` of the image is averaged in square cells, `CELLS` across the width, and the averages are
    interpolated. Nothing else of the part is kept, so it cannot be restored from the result.

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
    """The bytes of a file; one byte more than `max_bytes` of a file that is larger.

    Raises:
        Unreadable: if it is no file, such as a named pipe, which would block, or cannot be read.
    """
    with _open_file(path) as file:
        try:
            # A buffer of `max_bytes` costs more than reading a small file does.
            return file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
        except OSError as error:
            raise Unreadable(path, f"cannot be read ({error.strerror})", passing=True) from error


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


def _header(file: IO[bytes], limits: Limits, name: str) -> Image:
    """A picture whose pixels are not decoded yet, within the limits."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file, formats=FORMATS)
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
        raise Unreadable(name, f"is broken or cut short ({error})") from error


def _upright(image: Image) -> Image:
    """The picture turned as its EXIF orientation says; as it is stored if its EXIF block is broken."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # Pillow raises errors of any kind
        return image
