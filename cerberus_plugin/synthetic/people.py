"""Synthetic people: attribute labels sampled from a fixed distribution, and the looks of a person with given labels.

Colours are RGB from 0 to 255. Labels are values of MARKET1501's fields, from 0.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from ..attributes.schema import MARKET1501

COLOURS = {
    "black": (36, 36, 41), "white": (238, 238, 234), "red": (203, 42, 46), "purple": (124, 62, 156),
    "yellow": (240, 204, 54), "gray": (140, 142, 147), "blue": (46, 92, 184), "green": (52, 142, 76),
    "pink": (238, 140, 178), "brown": (116, 77, 50),
}
# Colours of garments without a listed colour; such a garment has a pattern of two of these.
UNLISTED = ((236, 130, 46), (216, 192, 152), (70, 172, 172), (240, 158, 128), (168, 176, 90))
SKINS = ((250, 218, 190), (240, 198, 164), (224, 172, 132), (196, 138, 98), (150, 100, 70))
HAIRS = ((30, 26, 26), (52, 36, 28), (84, 54, 36), (124, 82, 46), (176, 132, 74))
SHOES = ((38, 38, 42), (240, 240, 238), (192, 60, 50), (60, 92, 160), (130, 96, 66), (150, 152, 156))
ACCENTS = ((238, 238, 232), (40, 40, 46), (214, 60, 54), (60, 110, 196), (70, 160, 96), (242, 196, 60), (150, 84, 170))
BAGS = ((52, 56, 66), (150, 92, 52), (176, 48, 56), (48, 84, 140), (84, 108, 78), (216, 190, 150), (120, 72, 130))

# Details of a person, equal in all images, each a number in [0, 1). They are sampled in this order and independently
# of the labels, so that two persons can differ in a single attribute.
DETAILS = (
    "skin", "hair", "hair_shape", "hat", "hat_colour", "print", "print_colour", "print_place", "back_print",
    "upper_shade", "upper_hue", "lower_shade", "lower_hue", "shoes", "socks", "height", "width", "limbs", "stride",
    "swing", "bend", "bag_colour", "bag_shape", "side", "belt", "trim", "stripe", "collar", "pattern", "cane",
    "face_tone", "fringe", "brows", "glasses", "beard", "lips", "crown",
)
# Details that do not depend on the outfit, including those of the face.
FACE = DETAILS[DETAILS.index("face_tone"):]
BODY = frozenset(("skin", "hair", "hair_shape", "height", "width", "limbs", "stride", "swing", "bend", "cane", *FACE))

# Probabilities of the values of a field, or of the colours of a garment ("": no listed colour).
_AGE = (0.05, 0.52, 0.35, 0.08)
_UPPER = {"white": 0.25, "black": 0.17, "red": 0.11, "gray": 0.11, "blue": 0.10, "green": 0.09, "yellow": 0.06,
          "purple": 0.04, "": 0.07}
_LOWER = {"black": 0.34, "blue": 0.20, "gray": 0.16, "brown": 0.09, "white": 0.07, "pink": 0.04, "green": 0.03,
          "yellow": 0.02, "purple": 0.01, "": 0.04}
_CARRYING = ("", "backpack", "bag", "handbag")
_LOADS = {0: (0.42, 0.30, 0.25, 0.03), 1: (0.34, 0.22, 0.24, 0.20)}  # by gender

# Label combinations that do not occur in training, so that the test set has people with unseen combinations.
TEST_ONLY = ({"up": 0, "upper colour": "purple"}, {"down": 1, "clothes": 1, "lower colour": "brown"},
             {"up": 0, "upper colour": "yellow"}, {"down": 0, "clothes": 0, "lower colour": "gray"})
_UNSEEN_EVERY = 8  # every 8th test person has such a combination


def sample_people(count: int, seed: int, split: str) -> list[tuple[int, ...]]:
    """Sample the labels of people; the combinations of `TEST_ONLY` occur in "test", but not in "train".

    Args:
        count: number of people.
        seed: seed of the dataset.
        split: "train", "test", or any other name for a separate sample.

    Returns:
        labels of each person, ints (A,), in the order of MARKET1501's fields.
    """
    rng = generator(seed, "labels", split)
    return [to_labels(sample_words(rng, split, held_out(split, i))) for i in range(count)]


def held_out(split: str, index: int) -> dict:
    """Return the fixed values of a person: for every 8th test person, a combination of `TEST_ONLY`."""
    if split == "test" and index % _UNSEEN_EVERY == 0:
        return TEST_ONLY[index // _UNSEEN_EVERY % len(TEST_ONLY)]
    return {}


def sample_words(rng: np.random.Generator, split: str, force: dict) -> dict:
    """Sample the attributes of one person.

    Args:
        rng: random generator.
        split: "train" excludes the combinations of `TEST_ONLY`.
        force: values to use instead of sampled ones.

    Returns:
        values of fields by name, and "upper colour", "lower colour" and "load" as text.
    """
    person = _sample(rng, force)
    while split == "train" and any(kind.items() <= person.items() for kind in TEST_ONLY):
        person = _sample(rng, force)
    return person


def _sample(rng: np.random.Generator, force: dict) -> dict:
    u = rng.random(9)
    gender = force.get("gender", int(u[0] < 0.45))
    dress = force.get("clothes", 1) == 0 or (gender == 1 and u[1] < 0.33)
    if dress:
        gender = 1
    up = int(u[3] < 0.72)
    person = {
        "gender": gender, "age": _draw(_AGE, u[2]), "up": up, "clothes": int(not dress),
        "down": int(u[4] < ((0.72 if dress else 0.5) if up else 0.2)),  # short sleeves and shorts go together
        "hair": int(u[5] < (0.72 if gender else 0.06)), "hat": int(u[6] < 0.08),
        "load": _CARRYING[_draw(_LOADS[gender], u[7])],
    }
    for part, chances in (("upper", _UPPER), ("lower", _LOWER)):
        person[part + " colour"] = list(chances)[_draw(tuple(chances.values()), rng.random())]
    return person | force


def _draw(chances, number: float) -> int:
    total = np.cumsum(chances)
    return int(np.searchsorted(total / total[-1], number, side="right"))


def to_labels(person: dict) -> tuple[int, ...]:
    """Convert the result of `sample_words` to labels, ints (A,), in the order of MARKET1501's fields."""
    values = []
    for field in MARKET1501.fields:
        if field.column:
            values.append(int(person[field.column] == field.word))
        elif field.name in _CARRYING:
            values.append(int(person["load"] == field.name))
        else:
            values.append(person[field.name])
    return tuple(values)


