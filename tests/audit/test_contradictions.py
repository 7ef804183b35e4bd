"""Labels that contradict each other."""

import csv

from cerberus_plugin.attributes import DUKEMTMC, MARKET1501, read_annotations
from cerberus_plugin.audit.contradictions import contradictions, unknown_labels
from cerberus_plugin.own_data.people import labels_of, read_people, read_wording
from cerberus_plugin.own_data.schema_file import Wording, schema_text

import pytest
from support.own_data import write_picture

SCHEMA = """
groups:
  - name: head
    region: 0
    attributes: [{name: hat, values: [no, yes]}]
  - name: person
    region: whole
    lasting: yes
    attributes: [{name: gender, values: [male, female]}]
  - name: carrying
    region: whole
    attributes: [{name: bag, values: [no, yes]}, {name: backpack, values: [no, yes]}]
exclusive: [[bag, backpack]]
"""


def found(folder, *lines: str, head: str = "file_name,person,outfit,hat,gender,bag,backpack"):
    for line in lines:
        write_picture(folder / line.split(",")[0], 1)
    (folder / "schema.yaml").write_text(SCHEMA)
    (folder / "metadata.csv").write_text("\n".join([head, *lines]) + "\n")
    own = read_people(folder)
    wording = read_wording(own)
    labels = labels_of(own, wording)
    return own, wording, labels, contradictions(own, wording, labels)


def test_two_exclusive_attributes_are_a_finding_with_both_corrections(tmp_path):
    *_, findings = found(tmp_path, "0.png,a,1,yes,male,yes,yes", "1.png,a,1,yes,male,yes,yes",
                         "2.png,b,1,yes,male,no,yes")
    assert [(one.kind, one.person, one.attribute, one.files) for one in findings] == [
        ("exclusive", "a", "bag, backpack", ("0.png", "1.png"))]
    assert [choice.rows for choice in findings[0].choices] == [(("", "a", "1", "backpack", "no", "yes"),),
                                                               (("", "a", "1", "bag", "no", "yes"),)]


def test_lasting_labels_must_not_differ_in_a_person_nor_others_in_an_outfit(tmp_path):
    *_, findings = found(tmp_path, "0.png,a,1,yes,male,no,no", "1.png,a,1,yes,male,no,no",
                         "2.png,a,2,no,female,no,no", "3.png,b,1,yes,male,no,no", "4.png,b,1,no,male,no,no")
    differ = {(one.person, one.attribute): one for one in findings if one.kind == "differs"}
    assert set(differ) == {("a", "gender"), ("b", "hat")}  # the hats of a belong to different outfits
    gender = differ["a", "gender"]
    assert gender.files == ("2.png",) and gender.proposed == "male" and gender.confidence == 2 / 3
    assert gender.choices[0].rows == (("2.png", "", "", "gender", "male", "female"),)
    assert [row[0] for row in gender.choices[1].rows] == ["0.png", "1.png"]


def test_rows_of_first_values_and_unknown_labels_are_reported(tmp_path):
    own, wording, labels, findings = found(tmp_path, "0.png,a,1,no,male,no,no", "1.png,b,1,yes,,no,no",
                                           "2.png,c,1,yes,,no,yes")
    assert [(one.kind, one.person) for one in findings] == [("all first values", "a")]
    assert findings[0].choices[0].rows[0] == ("", "a", "1", "hat", "", "no") and len(findings[0].choices[0].rows) == 4
    assert unknown_labels(own, wording.schema, labels) == [("gender", 2, 2)]


@pytest.mark.parametrize("schema, file, people, unknown", [
    (MARKET1501, "market_attribute.mat", 1501, []), (DUKEMTMC, "duke_attribute.mat", 1812, [("top", 2, 2)])],
    ids=["market1501", "dukemtmc"])
def test_the_published_annotations_have_no_contradictions(real_data, tmp_path, schema, file, people, unknown):
    """With one empty file instead of the images of a person."""
    annotations = read_annotations(real_data / file, schema)
    rows = {f"{split}{pid}": own for split, table in (("", annotations.train), ("t", annotations.test))
            for pid, own in table.items()}
    names = [column.name for column in schema.columns]
    with (tmp_path / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "person", *names])
        for person, own in rows.items():
            (tmp_path / f"{person}.jpg").touch()
            words = schema.describe(own)
            writer.writerow([f"{person}.jpg", person, *(words.get(name, "") for name in names)])
    none = {column.name: ("none",) for column in schema.columns if column.is_colour}
    (tmp_path / "schema.yaml").write_text(schema_text(Wording(schema, none)))
    own = read_people(tmp_path)
    wording = read_wording(own)
    labels = labels_of(own, wording)
    assert len(rows) == people
    assert unknown_labels(own, wording.schema, labels) == unknown
    bags = labels[:, [wording.schema.index(name) for name in schema.exclusive[0]]]
    assert (bags == 1).sum(axis=1).max() == 1 and not (labels <= 0).all(axis=1).any()
    assert not contradictions(own, wording, labels)
