"""Uploaded images: decoded within limits, embedded once, and stored in memory only."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...utils.images import Limits, read_image
from ..gallery import GalleryIndex
from ..gallery.thumbnails import thumbnail

if TYPE_CHECKING:
    from ..portable.encoder import Encoder

MOST = 64  # stored uploads
LIMITS = Limits(max_bytes=8 * 2**20, max_pixels=16_000_000)  # lower than for galleries, since uploads are not trusted


class Sent(NamedTuple):
    """An uploaded image.

    Attributes:
        embedding: float32 (E,).
        jpeg: thumbnail, the bytes of a JPEG file.
    """

    embedding: np.ndarray
    jpeg: bytes


class Uploads:
    """Stores uploaded images by random tokens; the least recently used images are removed.

    Args:
        index: of the gallery.
        encoder: model of the index.
        limits: of image files.
        most: maximum number of stored images.

    Raises:
        ValueError: if the encoder is not the model of the index.
    """

    def __init__(self, index: GalleryIndex, encoder: Encoder, limits: Limits = LIMITS, most: int = MOST) -> None:
        index.check(encoder)
        self.limits = limits
        self._index, self._encoder, self._most = index, encoder, most
        self._kept: OrderedDict[str, Sent] = OrderedDict()
        self._lock = threading.Lock()
        self._encoding = threading.Lock()  # one at a time, since an encoder uses all cores

    def add(self, data: bytes) -> str:
        """Add an image.

        Args:
            data: bytes of the image file.

        Returns:
            its token.

        Raises:
            Unreadable: if it is not an image, or exceeds the limits.
        """
        image = read_image(data, self.limits, "image")
        with self._encoding:
            embedding = self._index.embed(self._encoder, image)
        sent = Sent(embedding, thumbnail(image))
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[token] = sent
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return token

    def __contains__(self, token: str) -> bool:
        with self._lock:
            return token in self._kept

    def get(self, token: str) -> Sent:
        """Return the image of a token.

        Raises:
            ValueError: if there is none, or it was removed.
        """
        with self._lock:
            if token not in self._kept:
                raise ValueError(f"image: no longer available; only the last {self._most} uploaded images are stored, "
                                 "in memory. Choose the image again")
            self._kept.move_to_end(token)
            return self._kept[token]
