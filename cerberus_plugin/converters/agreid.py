"""AG-ReID: people seen from the air and from the ground; 15 attributes of identities in 88 yes/no labels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..attributes.schema import AttributeSchema, Field, Group
from ..own_data.schema_file import Wording
from ..utils.folders import walk
from .registry import register_converter
from .sources import find, read_annotation
from .writing import Converted

GROUPS = (Group("identity", lasting=True), Group("head", 0, lasting=True), Group("headwear", 0), Group("upper", 1),
          Group("lower", 2), Group("carrying"))
# Column, group, prefix of the names of its labels in the file, and their suffixes, with "=value" if the value has
# another name. The last label of each attribute is "unknown" and is not listed.
ATTRIBUTES = (
    ("gender", "identity", "gender", "male, female"),
    ("age", "identity", "age", "young, middle, old"),
    ("height", "identity", "height", "child, short, medium, tall"),
    ("body", "identity", "weight", "thin, medium, fat"),
    ("ethnicity", "identity", "ethnic", "white, black, asian, india=indian"),
    ("hair colour", "head", "haircolor", "black, brown, white, red, gray, occluded"),
    ("hair style", "head", "hairstyle", "bald, short, medium, long, horsetail=pony tail"),
    ("beard", "head", "beard", "on=yes, off=no"),
    ("moustache", "head", "moustache", "on=yes, off=no"),
    ("glasses", "headwear", "glasses", "normal=glasses, sun=sunglasses, off=no"),
    ("head accessory", "headwear", "head", "hat, scarf, neckless=necklace, occluded"),
    ("upper clothes", "upper", "upper", "tshirt=T-shirt, blouse, sweater, coat, bikini, naked, dress, uniform, shirt, "
                                        "suit, hoodie, cardiga=cardigan"),
    ("lower clothes", "lower", "lower", "jeans, leggins=leggings, pants, shorts, skirt, bikini, dress, uniform, suit"),
    ("shoes", "lower", "feet", "sportshoe=sports shoes, classicshoe=classic shoes, highheels=high heels, boots, "
                               "sandals, nothing"),
    ("bag", "carrying", "bag", "normal=bag, backpack, handbag, rolling=rolling bag, umbrella, sportif=sports bag, "
                               "market=market bag, nothing=no bag"),
)
ETHNICITY = "ethnicity"
NO, YES = 1, 2  # codes of labels in the file
NAME = re.compile(r"(P(\d+)T(\d+)A(\d+))C(\d+)F\d+")
PARTS = ("train", "query", "gallery")
FOLDERS = {"aerial-to-ground": ("bounding_box_train", "query_all_c0", "bounding_box_test_all_c3"),
           "ground-to-aerial": ("bounding_box_train", "query_all_c3", "bounding_box_test_all_c0")}
PICTURES = {"aerial-to-ground": (1701, 3331), "ground-to-aerial": (962, 7204)}


def words_of(listed: str) -> dict[str, str]:
    """Return values by suffix.

    Args:
        listed: an entry of `ATTRIBUTES`.

    Examples:
        >>> words_of("male, off=no")
        {'male': 'male', 'off': 'no'}
    """
    return {part.split("=")[0]: part.split("=")[-1] for part in listed.split(", ")}


@register_converter("agreid", title="AG-ReID (Nguyen et al., 2023)", licence="see the authors' repository",
                    rule="re-identification between cameras 0 (aerial) and 3 (ground), Rank-1 and mAP, in two "
                         "settings: --setting aerial-to-ground or ground-to-aerial; no rule for attribute recognition "
                         "is published")
def read(source: Path, *, setting: str = "aerial-to-ground", with_ethnicity: bool = False) -> Converted:
    """Read qut_attribute_v4_88_attributes.mat, and the images in bounding_box_train/ and the folders of a setting.

    Ethnicity is omitted by default: it is often wrong if guessed from images, and a search by it can harm people,
    whether they are found or not.

    Args:
        source: folder of the dataset.
        setting: a key of `FOLDERS`.
        with_ethnicity: include the attribute ethnicity.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if a name or a label is not as published, or the setting is unknown.
    """
    if setting not in FOLDERS:
        raise ValueError(f"--setting is '{setting}', expected one of {', '.join(FOLDERS)}.")
    path = find(source, "qut_attribute_v4_88_attributes.mat")
    kept = [own for own in ATTRIBUTES if own[0] != ETHNICITY or with_ethnicity]
    labels: dict[int, list[str]] = {}
    for part, struct in zip(("train", "test"), read_annotation(path, "train", "test")):
        labels |= _people(path, part, struct, kept)
    files: list[str] = []
    columns: dict[str, list[str]] = {"person": [], "camera": [], "split": []}
    numbers: dict[str, int] = {}
    for part, folder in zip(PARTS, FOLDERS[setting]):
        for name in sorted(picture.path for picture in walk(find(source, folder, folder=True))):
            found = NAME.search(name)
            if found is None:
                raise ValueError(f"{source / folder / name}: unexpected file name; expected P, T, A, C and F with "
                                 "numbers, as in P0001T04041A0C0F31.jpg. Remove files that are not part of the "
                                 "dataset.")
            person = found[1]
            numbers[person] = int(found[2] + found[3] + found[4])
            if numbers[person] not in labels:
                raise ValueError(f"{path}: has no labels for {person} ({folder}/{name}). Images and annotations must "
                                 "belong to the same dataset.")
            files.append(f"{folder}/{name}")
            for column, value in zip(columns.values(), (person, found[5], part)):
                column.append(value)
    people = {"person": list(numbers), **{own[0]: [labels[number][i] for number in numbers.values()]
                                          for i, own in enumerate(kept)}}
    fields = [Field(column, group, ("no", "yes") if set(values) == {"no", "yes"} else values)
              for column, group, _, listed in kept for values in (tuple(words_of(listed).values()),)]
    query, gallery = PICTURES[setting]
    return Converted(source, files, columns, Wording(AttributeSchema("agreid", tuple(fields), groups=GROUPS), {}), path,
                     people=people, binaries=[(begin + ending, column, word) for column, _, begin, listed in kept
                                              for ending, word in words_of(listed).items()],
                     about={"setting": setting, "ethnicity": "included" if with_ethnicity else "left out"},
                     published={"query pictures": query, "gallery pictures": gallery, "train people": 199,
                                "test people": 189})


def _people(path: Path, part: str, struct, kept) -> dict[int, list[str]]:
    """Values of each identity by number; "" for unknown."""
    endings = {begin: [*words_of(listed), "unknown"] for _, _, begin, listed in ATTRIBUTES}
    wanted = {begin + ending for begin, own in endings.items() for ending in own}
    found = set(struct) if isinstance(struct, dict) else set()
    named = wanted | {"image_index"}
    for what, differing in (("lacks", sorted(named - found)), ("has", sorted(found - named))):
        if differing:
            raise ValueError(f"{path}: {part} {what} the label '{differing[0]}' ({len(differing)} in all), expected "
                             f"the {len(wanted)} labels of the published file. Use the file as published.")
    index = [str(number).removesuffix(".0") for number in np.atleast_1d(struct["image_index"]).ravel().tolist()]
    wrong = [number for number in index if not re.fullmatch("[0-9]{1,15}", number)]
    people: dict[int, list[str]] = {} if wrong else {int(number): [] for number in index}
    if len(people) < len(index):
        raise ValueError(f"{path}: {part}.image_index must contain distinct numbers of identities, got "
                         f"{wrong[0] if wrong else 'repeated numbers'}. Use the file as published.")
    for _, _, begin, listed in kept:
        labels = np.stack([_label(path, part, struct, begin + ending, len(index)) for ending in endings[begin]], axis=1)
        several = np.flatnonzero(labels.sum(axis=1) > 1)
        if len(several):
            names = [begin + endings[begin][i] for i in np.flatnonzero(labels[several[0]])]
            raise ValueError(f"{path}: {part} has {' and '.join(names)} for identity {index[several[0]]}, expected "
                             "only one of them. Use the file as published.")
        words = [*words_of(listed).values(), ""]
        for row, own in zip(labels, people.values()):
            own.append(words[int(row.argmax())] if row.any() else "")
    return people


def _label(path: Path, part: str, struct: dict, name: str, count: int) -> np.ndarray:
    values = np.atleast_1d(struct[name]).ravel()
    if len(values) != count or not np.isin(values, (NO, YES)).all():
        wrong = next((value for value in values.tolist() if value not in (NO, YES)), None)
        raise ValueError(f"{path}: {part}.{name} " + (f"has the label {wrong}, expected {NO} (no) or {YES} (yes)"
                         if wrong is not None else f"has {len(values)} labels for {count} identities")
                         + ". Use the file as published.")
    return values == YES
