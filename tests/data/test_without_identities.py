"""Images without a column `person`: only attributes are trained, evaluated, stored and predicted."""

import json

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.data.build import build_test_set, build_train_loader, build_training_data
from cerberus_plugin.engine.trainer import evaluate
from cerberus_plugin.own_data.check import check, text
from cerberus_plugin.own_data.people import read_people, split_people

import pytest
import torch
from support.own_data import write_picture
from support.training import PLUS, read_config, trained

pytestmark = pytest.mark.usefixtures("own_schemas")


def write_pictures(folder, count: int = 30, columns: str = "hat,vest,tool"):
    lines = [f"file_name,{columns}"]
    for n in range(count):
        write_picture(folder / f"{n}.png", n)
        words = {"hat": ("yes", "no")[n % 2], "vest": ("red", "none", "blue")[n % 3],
                 "tool": ("saw", "drill", "")[n % 3], "split": ("train", "train", "val", "test", "train")[n % 5]}
        lines.append(",".join([f"{n}.png", *(words[name] for name in columns.split(","))]))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def config(folder, *options, file: str = "cerberus"):
    return read_config("DATASETS.NAMES", (str(folder),), "DATASETS.TESTS", (str(folder),), "OUTPUT_DIR",
                       str(folder / "run"), "SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_EPOCH", 2, "TEST.EVAL_PERIOD", 2,
                       *options, file=f"configs/Market1501/{file}_demo.yml")


def test_images_are_split_into_training_and_test_once(tmp_path):
    own = split_people(read_people(write_pictures(tmp_path)))
    assert not own.identified and own.is_in("train").sum() == 24 and own.is_in("gallery").sum() == 6
    lines = (tmp_path / "split.csv").read_text().splitlines()
    assert sorted({line.split(",")[1] for line in lines}) == ["split", "test", "train"]
    again = split_people(read_people(tmp_path), seed=5)
    assert (again.is_in("gallery") == own.is_in("gallery")).all()


def test_the_column_split_names_train_val_and_test(tmp_path):
    own = split_people(read_people(write_pictures(tmp_path, columns="split,hat")))
    assert [int(own.is_in(part).sum()) for part in ("train", "val", "query", "gallery")] == [18, 6, 0, 6]


def test_an_empty_person_column_is_ignored_and_a_gap_in_it_is_rejected(tmp_path):
    write_pictures(tmp_path, 8)
    path = tmp_path / "metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["person," + lines[0], *(f",{line}" for line in lines[1:])]))
    assert not read_people(tmp_path).identified
    path.write_text("\n".join(["person," + lines[0], *(f"{n or ''},{line}" for n, line in enumerate(lines[1:]))]))
    with pytest.raises(ValueError, match="line 2: has no person"):
        read_people(tmp_path)


def test_a_table_without_attributes_or_with_separate_people_is_rejected(tmp_path):
    write_pictures(tmp_path, 8)
    (tmp_path / "people.csv").write_text("person,age\nann,old\n")
    with pytest.raises(ValueError, match="people.csv: exists, but .*metadata.csv has no column 'person'"):
        read_people(tmp_path)
    (tmp_path / "people.csv").unlink()
    (tmp_path / "labels_overlay.csv").write_text("file_name,attribute,value,was\n0.png,person,ann,0.png\n")
    with pytest.raises(ValueError, match="line 2: moves images to another person, but identities are unknown"):
        read_people(tmp_path)
    (tmp_path / "labels_overlay.csv").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,camera\n0.png,1\n1.png,1\n")
    with pytest.raises(ValueError, match="has neither a column 'person' nor attributes"):
        read_people(tmp_path)


def test_check_reports_no_people(tmp_path):
    report = check(write_pictures(tmp_path))
    assert not report.errors and report.sections[0].rows[:2] == [("images", 30), ("people", "unknown")]
    assert report.sections[1].rows == [("train", 24), ("test", 6)]
    assert "'person'" in text(report) and "images per person" not in text(report)
    (tmp_path / "split.csv").write_text("file_name,split\n" + "".join(f"{n}.png,train\n" for n in range(30)))
    assert check(tmp_path, pictures=False).errors == [
        "the split has no test images; give the parts in a column 'split', or delete split.csv to draw a new split"]


