"""Schemas and annotation files: bits, columns, conversions from and to text, and errors for invalid files."""

import json
import subprocess
import sys

from cerberus_plugin.attributes import (
    DUKEMTMC,
    GROUPS,
    MARKET1501,
    AttributeSchema,
    Field,
    Group,
    find_annotations,
    find_schema,
    read_annotations,
    register_schema,
)

import numpy as np
import pytest
import torch
from support.data import random_labels, write_annotations


@pytest.fixture
def people() -> dict:
    return {pid: row for pid, row in zip((2, 7, 10), random_labels(MARKET1501, 3))}


def test_market_has_30_bits_and_duke_23():
    assert MARKET1501.group_bits == (2, 9, 11, 5, 3) and MARKET1501.num_bits == 30
    assert DUKEMTMC.group_bits == (1, 9, 9, 1, 3) and DUKEMTMC.num_bits == 23


def test_fields_out_of_the_order_of_the_groups_are_rejected():
    with pytest.raises(ValueError, match="must be sorted by group"):
        AttributeSchema("own", MARKET1501.fields[::-1])


def test_columns_are_those_of_the_published_tables():
    assert [c.name for c in MARKET1501.columns] == [
        "gender", "age", "backpack", "handbag", "bag", "hair", "hat", "up", "upper colour", "down", "lower colour",
        "clothes"]
    assert sum(len(c.classes) for c in MARKET1501.columns) == 39
    assert len(DUKEMTMC.columns) == 10 and sum(len(c.classes) for c in DUKEMTMC.columns) == 31


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC])
def test_bits_decode_to_the_labels_they_came_from(schema):
    labels = random_labels(schema, 50)
    for group in GROUPS:
        fields = list(schema.group_fields(group))
        bits = schema.bits(labels, group)
        assert torch.equal(schema.labels_from_bits(bits, group)[:, fields], labels[:, fields])


def test_without_a_listed_colour_the_class_is_minus_one_and_the_text_is_none():
    labels = random_labels(MARKET1501, 1)
    labels[0, list(MARKET1501.columns[8].fields)] = 0
    assert MARKET1501.column_answers(labels)[0, 8] == -1
    assert MARKET1501.describe(labels[0])["upper colour"] == "none"


def test_parsing_a_colour_sets_the_other_colours_to_no():
    labels = MARKET1501.parse({"gender": "female", "upper colour": "red"})
    assert labels[MARKET1501.index("gender")] == 1 and labels[MARKET1501.index("upred")] == 1
    assert labels[MARKET1501.index("upblue")] == 0 and labels[MARKET1501.index("hat")] == -1
    assert MARKET1501.describe(labels) == {"gender": "female", "upper colour": "red"}


def test_two_colours_and_none_can_be_parsed():
    both = DUKEMTMC.parse({"lower colour": "black and white"})
    assert both[DUKEMTMC.index("downblack")] == both[DUKEMTMC.index("downwhite")] == 1
    assert (DUKEMTMC.parse({"lower colour": "none"})[list(DUKEMTMC.columns[7].fields)] == 0).all()


@pytest.mark.parametrize(("query", "message"), [
    ({"uper colour": "red"}, "unknown attribute 'uper colour'.*did you mean 'upper colour'"),
    ({"upper colour": "bleu"}, "'upper colour' cannot be 'bleu'; did you mean 'blue'.*none"),
    ({"upper colour": "BLUE"}, "'upper colour' cannot be 'BLUE'; did you mean 'blue'.*none"),
    ({"gender": "male and female"}, "'gender' cannot be 'male and female'"),
])
def test_the_error_for_an_unknown_word_suggests_the_nearest_and_lists_all(query, message):
    with pytest.raises(ValueError, match=message):
        MARKET1501.parse(query)


def test_display_names_are_accepted_in_queries():
    assert (MARKET1501.parse({"sleeve length": "short sleeve"}) == MARKET1501.parse({"up": "short sleeve"})).all()
    with pytest.raises(ValueError, match="'sleeve length' and 'up' are one attribute"):
        MARKET1501.parse({"sleeve length": "short sleeve", "up": "long sleeve"})
    with pytest.raises(ValueError, match="did you mean 'sleeve length'.*up .sleeve length."):
        MARKET1501.parse({"sleeve lenght": "short sleeve"})


def test_fingerprints_of_the_published_datasets_have_not_changed():
    assert (MARKET1501.fingerprint, MARKET1501.column_fingerprint) == (44512744104892673, 16774655608537704)
    assert (DUKEMTMC.fingerprint, DUKEMTMC.column_fingerprint) == (69975080036780562, 53366109114748887)


