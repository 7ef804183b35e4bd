"""The ontology: labels of each published dataset against values worked by hand, own datasets, and errors."""

from importlib import import_module

from cerberus_plugin.attributes import DUKEMTMC, MARKET1501
from cerberus_plugin.attributes.matching import relabel
from cerberus_plugin.attributes.schema import AttributeSchema, Column
from cerberus_plugin.own_data.ontology import read_ontology

import pytest
import torch

COMMON = read_ontology()
NAMES = ("market1501", "dukemtmc", "pa100k", "peta", "upar")


def schema_of(name: str) -> AttributeSchema:
    """The schema of a published dataset, as its converter writes it."""
    own = {"market1501": MARKET1501, "dukemtmc": DUKEMTMC}
    if name in own:
        return own[name]
    return import_module(f"cerberus_plugin.converters.{name}").QUESTIONS.wording.schema


def common(name: str, **words: str) -> dict[str, str]:
    """The common attributes of a person of a published dataset.

    Args:
        words: attributes of the dataset, with "_" instead of spaces; yes/no attributes that are not given are "no".
    """
    schema = schema_of(name)
    given = {key.replace("_", " "): value for key, value in words.items()}
    no = {column.name: "no" for column in schema.columns if column.classes == ("no", "yes")}
    labels = torch.from_numpy(schema.parse(no | given))[None]
    found, _ = relabel(labels, schema, COMMON.schema, COMMON.readings(name, schema.columns))
    return COMMON.schema.describe(found[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_attribute_of_a_published_dataset_is_mapped_or_marked_as_not_mapped(name):
    assert set(COMMON.sets[name][0]) == {column.name for column in schema_of(name).columns}


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_mapped_attribute_is_mapped_except_those_that_stay_unknown(name):
    """Comments of the file give the reasons for these exceptions."""
    exceptions = {
        "pa100k": {"shorts": {"no"}, "trousers": {"no"}},
        "peta": {"thin stripes": {"no"}, "trousers": {"no"}, "jeans": {"no"}, "shorts": {"no"}, "short skirt": {"no"},
                 "carries something else": {"yes"}, "carries nothing": {"no"}},
        "upar": {"upper colour": {"other"}, "lower colour": {"other"}}}
    schema = schema_of(name)
    found = {}
    for attribute, readings in COMMON.sets[name][0].items():
        mapped = {str(value) for reading in readings for value in (
            schema.column(attribute).classes if reading.values is None else reading.values)}
        if readings and set(schema.column(attribute).classes) - mapped:
            found[str(attribute)] = set(schema.column(attribute).classes) - mapped
    assert found == exceptions.get(name, {})


def test_market_1501():
    words = {"gender": "male", "age": "teenager", "hair": "long", "up": "short sleeve", "down": "long",
             "clothes": "pants", "upper_colour": "red", "lower_colour": "none"}
    assert common("market1501", **words, handbag="yes") == {
        "hat": "no", "long hair": "yes", "short sleeves": "yes", "upper colour": "red", "short lower clothes": "no",
        "skirt or dress": "no", "gender": "male", "age": "young", "backpack": "no", "bag": "yes", "handbag": "yes"}
    # The dataset has no label for red trousers, so "none" leaves red unknown.
    assert common("market1501", **words)["bag"] == "no"
    schema = schema_of("market1501")
    labels = torch.from_numpy(schema.parse({"handbag": "no", "gender": "male"}))[None]
    found, _ = relabel(labels, schema, COMMON.schema, COMMON.readings("market1501", schema.columns))
    assert COMMON.schema.describe(found[0]) == {"gender": "male", "handbag": "no"}  # whether there is a bag is unknown


def test_dukemtmc():
    assert common("dukemtmc", gender="female", boots="yes", top="short", shoes="dark", upper_colour="brown",
                  lower_colour="none", backpack="yes") == {
        "hat": "no", "upper colour": "brown", "boots": "yes", "gender": "female", "backpack": "yes", "bag": "no",
        "handbag": "no"}


def test_pa100k():
    base = {"gender": "female", "age": "over 60", "view": "back"}
    rest = {"hat": "no", "glasses": "no", "short sleeves": "no", "striped upper clothes": "no",
            "logo on upper clothes": "no", "plaid upper clothes": "no", "boots": "no", "gender": "female", "age": "old",
            "backpack": "no", "handbag": "no"}
    assert common("pa100k", **base, trousers="yes", shoulder_bag="yes") == rest | {
        "bag": "yes", "short lower clothes": "no", "skirt or dress": "no"}
    assert common("pa100k", **base, skirt_or_dress="yes") == rest | {"bag": "no", "skirt or dress": "yes"}
    assert common("pa100k", **base, shorts="yes")["short lower clothes"] == "yes"
    # Shorts and trousers contradict each other, so the length is unknown.
    assert "short lower clothes" not in common("pa100k", **base, shorts="yes", trousers="yes")


def test_peta():
    base = {"gender": "male", "age": "16 to 30"}
    rest = {"hat": "no", "long hair": "no", "sunglasses": "no", "short sleeves": "no", "logo on upper clothes": "no",
            "plaid upper clothes": "no", "gender": "male", "age": "adult", "backpack": "no"}
    assert common("peta", **base, jeans="yes") == rest | {"bag": "no", "short lower clothes": "no",
                                                          "skirt or dress": "no"}
    assert common("peta", **base, short_skirt="yes", thin_stripes="yes", sunglasses="yes") == rest | {
        "bag": "no", "short lower clothes": "yes", "skirt or dress": "yes", "striped upper clothes": "yes",
        "sunglasses": "yes", "glasses": "yes"}
    assert "bag" not in common("peta", **base, carries_something_else="yes")
    assert common("peta", **base, messenger_bag="yes", carries_something_else="yes")["bag"] == "yes"
    nothing = common("peta", **base, carries_nothing="yes")
    assert (nothing["backpack"], nothing["bag"], nothing["handbag"]) == ("no",) * 3
    assert "bag" not in common("peta", **base, carries_nothing="yes", plastic_bags="yes")
    assert "age" not in common("peta", gender="male", age="none")  # possibly below 16


def test_upar():
    base = {"gender": "female", "age": "young", "hair_length": "bald", "lower_clothes": "skirt or dress"}
    rest = {"hat": "no", "long hair": "no", "glasses": "no", "sunglasses": "no", "short sleeves": "no",
            "short lower clothes": "no", "skirt or dress": "yes", "gender": "female", "age": "young", "backpack": "no",
            "bag": "no"}
    assert common("upar", **base, upper_colour="grey", lower_colour="other") == rest | {"upper colour": "gray"}
    assert common("upar", **base, upper_colour="none", lower_colour="pink and other") == rest | {
        "upper colour": "none", "lower colour": "pink"}
    assert common("upar", **base, sunglasses="yes") == rest | {"sunglasses": "yes", "glasses": "yes"}


def write(path, text: str):
    path.write_text(text)
    return path


OWN = "extends: common\nsets:\n  site:\n    helmet: {hat: same}\n    bag kind: {bag: {tote: yes, nothing: no}}\n"


def test_an_own_dataset_is_added_in_the_same_format(tmp_path):
    found = read_ontology(write(tmp_path / "own.yaml", OWN))
    assert set(found.sets) == {*NAMES, "site"} and found.schema == COMMON.schema
    columns = [Column("Helmet", ("no", "yes"), (0,), "head"), Column("bag kind", ("tote", "nothing"), (1,), "other")]
    assert set(found.readings("site", columns)) == {"Helmet", "bag kind"}
    with pytest.raises(ValueError, match=r"has no dataset 'sites'; .* did you mean 'site', line 3"):
        found.check_set("sites")


@pytest.mark.parametrize("text, message", [
    (OWN.replace("hat:", "hut:"), "own.yaml, line 4: there is no common attribute 'hut'; did you mean 'hat'"),
    (OWN.replace("tote: yes", "tote: maybe"), "line 5: 'bag' cannot be 'maybe'. Allowed: no, yes, no if all"),
    (OWN.replace("tote: yes", "tote: yes if all"), "line 5: 'bag' cannot be 'yes if all'"),
    (OWN.replace("{hat: same}", "same"), "line 4: 'helmet' is 'same', expected 'not mapped' or common attributes"),
    (OWN.replace("same", "[a]"), "line 4: 'hat' is .*, expected 'same', or values"),
    (OWN.replace("  site:", "  site: x\n  other:"), "line 3: dataset 'site' has no attributes"),
    (OWN.replace("common", "own.yaml"), "extends itself"),
    (OWN.replace("extends", "extend"), "the file has no 'schema'"),
    ("- a\n", "expected a mapping with schema, sets"),
    ("extends: [\n", "line 2: not valid YAML"),
])
def test_mistakes_in_a_file_raise_errors_with_their_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_ontology(write(tmp_path / "own.yaml", text))


def test_attributes_and_values_that_the_data_lacks_raise_errors_with_their_line(tmp_path):
    found = read_ontology(write(tmp_path / "own.yaml", OWN))
    helmet, bag = Column("helmet", ("no", "yes"), (0,), "a"), Column("bag kind", ("tote", "none"), (1,), "a")
    with pytest.raises(ValueError, match="line 4: dataset 'site' has no attribute 'helmet'; did you mean 'helmets'"):
        found.readings("site", [Column("helmets", ("no", "yes"), (0,), "a"), bag])
    with pytest.raises(ValueError, match="line 5: attribute 'bag kind' of dataset 'site' has no value 'nothing'"):
        found.readings("site", [helmet, bag])
    with pytest.raises(FileNotFoundError, match="no such ontology"):
        read_ontology(tmp_path / "nowhere.yaml")