def generator(*key) -> np.random.Generator:
    """Create a random generator that is seeded by numbers and strings; equal on all machines and in all processes.

    Examples:
        >>> generator(0, "pids").random() == generator(0, "pids").random()
        True
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) % 2**32 for part in key]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


@dataclass(frozen=True)
class Person:
    """Looks of a person.

    Args:
        labels: values of MARKET1501's fields by name.
        details: numbers in [0, 1) by name, see `DETAILS`.
        spread: in (0, 1], how much persons with equal labels differ.
        face: whether the details of `FACE` are drawn; people in the form of Market-1501 have none, so that their images
            stay those of the published results.
        upper: colour of the upper garment.
        upper_second: second colour of its pattern; equal to `upper` without a pattern.
        lower: colour of the lower garment.
        lower_second: second colour of its pattern; equal to `lower` without a pattern.
        skin: colour of the skin.
        hair: colour of the hair.
        shoes: colour of the shoes.
        bag: colour of bags.
    """

    labels: dict[str, int]
    details: dict[str, float]
    spread: float
    face: bool
    upper: tuple
    upper_second: tuple
    lower: tuple
    lower_second: tuple
    skin: tuple
    hair: tuple
    shoes: tuple
    bag: tuple

    def has(self, name: str, chance: float) -> bool:
        """Whether the person has a detail of this probability, which is scaled by the spread."""
        return self.details[name] < chance * self.spread

    def centred(self, name: str) -> float:
        """Return a detail as a number in [-1, 1), scaled by the spread."""
        return (2.0 * self.details[name] - 1.0) * self.spread


def make_person(
    labels, pid: int, seed: int = 0, difficulty: float = 0.0, outfit: int = 0, face: bool = False
) -> Person:
    """Create the looks of one person.

    Args:
        labels: ints (A,) in the order of MARKET1501's fields, values from 0.
        pid: number of the person, which seeds the details together with `seed`.
        seed: seed of the dataset.
        difficulty: 0 to 1; persons with equal labels differ less if it is higher.
        outfit: number of the outfit, which seeds the details other than those of `BODY`.
        face: whether the details of the face are drawn; they do not depend on the difficulty.
    """
    named = {name: int(value) for name, value in zip(MARKET1501.field_names, labels)}
    numbers = generator(seed, "person", pid).random(len(DETAILS))
    details = dict(zip(DETAILS, numbers.tolist()))
    if outfit:
        worn = generator(seed, "outfit", pid, outfit).random(len(DETAILS))
        details |= {name: number for name, number in zip(DETAILS, worn.tolist()) if name not in BODY}
    spread = 1.0 - 0.7 * difficulty
    upper, upper_second = _garment(named, "up", details, spread)
    lower, lower_second = _garment(named, "down", details, spread)
    hair = blend(HAIRS[1], pick(HAIRS, details["hair"]), spread)
    if named["age"] == 3:
        hair = blend((196, 196, 200), (226, 226, 228), details["hair"])
    return Person(named, details, spread, face, upper, upper_second, lower, lower_second,
                  _between(SKINS, 0.5 + (details["skin"] - 0.5) * spread), hair,
                  blend(SHOES[0], pick(SHOES, details["shoes"]), spread),
                  blend(BAGS[0], pick(BAGS, details["bag_colour"]), spread))


def _garment(labels: dict, prefix: str, details: dict, spread: float) -> tuple[tuple, tuple]:
    """Return both colours of a garment; they differ only for garments without a listed colour."""
    part = "upper" if prefix == "up" else "lower"
    listed = [COLOURS[f.word] for f in MARKET1501.fields if f.column == f"{part} colour" and labels[f.name] == 1]
    shade, hue = 2 * details[part + "_shade"] - 1, 2 * details[part + "_hue"] - 1
    if not listed:
        first = int(details[part + "_hue"] * len(UNLISTED)) % len(UNLISTED)
        listed = [UNLISTED[first], UNLISTED[(first + 1 + int(3 * details[part + "_shade"])) % len(UNLISTED)]]
    shift = np.array([hue, 0.0, -hue]) * 22.0 * spread  # warmer or colder shades of the named colour
    first, *rest = (tuple(np.clip(np.array(c) * (1 + 0.22 * spread * shade) + shift, 8, 250)) for c in listed)
    return first, (rest[0] if rest else first)


def pick(options, number: float):
    """Return an element of a sequence, selected by a number in [0, 1).

    Examples:
        >>> pick("abc", 0.5)
        'b'
    """
    return options[int(number * len(options))]


def blend(one, other, share: float) -> tuple:
    """Interpolate between two colours or points; `share` 0 returns the first, 1 the second.

    Examples:
        >>> blend((0, 100), (100, 0), 0.25)
        (25.0, 75.0)
    """
    return tuple(a + (b - a) * share for a, b in zip(one, other))


def _between(options, number: float) -> tuple:
    place = number * (len(options) - 1)
    return blend(options[int(place)], options[int(place) + 1], place - int(place))


def dim(colour, factor: float) -> tuple:
    """Multiply a colour by a factor, up to 255.

    Examples:
        >>> dim((200, 100, 0), 1.5)
        (255.0, 150.0, 0.0)
    """
    return tuple(min(255.0, channel * factor) for channel in colour)
