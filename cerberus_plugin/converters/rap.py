"""RAPv1 and RAPv2: images of shoppers from 25 and 26 cameras, 51 and 54 evaluated labels, five partitions each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..attributes.schema import Group
from .questions import Question, Questions, binary, several
from .registry import register_converter
from .sources import (
    check_labels,
    check_names,
    chosen_parts,
    find,
    matrix,
    read_annotation,
    read_fields,
    split_of,
    texts,
)
from .writing import Converted

GROUPS = (Group("identity", lasting=True), Group("head", 0), Group("upper", 1), Group("lower", 2), Group("feet", 2),
          Group("carrying"), Group("action"))
UNCERTAIN = 2
FILES = ("RAP_annotation/RAP_annotation.mat", "RAP_annotation.mat")
READINGS = ("unknown", "no")


def _yes_no(group: str, **names: str) -> tuple[Question, ...]:
    """Columns of one label each, by published name with _ instead of -."""
    return tuple(binary(word, group, name.replace("_", "-")) for name, word in names.items())


V1 = Questions("rapv1", GROUPS, (
    binary("gender", "identity", "Female", ("male", "female")),
    several("age", "identity", {"AgeLess16": "under 16", "Age17-30": "17 to 30", "Age31-45": "31 to 45"}),
    several("body", "identity", {"BodyFat": "fat", "BodyNormal": "normal", "BodyThin": "thin"}),
    several("role", "identity", {"Customer": "customer", "Clerk": "clerk"}),
    *_yes_no("head", hs_BaldHead="bald", hs_LongHair="long hair", hs_BlackHair="black hair", hs_Hat="hat",
             hs_Glasses="glasses", hs_Muffler="muffler"),
    *_yes_no("upper", ub_Shirt="shirt", ub_Sweater="sweater", ub_Vest="vest", ub_TShirt="T-shirt",
             ub_Cotton="cotton coat", ub_Jacket="jacket", ub_SuitUp="suit", ub_Tight="tight upper clothes",
             ub_ShortSleeve="short sleeves"),
    *_yes_no("lower", lb_LongTrousers="long trousers", lb_Skirt="skirt", lb_ShortSkirt="short skirt", lb_Dress="dress",
             lb_Jeans="jeans", lb_TightTrousers="tight trousers"),
    *_yes_no("feet", shoes_Leather="leather shoes", shoes_Sport="sports shoes", shoes_Boots="boots",
             shoes_Cloth="cloth shoes", shoes_Casual="casual shoes"),
    *_yes_no("carrying", attach_Backpack="backpack", attach_SingleShoulderBag="shoulder bag", attach_HandBag="handbag",
             attach_Box="box", attach_PlasticBag="plastic bag", attach_PaperBag="paper bag", attach_HandTrunk="trolley",
             attach_Other="carries something else"),
    *_yes_no("action", action_Calling="calling", action_Talking="talking", action_Gathering="gathering",
             action_Holding="holding", action_Pusing="pushing", action_Pulling="pulling",  # "Pusing" in the file
             action_CarrybyArm="carrying by arm", action_CarrybyHand="carrying by hand"),
))

V2 = Questions("rapv2", GROUPS, (
    binary("gender", "identity", "Femal", ("male", "female")),  # "Femal" in the file
    several("age", "identity", {"AgeLess16": "under 16", "Age17-30": "17 to 30", "Age31-45": "31 to 45",
                                "Age46-60": "46 to 60"}),
    several("body", "identity", {"BodyFat": "fat", "BodyNormal": "normal", "BodyThin": "thin"}),
    several("role", "identity", {"Customer": "customer", "Employee": "employee"}),
    *_yes_no("head", hs_BaldHead="bald", hs_LongHair="long hair", hs_BlackHair="black hair", hs_Hat="hat",
             hs_Glasses="glasses"),
    *_yes_no("upper", ub_Shirt="shirt", ub_Sweater="sweater", ub_Vest="vest", ub_TShirt="T-shirt",
             ub_Cotton="cotton coat", ub_Jacket="jacket", ub_SuitUp="suit", ub_Tight="tight upper clothes",
             ub_ShortSleeve="short sleeves", ub_Others="other upper clothes"),
    *_yes_no("lower", lb_LongTrousers="long trousers", lb_Skirt="skirt", lb_ShortSkirt="short skirt", lb_Dress="dress",
             lb_Jeans="jeans", lb_TightTrousers="tight trousers"),
    *_yes_no("feet", shoes_Leather="leather shoes", shoes_Sports="sports shoes", shoes_Boots="boots",
             shoes_Cloth="cloth shoes", shoes_Casual="casual shoes", shoes_Other="other shoes"),
    *_yes_no("carrying", attachment_Backpack="backpack", attachment_ShoulderBag="shoulder bag",
             attachment_HandBag="handbag", attachment_Box="box", attachment_PlasticBag="plastic bag",
             attachment_PaperBag="paper bag", attachment_HandTrunk="trolley",
             attachment_Other="carries something else"),
    *_yes_no("action", action_Calling="calling", action_Talking="talking", action_Gathering="gathering",
             action_Holding="holding", action_Pushing="pushing", action_Pulling="pulling",
             action_CarryingByArm="carrying by arm", action_CarryingByHand="carrying by hand",
             action_Other="other action"),
))


def _converted(source: Path, path: Path, questions: Questions, files: list[str], values, names: list[str],
               split: list[str], uncertain: str, partition: int, published: dict[str, int]) -> Converted:
    if uncertain not in READINGS:
        raise ValueError(f"--uncertain is '{uncertain}', expected one of {', '.join(READINGS)}.")
    labels = check_labels(path, values, files, names, (UNCERTAIN,))
    unsure = int((labels < 0).sum())
    if uncertain == "no":
        labels = np.maximum(labels, 0)
    columns = {"split": split, **questions.words(labels, names)}
    return Converted(find(source, "RAP_dataset", folder=True), files, columns, questions.wording, path,
                     binaries=questions.binaries,
                     about={"partition": partition, "uncertain labels": f"{unsure}, read as {uncertain}"},
                     published=published)


@register_converter("rapv1", title="RAP 1.0 (Li et al., 2016)", licence="on request to the authors, research only",
                    rule="51 of 92 labels; mA over these and instance accuracy, precision, recall and F1 on the test "
                         "images, threshold 0.5 (0.45 in OpenPAR's projects)")
def read_v1(source: Path, *, partition: int = 1, uncertain: str = "unknown") -> Converted:
    """Read RAP_annotation/RAP_annotation.mat, and the images in RAP_dataset/.

    Args:
        source: folder of the dataset.
        partition: 1 to 5.
        uncertain: value of labels that the dataset marks as uncertain, one of `READINGS`.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if the annotations are not as published, or an option is not valid.
    """
    path = find(source, *FILES)
    partitions, values, names, files = read_fields(path, "partitions", "labels", "", "attributes", "", "names")
    names, files = texts(path, "attributes", names), texts(path, "names", files)
    evaluated = len(V1.published)
    check_names(path, names[:evaluated], V1.published)
    split = split_of(path, chosen_parts(path, partitions, partition, {"train": 0, "test": 1}), len(files))
    values = matrix(path, values, len(files), evaluated)[:, :evaluated]
    return _converted(source, path, V1, files, values, names[:evaluated], split, uncertain, partition,
                      {"train pictures": 33_268, "test pictures": 8_317})


@register_converter("rapv2", title="RAP 2.0 (Li et al., 2019)", licence="on request to the authors, research only",
                    rule="54 labels, 53 in the zero-shot split, which excludes Age46-60; mA over these and instance "
                         "accuracy, precision, recall and F1 on the test images, threshold 0.5 (0.45 in OpenPAR's "
                         "projects); public readers read uncertain labels as no: --uncertain no")
def read_v2(source: Path, *, partition: int = 1, uncertain: str = "unknown") -> Converted:
    """Read RAP_annotation/RAP_annotation.mat, and the images in RAP_dataset/.

    Args:
        source: folder of the dataset.
        partition: 1 to 5.
        uncertain: value of labels that the dataset marks as uncertain, one of `READINGS`.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: if the annotations are not as published, or an option is not valid.
    """
    path = find(source, *FILES)
    files, names, values, selected, partitions = read_annotation(path, "name", "attribute", "data",
                                                                 "selected_attribute", "partition_attribute")
    names, files = texts(path, "attributes", names), texts(path, "names", files)
    columns = matrix(path, selected, 1, 1)[0].astype(np.int64) - 1
    if not ((columns >= 0) & (columns < len(names))).all():
        raise ValueError(f"{path}: selected_attribute contains numbers outside 1 to {len(names)}. Use the file as "
                         "published.")
    values = matrix(path, values, len(files), len(names))
    names = [names[column] for column in columns.tolist()]
    check_names(path, names, V2.published)
    fields = {part: f"{part}_index" for part in ("train", "val", "test")}
    split = split_of(path, chosen_parts(path, partitions, partition, fields), len(files))
    return _converted(source, path, V2, files, values[:, columns], names, split, uncertain, partition,
                      {"train pictures": 50_957, "val pictures": 16_986, "test pictures": 16_985})
