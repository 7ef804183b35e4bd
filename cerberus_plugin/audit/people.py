"""Findings about who is on a picture: from embeddings, and from pictures that are nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from ..attributes.schema import AttributeSchema
from ..own_data.near_duplicates import near_duplicates, picture_hash
from ..own_data.overlay import PERSON
from ..own_data.people import OwnData
from ..utils.images import Unreadable, read_image
from ..utils.processor import usable_cores
from .findings import Choice, Finding, moves
from .identities import Space, same_people, space_of, strays, two_people
from .predictions import Predictions

MOST_SHOWN = 6  # pictures of a group
AGREE = 0.75  # share of the labels, as far as both are known, in which two people who are one agree at least
LEAST = 0.3  # confidence below which nothing is reported


def people_findings(own: OwnData, schema: AttributeSchema | None, labels: np.ndarray | None,
                    predictions: Predictions) -> list[Finding]:
    """People who are probably one, one who is probably two, and pictures that lie with another person."""
    person = own.person.codes.astype(np.int64)
    people = len(own.person.words)
    model_of = np.full(people, -1)
    there = predictions.model >= 0
    model_of[person[there]] = predictions.model[there]
    spaces = [space_of(vectors, person, model_of == k, people) for k, vectors in enumerate(predictions.embeddings)]
    return [*_same(own, schema, labels, spaces, model_of), *_two(own, spaces, model_of),
            *_strays(own, spaces, model_of)]


def _same(own: OwnData, schema: AttributeSchema | None, labels: np.ndarray | None, spaces: Sequence[Space],
          model_of: np.ndarray) -> list[Finding]:
    found = []
    pairs = same_people(spaces, model_of)
    usual = float(np.median([pair.alike for pair in pairs])) if pairs else 0.0
    for pair in pairs:
        confidence = between(pair.alike, usual, 1.0)
        if confidence < LEAST:
            break
        agreeing = _agreement(own, schema, labels, pair.first, pair.second)
        if agreeing < AGREE:
            continue
        one, other = own.person.words[pair.first], own.person.words[pair.second]
        found.append(Finding(
            "same person", confidence, one, PERSON, one, other,
            f"{one} and {other} are as alike as {pair.alike:.2f}, where 1 is usual for pictures of one person and "
            f"{usual:.2f} for the most alike of two people"
            + ("" if schema is None else f"; {agreeing:.0%} of their labels agree"),
            ((one, _shown(own, pair.first)), (other, _shown(own, pair.second))),
            (Choice(f"all are {other}", (("", one, "", PERSON, other, one),)),
             Choice(f"all are {one}", (("", other, "", PERSON, one, other),)))))
    return found


def _two(own: OwnData, spaces: Sequence[Space], model_of: np.ndarray) -> list[Finding]:
    found = []
    halves = two_people(spaces, model_of, own.person.codes)
    usual = float(np.median([half.alike for half in halves])) if halves else 1.0
    names = set(own.person.words)
    for half in halves:
        confidence = between(half.alike, usual, 0.0)
        if confidence < LEAST:
            break
        name = own.person.words[half.person]
        new = next(f"{name} ({number})" for number in range(2, len(names) + 3) if f"{name} ({number})" not in names)
        files = [own.files[row] for row in half.smaller]
        found.append(Finding(
            "two people", confidence, name, PERSON, name, new,
            f"the pictures are in two groups that are as alike as {half.alike:.2f}, where {usual:.2f} is usual for two "
            "groups of one person and 0 for two people",
            ((f"{len(half.smaller)} pictures", tuple(files[:MOST_SHOWN])),
             (f"{len(half.larger)} others", tuple(own.files[row] for row in half.larger[:MOST_SHOWN]))),
            (moves(files, name, new, f"the {len(files)} are another person, {new}"),)))
    return found


def _strays(own: OwnData, spaces: Sequence[Space], model_of: np.ndarray) -> list[Finding]:
    found = []
    for stray in strays(spaces, model_of, own.person.codes.astype(np.int64)):
        confidence = between(stray.alike - stray.own, 0.0, 1.0)
        if confidence < LEAST:
            break
        name, other, file = own.person[stray.row], own.person.words[stray.other], own.files[stray.row]
        rest = [row for row in np.flatnonzero(own.person.codes == own.person.codes[stray.row]).tolist()
                if row != stray.row]
        found.append(Finding(
            "other person", confidence, name, PERSON, name, other,
            f"it is as like {other} as {stray.alike:.2f}, and its own person as {stray.own:.2f}",
            ((file, (file,)), (name, tuple(own.files[row] for row in rest[:MOST_SHOWN])),
             (other, _shown(own, stray.other))),
            (moves([file], name, other, f"it shows {other}"),)))
    return found


def copies(own: OwnData) -> list[Finding]:
    """Pictures under different people that are nearly the same."""
    def hashed(row: int) -> np.ndarray | None:
        try:
            return picture_hash(read_image(own.path(row)))
        except Unreadable:
            return None

    with ThreadPoolExecutor(usable_cores()) as threads:
        hashes = list(tqdm(threads.map(hashed, range(len(own))), total=len(own), desc="looking for copies",
                           unit=" pictures"))
    rows = np.array([row for row, found in enumerate(hashes) if found is not None], np.int64)
    if not len(rows):
        return []
    near = near_duplicates(np.stack([hashes[row] for row in rows]), own.person.codes[rows], np.zeros(len(rows)))
    found = []
    for first, second, bits in near.pairs.tolist():
        files = [own.files[rows[place]] for place in (first, second)]
        one, other = (own.person[rows[place]] for place in (first, second))
        found.append(Finding(
            "copies", 1 - bits / 64, one, PERSON, one, other, f"their hashes differ in {bits} bits",
            ((f"{files[0]}, {one}", (files[0],)), (f"{files[1]}, {other}", (files[1],))),
            (moves(files[1:], other, one, f"the second is {one} too"),
             moves(files[:1], one, other, f"the first is {other} too"),
             Choice(f"all of {other} are {one}", (("", other, "", PERSON, one, other),)))))
    return found


def between(value: float, low: float, high: float) -> float:
    """Where a value lies from `low`, 0, to `high`, 1; limited to these."""
    return float(np.clip((value - low) / (high - low), 0, 1)) if high != low else 0.0


def _agreement(own: OwnData, schema: AttributeSchema | None, labels: np.ndarray | None, one: int, other: int) -> float:
    """Share of the columns with the same most frequent label, of those that are known of both; 1 where none is."""
    if schema is None or labels is None:
        return 1.0
    same = known = 0
    for column in schema.columns:
        words = own.attributes[column.name]
        said = []
        for person in (one, other):
            codes = words.codes[own.person.codes == person]
            codes = codes[codes >= 0]
            if len(codes):
                said.append(int(np.bincount(codes).argmax()))
        if len(said) == 2:
            known += 1
            same += said[0] == said[1]
    return same / known if known else 1.0


def _shown(own: OwnData, person: int) -> tuple[str, ...]:
    return tuple(own.files[row] for row in np.flatnonzero(own.person.codes == person)[:MOST_SHOWN])
