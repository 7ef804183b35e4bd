"""Findings about identities: from embeddings, and from nearly identical images."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from ..attributes.schema import AttributeSchema
from ..own_data.near_duplicates import BITS, near_duplicates, picture_hash
from ..own_data.overlay import PERSON
from ..own_data.people import OwnData
from ..utils.images import Unreadable, read_image
from ..utils.processor import usable_cores
from ..utils.text import counted
from .findings import Choice, Finding, moves
from .identities import Space, Telling, same_people, space_of, strays, told_apart, two_people
from .predictions import Predictions

MOST_SHOWN = 6  # images of a group
MOST_COPIES = 10_000  # pairs
LEAST = 0.3  # confidence below which nothing is reported


def people_findings(own: OwnData, schema: AttributeSchema | None,
                    predictions: Predictions) -> tuple[list[Finding], Telling]:
    """Find two people who are probably one, one person who is probably two, and images of another person.

    Args:
        own: N images.
        schema: the schema, None without attributes.
        predictions: predictions of the models.

    Returns:
        findings, none if the models do not distinguish people well enough; and how well they do.
    """
    person = own.person.codes.astype(np.int64)
    people = len(own.person.words)
    model_of = np.full(people, -1)
    there = predictions.model >= 0
    model_of[person[there]] = predictions.model[there]
    spaces = [space_of(vectors, person, model_of == k, people) for k, vectors in enumerate(predictions.embeddings)]
    telling = told_apart(spaces, model_of, person)
    if not telling.judged:
        return [], telling
    return [*_same(own, schema, spaces, model_of), *_two(own, spaces, model_of),
            *_strays(own, spaces, model_of)], telling


def _same(own: OwnData, schema: AttributeSchema | None, spaces: Sequence[Space],
          model_of: np.ndarray) -> list[Finding]:
    found = []
    for pair in same_people(spaces, model_of, _answers(own, schema)):
        confidence = graded(pair.score)
        if confidence < LEAST:
            break
        one, other = own.person.words[pair.first], own.person.words[pair.second]
        found.append(Finding(
            "same person", confidence, one, PERSON, one, other,
            f"the similarity of {one} and {other} is {pair.alike:.2f} (mean of different people: 0, of the same "
            f"person: 1); {pair.agreement:.0%} of their labels agree",
            ((one, _shown(own, pair.first)), (other, _shown(own, pair.second))),
            (Choice(f"all images show {other}", (("", one, "", PERSON, other, one),)),
             Choice(f"all images show {one}", (("", other, "", PERSON, one, other),)))))
    return found


def _two(own: OwnData, spaces: Sequence[Space], model_of: np.ndarray) -> list[Finding]:
    found = []
    halves = two_people(spaces, model_of, own.person.codes)
    usual = float(np.median([half.alike for half in halves])) if halves else 1.0
    names = set(own.person.words)
    for half in halves:
        confidence = graded((usual - half.alike) / max(usual, 1e-6))
        if confidence < LEAST:
            break
        name = own.person.words[half.person]
        new = next(f"{name} ({number})" for number in range(2, len(names) + 3) if f"{name} ({number})" not in names)
        files = [own.files[row] for row in half.smaller]
        found.append(Finding(
            "two people", confidence, name, PERSON, name, new,
            f"the images form two clusters with a similarity of {half.alike:.2f} (median of all people: {usual:.2f}, "
            "mean of different people: 0)",
            ((f"{len(half.smaller)} images", tuple(files[:MOST_SHOWN])),
             (f"{len(half.larger)} other images", tuple(own.files[row] for row in half.larger[:MOST_SHOWN]))),
            (moves(files, name, new, f"the {len(files)} images show another person, {new}"),)))
    return found


def _strays(own: OwnData, spaces: Sequence[Space], model_of: np.ndarray) -> list[Finding]:
    found = []
    for stray in strays(spaces, model_of, own.person.codes.astype(np.int64)):
        confidence = graded(stray.alike - stray.own)
        if confidence < LEAST:
            break
        name, other, file = own.person[stray.row], own.person.words[stray.other], own.files[stray.row]
        rest = [row for row in np.flatnonzero(own.person.codes == own.person.codes[stray.row]).tolist()
                if row != stray.row]
        found.append(Finding(
            "other person", confidence, name, PERSON, name, other,
            f"its similarity is {stray.alike:.2f} to {other} and {stray.own:.2f} to its own person",
            ((file, (file,)), (name, tuple(own.files[row] for row in rest[:MOST_SHOWN])),
             (other, _shown(own, stray.other))),
            (moves([file], name, other, f"the image shows {other}"),)))
    return found


def copies(own: OwnData) -> list[Finding]:
    """Find nearly identical images that are listed under different people."""
    def hashed(row: int) -> np.ndarray | None:
        try:
            return picture_hash(read_image(own.path(row)))
        except Unreadable:
            return None

    with ThreadPoolExecutor(usable_cores()) as threads:
        hashes = list(tqdm(threads.map(hashed, range(len(own))), total=len(own), desc="looking for copies",
                           unit=" images"))
    rows = np.array([row for row, found in enumerate(hashes) if found is not None], np.int64)
    if not len(rows):
        return []
    near = near_duplicates(np.stack([hashes[row] for row in rows]), own.person.codes[rows], np.zeros(len(rows)))
    found = []
    for first, second, bits in near.pairs[:MOST_COPIES].tolist():
        files = [own.files[rows[place]] for place in (first, second)]
        one, other = (own.person[rows[place]] for place in (first, second))
        found.append(Finding(
            "copies", 1 - bits / 64, one, PERSON, one, other,
            f"the hashes of the two images differ in {counted(bits, 'bit')} of {BITS}",
            ((f"{files[0]}, {one}", (files[0],)), (f"{files[1]}, {other}", (files[1],))),
            (moves(files[1:], other, one, f"the second image also shows {one}"),
             moves(files[:1], one, other, f"the first image also shows {other}"),
             Choice(f"all images of {other} show {one}", (("", other, "", PERSON, one, other),)))))
    return found


def graded(distance: float) -> float:
    """Convert a scaled distance to a confidence: 1 - 0.5 ** distance.

    Args:
        distance: 0 and below give 0; 1, the mean of different people, gives 0.5.

    Examples:
        >>> graded(0), graded(1), graded(2)
        (0.0, 0.5, 0.75)
    """
    return float(1 - 0.5 ** max(distance, 0.0))


def _answers(own: OwnData, schema: AttributeSchema | None) -> np.ndarray:
    """The most frequent label of each person: int64 (P, M), -1 for unknown."""
    people, columns = len(own.person.words), schema.columns if schema else ()
    answers = np.full((people, len(columns)), -1)
    for m, column in enumerate(columns):
        words = own.attributes[column.name]
        known = np.flatnonzero(words.codes >= 0)
        pairs, counts = np.unique(np.stack([own.person.codes[known], words.codes[known]]), axis=1, return_counts=True)
        order = np.argsort(counts, kind="stable")  # the most frequent last
        answers[pairs[0, order], m] = pairs[1, order]
    return answers


def _shown(own: OwnData, person: int) -> tuple[str, ...]:
    return tuple(own.files[row] for row in np.flatnonzero(own.person.codes == person)[:MOST_SHOWN])
