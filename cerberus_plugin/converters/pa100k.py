"""PA-100K: 100,000 images, 26 labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..attributes.schema import Group
from .questions import Questions, binary, several
from .registry import register_converter
from .sources import check_labels, check_names, find, read_annotation, texts
from .writing import Converted

PARTS = ("train", "val", "test")
# In the order of the labels in the file.
QUESTIONS = Questions("pa100k", (Group("identity", lasting=True), Group("view"), Group("head", 0), Group("carrying"),
                                 Group("upper", 1), Group("lower", 2)), (
    binary("gender", "identity", "Female", ("male", "female")),
    several("age", "identity", {"AgeOver60": "over 60", "Age18-60": "18 to 60", "AgeLess18": "under 18"}),
    several("view", "view", {"Front": "front", "Side": "side", "Back": "back"}),
    binary("hat", "head", "Hat"),
    binary("glasses", "head", "Glasses"),
    binary("handbag", "carrying", "HandBag"),
    binary("shoulder bag", "carrying", "ShoulderBag"),
    binary("backpack", "carrying", "Backpack"),
    binary("holds objects in front", "carrying", "HoldObjectsInFront"),
    binary("short sleeves", "upper", "ShortSleeve"),
    binary("long sleeves", "upper", "LongSleeve"),
    binary("stripes on upper clothes", "upper", "UpperStride"),
    binary("logo on upper clothes", "upper", "UpperLogo"),
    binary("plaid upper clothes", "upper", "UpperPlaid"),
    binary("spliced upper clothes", "upper", "UpperSplice"),
    binary("stripes on lower clothes", "lower", "LowerStripe"),
    binary("pattern on lower clothes", "lower", "LowerPattern"),
    binary("long coat", "lower", "LongCoat"),
    binary("trousers", "lower", "Trousers"),
    binary("shorts", "lower", "Shorts"),
    binary("skirt or dress", "lower", "Skirt&Dress"),
    binary("boots", "lower", "boots"),
))


@register_converter("pa100k", title="PA-100K (Liu et al., 2017)", licence="CC BY 4.0",
                    rule="26 labels; mA over these and instance accuracy, precision, recall and F1 on the test "
                         "images, threshold 0.5 (0.45 in OpenPAR's projects); trained on train, or on train and val")
def read(source: Path) -> Converted:
    """Read annotation.mat, and the images in data/ or release_data/release_data/."""
    path = find(source, "annotation.mat", "annotation/annotation.mat")
    attributes, *parts = read_annotation(path, "attributes", *(f"{part}_{what}" for part in PARTS
                                                               for what in ("images_name", "label")))
    names = texts(path, "attributes", attributes)
    check_names(path, names, QUESTIONS.published)
    files: list[str] = []
    split: list[str] = []
    labels = []
    for part, own, values in zip(PARTS, parts[::2], parts[1::2]):
        own = texts(path, f"{part}_images_name", own)
        labels.append(check_labels(path, values, own, names))
        files += own
        split += [part] * len(own)
    return Converted(find(source, "data", "release_data/release_data", "release_data", folder=True), files,
                     {"split": split, **QUESTIONS.words(np.concatenate(labels), names)}, QUESTIONS.wording, path,
                     binaries=QUESTIONS.binaries, published={"train pictures": 80_000, "val pictures": 10_000,
                                                             "test pictures": 10_000})
