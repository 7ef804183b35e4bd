"""People who are probably one, one person who is probably two, and pictures that lie with another person.

A picture is compared by the model that was not trained on its person. Two people of different folds are compared by
both of their models, in each of which one of them is new. Similarities are scaled for each model by people whom it was
not trained on: 0 is the mean of pictures of different people, 1 that of pictures of one person.

Shapes: N pictures, P people, E size of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 512  # people or pictures that are compared with all people at a time
FEWEST = 4  # pictures of somebody who may be two


@dataclass(frozen=True)
class Space:
    """Embeddings of one model: sums of unit vectors by person.

    Attributes:
        vectors: (N, E), of unit length, NaN where a picture cannot be read.
        sums: float32 (P, E).   counts: float32 (P,), pictures of each person that can be read.
        zero, one: similarities that are scaled to 0 and 1.
    """

    vectors: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    zero: float
    one: float

    def scaled(self, similarity: np.ndarray) -> np.ndarray:
        return (similarity - self.zero) / (self.one - self.zero)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.vectors[rows], np.float32)

    @property
    def means(self) -> np.ndarray:
        return self.sums / np.maximum(self.counts, 1)[:, None]

    def within(self, people: np.ndarray) -> np.ndarray:
        """Mean similarity of two pictures of each person; NaN with fewer than two: float (n,)."""
        sums, count = self.sums[people], self.counts[people]
        total = (sums**2).sum(axis=1) - count  # a picture with itself is 1
        return np.divide(total, count * (count - 1), out=np.full(len(people), np.nan, np.float32), where=count > 1)


def space_of(vectors: np.ndarray, person: np.ndarray, new: np.ndarray, people: int) -> Space:
    """Sums by person, and the scale.

    Args:
        vectors: (N, E).   person: int64 (N,).   new: bool (P,), whom the model was not trained on.
    """
    sums, counts = np.zeros((people, vectors.shape[1]), np.float32), np.zeros(people, np.float32)
    for start in range(0, len(vectors), 4096):
        rows = np.asarray(vectors[start:start + 4096], np.float32)
        there = np.isfinite(rows[:, 0])
        np.add.at(sums, person[start:start + 4096][there], rows[there])
        np.add.at(counts, person[start:start + 4096][there], 1)
    space = Space(vectors, sums, counts, 0.0, 1.0)
    own = np.flatnonzero(new & (counts > 0))
    within = space.within(own)
    total, means = space.means[own].sum(axis=0), space.means[own]
    pairs = len(own) * (len(own) - 1)
    between = float((total @ total - (means**2).sum()) / pairs) if pairs else 0.0
    one = float(np.nanmean(within)) if np.isfinite(within).any() else 1.0
    return Space(vectors, sums, counts, between, max(one, between + 1e-6))


@dataclass(frozen=True)
class Pair:
    """Two people who are as alike as `alike` says, and how alike the pictures of each are; scaled."""

    first: int
    second: int
    alike: float
    within: float


def same_people(spaces: Sequence[Space], model_of: np.ndarray) -> list[Pair]:
    """For each person the likeliest other one, where each is the other's likeliest: pairs, the most alike first.

    Args:
        model_of: int64 (P,), the model that was not trained on a person; -1 for all were.
    """
    people = np.flatnonzero(model_of >= 0)
    within = np.full(len(model_of), np.nan)
    for k, space in enumerate(spaces):
        own = people[model_of[people] == k]
        within[own] = space.scaled(space.within(own))
    best, alike = np.full(len(model_of), -1), np.full(len(model_of), -np.inf)
    for start in range(0, len(people), BLOCK):
        block = people[start:start + BLOCK]
        by_model = np.stack([space.scaled(space.means[block] @ space.means[people].T) for space in spaces])
        of_block = by_model[model_of[block], np.arange(len(block))]  # by the model of the first
        of_others = np.take_along_axis(by_model, model_of[people][None, None], axis=0)[0]  # by that of the second
        both = (of_block + of_others) / 2
        both[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        place = both.argmax(axis=1)
        best[block], alike[block] = people[place], both[np.arange(len(block)), place]
    pairs = [Pair(one, int(best[one]), float(alike[one]), float(np.nanmean([within[one], within[best[one]], 1.0])))
             for one in people.tolist() if best[one] >= 0 and best[best[one]] == one and one < best[one]]
    return sorted(pairs, key=lambda pair: -pair.alike)


@dataclass(frozen=True)
class Halves:
    """Two clusters of a person's pictures, the smaller one second, and how alike they are; scaled."""

    person: int
    larger: np.ndarray
    smaller: np.ndarray
    alike: float


