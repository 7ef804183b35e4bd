"""Find mixed-up identities: two people who are one, one person who is two, and images of another person.

An image is compared by the model that was not trained on its person. Two people of different folds are compared by the
models of both folds, and the similarities are averaged. Similarities of a model are scaled on the people that it was
not trained on: 0 is the mean similarity of images of different people, 1 that of images of the same person.

Shapes: N images, P people, E size of an embedding, M attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 512  # people or images that are compared with all people at a time
FEWEST = 4  # smallest number of images of a person that is tested for being two
AS_OFTEN = 5  # see `strays`
FOREIGN = 64  # number of wrong people with which each image is compared in `strays`
LEAST_NEARER = 0.85  # share of comparisons below which the first findings were mostly wrong, see docs/audit.md


@dataclass(frozen=True)
class Space:
    """Embeddings of one model, with their sums by person and the scale of similarities.

    Attributes:
        vectors: (N, E), of unit length; NaN for unreadable images.
        sums: float32 (P, E), sums of vectors by person.
        counts: float32 (P,), number of readable images by person.
        zero, one: cosine similarities that are scaled to 0 and 1.
    """

    vectors: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    zero: float
    one: float

    def scaled(self, similarity: np.ndarray) -> np.ndarray:
        """Scale cosine similarities of any shape: `zero` to 0, `one` to 1."""
        return (similarity - self.zero) / (self.one - self.zero)

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of some rows: float32 (n, E)."""
        return np.asarray(self.vectors[rows], np.float32)

    @property
    def means(self) -> np.ndarray:
        """Mean vector of each person: float32 (P, E)."""
        return self.sums / np.maximum(self.counts, 1)[:, None]

    def within(self, people: np.ndarray) -> np.ndarray:
        """Return the mean similarity of two images of a person: int64 (n,) -> float (n,), NaN for a single image."""
        sums, count = self.sums[people], self.counts[people]
        total = (sums**2).sum(axis=1) - count  # without each image with itself, which has the similarity 1
        return np.divide(total, count * (count - 1), out=np.full(len(people), np.nan, np.float32), where=count > 1)


def space_of(vectors: np.ndarray, person: np.ndarray, new: np.ndarray, people: int) -> Space:
    """Compute the sums by person and the scale of a model's embeddings.

    Args:
        vectors: (N, E), of unit length; NaN for unreadable images.
        person: int64 (N,), the person of each image.
        new: bool (P,), the people that the model was not trained on.
        people: P.
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
    """Two people who are probably one.

    Attributes:
        first, second: the people.
        alike: scaled similarity.
        agreement: share of equal labels.
    """

    first: int
    second: int
    alike: float
    agreement: float

    @property
    def score(self) -> float:
        """Similarity times squared agreement."""
        return self.alike * self.agreement**2


def same_people(spaces: Sequence[Space], model_of: np.ndarray, answers: np.ndarray) -> list[Pair]:
    """Find pairs of people each of whom has the highest score with the other, see `Pair.score`.

    Args:
        spaces: embeddings of each model.
        model_of: int64 (P,), the model that was not trained on a person; -1 if there is none.
        answers: int64 (P, M), the labels of each person; -1 for unknown.

    Returns:
        pairs, highest score first.
    """
    people = np.flatnonzero(model_of >= 0)
    of = answers[people]
    found: list[tuple[int, float, float]] = []  # for each person, the other one with the highest score
    for start in range(0, len(people), BLOCK):
        block = people[start:start + BLOCK]
        by_model = np.stack([space.scaled(space.means[block] @ space.means[people].T) for space in spaces])
        of_block = by_model[model_of[block], np.arange(len(block))]  # by the model of the first person
        of_others = np.take_along_axis(by_model, model_of[people][None, None], axis=0)[0]  # by the model of the second
        alike = (of_block + of_others) / 2
        agreement = _agreement(of[start:start + BLOCK], of)
        score = alike * agreement**2
        own = np.arange(len(block))
        score[own, own + start] = -np.inf
        best = score.argmax(axis=1)
        found += list(zip(best.tolist(), alike[own, best].tolist(), agreement[own, best].tolist()))
    pairs = [Pair(int(people[one]), int(people[best]), alike, agreement)
             for one, (best, alike, agreement) in enumerate(found) if found[best][0] == one and one < best]
    return sorted(pairs, key=lambda pair: -pair.score)


def _agreement(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of equal labels among those known for both; 1 if there are none: (b, M), (P, M) -> float32 (b, P)."""
    same, known = np.zeros((2, len(own), len(others)), np.float32)
    for column in range(own.shape[1]):
        mine, theirs = own[:, column, None], others[None, :, column]
        both = (mine >= 0) & (theirs >= 0)
        known += both
        same += both & (mine == theirs)
    return np.divide(same, known, out=np.ones_like(same), where=known > 0)


@dataclass(frozen=True)
class Halves:
    """Two clusters of a person's images.

    Attributes:
        person: the person.
        larger, smaller: int64, rows of the clusters.
        alike: scaled similarity of the clusters.
    """

    person: int
    larger: np.ndarray
    smaller: np.ndarray
    alike: float


def two_people(spaces: Sequence[Space], model_of: np.ndarray, person: np.ndarray) -> list[Halves]:
    """Divide the images of each person into two clusters.

    Args:
        spaces: embeddings of each model.
        model_of: int64 (P,), the model that was not trained on a person; -1 if there is none.
        person: int64 (N,), the person of each image.

    Returns:
        clusters of people with at least `FEWEST` images, least similar first.
    """
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
    """Divide vectors into two clusters: by the first principal component, then by k-means until nothing changes.

    Args:
        vectors: float (n, E).

    Returns:
        bool (n,), True for one of the clusters.
    """
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
    """An image that is more similar to another person than to its own.

    Attributes:
        row: row of the image.
        other: the other person.
        own, alike: scaled similarity to the own and to the other person.
    """

    row: int
    other: int
    own: float
    alike: float


