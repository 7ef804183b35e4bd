"""Conversion of labels between schemas, compared with results worked out by hand."""

from cerberus_plugin.attributes import DUKEMTMC, MARKET1501, Annotations, AttributeSchema, Field, Group
from cerberus_plugin.attributes.matching import relabel

import numpy as np
import pytest
import torch

GROUPS = (Group("head", 0), Group("body"))


def colours(column: str, *words: str, group: str = "body", display: str = "") -> tuple[Field, ...]:
    return tuple(Field(f"{column} {word}", group, ("no", "yes"), column, word, display) for word in words)


def schema(name: str, *fields: Field) -> AttributeSchema:
    return AttributeSchema(name, fields, groups=tuple(g for g in GROUPS if g.name in {own.group for own in fields}))


HERE = schema("here", Field("Hat", "head", ("0", "1")), Field("build", "body", ("slim", "Stout", "giant")),
              *colours("vest", "red", "blue", "pink"), Field("tool", "body", ("saw", "drill")))
THERE = schema("there", Field("cap", "head", ("no", "yes"), display="hat"), Field("scarf", "head", ("no", "yes")),
               Field("build", "body", ("stout", "slim", "tall")), *colours("vest", "green", "red", "blue"))


def test_attributes_and_values_are_matched_by_text_and_others_unknown():
    here = np.array([
        # hat, build, vest red, blue, pink, tool
        [1, 0, 1, 0, 0, 1],
        [0, 1, 0, 0, 0, 0],  # no listed colour: green is possible
        [-1, 2, 0, 0, 1, 1],  # "giant" and "pink" are not in the other schema
        [1, -1, 0, 1, 1, 1],
        [0, 1, -1, 1, 0, -1],
        [0, 1, -1, -1, -1, -1],
    ])
    labels, report = relabel(here, HERE, THERE)
    assert labels.tolist() == [
        # cap, scarf, build, vest green, red, blue
        [1, -1, 1, 0, 1, 0],
        [0, -1, 0, -1, 0, 0],
        [-1, -1, -1, -1, -1, -1],
        [1, -1, -1, 0, 0, 1],
        [0, -1, 0, 0, -1, 1],
        [0, -1, 0, -1, -1, -1],
    ]
    assert report.columns == {"cap": ("Hat",), "build": ("build",), "vest": ("vest",)}
    assert report.only_data == ("tool",) and report.only_schema == ("scarf",)
    assert report.lost == {"build": {"giant": 1}, "vest": {"pink": 2}}
    assert report.absent == {"build": ("tall",), "vest": ("green",)}
    assert not report.complete and "tool" in "\n".join(report.lines())


def test_colours_are_converted_to_values_and_back():
    one = schema("one", Field("vest", "body", ("none", "red", "blue")))
    several = schema("several", *colours("vest", "red", "blue", "green"))
    labels, report = relabel(np.array([[0], [1], [2], [-1]]), one, several)
    assert labels.tolist() == [[0, 0, -1], [1, 0, 0], [0, 1, 0], [-1, -1, -1]] and not report.lost
    back, report = relabel(np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, -1, 0]]), several, one)
    assert back.tolist() == [[0], [1], [-1], [-1], [-1]] and report.lost == {"vest": {"green": 1}}


def test_conversion_to_the_same_schema_changes_nothing():
    labels = torch.randint(-1, 2, (40, 27), generator=torch.Generator().manual_seed(0))
    # With one listed colour, unknown labels of other colours stay unknown.
    found, report = relabel(labels, MARKET1501, MARKET1501)
    assert torch.equal(found, labels) and found.dtype == labels.dtype and report.complete


def test_common_attributes_of_duke_and_market_are_converted():
    words = {"gender": "female", "hat": "yes", "age": "old", "up": "short sleeve", "backpack": "no",
             "upper colour": "yellow", "lower colour": "blue"}
    labels, report = relabel(torch.from_numpy(MARKET1501.parse(words))[None], MARKET1501, DUKEMTMC)
    assert DUKEMTMC.describe(labels[0]) == {"gender": "female", "backpack": "no", "hat": "yes", "lower colour": "blue"}
    assert report.only_schema == ("top", "shoes", "boots")
    assert report.only_data == ("age", "hair", "up", "down", "clothes")
    assert report.lost == {"upper colour": {"yellow": 1}} and report.absent["upper colour"] == ("brown",)


@pytest.mark.parametrize("labels", [np.empty((0, 6), int), np.full((2, 6), -1)])
def test_unknown_labels_stay_unknown(labels):
    found, report = relabel(labels, HERE, THERE)
    assert found.shape == (len(labels), 6) and (found == -1).all() and not report.lost


def test_schemas_without_common_attributes_give_unknown_labels():
    other = schema("other", Field("shoes", "body", ("no", "yes")))
    labels, report = relabel(np.zeros((3, 5), np.int64), schema("vests", *colours("vest", *"abcde")), other)
    assert labels.tolist() == [[-1]] * 3 and report.only_schema == ("shoes",) and report.only_data == ("vest",)
    people = Annotations(MARKET1501, {1: torch.zeros(len(MARKET1501.fields), dtype=torch.int64)}, {2: torch.zeros(
        len(MARKET1501.fields), dtype=torch.int64)}).under(other)
    assert people.train[1].tolist() == people.test[2].tolist() == [-1] and not people.matching.columns