def two_people(spaces: Sequence[Space], model_of: np.ndarray, person: np.ndarray) -> list[Halves]:
    """The pictures of each person in two clusters, those that are least alike first."""
    found = []
    for one, rows in _pictures(person, len(model_of)):
        if model_of[one] < 0:
            continue
        space = spaces[model_of[one]]
        vectors = space.rows(rows)
        there = np.isfinite(vectors[:, 0])
        rows, vectors = rows[there], vectors[there]
        if len(rows) < FEWEST:
            continue
        second = clusters(vectors)
        if min(second.sum(), (~second).sum()) < 2:
            continue
        across = float((vectors[second] @ vectors[~second].T).mean())
        larger, smaller = sorted((rows[second], rows[~second]), key=len, reverse=True)
        found.append(Halves(one, larger, smaller, float(space.scaled(np.array(across)))))
    return sorted(found, key=lambda halves: halves.alike)


def clusters(vectors: np.ndarray) -> np.ndarray:
    """Two clusters, bool (n,): by the first principal component, then by the nearer mean until nothing changes."""
    centred = vectors - vectors.mean(axis=0)
    second = np.linalg.svd(centred, full_matrices=False)[0][:, 0] > 0
    for _ in range(20):
        if second.all() or not second.any():
            return second
        means = np.stack([vectors[~second].mean(axis=0), vectors[second].mean(axis=0)])
        nearer = ((vectors[:, None] - means) ** 2).sum(axis=2).argmin(axis=1) == 1
        if (nearer == second).all():
            break
        second = nearer
    return second


@dataclass(frozen=True)
class Stray:
    """A picture that is more like another person than like its own; scaled similarities."""

    row: int
    other: int
    own: float
    alike: float


def strays(spaces: Sequence[Space], model_of: np.ndarray, person: np.ndarray) -> list[Stray]:
    """Pictures that are more like those of somebody else, by far the most first.

    People have three pictures or more, and the others two or more.
    """
    found = []
    for k, space in enumerate(spaces):
        asked = np.flatnonzero((model_of[person] == k) & (space.counts[person] > 2))
        means, many = space.means, space.counts > 1
        for start in range(0, len(asked), BLOCK):
            rows = asked[start:start + BLOCK]
            vectors = space.rows(rows)
            there = np.isfinite(vectors[:, 0])
            rows, vectors = rows[there], vectors[there]
            own = person[rows]
            similarity = vectors @ means.T
            # The picture itself is left out of its person.
            mine = ((vectors * space.sums[own]).sum(axis=1) - 1) / (space.counts[own] - 1)
            similarity[:, ~many] = -np.inf
            similarity[np.arange(len(rows)), own] = -np.inf
            other = similarity.argmax(axis=1)
            alike, mine = space.scaled(similarity[np.arange(len(rows)), other]), space.scaled(mine)
            found += [Stray(*values) for values in zip(rows.tolist(), other.tolist(), mine.tolist(), alike.tolist())
                      if values[3] > values[2]]
    return sorted(found, key=lambda stray: stray.own - stray.alike)


def _pictures(person: np.ndarray, people: int) -> Iterator[tuple[int, np.ndarray]]:
    order = np.argsort(person, kind="stable")
    ends = np.cumsum(np.bincount(person, minlength=people))
    for one in range(people):
        yield one, order[(ends[one - 1] if one else 0):ends[one]]