def strays(spaces: Sequence[Space], model_of: np.ndarray, person: np.ndarray) -> list[Stray]:
    """Find images that are much more similar to another person than to their own.

    The person of an image needs three images, the other person two. Some images are more similar to another person only
    because the model confuses people. The margin (similarity to the other person minus that to the own) must therefore
    be large: each image is also compared as if it were labelled with wrong people. The smallest margin is chosen so
    that wrongly labelled images reach it at least `AS_OFTEN` times as frequently as the images with their labels.

    Args:
        spaces: embeddings of each model.
        model_of: int64 (P,), the model that was not trained on a person; -1 if there is none.
        person: int64 (N,), the person of each image.

    Returns:
        images, largest margin first.
    """
    found: list[Stray] = []
    foreign, asked_for = [], 0
    for k, space in enumerate(spaces):
        asked = np.flatnonzero((model_of[person] == k) & (space.counts[person] > 2))
        names = np.flatnonzero(space.counts > 1)
        names = names[::max(1, len(names) // FOREIGN)]
        for rows, mine, similarity in _compared(space, person, asked, space.counts > 1):
            other = similarity.argmax(axis=1)
            best = similarity[np.arange(len(rows)), other]
            off = np.maximum(best, mine)[:, None] - similarity[:, names]
            foreign.append(off[np.isfinite(off)] / (space.one - space.zero))
            asked_for += len(rows)
            alike, mine = space.scaled(best), space.scaled(mine)
            found += [Stray(*values) for values in zip(rows.tolist(), other.tolist(), mine.tolist(), alike.tolist())
                      if values[3] > values[2]]
    found.sort(key=lambda stray: stray.own - stray.alike)
    if not found:
        return []
    wrong = np.sort(np.concatenate(foreign))
    margins = np.sort([stray.alike - stray.own for stray in found])
    of_wrong = 1 - np.searchsorted(wrong, wrong) / len(wrong)  # share with this margin or a larger one
    of_pictures = (len(margins) - np.searchsorted(margins, wrong)) / asked_for
    least = wrong[of_wrong >= AS_OFTEN * of_pictures].min(initial=np.inf)
    return [stray for stray in found if stray.alike - stray.own >= least]


@dataclass(frozen=True)
class Telling:
    """How well models distinguish people that they were not trained on.

    Attributes:
        pictures: number of images that were compared, each with the people of its fold.
        nearer: share of comparisons with another person in which an image is more similar to its own; 0.5 by chance,
            for any number of people.
        first: share of images whose most similar person is their own.
        chance: this share by chance.
        judged: whether findings about people are reported.
    """

    pictures: int
    nearer: float
    first: float
    chance: float
    judged: bool


def told_apart(spaces: Sequence[Space], model_of: np.ndarray, person: np.ndarray) -> Telling:
    """Measure how well models distinguish people that they were not trained on.

    Each image is compared with the other images of its person and with the other people of its fold.

    Args:
        spaces: embeddings of each model.
        model_of: int64 (P,), the model that was not trained on a person; -1 if there is none.
        person: int64 (N,), the person of each image.
    """
    pictures = comparisons = nearer = first = 0
    chance = 0.0
    for k, space in enumerate(spaces):
        new = (model_of == k) & (space.counts > 1)
        others = int(new.sum()) - 1
        if others < 1:
            continue
        for rows, mine, similarity in _compared(space, person, np.flatnonzero(new[person]), new):
            less = (similarity < mine[:, None]).sum(axis=1) - (len(new) - others)  # excluded people have -inf
            pictures, chance = pictures + len(rows), chance + len(rows) / (others + 1)
            comparisons, nearer = comparisons + len(rows) * others, nearer + int(less.sum())
            first += int((less == others).sum())
    if not pictures:
        return Telling(0, 0.0, 0.0, 0.0, False)
    share = nearer / comparisons
    return Telling(pictures, share, first / pictures, chance / pictures, share >= LEAST_NEARER)


def _compared(space: Space, person: np.ndarray, asked: np.ndarray,
              others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compare readable images with people, in blocks of b images.

    Args:
        asked: int64 (n,), rows of images.
        others: bool (P,), people to compare with.

    Yields:
        int64 (b,), rows; float (b,), cosine similarity to the other images of the own person; and float (b, P),
        similarity to people, -inf for the own person and excluded people.
    """
    means = space.means
    for start in range(0, len(asked), BLOCK):
        rows = asked[start:start + BLOCK]
        vectors = space.rows(rows)
        there = np.isfinite(vectors[:, 0])
        rows, vectors = rows[there], vectors[there]
        own = person[rows]
        similarity = vectors @ means.T
        mine = ((vectors * space.sums[own]).sum(axis=1) - 1) / (space.counts[own] - 1)
        similarity[:, ~others] = -np.inf
        similarity[np.arange(len(rows)), own] = -np.inf
        yield rows, mine, similarity


def _pictures(person: np.ndarray, people: int) -> Iterator[tuple[int, np.ndarray]]:
    order = np.argsort(person, kind="stable")
    ends = np.cumsum(np.bincount(person, minlength=people))
    for one in range(people):
        yield one, order[(ends[one - 1] if one else 0):ends[one]]
