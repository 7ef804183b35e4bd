"""Labels of people with several outfits: gender, age and hair are constant, clothes, hat and bags change."""

from __future__ import annotations

from collections.abc import Iterable

from ..attributes.schema import MARKET1501
from .people import generator, held_out, sample_words, to_labels

LASTING = ("gender", "age", "hair")
MOST_OUTFITS = 9

Labels = tuple[int, ...]  # (A,), in the order of MARKET1501's fields


def sample_wardrobes(counts: Iterable[int], seed: int, split: str) -> list[tuple[Labels, ...]]:
    """Sample the labels of each person's outfits.

    Any two outfits of a person differ in their upper and in their lower labels. The combinations of `TEST_ONLY` occur
    in the split "test", but not in "train".

    Args:
        counts: number of outfits of each person, at most `MOST_OUTFITS`.
        seed: seed of the dataset.
        split: "train" or "test".

    Returns:
        labels by person and outfit, in the order of MARKET1501's fields.
    """
    rng, people = generator(seed, "wardrobe", split), []
    for i, count in enumerate(counts):
        words = sample_words(rng, split, held_out(split, i))
        who, outfits = {name: words[name] for name in LASTING}, [to_labels(words)]
        while len(outfits) < count:
            outfit = to_labels(sample_words(rng, split, who))
            if all(_worn(outfit, part) != _worn(other, part) for other in outfits for part in ("upper", "lower")):
                outfits.append(outfit)
        people.append(tuple(outfits))
    return people


def _worn(labels: Labels, group: str) -> Labels:
    return tuple(labels[i] for i in MARKET1501.group_fields(group))
