"""PETA: 19,000 images, 35 evaluated labels of 105, five partitions."""

from __future__ import annotations

from pathlib import Path

from ..attributes.schema import Group
from .questions import Questions, binary, several
from .registry import register_converter
from .sources import check_labels, check_names, chosen_parts, find, matrix, read_fields, split_of, texts
from .writing import Converted

# The 35 evaluated labels are the first of the file's 105, in this order.
EVALUATED = (
    "personalLess30", "personalLess45", "personalLess60", "personalLarger60", "carryingBackpack", "carryingOther",
    "lowerBodyCasual", "upperBodyCasual", "lowerBodyFormal", "upperBodyFormal", "accessoryHat", "upperBodyJacket",
    "lowerBodyJeans", "footwearLeatherShoes", "upperBodyLogo", "hairLong", "personalMale", "carryingMessengerBag",
    "accessoryMuffler", "accessoryNothing", "carryingNothing", "upperBodyPlaid", "carryingPlasticBags",
    "footwearSandals", "footwearShoes", "lowerBodyShorts", "upperBodyShortSleeve", "lowerBodyShortSkirt",
    "footwearSneaker", "upperBodyThinStripes", "accessorySunglasses", "lowerBodyTrousers", "upperBodyTshirt",
    "upperBodyOther", "upperBodyVNeck")
ALL = 105
# By group, in the order in which Rethinking_of_PAR (Jia et al., arXiv 2107.03576) evaluates them.
QUESTIONS = Questions("peta", (Group("head", 0), Group("upper", 1), Group("lower", 2), Group("feet", 2),
                               Group("carrying"), Group("identity", lasting=True)), (
    binary("hat", "head", "accessoryHat"),
    binary("muffler", "head", "accessoryMuffler"),
    binary("no accessory", "head", "accessoryNothing"),
    binary("sunglasses", "head", "accessorySunglasses"),
    binary("long hair", "head", "hairLong"),
    binary("casual upper clothes", "upper", "upperBodyCasual"),
    binary("formal upper clothes", "upper", "upperBodyFormal"),
    binary("jacket", "upper", "upperBodyJacket"),
    binary("logo", "upper", "upperBodyLogo"),
    binary("plaid", "upper", "upperBodyPlaid"),
    binary("short sleeves", "upper", "upperBodyShortSleeve"),
    binary("thin stripes", "upper", "upperBodyThinStripes"),
    binary("T-shirt", "upper", "upperBodyTshirt"),
    binary("other upper clothes", "upper", "upperBodyOther"),
    binary("V-neck", "upper", "upperBodyVNeck"),
    binary("casual lower clothes", "lower", "lowerBodyCasual"),
    binary("formal lower clothes", "lower", "lowerBodyFormal"),
    binary("jeans", "lower", "lowerBodyJeans"),
    binary("shorts", "lower", "lowerBodyShorts"),
    binary("short skirt", "lower", "lowerBodyShortSkirt"),
    binary("trousers", "lower", "lowerBodyTrousers"),
    binary("leather shoes", "feet", "footwearLeatherShoes"),
    binary("sandals", "feet", "footwearSandals"),
    binary("shoes", "feet", "footwearShoes"),
    binary("sneakers", "feet", "footwearSneaker"),
    binary("backpack", "carrying", "carryingBackpack"),
    binary("carries something else", "carrying", "carryingOther"),
    binary("messenger bag", "carrying", "carryingMessengerBag"),
    binary("carries nothing", "carrying", "carryingNothing"),
    binary("plastic bags", "carrying", "carryingPlasticBags"),
    several("age", "identity", {"personalLess30": "16 to 30", "personalLess45": "31 to 45",
                                "personalLess60": "46 to 60", "personalLarger60": "over 60"}),
    binary("gender", "identity", "personalMale", ("female", "male")),
))


@register_converter("peta", title="PETA (Deng et al., 2014)", licence="research only, see the authors' page",
                    rule="35 of 105 labels; mA over these and instance accuracy, precision, recall and F1 on the test "
                         "images, threshold 0.5 (0.45 in OpenPAR's projects); trained on train and val together")
def read(source: Path, *, partition: int = 1) -> Converted:
    """Read PETA.mat and images/00001.png ...; `partition` is one of the five random splits, from 1."""
    path = find(source, "PETA.mat")
    data, attributes, _, partitions = read_fields(path, "data", "attribute", "selected_attribute", "partitions")
    names = texts(path, "attributes", attributes)
    check_names(path, names[:len(EVALUATED)], EVALUATED)
    count = len(names)
    data = matrix(path, data, None, 4 + len(names))
    files = [f"{number:05d}.png" for number in range(1, len(data) + 1)]
    names = names[:len(EVALUATED)]
    # The first four columns are the numbers of the image, the person and the source.
    labels = check_labels(path, data[:, 4:4 + len(names)], files, names)
    split = split_of(path, chosen_parts(path, partitions, partition, {"train": 0, "val": 1, "test": 2}), len(files))
    return Converted(find(source, "images", folder=True), files,
                     {"split": split, **QUESTIONS.words(labels, names)}, QUESTIONS.wording, path,
                     binaries=QUESTIONS.binaries, about={"partition": partition},
                     published={"train pictures": 9500, "val pictures": 1900, "test pictures": 7600,
                                "labels in the file": ALL}, found={"labels in the file": count})
