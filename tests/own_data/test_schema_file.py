"""`schema.yaml`: reading it, errors in it, and inferring a schema without it."""

import re

from cerberus_plugin.own_data.schema_file import NoAttributes, infer_schema, read_schema, schema_text
from cerberus_plugin.own_data.tables import Words

import numpy as np
import pytest

SITE = """
name: site
groups:
  - {name: head, region: 0, attributes: [{name: helmet, values: [no, yes], display: hard hat}]}
  - name: person
    region: whole
    lasting: yes
    attributes:
      - {name: age, values: [young, adult, old]}
      - {name: vest colour, values: [red, orange], none: [none, "-"], display: vest}
"""


def read(tmp_path, text: str):
    (tmp_path / "schema.yaml").write_text(text)
    return read_schema(tmp_path / "schema.yaml")


def test_a_schema_file_is_read_and_written(tmp_path):
    wording = read(tmp_path, SITE)
    schema = wording.schema
    assert [(group.name, group.strip, group.lasting) for group in schema.groups] == [("head", 0, False),
                                                                                      ("person", None, True)]
    assert [column.name for column in schema.columns] == ["helmet", "age", "vest colour"]
    assert schema.column("hard hat").classes == ("no", "yes")
    assert schema.column("vest").answers == ("none", "red", "orange")
    assert wording.labels_of("age", "ADULT").tolist() == [-1, 1, -1, -1]
    assert wording.labels_of("vest colour", "-").tolist() == [-1, -1, 0, 0]
    assert wording.labels_of("vest colour", "Orange and red").tolist() == [-1, -1, 1, 1]
    with pytest.raises(ValueError, match="'age' is 'yung', expected one of young, adult, old; did you mean 'young'"):
        wording.labels_of("age", "yung")
    assert read(tmp_path, schema_text(wording)).schema.to_dict() == schema.to_dict()


@pytest.mark.parametrize("change, message", [
    (("[{name: helmet, values: [no, yes], display: hard hat}]", "[]"), "attributes of group 'head'.*at least one"),
    (("name: person", "name: head"), "group 'head' is defined twice"),
    (("name: age", "name: helmet"), "field 'helmet' is defined twice"),
    (("young, adult", "young, Young"), "'age' has the value 'Young' twice"),
    (("values: [young, adult, old]", "values: young"), "values of 'age': is 'young', expected a list"),
    (("region: whole", "region: top"), "region of group 'person' is 'top', expected 0"),
    (("lasting: yes", "lasting: 2"), "lasting of group 'person' is '2', expected yes or no"),
    (("lasting: yes", "lastng: yes"), "group 2 has the unknown key 'lastng', expected name"),
    (("region: 0, ", ""), "group 1 has no 'region'"),
    (("name: head", "name: my head"), "group 'my head' .* expected letters, digits and underscores"),
    (("region: whole", "region: whole\n    region: 0"), "line 7: .*'region' is repeated"),
    (("name: site", "exclusive: [[age, helmet]]"), "exclusive contains 'age', expected attributes with two values"),
    (("name: site", "name: !!python/object/apply:os.system [echo]"), "line 2: not valid YAML .*python/object"),
    (("name: site", "name: [a, b"), "not valid YAML"),
    (("name: site", "a: &a [x]\nname: *a"), "aliases"),
    ((SITE, "- a\n- b\n"), r"the file is \['a', 'b'\], expected a mapping"),
    ((SITE, ""), "the file is None, expected a mapping"),
])
def test_a_wrong_schema_file_raises_an_error_with_its_place(tmp_path, change, message):
    assert change[0] in SITE
    with pytest.raises(ValueError, match=f"schema.yaml.*{message}") as raised:
        read(tmp_path, SITE.replace(*change))
    assert str(raised.value).endswith(".")  # the last sentence is the remedy


def words(*values: str) -> Words:
    return Words.of(values)


def test_groups_and_values_are_inferred_from_the_tables():
    wording = infer_schema("site", {"helmet": words("yes", "no"), "upper colour": words("red", "none", "blue"),
                                    "gender": words("male", "female"), "tool": words("saw", "drill", "saw and drill")})
    schema = wording.schema
    assert [(group.name, group.strip) for group in schema.groups] == [("head", 0), ("upper", 1), ("person", None),
                                                                      ("other", None)]
    assert [column.answers for column in schema.columns] == [("no", "yes"), ("none", "blue", "red"),
                                                             ("female", "male"), ("none", "drill", "saw")]
    assert wording.labels_of("tool", "saw and drill").tolist()[-2:] == [1, 1]


@pytest.mark.parametrize("values, reason", [
    ([str(n) for n in range(3)], "contains numbers"), (["1.5", "2,5"], "contains numbers"),
    (["2024-01-31", "2024-02-01"], "contains dates"), (["31.1.2024", "1.2.2024"], "contains dates"),
    (["a man walks along the street and " * 3, "another one who is sitting on a bench " * 2], "contains free text"),
    ([f"value {n}" for n in range(200)], "has 200 different values"),
    (["yes"], "contains only the value 'yes'; .* write 'no'"), ([""], "is empty"),
])
def test_a_column_that_is_not_an_attribute_is_omitted_with_the_reason(values, reason):
    kept = {"hat": words("yes", "no"), "vest": words("0", "1")}
    wording = infer_schema("site", kept | {"other": words(*values)})
    assert [column.name for column in wording.schema.columns] == ["hat", "vest"]
    assert re.match(reason, wording.left_out["other"])
    with pytest.raises(NoAttributes, match=f"no column can be used as an attribute; 'other' {reason}"):
        infer_schema("site", {"other": words(*values)})


def test_a_column_with_a_different_value_for_each_person_is_omitted():
    people = np.repeat(np.arange(24), 3)
    remarks = words(*(f"says {n}" for n in people))
    trades = words(*(f"trade {n % 12}" for n in people))
    wording = infer_schema("site", {"trade": trades, "remark": remarks}, people)
    assert [column.name for column in wording.schema.columns] == ["trade"]
    assert wording.left_out["remark"].startswith("has 24 different values for 24 people, like a name or a remark")


def test_many_attributes_of_one_place_are_divided_into_several_groups():
    names = [f"thing {n}" for n in range(20)] + [f"coat {n}" for n in range(8)]
    schema = infer_schema("site", {name: words("no", "yes") for name in names}).schema
    assert [(group.name, group.strip) for group in schema.groups] == [
        ("upper", 0), ("upper_2", 0), ("other", None), ("other_2", None), ("other_3", None), ("other_4", None)]
    assert max(schema.num_combinations(group) for group in schema.group_names) == 2**6


@pytest.mark.parametrize("names", [("a", "b"), ("hat", "hair"), ("hat", "vest", "shoes"), ("gender", "age")])
def test_an_inferred_schema_has_groups_of_strips_and_of_the_whole_image(names):
    schema = infer_schema("site", {name: words("no", "yes") for name in names}).schema
    strips = [group.strip for group in schema.groups]
    assert None in strips and sorted(strip for strip in strips if strip is not None) == list(range(len(strips) - 1))
