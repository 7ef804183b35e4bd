"""Training on several datasets: one schema, separate people and cameras, and unknown labels for missing attributes."""

import os

from cerberus_plugin.attributes import DUKEMTMC, MARKET1501, AttributeSchema, Field, Group
from cerberus_plugin.attributes.matching import merge, relabel
from cerberus_plugin.data import own as own_module
from cerberus_plugin.data.build import build_test_set, build_train_set, build_training_data
from cerberus_plugin.evaluation.manifest import manifest, of_test
from cerberus_plugin.own_data.check import check

import numpy as np
import pytest
import torch
from support.own_data import write_people, write_picture
from support.training import PLUS, read_config, trained

pytestmark = pytest.mark.usefixtures("own_schemas")


def write_set(folder, columns: str, *rows: str, copies: int = 2):
    """Write images of people, two each from two cameras; a row is a person and attributes."""
    lines = [f"file_name,person,camera,split,{columns}"]
    for n, row in enumerate(rows):
        person, _, words = row.partition(",")
        for copy in range(copies):
            write_picture(folder / f"{n}_{copy}.png", n, copy, len(columns))
            part = "train" if n < len(rows) - 2 else ("query", "gallery")[copy % 2]
            lines.append(f"{n}_{copy}.png,{person},{copy},{part},{words}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folders(tmp_path):
    """Return two datasets: a site with the attributes helmet and vest, and a yard with helmet and tool."""
    site = write_set(tmp_path / "site", "helmet,vest colour,gender", *(
        f"p{n},{('yes', 'no')[n % 2]},{('red', 'blue', 'none')[n % 3]},{('male', 'female')[n // 2 % 2]}"
        for n in range(8)))
    yard = write_set(tmp_path / "yard", "Helmet,vest colour,tool", *(
        f"p{n},{('No', 'yes')[n % 2]},{('green', 'red')[n // 2 % 2]},{('saw', 'drill')[n % 2]}" for n in range(8)))
    return site, yard


def config(folders, *options, file: str = "cerberus"):
    names = tuple(map(str, folders))
    return read_config("DATASETS.NAMES", names, "DATASETS.TESTS", names, "OUTPUT_DIR", str(folders[0].parent / "run"),
                       "SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, *options,
                       file=f"configs/Market1501/{file}_demo.yml")


def values_of(data, path_end: str) -> dict[str, str]:
    path, pid, _ = next(item for item in data.img_items if item[0].endswith(path_end))
    return data.annotations[0].schema.describe(data.known_of(path, pid)["attributes"])


def test_two_folders_are_one_training_set_with_separate_people_and_cameras(folders):
    data = build_training_data(config(folders), semantic_ids=True)
    items = data.dataset.img_items
    assert len(items) == 24 and len({pid for _, pid, _ in items}) == 12 and len({camid for *_, camid in items}) == 4
    columns = {column.name: (column.group, column.classes) for column in data.schema.columns}
    assert columns == {
        "helmet": ("head", ("no", "yes")), "vest colour": ("upper", ("blue", "green", "red")),
        "gender": ("person", ("female", "male")), "tool": ("other", ("drill", "saw"))}
    assert values_of(data.dataset, "site/0_0.png") == {"helmet": "yes", "vest colour": "red", "gender": "male"}
    assert values_of(data.dataset, "yard/0_0.png") == {"helmet": "no", "vest colour": "green", "tool": "saw"}
    # "none" does not exclude colours that only the other dataset has, so the vest is unknown.
    assert values_of(data.dataset, "site/2_0.png") == {"helmet": "yes", "gender": "female"}


def test_attributes_that_not_all_datasets_have_form_a_separate_group(tmp_path):
    folders = [write_set(tmp_path / name, columns, *rows) for name, columns, rows in (
        ("one", "hat,glasses,gender", ["a,no,yes,male", "b,yes,no,female", "c,no,no,male", "d,yes,yes,male"]),
        ("two", "hat,gender", ["a,yes,male", "b,no,female", "c,no,female", "d,yes,male"]))]
    schema = build_training_data(config(folders), semantic_ids=True).schema
    assert {group: [schema.fields[i].name for i in schema.group_fields(group)] for group in schema.group_names} == {
        "head": ["hat"], "head_2": ["glasses"], "person": ["gender"]}
    assert [group.strip for group in schema.groups] == [0, 0, None]


def test_semantic_ids_are_unknown_for_groups_that_a_dataset_lacks(folders):
    data = build_training_data(config(folders), semantic_ids=True)
    of_set = {name: torch.tensor([name in path for path, *_ in data.dataset.img_items]) for name in ("site", "yard")}
    sids = torch.stack([data.dataset.known_of(path, pid)["sids"] for path, pid, _ in data.dataset.img_items])
    known = {name: {data.schema.group_names[g] for g in range(sids.shape[1]) if (sids[rows, g] >= 0).any()}
             for name, rows in of_set.items()}
    group_of = {column.name: column.group for column in data.schema.columns}
    assert {group_of["gender"]} == known["site"] - known["yard"] and {group_of["tool"]} == known["yard"] - known["site"]
    assert {group_of["helmet"], group_of["vest colour"]} <= known["site"] & known["yard"]
    # Two of six people on the site have the value none.
    upper = data.schema.group_names.index(group_of["vest colour"])
    assert (sids[of_set["site"], upper] >= 0).sum() == 8 and (sids[of_set["yard"], upper] >= 0).all()


@pytest.mark.parametrize("file, options", [
    pytest.param("cerberus", PLUS, id="plus"), pytest.param("apr", (), id="apr", marks=pytest.mark.slow)])
def test_a_model_is_trained_on_both_and_evaluated_on_each(folders, file, options, monkeypatch):
    read = []
    read_people = own_module.read_people
    monkeypatch.setattr(own_module, "read_people", lambda *args: read.append(args) or read_people(*args))
    results = trained(config(folders, *options, file=file)).results
    assert len(read) == 2  # each folder is read once, for training and test
    for folder, lacking in zip(folders, ("tool", "gender")):
        figures = results[str(folder)]
        values = {name.rsplit("/", 1)[1]: value for name, value in figures.items() if name.startswith("PAR/official/")}
        assert {name for name, value in values.items() if value != value} == {lacking}
        assert figures["mAP"] > 0 and figures["APS/mAP"] > 0 and figures["PAR/mA_official"] == pytest.approx(
            np.nanmean(list(values.values())))


def test_own_and_registered_datasets_can_be_trained_on_together(folders, market_root, use_root):
    use_root(market_root)
    cfg = config(folders, "DATASETS.NAMES", ("Market1501Attributes", str(folders[0])))
    data = build_train_set(cfg)
    schema = data.annotations[0].schema
    assert {"hat", "helmet", "gender", "vest colour"} <= {column.name for column in schema.columns}
    assert "hat" not in values_of(data, "site/0_0.png") and values_of(data, "site/0_0.png")["gender"] == "male"
    market = next(path for path, pid, _ in data.img_items if pid.startswith("market"))
    assert "helmet" not in values_of(data, market) and "age" in values_of(data, market)


def test_market_and_duke_are_merged_by_name_without_losing_labels():
    both = merge([MARKET1501, DUKEMTMC])
    for schema in (MARKET1501, DUKEMTMC):
        labels = np.stack([schema.parse({"gender": "female", "backpack": "yes", "upper colour": colour})
                           for colour in ("red", "none")])
        found, report = relabel(labels, schema, both)
        assert not report.lost and not report.only_data
        assert [both.describe(row)["gender"] for row in found] == ["female"] * 2
        assert both.describe(found[0])["upper colour"] == "red" and "upper colour" not in both.describe(found[1])
    assert {column.name: len(column.classes) for column in both.columns if column.is_colour} == {
        "upper colour": 9, "lower colour": 10}
    assert both.exclusive == (("backpack", "handbag", "bag"),)
    # A dataset has either all attributes of a group or none.
    known = [{column.name for column in schema.columns} for schema in (MARKET1501, DUKEMTMC)]
    for group in both.group_names:
        own = {column.name for column in both.columns if column.group == group}
        assert all(own <= names or not own & names for names in known), group


def schema(name: str, strip: int | None, *values: str) -> AttributeSchema:
    return AttributeSchema(name, (Field("cap", "top", values), Field("x", "all", ("a", "b"))),
                           groups=(Group("top", strip), Group("all")))


def test_contradicting_schemas_are_rejected_with_a_remedy():
    with pytest.raises(ValueError, match="group 'top' uses strip 0 in one and strip 1 in two. Use the same region"):
        merge([schema("one", 0, "no", "yes"), schema("two", 1, "no", "yes")])
    with pytest.raises(ValueError, match="'cap' is one of no, yes in one and one of red, blue in two. Rename"):
        merge([schema("one", 0, "no", "yes"), schema("two", 0, "red", "blue")])
    assert merge([schema("one", 0, "no", "yes"), schema("two", 1, "no", "yes")], adaptable=[1]).groups[0].strip == 0


def test_schema_files_of_two_folders_are_merged(folders):
    for folder in folders:
        check(folder, pictures=False)  # writes schema.yaml
    (folders[1] / "schema.yaml").write_text((folders[1] / "schema.yaml").read_text().replace("Helmet", "helmet"))
    (folders[1] / "metadata.csv").write_text((folders[1] / "metadata.csv").read_text().replace("Helmet", "helmet"))
    data = build_train_set(config(folders))
    assert {column.name for column in data.annotations[0].schema.columns} == {"helmet", "vest colour", "gender", "tool"}
    assert {str(pid).partition("_")[0] for pid in data.pids} == {"own", "own2"}


def test_a_dataset_named_twice_and_images_in_two_datasets_are_rejected(folders, tmp_path):
    with pytest.raises(ValueError, match="has a dataset twice"):
        build_train_set(config(folders, "DATASETS.NAMES", (str(folders[0]), str(folders[0]))))
    with pytest.raises(ValueError, match="two of them have an image '.*site/0_0.png'"):
        build_train_set(config(folders, "DATASETS.NAMES", (str(folders[0]), str(folders[0] / "metadata.csv"))))
    with pytest.raises(ValueError, match="two of them have an image '.*site/0_0.png'"):
        build_train_set(config(folders, "DATASETS.NAMES", (str(folders[0]), os.path.relpath(folders[0]))))


def test_only_attributes_are_learned_if_a_dataset_has_no_identities(folders, tmp_path, caplog):
    crops = write_people(tmp_path / "crops")
    lines = [line.split(",") for line in (crops / "metadata.csv").read_text().splitlines()]
    (crops / "metadata.csv").write_text("".join(f"{name},{hat},{vest}\n" for name, _, _, hat, vest in lines))
    data = build_train_set(config(folders, "DATASETS.NAMES", (str(folders[0]), str(crops))))
    assert not data.identified and data.num_classes == 0
    assert f"the identities of {crops} are unknown" in caplog.text


# Two synthetic datasets with common attributes: "cap" and "helmet" are hats, and "trade" is not mapped.
ONTOLOGY = """\
extends: common
sets:
  site:
    helmet: {hat: same}
    vest colour: {upper colour: {red: red, blue: blue}}
    gender: {gender: same}
  yard:
    cap: {hat: same}
    shirt: {upper colour: {crimson: red, navy: blue, green: green, pattern: white}}
    trade: not mapped
    satchel: {bag: {yes: yes}}
"""


@pytest.fixture
def worded(tmp_path, folders):
    yard = write_set(tmp_path / "work/yard", "cap,shirt,trade,satchel", *(
        f"p{n},{('no', 'yes')[n % 2]},{('crimson', 'green', 'tartan')[n % 3]},{('mason', 'smith')[n % 2]},"
        f"{('yes', 'no')[n == 2]}" for n in range(8)))
    (tmp_path / "common.yaml").write_text(ONTOLOGY)
    return [folders[0], yard], ("DATASETS.ONTOLOGY", str(tmp_path / "common.yaml"))


def test_datasets_with_other_names_of_values_are_converted_to_common_attributes(worded):
    folders, ontology = worded
    data = build_training_data(config(folders, *ontology), semantic_ids=True)
    assert {column.name for column in data.schema.columns} == {"hat", "upper colour", "gender", "bag"}
    assert data.schema.name == "common"
    assert values_of(data.dataset, "site/0_0.png") == {"hat": "yes", "upper colour": "red", "gender": "male"}
    assert values_of(data.dataset, "yard/0_0.png") == {"hat": "no", "upper colour": "red", "bag": "yes"}
    # Tartan is not mapped, and without a satchel there may be another bag.
    assert values_of(data.dataset, "yard/2_0.png") == {"hat": "no"}
    matching = data.dataset.annotations[1].matching
    assert matching.columns["upper colour"] == ("shirt",) and matching.only_data == ("trade",)
    assert matching.lost == {"shirt": {"tartan": 4}}


def test_a_model_of_common_attributes_is_evaluated_on_each_dataset(worded, tmp_path):
    folders, ontology = worded
    third = write_set(tmp_path / "third", "hat,age", *(f"p{n},{('no', 'yes')[n % 2]},old" for n in range(6)))
    results = trained(config(folders, *ontology, "DATASETS.TESTS", (*map(str, folders), str(third)), *PLUS)).results
    known = {name: {key.rsplit("/", 1)[1] for key, value in figures.items()
                    if key.startswith("PAR/official/") and value == value} for name, figures in results.items()}
    assert list(known.values()) == [{"hat", "upper colour", "gender"}, {"hat", "upper colour", "bag"}, {"hat"}]


def test_a_dataset_that_the_ontology_lacks_is_rejected(worded):
    folders, ontology = worded
    with pytest.raises(ValueError, match="has no dataset 'yards'; it has .* did you mean 'yard', line 7"):
        build_train_set(config([folders[0], folders[1].rename(folders[1].parent / "yards")], *ontology))


def test_the_manifest_contains_the_checksum_of_the_ontology(worded, tmp_path):
    folders, ontology = worded
    before = manifest(config(folders, *ontology), {}, {})["ontology sha256"]
    (tmp_path / "common.yaml").write_text(ONTOLOGY.replace("navy: blue", "navy: black"))
    assert manifest(config(folders, *ontology), {}, {})["ontology sha256"] not in (before, None)
    assert "ontology sha256" not in manifest(config(folders), {}, {})


def test_market_1501_and_own_data_share_common_attributes(worded, market_root, use_root):
    use_root(market_root)
    folders, ontology = worded
    data = build_train_set(config(folders, *ontology, "DATASETS.NAMES", ("Market1501Attributes", str(folders[1]))))
    path, pid, _ = next(item for item in data.img_items if str(item[1]).startswith("market"))
    words = data.annotations[0].schema.describe(data.known_of(path, pid)["attributes"])
    assert {"long hair", "short sleeves", "hat", "gender", "bag"} <= set(words) and "cap" not in words


def test_the_manifest_of_labels_does_not_depend_on_the_schema(folders):
    cfg = config(folders)
    alone = of_test(*build_test_set(cfg, str(folders[0])), 0)
    merged = of_test(*build_test_set(cfg, str(folders[0]), build_training_data(cfg, True).schema), 0)
    assert alone == merged and alone["labels"]["sha256"]
