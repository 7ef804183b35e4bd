"""The user's own datasets: items, labels of images and of people, unknown cameras, and a training."""

import json
import os
import shlex
import shutil

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.attributes import AttributeSchema, Field, Group, SIDTable
from cerberus_plugin.attributes.schema import MARKET1501, SCHEMAS
from cerberus_plugin.data.build import (
    build_dataset,
    build_test_set,
    build_train_set,
    build_training_data,
    check_test_set,
)
from cerberus_plugin.data.datasets import Market1501Attributes
from cerberus_plugin.data.own import OwnDataset
from cerberus_plugin.evaluation import manifest
from cerberus_plugin.evaluation.embeddings import Gathered
from cerberus_plugin.evaluation.report import results_table
from cerberus_plugin.evaluation.tasks import ReIDTask
from cerberus_plugin.host.checks import check_config
from cerberus_plugin.host.data import check_identity_batch
from cerberus_plugin.own_data.check import check
from cerberus_plugin.own_data.recipe import choose
from cerberus_plugin.own_data.schema_file import Wording, schema_text

import pytest
import torch
from support.own_data import write_people, write_picture
from support.training import read_config, trained

pytestmark = pytest.mark.usefixtures("own_schemas")


def config(folder, *options):
    return read_config("DATASETS.NAMES", (str(folder),), "DATASETS.TESTS", (str(folder),), "OUTPUT_DIR",
                       str(folder / "run"), "SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1,
                       *options)


def value_of(data, path: str, name: str) -> str:
    labels = data.known_of(path, next(pid for own, pid, _ in data.img_items if own == path))["attributes"]
    return data.annotations[0].schema.describe(labels)[name]


def test_images_of_one_person_can_have_different_labels(tmp_path):
    cfg = config(write_people(tmp_path / "site"))
    data = build_training_data(cfg, semantic_ids=True)
    hats = {path.rsplit("/", 1)[1]: value_of(data.dataset, path, "hat") for path, *_ in data.dataset.img_items}
    assert hats == {name: ("yes", "no")[(int(name[0]) + (name[2] == "2")) % 2] for name in hats}
    people = len({pid for _, pid, _ in data.dataset.img_items})
    assert len(data.dataset.labels) == 2 * people and data.sid_table.sizes == (2, 3)
    index = next(i for i, (path, *_) in enumerate(data.dataset.img_items) if path.endswith("_2.png"))
    item = data.dataset[index]
    assert torch.equal(item["sids"], data.sid_table.lookup(item["attributes"][None])[0]) and "outfits" not in item


def test_labels_that_are_equal_for_all_images_of_a_person_belong_to_identities(tmp_path):
    folder = write_people(tmp_path / "site", attributes=False)
    (folder / "people.csv").write_text("person,hat,vest\n" + "".join(
        f"p{n},{('no', 'yes')[n % 2]},{('red', 'blue')[n // 4]}\n" for n in range(8)))
    for data in (build_train_set(config(folder)), build_test_set(config(folder), str(folder))[0]):
        assert data.unit_of is None and len(data.labels) == 4
        for path, *_ in data.img_items:
            number = int(path.rsplit("/", 1)[1][0])
            assert value_of(data, path, "hat") == ("no", "yes")[number % 2]
            assert value_of(data, path, "vest") == ("red", "blue")[number // 4]


def test_without_cameras_no_match_is_ignored(tmp_path):
    for person in range(6):
        for number in range(3):
            write_picture(tmp_path / f"crops/{person}/{number}.png", person, number)
    cfg = config(tmp_path / "crops")
    data = OwnDataset(str(tmp_path / "crops"))
    assert not data.cameras_known and not hasattr(data, "labels_of")
    items = data.query + data.gallery
    assert len({camid for *_, camid in items}) == len(items) and len(data.query) == 3 and len(data.gallery) == 6
    check_test_set(cfg, str(tmp_path / "crops"), build_test_set(cfg, str(tmp_path / "crops")))


def test_a_dataset_with_outfits_has_the_cloth_changing_settings(tmp_path):
    folder = write_people(tmp_path / "site")
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([lines[0] + ",outfit", *(
        f"{line},{int(line.split(',')[2]) // 2}" for line in lines[1:])]))
    test, _ = build_test_set(config(folder), str(folder))
    assert test.settings == ("cloth-changing", "same-clothes") and len(test._outfit_rows) == 8
    assert value_of(test, next(path for path, *_ in test.img_items if path.endswith("_2.png")), "hat") in ("no", "yes")


def test_a_person_in_training_and_test_is_rejected(tmp_path):
    folder = write_people(tmp_path / "site")
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([lines[0] + ",split", *(
        f"{line},{('train', 'query', 'gallery')[int(line.split(',')[2])]}" for line in lines[1:])]))
    with pytest.raises(ValueError, match="8 people are in training and in the test, such as 'p0' .'img/0_0.png'."):
        OwnDataset(str(folder))


