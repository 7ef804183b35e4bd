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
AS_OFTEN = 5  # see `strays`
FOREIGN = 64  # people whose name a picture is given to see how far off it is then
LEAST_NEARER = 0.85  # of comparisons; below it the first findings were mostly wrong, see docs/audit.md


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
    """Two people; how alike they are, scaled, and the share of their labels that agree."""

    first: int
    second: int
    alike: float
    agreement: float

    @property
    def score(self) -> float:
        return self.alike * self.agreement**2


def same_people(spaces: Sequence[Space], model_of: np.ndarray, answers: np.ndarray) -> list[Pair]:
    """People who are each other's likeliest, by similarity times squared agreement of labels; the likeliest first.

    Args:
        model_of: int64 (P,), the model that was not trained on a person; -1 for all were.
        answers: int64 (P, M), the label of each person; -1 where not known.
    """
    people = np.flatnonzero(model_of >= 0)
    of = answers[people]
    found: list[tuple[int, float, float]] = []  # of each person the likeliest one
    for start in range(0, len(people), BLOCK):
        block = people[start:start + BLOCK]
        by_model = np.stack([space.scaled(space.means[block] @ space.means[people].T) for space in spaces])
        of_block = by_model[model_of[block], np.arange(len(block))]  # by the model of the first
        of_others = np.take_along_axis(by_model, model_of[people][None, None], axis=0)[0]  # by that of the second
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
    """Share of equal labels of those that are known of both; 1 where none is: (b, M), (P, M) -> float32 (b, P)."""
    same, known = np.zeros((2, len(own), len(others)), np.float32)
    for column in range(own.shape[1]):
        mine, theirs = own[:, column, None], others[None, :, column]
        both = (mine >= 0) & (theirs >= 0)
        known += both
        same += both & (mine == theirs)
    return np.divide(same, known, out=np.ones_like(same), where=known > 0)


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

    People have three pictures or more, and the others two or more. Where models often take a picture for another
    person, this says little. So each picture is compared as if it had the names of others, and pictures are kept as far
    down as those with a wrong name would be found `AS_OFTEN` times as often as the pictures are.
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
    of_wrong = 1 - np.searchsorted(wrong, wrong) / len(wrong)  # the share that is as far off or farther
    of_pictures = (len(margins) - np.searchsorted(margins, wrong)) / asked_for
    least = wrong[of_wrong >= AS_OFTEN * of_pictures].min(initial=np.inf)
    return [stray for stray in found if stray.alike - stray.own >= least]


@dataclass(frozen=True)
class Telling:
    """How well models tell people apart whom they were not trained on.

    Attributes:
        pictures: that were compared, each with people of its fold.
        nearer: share of comparisons of a picture and another person in which it is more like its own, which does not
            depend on the number of people; 0.5 by chance.
        first: share of pictures whose most similar person is their own.   chance: of this.
        judged: whether findings about people are reported.
    """

    pictures: int
    nearer: float
    first: float
    chance: float
    judged: bool


def told_apart(spaces: Sequence[Space], model_of: np.ndarray, person: np.ndarray) -> Telling:
    """Compare each picture with its own person, without itself, and with the others whom the model does not know."""
    pictures = comparisons = nearer = first = 0
    chance = 0.0
    for k, space in enumerate(spaces):
        new = (model_of == k) & (space.counts > 1)
        others = int(new.sum()) - 1
        if others < 1:
            continue
        for rows, mine, similarity in _compared(space, person, np.flatnonzero(new[person]), new):
            less = (similarity < mine[:, None]).sum(axis=1) - (len(new) - others)  # what is left out is -inf
            pictures, chance = pictures + len(rows), chance + len(rows) / (others + 1)
            comparisons, nearer = comparisons + len(rows) * others, nearer + int(less.sum())
            first += int((less == others).sum())
    if not pictures:
        return Telling(0, 0.0, 0.0, 0.0, False)
    share = nearer / comparisons
    return Telling(pictures, share, first / pictures, chance / pictures, share >= LEAST_NEARER)


def _compared(space: Space, person: np.ndarray, asked: np.ndarray,
              others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pictures that can be read in blocks of b: rows, similarity to their own person without themselves, and to others.

    Args:
        asked: int64 (n,), rows.   others: bool (P,).

    Yields:
        int64 (b,), float (b,), and float (b, P), -inf for the own person and those that are not among the others.
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
