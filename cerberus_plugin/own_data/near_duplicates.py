"""Find images that are nearly identical: compressed again, scaled, or cropped slightly differently.

The hash of an image has two bits for each cell of a coarse grid: whether the right neighbour is brighter, and whether
the lower neighbour is (the difference hash, https://www.hackerfactor.com/blog/?/archives/529-Kind-of-Like-That.html, in
both directions). docs/audit.md compares it with the hashes of the package ImageHash. Shapes: N images, P pairs.
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
NEAR = 16  # largest number of differing bits of nearly identical images
_FOUND = 2**22  # largest number of pairs that are compared at a time
_KEPT = 10**6  # largest number of pairs that are returned


def picture_hash(image: Image) -> np.ndarray:
    """Compute the difference hash of an image.

    Args:
        image: in RGB, of any size.

    Returns:
        uint8 (BITS / 8,).
    """
    from PIL.Image import Resampling

    grey = np.asarray(image.convert("L").resize((GRID + 1, GRID + 1), Resampling.LANCZOS))
    across, down = grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]
    return np.packbits(np.stack([across, down]))


def near_pairs(hashes: np.ndarray, near: int = NEAR, progress: bool = True) -> Iterator[np.ndarray]:
    """Find the pairs of images whose hashes differ in at most `near` bits, in blocks.

    If several images have the same hash, each of them is paired only with the first. About 200 MB of memory suffice for
    any images.

    Args:
        hashes: uint8 (N, BITS / 8).
        near: largest number of differing bits.
        progress: show a progress bar if there is more than one block.

    Yields:
        int64 (P, 3): the rows of two images, the smaller one first, and the number of differing bits.
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
        ends, distances, others = index.range_search(distinct[start:start + block], near + 1)  # exclusive bound
        own = np.repeat(np.arange(len(ends) - 1) + start, np.diff(ends).astype(np.int64))
        kept = own < others
        pairs = np.sort(np.stack([first[own[kept]], first[others[kept]]], axis=1), axis=1)
        if len(pairs):
            yield np.concatenate([pairs, distances[kept, None].astype(np.int64)], axis=1)


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of nearly identical images.

    Attributes:
        pairs: int64 (P, 3), pairs of different people or between training and test: two rows and the number of
            differing bits, which sort the pairs in ascending order.
        others: number of other pairs, such as successive images of a person.
    """

    pairs: np.ndarray
    others: int


def near_duplicates(hashes: np.ndarray, people: np.ndarray, sides: np.ndarray) -> NearDuplicates:
    """Find nearly identical images of different people, or in both training and test.

    Args:
        hashes: uint8 (N, BITS / 8).
        people: (N,), the identity of each image.
        sides: (N,), the part of the split, such as train or test.

    Returns:
        these pairs, and the number of all others.
    """
    kept, count, others = [np.empty((0, 3), np.int64)], 0, 0
    for pairs in near_pairs(hashes):
        first, second = pairs[:, 0], pairs[:, 1]
        crossing = (people[first] != people[second]) | (sides[first] != sides[second])
        others += len(pairs) - int(crossing.sum())
        if count < _KEPT:
            kept.append(pairs[crossing])
            count += len(kept[-1])
    found = np.concatenate(kept)[:_KEPT]
    return NearDuplicates(found[np.lexsort(found.T)], others)