OWN = AttributeSchema(
    "own", (Field("red", "top", ("no", "yes"), "shirt", "red"), Field("age", "person", ("child", "adult", "old"),
                                                                     display="stage of life")),
    junk_pids=(9,), groups=(Group("top", 0), Group("person", lasting=True)))


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC, OWN])
def test_schemas_round_trip_through_json_with_the_same_fingerprint(schema):
    copy = AttributeSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert copy == schema and copy.fingerprint == schema.fingerprint and copy.junk_pids == schema.junk_pids
    assert [column.display for column in copy.columns] == [column.display for column in schema.columns]
    assert copy != AttributeSchema("other", schema.fields, groups=schema.groups)


def test_schemas_with_different_regions_are_not_equal():
    moved = AttributeSchema("own", OWN.fields, junk_pids=(9,), groups=(Group("top", 1), Group("person", lasting=True)))
    assert moved != OWN and moved.fingerprint != OWN.fingerprint


def test_records_of_earlier_versions_give_the_registered_schema():
    record = {key: value for key, value in MARKET1501.to_dict().items() if key != "layout"}
    assert AttributeSchema.from_dict(record) is MARKET1501


def test_a_single_colour_field_is_a_colour_column():
    column = OWN.column("shirt")
    assert column.is_colour and column.answers == ("none", "red")
    assert OWN.describe(OWN.parse({"shirt": "none", "stage of life": "old"})) == {"shirt": "none", "age": "old"}


@pytest.mark.parametrize(("fields", "groups", "message"), [
    ((Field("a", "legs", ("no", "yes")),), (Group("top"),), "field 'a' has group 'legs', expected one of top"),
    ((Field("a", "top", ("no",)),), (Group("top"),), "field 'a' has the values .*expected two or more"),
    ((Field("a", "top", ("no", "yes")),) * 2, (Group("top"),), "field 'a' is defined twice"),
    ((Field("a", "top", ("no", "yes")),), (Group("top"), Group("legs")), "group 'legs' has no fields"),
    ((Field("a", "class", ("no", "yes")),), (Group("class"),), "group 'class' is not a valid name"),
    ((Field("a", "top", ("no", "yes")),), (Group("top", "upper"),), "has strip 'upper', expected 0"),
    ((Field("a", "top", ("no", "yes"), "c", "red"), Field("c", "top", ("no", "yes"))), (Group("top"),),
     "'c' is a field and a column"),
    ((Field("a", "top", ("no", "yes")), Field("b", "top", ("no", "yes"), display="a")), (Group("top"),),
     "two columns have the name 'a'"),
])
def test_contradictory_schemas_are_rejected(fields, groups, message):
    with pytest.raises(ValueError, match=f"schema 'bad': .*{message}"):
        AttributeSchema("bad", fields, groups=groups)


def test_schemas_are_registered_by_unique_names(monkeypatch):
    monkeypatch.setattr("cerberus_plugin.attributes.schema.SCHEMAS", {"market1501": MARKET1501})
    with pytest.raises(ValueError, match="KEY is 'own', expected one of market1501.*register_schema"):
        find_schema("own", "KEY")
    assert register_schema(OWN) is OWN and find_schema("own") is OWN and register_schema(OWN) is OWN
    with pytest.raises(ValueError, match="a different schema with this name.*registered: market1501, own"):
        register_schema(AttributeSchema("own", OWN.fields[:1], groups=OWN.groups[:1]))
    assert find_schema(json.dumps(DUKEMTMC.to_dict())) == DUKEMTMC


def test_the_schema_module_loads_without_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['fastreid'] = None; import cerberus_plugin.attributes.schema"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_reading_does_not_depend_on_the_order_of_fields(tmp_path, people):
    annotations = read_annotations(write_annotations(tmp_path / "a.mat", MARKET1501, people, people), MARKET1501)
    assert set(annotations.train) == {2, 7, 10}
    assert all(torch.equal(annotations.test[pid], row) for pid, row in people.items())
    assert (annotations.lookup("test", [0, 7])[0] == -1).all()


def test_a_file_with_one_identity_can_be_read(tmp_path, people):
    one = {2: people[2]}
    assert list(read_annotations(write_annotations(tmp_path / "a.mat", MARKET1501, one, one), MARKET1501).train) == [2]


