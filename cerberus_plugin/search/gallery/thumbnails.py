"""Thumbnails of images."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from ...utils.images import for_display, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

HEIGHT = 256  # twice that of Market-1501's crops
WIDEST = 2  # times the height


def thumbnail(image: Image, height: int = HEIGHT) -> bytes:
    """Create a thumbnail without metadata.

    Args:
        image: of any size and mode.
        height: maximum height in pixels; the width is at most `WIDEST` times the height.

    Returns:
        the bytes of a JPEG file.
    """
    from PIL.Image import Resampling

    scale = min(1, height / image.height, WIDEST * height / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = for_display(to_rgb(image))
    small = small.copy() if size == image.size else small.resize(size, Resampling.LANCZOS)
    small.info = {}
    out = BytesIO()
    small.save(out, "JPEG", quality=85)
    return out.getvalue()
