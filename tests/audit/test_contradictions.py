"""What labels contradict among themselves."""

from cerberus_plugin.audit.contradictions import contradictions, unknown_labels
from cerberus_plugin.own_data.people import labels_of, read_people, read_wording

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


def test_two_of_an_exclusive_set_are_named_with_both_ways_out(tmp_path):
    *_, findings = found(tmp_path, "0.png,a,1,yes,male,yes,yes", "1.png,a,1,yes,male,yes,yes",
                         "2.png,b,1,yes,male,no,yes")
    assert [(one.kind, one.person, one.attribute, one.files) for one in findings] == [
        ("exclusive", "a", "bag, backpack", ("0.png", "1.png"))]
    assert [choice.rows for choice in findings[0].choices] == [(("", "a", "1", "backpack", "no", "yes"),),
                                                               (("", "a", "1", "bag", "no", "yes"),)]


def test_lasting_labels_that_differ_in_a_person_and_others_that_differ_in_an_outfit(tmp_path):
    *_, findings = found(tmp_path, "0.png,a,1,yes,male,no,no", "1.png,a,1,yes,male,no,no",
                         "2.png,a,2,no,female,no,no", "3.png,b,1,yes,male,no,no", "4.png,b,1,no,male,no,no")
    differ = {(one.person, one.attribute): one for one in findings if one.kind == "differs"}
    assert set(differ) == {("a", "gender"), ("b", "hat")}  # the hat of a is that of another outfit
    gender = differ["a", "gender"]
    assert gender.files == ("2.png",) and gender.proposed == "male" and gender.confidence == 2 / 3
    assert gender.choices[0].rows == (("2.png", "", "", "gender", "male", "female"),)
    assert [row[0] for row in gender.choices[1].rows] == ["0.png", "1.png"]


def test_rows_of_first_values_and_unknown_labels_are_told(tmp_path):
    own, wording, labels, findings = found(tmp_path, "0.png,a,1,no,male,no,no", "1.png,b,1,yes,,no,no",
                                           "2.png,c,1,yes,,no,yes")
    assert [(one.kind, one.person) for one in findings] == [("all first values", "a")]
    assert findings[0].choices[0].rows[0] == ("", "a", "1", "hat", "", "no") and len(findings[0].choices[0].rows) == 4
    assert unknown_labels(own, wording.schema, labels) == [("gender", 2, 2)]