@pytest.mark.parametrize(("changes", "message"), [
    ({"hat": None}, "train lacks the field.s. hat of market1501"),
    ({"hat": [1, 2]}, "train.hat has 2 labels for 3 identities"),
    ({"age": [1, 5, 2]}, "attribute 'age' of identity 0007 .train. is 5, expected one of 1 .young.*1 of 3"),
    ({"hat": [0, 1, 1]}, "attribute 'hat' of identity 0002 .train. is 0"),
    ({"image_index": ["0002", "0002", "0010"]}, "distinct identity numbers"),
    ({"image_index": np.array(["2", "0002", "0010"], dtype=object)}, "distinct identity numbers"),
    ({"image_index": np.array(["0002", "0007", "9" * 5000], dtype=object)}, "of up to 9 digits, got .'9999"),
    ({"gender": [1, 1.9, 2]}, r"'gender' of identity 0007 .train. is 1.9, expected one of 1 .male., 2 .female.; 1 of"),
    ({"gender": [2, 1, np.nan]}, "'gender' of identity 0010 .train. is nan, expected one of 1 .male"),
    ({"gender": [1, np.inf, -np.inf]}, "'gender' of identity 0007 .train. is inf, expected one of 1 .* 2 of 3"),
    ({"gender": [1, 2, 1 + 2j]}, r"'gender' of identity 0002 .train. is \(1\+0j\), expected one of 1 .male"),
    ({"gender": np.array([1, 2, "1"], dtype=object)}, "'gender' of identity 0010 .train. is '1', expected one of 1"),
    ({"gender": [True, True, True]}, "'gender' of identity 0002 .train. is True, expected one of 1 .male"),
    ({"gender": [1e300, 1, 1]}, "'gender' of identity 0002 .train. is 1e.300, expected one of 1 .male"),
    ({"gender": "112"}, "train.gender has 1 labels for 3 identities"),
])
def test_errors_name_field_identity_value_and_allowed_values(tmp_path, people, changes, message):
    path = write_annotations(tmp_path / "a.mat", MARKET1501, people, people, **changes)
    with pytest.raises(ValueError, match=message):
        read_annotations(path, MARKET1501)


def test_integers_of_any_dtype_are_accepted_as_labels(tmp_path, people):
    genders = [int(row[MARKET1501.index("gender")]) + 1 for row in people.values()]
    for written in (np.float64(genders), np.float32(genders)[:, None], np.int16(genders), np.array(genders, object)):
        path = write_annotations(tmp_path / "a.mat", MARKET1501, people, people, gender=written)
        found = read_annotations(path, MARKET1501).train
        assert all(torch.equal(found[pid], row) for pid, row in people.items())


def test_a_truncated_file_is_rejected(tmp_path, people):
    path = write_annotations(tmp_path / "a.mat", MARKET1501, people, people)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match="a.mat: not a readable MATLAB file.*truncated"):
        read_annotations(path, MARKET1501)


def test_a_missing_file_is_not_called_truncated(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.mat: no such annotation file"):
        read_annotations(tmp_path / "nowhere.mat", MARKET1501)


def test_a_mat_file_with_another_structure_is_rejected(tmp_path):
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"gallery": [[1, 2]]})
    with pytest.raises(ValueError, match="expected one struct with the fields 'train' and 'test', found .'gallery'"):
        read_annotations(tmp_path / "a.mat", MARKET1501)


def test_the_annotation_file_is_found_in_both_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="market_attribute.mat not found; looked in .* and .*attribute"):
        find_annotations(tmp_path, "market_attribute.mat")
    (tmp_path / "attribute").mkdir()
    (tmp_path / "attribute" / "market_attribute.mat").touch()
    assert find_annotations(tmp_path, "market_attribute.mat").parent.name == "attribute"
    (tmp_path / "market_attribute.mat").touch()
    assert find_annotations(tmp_path, "market_attribute.mat").parent == tmp_path


def test_the_two_unlabelled_tops_of_duke_are_missing_labels(duke):
    top = DUKEMTMC.index("top")
    assert [pid for pid, row in duke.train.items() if row[top] == -1] == [370, 679]
    assert not DUKEMTMC.is_complete(duke.train[370][None], "upper")
    assert DUKEMTMC.is_complete(duke.train[370][None], "lower")


def test_the_published_files_have_the_published_numbers_of_identities(market, duke):
    assert (len(market.train), len(market.test)) == (751, 750)
    assert (len(duke.train), len(duke.test)) == (702, 1110)