@pytest.mark.parametrize("file, options", [("cerberus", PLUS), ("arn", ())], ids=["plus", "arn"])
def test_only_attributes_are_trained_and_evaluated_by_par(tmp_path, file, options):
    cfg = config(write_pictures(tmp_path), "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, *options, file=file)
    trainer = trained(cfg)
    figures = trainer.results
    names = {"loss_sem", "loss_reg"} if file == "cerberus" else {"loss_attribute"}
    logged = [json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")]
    losses = {name for row in logged for name in row if name.startswith("loss_")}
    assert losses <= names | {"loss_softmax"} and not losses & {"loss_id", "loss_triplet", "loss_cls"}
    assert not {"mAP", "APS/mAP", "PAR/person/persons"} & set(figures)
    assert {f"PAR/instance/{key}" for key in ("accuracy", "precision", "recall", "F1")} <= set(figures)
    assert figures["PAR/images"] == 6 and figures["metric"] == pytest.approx(figures["PAR/label/mA"], nan_ok=True)
    table = open(f"{cfg.OUTPUT_DIR}/results.txt").read()
    assert "the images have no identities" in table and "threshold of 0.5" in table and "Rank-1" not in table
    moved = [name for name, p in trainer.model.named_parameters() if not torch.equal(p, trainer.start[name])]
    assert moved

    again = cfg.clone()
    again.defrost()
    again.MODEL.WEIGHTS, again.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/model_final.pth", f"{cfg.OUTPUT_DIR}/evaluation"
    found = evaluate(again)
    assert {name: found[name] for name in ("PAR/mA_official", "PAR/instance/F1")} == pytest.approx(
        {name: figures[name] for name in ("PAR/mA_official", "PAR/instance/F1")}, nan_ok=True)


def test_a_run_can_be_resumed_and_used_for_prediction_and_search(tmp_path):
    from cerberus_plugin.predictor import CerberusPredictor

    folder = write_pictures(tmp_path)
    trained(config(folder, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1))
    rest = CerberusTrainer(config(folder))
    rest.resume_or_load(resume=True)
    assert rest.start_epoch == 1
    rest.train()
    predictor = CerberusPredictor(folder / "run", device="cpu")
    assert set(predictor.recognise(str(folder / "0.png"))[0]) == {"hat", "vest", "tool"}
    assert predictor.search(str(folder / "0.png"), str(folder))[0].path.endswith("/0.png")


@pytest.mark.parametrize("file", ["ide", "apr", "bot"])
def test_models_of_identities_are_rejected_with_a_remedy(tmp_path, file):
    with pytest.raises(ValueError, match="cannot be trained on attributes only .*arn_R50"):
        CerberusTrainer(config(write_pictures(tmp_path), file=file))


def test_each_image_is_used_once_per_epoch_and_replacements_have_their_own_labels(tmp_path):
    folder = write_pictures(tmp_path)
    cfg = config(folder, "DATALOADER.ON_UNREADABLE", "skip")
    data = build_training_data(cfg, semantic_ids=True)
    assert data.dataset.num_classes == 0 and sum(count.sum() for count in data.sid_table.counts[:1]) == 24
    batches = iter(build_train_loader(cfg, data.dataset))
    paths = [path for _ in range(3) for path in next(batches)["img_paths"]]
    assert len(set(paths)) == 24
    (folder / data.dataset.img_items[3][0]).write_bytes(b"not an image")
    item, other = data.dataset[3], data.dataset[4]
    assert item["img_paths"] == other["img_paths"] and torch.equal(item["attributes"], other["attributes"])


def test_held_out_images_without_identities_are_all_gallery(tmp_path):
    cfg = config(write_pictures(tmp_path), "DATASETS.HOLD_OUT", 7, "DATASETS.TESTS", ("held-out",))
    data, num_query = build_test_set(cfg, "held-out")
    assert (len(data), num_query, data.identified) == (7, 0, False)
