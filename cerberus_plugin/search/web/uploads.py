"""Uploaded pictures: decoded within limits, embedded once, and kept in memory only."""

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

MOST = 64
LIMITS = Limits(max_bytes=8 * 2**20, max_pixels=16_000_000)  # less than in galleries: anybody may upload


class Sent(NamedTuple):
    """The embedding of an uploaded picture, float32 (E,), and a small JPEG of its pixels."""

    embedding: np.ndarray
    jpeg: bytes


class Uploads:
    """Uploaded pictures by unguessable tokens; the least recently used ones are removed.

    Args:
        most: how many are kept.
    """

    def __init__(self, index: GalleryIndex, encoder: Encoder, limits: Limits = LIMITS, most: int = MOST) -> None:
        index.check(encoder)
        self.limits = limits
        self._index, self._encoder, self._most = index, encoder, most
        self._kept: OrderedDict[str, Sent] = OrderedDict()
        self._lock = threading.Lock()
        self._encoding = threading.Lock()  # an encoder takes all there is of a machine

    def add(self, data: bytes) -> str:
        """The token of a picture from the bytes of its file; raises `Unreadable`."""
        image = read_image(data, self.limits, "picture")
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
        with self._lock:
            if token not in self._kept:
                raise ValueError("picture: not here any more; pictures that are searched for are kept in memory only, "
                                 f"the last {self._most} of them. Choose it again")
            self._kept.move_to_end(token)
            return self._kept[token]
