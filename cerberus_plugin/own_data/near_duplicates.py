"""Pictures that are nearly the same: saved anew, scaled, or cut a little differently.

A picture's hash says for each cell of a coarse grid whether its right and its lower neighbour is brighter (the
difference hash, https://www.hackerfactor.com/blog/?/archives/529-Kind-of-Like-That.html, in both directions). docs/
audit.md has what was measured against the hashes of the package ImageHash. Shapes: N pictures, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

GRID = 8
BITS = 2 * GRID * GRID
NEAR = 16  # bits in which hashes of nearly the same pictures differ at most
_FOUND = 2**22  # pairs that are compared at a time at most
_KEPT = 10**6  # pairs that are kept at most


def picture_hash(image: Image) -> np.ndarray:
    """Hash of a picture in RGB: uint8 (BITS / 8,)."""
    from PIL.Image import Resampling

    grey = np.asarray(image.convert("L").resize((GRID + 1, GRID + 1), Resampling.LANCZOS))
    across, down = grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]
    return np.packbits(np.stack([across, down]))


def near_pairs(hashes: np.ndarray, near: int = NEAR, progress: bool = True) -> Iterator[np.ndarray]:
    """Pairs of pictures whose hashes differ in `near` bits at most, some at a time.

    Of many pictures with one hash, each is paired with the first alone. Memory is bounded: some 200 MB,
    whatever they show.

    Args:
        hashes: uint8 (N, BITS / 8).

    Yields:
        int64 (P, 3): two pictures, the first before the second, and the number of bits that differ.
    """
    import faiss
    from tqdm import tqdm

    distinct, first, number = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    same = first[number.ravel()]
    copies = np.flatnonzero(same != np.arange(len(hashes)))
    if len(copies):
        yield np.stack([same[copies], copies, np.zeros_like(copies)], axis=1)
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(distinct)
    block = max(1, _FOUND // max(1, len(distinct)))
    for start in tqdm(range(0, len(distinct), block), desc="comparing", unit=" blocks",
                      disable=not progress or len(distinct) < 2 * block):
        ends, distances, others = index.range_search(distinct[start:start + block], near + 1)  # below that
        own = np.repeat(np.arange(len(ends) - 1) + start, np.diff(ends).astype(np.int64))
        kept = own < others
        pairs = np.sort(np.stack([first[own[kept]], first[others[kept]]], axis=1), axis=1)
        if len(pairs):
            yield np.concatenate([pairs, distances[kept, None].astype(np.int64)], axis=1)


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of nearly the same pictures.

    Attributes:
        pairs: int64 (P, 3), two rows and the bits that differ; the nearest first. Those of different people, and those
            of training and test.
        others: number of other pairs, such as successive pictures of one person.
    """

    pairs: np.ndarray
    others: int


def near_duplicates(hashes: np.ndarray, people: np.ndarray, sides: np.ndarray) -> NearDuplicates:
    """Pairs between people, or between training and test.

    Args:
        hashes: uint8 (N, BITS / 8).   people, sides: (N,), who is on a picture, and which side of the split it is on.
    """
    kept, count, others = [np.empty((0, 3), np.int64)], 0, 0
    for pairs in near_pairs(hashes):
        first, second = pairs[:, 0], pairs[:, 1]
        told = (people[first] != people[second]) | (sides[first] != sides[second])
        others += len(pairs) - int(told.sum())
        if count < _KEPT:
            kept.append(pairs[told])
            count += len(kept[-1])
    found = np.concatenate(kept)[:_KEPT]
    return NearDuplicates(found[np.lexsort(found.T)], others)