def test_a_name_that_is_neither_registered_nor_a_path_is_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match="'.*nowhere' is neither a registered dataset, .* nor a folder"):
        build_train_set(config(tmp_path / "nowhere"))


def test_people_with_the_same_name_in_two_folders_are_different(tmp_path):
    folders = [write_people(tmp_path / name / "site") for name in "ab"]
    train = build_train_set(config(folders[0], "DATASETS.NAMES", tuple(map(str, folders))))
    assert len(train.pids) == 2 * len(build_train_set(config(folders[0])).pids)


def test_cerberus_trains_on_a_folder_and_is_evaluated_by_all_tasks(tmp_path):
    figures = trained(config(write_people(tmp_path / "site"))).results
    assert {"mAP", "PAR/mA_official", "PAR/official/hat", "APS/mAP"} <= set(figures)


def test_market_1501_as_own_data_has_the_same_people_cameras_and_labels(tmp_path, market_root, use_root):
    use_root(market_root)
    there = Market1501Attributes(root=str(market_root))
    shutil.copytree(there.data_dir, tmp_path / "market")
    lines = []
    for part in ("train", "query", "gallery"):
        for path, pid, camid in getattr(there, part):
            person, camera = (int(str(each).rsplit("_", 1)[-1]) for each in (pid, camid))
            lines.append({"file_name": os.path.relpath(path, there.data_dir), "person": person, "camera": camera,
                          "split": part, **MARKET1501.describe(there.labels_of(pid))})
    (tmp_path / "market/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "market/schema.yaml").write_text(schema_text(Wording(MARKET1501, {})))
    here = OwnDataset(str(tmp_path / "market"))
    assert here.units == {} and here.schema.groups == MARKET1501.groups
    assert {column.name: column.answers for column in here.schema.columns} == {
        column.name: column.answers for column in MARKET1501.columns}
    for part in ("train", "query", "gallery"):
        one, other = getattr(there, part), getattr(here, part)
        assert [os.path.basename(path) for path, *_ in one] == [os.path.basename(path) for path, *_ in other]
        for k in (1, 2):  # the same people and cameras with other numbers
            pairs = {(mine[k], yours[k]) for mine, yours in zip(one, other)}
            assert len(pairs) == len({mine for mine, _ in pairs}) == len({yours for _, yours in pairs})
        for (_, pid, _), (_, own, _) in zip(one, other):
            assert here.schema.describe(here.labels_of(own)) == MARKET1501.describe(there.labels_of(pid))
    sizes = [SIDTable.build(data.schema, torch.stack(list(data.annotations.train.values()))).sizes
             for data in (there, here)]
    assert sizes[0] == sizes[1] == (4, 18, 40, 8, 4)


def test_distractors_may_only_be_in_the_gallery(tmp_path):
    folder = write_people(tmp_path / "site")
    check(folder, pictures=False)
    split = dict(line.split(",") for line in (folder / "split.csv").read_text().splitlines()[1:])
    schema = (folder / "schema.yaml").read_text()
    write_picture(folder / "img/other.png", 9)
    with open(folder / "metadata.csv", "a") as table, open(folder / "split.csv", "a") as parts:
        table.write("img/other.png,nobody,1,,\n")
        parts.write("img/other.png,gallery\n")
    (folder / "schema.yaml").write_text(schema + "nobody: [nobody]\n")
    test, queries = build_test_set(config(folder), str(folder))
    pid = next(pid for path, pid, _ in test.img_items if path.endswith("other.png"))
    assert test.distractors == {pid} and manifest.of_test(test, queries, 0)["gallery"]["distractors"] == 1
    assert not any("nothing is known of" in each for each in check(folder, pictures=False).warnings)
    query = next(name for name, part in split.items() if part == "query")
    (folder / "schema.yaml").write_text(schema + f"nobody: [p{query[4]}]\n")
    with pytest.raises(ValueError, match=f"nobody contains 'p{query[4]}', but '{query}' is in query"):
        OwnDataset(str(folder))


def test_a_folder_with_the_name_of_another_schema_uses_its_own_schema(tmp_path):
    folder = write_people(tmp_path / "market1501")
    trainer = CerberusTrainer(config(folder))
    assert trainer.model.schema.field_names == ("hat", "vest blue", "vest red") and SCHEMAS["market1501"] == MARKET1501


def test_the_manifest_depends_on_the_labels_and_not_on_the_folder(tmp_path):
    folder = write_people(tmp_path / "one/site")
    (folder / "people.csv").write_text("person,gender\np0,male\np1,female\n")
    check(folder, pictures=False)

    def accounts(place):
        cfg = config(place, "OUTPUT_DIR", "run")
        return manifest.of_test(*build_test_set(cfg, str(place)), 0), manifest.config_sha256(cfg)

    there = shutil.copytree(folder, tmp_path / "two/site")
    assert accounts(folder) == accounts(there)
    (there / "people.csv").write_text("person,gender\np0,female\np1,female\n")
    assert accounts(folder)[0]["labels"] != accounts(there)[0]["labels"]


@pytest.mark.parametrize("people, cameras", [(4, 4), (8, 3), (40, 2), (40, 12)])
def test_the_chosen_recipe_is_accepted_by_training(tmp_path, people, cameras):
    folder = write_people(tmp_path / "a 'site'", people, cameras)
    report = check(folder, pictures=False)
    assert report.advice[-1].startswith(f"cerberus train {shlex.quote(str(folder))} --out ")
    for recipe in (choose(report.facts, gpu) for gpu in (True, False)):
        cfg = read_config(*recipe.options, "DATASETS.NAMES", (str(folder),), "DATASETS.TESTS", (str(folder),),
                          file=f"configs/{recipe.file}")
        items = build_train_set(cfg).img_items
        check_config(cfg, len(items))
        check_identity_batch(cfg.DATALOADER.SAMPLER_TRAIN, items, cfg.SOLVER.IMS_PER_BATCH,
                             cfg.DATALOADER.NUM_INSTANCE)
        assert build_test_set(cfg, str(folder))[1] > 0


def test_the_results_table_says_that_cameras_are_unknown():
    ids = torch.tensor([1, 2, 1, 2])
    cfg = read_config()
    for camids, shared in ((torch.tensor([0, 1, 1, 0]), True), (torch.arange(4), False)):
        figures = ReIDTask(cfg)(Gathered(torch.eye(4), ids, camids, None, 2, torch.device("cpu")))
        assert ("share no camera" in results_table(figures)) is not shared


def test_labels_are_converted_to_the_schema_of_another_dataset(tmp_path):
    """The data lack a value of the schema, and have a colour and a column that the schema lacks."""
    write_people(tmp_path / "site", cameras=2)
    there = OwnDataset(str(tmp_path / "site"))
    folder = write_people(tmp_path / "other", attributes=False)
    words = {"p0": "No,red,saw", "p1": "no,pink,saw", "p2": "no,,drill", "p3": "no,none,saw"}
    (folder / "people.csv").write_text("person,HAT,vest,tool\n" + "".join(f"{p},{w}\n" for p, w in words.items()))
    data = OwnDataset(str(folder), schema=there.schema)
    numbers = {int(path.rsplit("/", 1)[1][0]): pid for path, pid, _ in data.train + data.query + data.gallery}
    said = [there.schema.describe(data.labels_of(numbers[person])) for person in range(5)]
    assert said == [{"hat": "no", "vest": "red"}, {"hat": "no"}, {"hat": "no"}, {"hat": "no"}, {}]
    matching = data.annotations.matching
    assert matching.columns == {"hat": ("HAT",), "vest": ("vest",)} and matching.only_data == ("tool",)
    assert matching.lost == {"vest": {"pink": 3}} and matching.absent == {"hat": ("yes",), "vest": ("blue",)}
    # "none" says nothing about blue, which does not occur in this table.
    assert data.labels_of(numbers[3]).tolist().count(-1) == 1


def test_registered_and_own_datasets_can_use_the_schema_of_the_other(tmp_path, market_root, use_root):
    use_root(market_root)
    folder = write_people(tmp_path / "site")
    own, cfg = OwnDataset(str(folder)), config(folder)
    for name, schema, columns in (("Market1501Attributes", own.schema, {"hat"}), (str(folder), MARKET1501, {"hat"})):
        here, under = build_dataset(cfg, name), build_dataset(cfg, name, schema)
        assert set(under.annotations.matching.columns) == columns and under.schema == schema
        assert (here.train, here.units if name == str(folder) else {}) == (under.train, getattr(under, "units", {}))
        for _, pid, _ in here.train + here.query + here.gallery:
            key = next(iter(here.units.values())) if name == str(folder) else pid
            words = here.schema.describe(here.labels_of(key))
            assert schema.describe(under.labels_of(key)) == {n: word for n, word in words.items() if n in columns}


def test_a_folder_with_only_test_images_can_be_tested_but_not_trained_on(tmp_path):
    folder = write_people(tmp_path / "site")
    table = folder / "metadata.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},split", *(f"{line},test" for line in lines[1:])]))
    cfg = config(folder)
    check_test_set(cfg, str(folder), build_test_set(cfg, str(folder)))
    with pytest.raises(ValueError, match="has no training images"):
        build_train_set(cfg)


def test_a_dataset_without_any_attribute_of_the_schema_has_no_labels(tmp_path, caplog):
    folder = write_people(tmp_path / "site")
    cfg = config(folder)
    data, _ = build_test_set(cfg, str(folder), AttributeSchema("other", (Field("tail", "x", ("no", "yes")),),
                                                               groups=(Group("x"),)))
    assert data.labels is None and not data.annotations
    assert "unknown, because site does not have them: tail" in caplog.text
