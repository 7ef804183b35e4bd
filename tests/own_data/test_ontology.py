"""The ontology: labels of each published set by hand, what it refuses, and a set of one's own in the same form."""

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
    """Of a published set, as its converter writes it."""
    own = {"market1501": MARKET1501, "dukemtmc": DUKEMTMC}
    if name in own:
        return own[name]
    pytest.importorskip("cerberus_plugin.converters")
    return import_module(f"cerberus_plugin.converters.{name}").QUESTIONS.wording.schema


def common(name: str, **words: str) -> dict[str, str]:
    """A person of a published set in common words: attributes with "_" for spaces; yes/no ones that are not given: no.
    """
    schema = schema_of(name)
    given = {key.replace("_", " "): value for key, value in words.items()}
    no = {column.name: "no" for column in schema.columns if column.classes == ("no", "yes")}
    labels = torch.from_numpy(schema.parse(no | given))[None]
    found, _ = relabel(labels, schema, COMMON.schema, COMMON.readings(name, schema.columns))
    return COMMON.schema.describe(found[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_attribute_of_a_published_set_is_mapped_or_said_not_to_be(name):
    assert set(COMMON.sets[name][0]) == {column.name for column in schema_of(name).columns}


@pytest.mark.parametrize("name", NAMES)
def test_values_of_a_published_set_that_say_nothing_are_known(name):
    """Each value of a mapped attribute is mapped, but for those whose silence the file explains."""
    silent = {
        "pa100k": {"shorts": {"no"}, "trousers": {"no"}},
        "peta": {"thin stripes": {"no"}, "trousers": {"no"}, "jeans": {"no"}, "shorts": {"no"}, "short skirt": {"no"},
                 "carries something else": {"yes"}, "carries nothing": {"no"}},
        "upar": {"upper colour": {"other"}, "lower colour": {"other"}}}
    schema = schema_of(name)
    found = {}
    for attribute, readings in COMMON.sets[name][0].items():
        told = {str(value) for reading in readings for value in (
            schema.column(attribute).classes if reading.values is None else reading.values)}
        if readings and set(schema.column(attribute).classes) - told:
            found[str(attribute)] = set(schema.column(attribute).classes) - told
    assert found == silent.get(name, {})


def test_market_1501():
    words = {"gender": "male", "age": "teenager", "hair": "long", "up": "short sleeve", "down": "long",
             "clothes": "pants", "upper_colour": "red", "lower_colour": "none"}
    assert common("market1501", **words, handbag="yes") == {
        "hat": "no", "long hair": "yes", "short sleeves": "yes", "upper colour": "red", "short lower clothes": "no",
        "skirt or dress": "no", "gender": "male", "age": "young", "backpack": "no", "bag": "yes", "handbag": "yes"}
    # Red is no lower colour of the set, so that "none" does not deny it.
    assert common("market1501", **words)["bag"] == "no"
    schema = schema_of("market1501")
    labels = torch.from_numpy(schema.parse({"handbag": "no", "gender": "male"}))[None]
    found, _ = relabel(labels, schema, COMMON.schema, COMMON.readings("market1501", schema.columns))
    assert COMMON.schema.describe(found[0]) == {"gender": "male", "handbag": "no"}  # it is not known of a bag


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
    # Both are unknown, as they contradict each other.
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
    assert "age" not in common("peta", gender="male", age="none")  # below 16, perhaps


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


def test_a_set_of_ones_own_is_added_in_the_same_form(tmp_path):
    found = read_ontology(write(tmp_path / "own.yaml", OWN))
    assert set(found.sets) == {*NAMES, "site"} and found.schema == COMMON.schema
    columns = [Column("Helmet", ("no", "yes"), (0,), "head"), Column("bag kind", ("tote", "nothing"), (1,), "other")]
    assert set(found.readings("site", columns)) == {"Helmet", "bag kind"}
    with pytest.raises(ValueError, match=r"has no data set 'sites'; .* did you mean 'site', line 3"):
        found.check_set("sites")


@pytest.mark.parametrize("text, message", [
    (OWN.replace("hat:", "hut:"), "own.yaml, line 4: there is no common attribute 'hut'; did you mean 'hat'"),
    (OWN.replace("tote: yes", "tote: maybe"), "line 5: 'bag' cannot be 'maybe'. Allowed: no, yes, no if all"),
    (OWN.replace("tote: yes", "tote: yes if all"), "line 5: 'bag' cannot be 'yes if all'"),
    (OWN.replace("{hat: same}", "same"), "line 4: 'helmet' is 'same', expected 'not mapped' or common attributes"),
    (OWN.replace("same", "[a]"), "line 4: 'hat' is .*, expected 'same', or values"),
    (OWN.replace("  site:", "  site: x\n  other:"), "line 3: data set 'site' has no attributes"),
    (OWN.replace("common", "own.yaml"), "extends itself"),
    (OWN.replace("extends", "extend"), "the file has no 'schema'"),
    ("- a\n", "expected a mapping with schema, sets"),
    ("extends: [\n", "line 2: no YAML"),
])
def test_what_is_wrong_in_a_file_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_ontology(write(tmp_path / "own.yaml", text))


def test_attributes_and_values_that_the_data_lacks_are_refused_with_their_line(tmp_path):
    found = read_ontology(write(tmp_path / "own.yaml", OWN))
    helmet, bag = Column("helmet", ("no", "yes"), (0,), "a"), Column("bag kind", ("tote", "none"), (1,), "a")
    with pytest.raises(ValueError, match="line 4: data set 'site' has no attribute 'helmet'; did you mean 'helmets'"):
        found.readings("site", [Column("helmets", ("no", "yes"), (0,), "a"), bag])
    with pytest.raises(ValueError, match="line 5: attribute 'bag kind' of data set 'site' has no value 'nothing'"):
        found.readings("site", [helmet, bag])
    with pytest.raises(FileNotFoundError, match="no such ontology"):
        read_ontology(tmp_path / "nowhere.yaml")
