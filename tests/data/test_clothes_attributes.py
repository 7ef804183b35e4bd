"""Attributes of outfits: labels in a batch, training of Cerberus and APR, and errors for invalid files."""

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.attributes.outfits import FILE_NAME
from cerberus_plugin.data import resident
from cerberus_plugin.data.build import build_test_set, build_train_set
from cerberus_plugin.data.clothes import LTCC, PRCC, LTCCAttributes, PRCCAttributes
from cerberus_plugin.data.splits import leave_out
from cerberus_plugin.engine.trainer import evaluate

import pytest
import torch
from support.clothes_folders import cloth_config, label, write_celeb, write_ltcc, write_prcc
from support.data import write_market_folder
from support.training import trained

CERBERUS = "configs/Market1501/cerberus_demo.yml"


@pytest.fixture
def prcc(tmp_path, use_root):
    use_root(tmp_path)
    resident.release()
    yield label(write_prcc(tmp_path), PRCC)
    resident.release()


@pytest.mark.parametrize("kept", [False, True], ids=["FastReID's loader", "resident"])
def test_images_have_the_labels_of_their_outfit(tmp_path, prcc, kept):
    cfg = cloth_config(tmp_path, "PRCCAttributes", "DATALOADER.RESIDENT", kept)
    loader, _ = CerberusTrainer.build_test_loader(cfg, "PRCCAttributes")
    batch = next(iter(loader))
    for path, pid, row, outfit in zip(batch["img_paths"], batch["targets"].tolist(), batch["attributes"],
                                      batch["outfits"].tolist()):
        worn = "C" if "/C/" in path else "A and B"
        assert torch.equal(row, prcc["test", pid, worn])
        assert torch.equal(row, loader.dataset.labels[outfit])


def test_outfits_of_ltcc_are_found_by_number(tmp_path):
    labels = label(write_ltcc(tmp_path), LTCC)
    data = LTCCAttributes(root=str(tmp_path))
    assert [path.rsplit("/", 1)[1][:5] for path, *_ in data.gallery[:2]] == ["007_1", "007_2"]
    assert torch.equal(data.labels_of(data.outfit_of(data.gallery[1][0])), labels["test", 7, f"{2:06d}"])


def test_cerberus_learns_the_semantic_ids_of_outfits(tmp_path, prcc):
    trainer = CerberusTrainer(cloth_config(tmp_path, "PRCCAttributes", "MODEL.CERBERUS.SOFTMAX", 1.0, file=CERBERUS))
    model, data = trainer.model, trainer.data_loader.dataset
    assert trainer.cfg.MODEL.NUM_OUTFITS == 8 and trainer.cfg.MODEL.HEADS.NUM_CLASSES == 4
    assert torch.equal(model.attribute_reader().train_labels, data.labels)
    batch = next(iter(trainer.data_loader))
    sids = model.attribute_reader().table.lookup(data.labels)
    assert torch.equal(batch["sids"], sids[batch["outfits"]]) and torch.equal(model.prototypes.sid_of_class, sids)
    model.train()
    assert model(batch)["loss_softmax"].isfinite()  # the softmax includes the semantic IDs of all outfits


@pytest.mark.parametrize("file", [CERBERUS, "configs/Market1501/apr_demo.yml"])
def test_evaluating_the_checkpoint_gives_the_results_of_the_run(tmp_path, prcc, file):
    cfg = cloth_config(tmp_path, "PRCCAttributes", "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, file=file)
    results = trained(cfg).results
    assert {"cloth-changing/mAP", "PAR/mA_official", "APS/mAP"} <= set(results)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(tmp_path / "run" / "model_final.pth"), str(tmp_path / "evaluation")
    assert evaluate(cfg) == pytest.approx(results, nan_ok=True)


def test_held_out_identities_have_the_labels_of_their_outfits(tmp_path, prcc):
    cfg = cloth_config(tmp_path, "PRCCAttributes", "DATASETS.HOLD_OUT", 2)
    (held, _), train = build_test_set(cfg, "held-out"), build_train_set(cfg)
    assert len(held.labels) == len(train.labels) == 4
    for path, pid, _ in held.img_items:
        person, worn = int(path.split("/")[-2]), "C" if "/C_" in path else "A and B"
        assert torch.equal(held.known_of(path, pid)["attributes"], prcc["train", person, worn])


def test_a_person_with_an_excluded_semantic_id_is_excluded_with_all_outfits(tmp_path, prcc):
    cfg = cloth_config(tmp_path, "PRCCAttributes", "DATASETS.LEAVE_OUT_SIDS", 2)
    train, test = (torch.stack([row for (split, *_), row in prcc.items() if split == name])
                   for name in ("train", "test"))
    left = leave_out(MARKET1501, train, test, 2, seed=0)
    carriers = {person for (split, person, _), carried in zip(
        (key for key in prcc if key[0] == "train"), left.carried.tolist()) if carried}
    kept = build_train_set(cfg)
    assert 0 < len(carriers) < 4
    assert {int(path.split("/")[-2]) for path, *_ in kept.img_items} == {2, 10, 11, 100} - carriers
    assert len(kept.labels) == 2 * (4 - len(carriers))


def test_labels_of_identities_and_of_outfits_can_be_combined(tmp_path, prcc, market_people):
    write_market_folder(tmp_path, *market_people)
    train = build_train_set(cloth_config(tmp_path, "PRCC", "DATASETS.NAMES",
                                         ["PRCCAttributes", "Market1501Attributes"]))
    for path, pid, _ in train.img_items:
        person = int(str(pid).rsplit("_", 1)[-1])
        expected = (market_people[0][person] if "market" in pid else
                    prcc["train", person, "C" if "/C_" in path else "A and B"])
        assert torch.equal(train.known_of(path, pid)["attributes"], expected)
    assert len({pid for _, pid, _ in train.img_items}) == 4 + len(market_people[0])


def test_labels_are_not_used_if_one_dataset_has_none(tmp_path, prcc):
    write_celeb(tmp_path)
    train = build_train_set(cloth_config(tmp_path, "PRCC", "DATASETS.NAMES", ["PRCCAttributes", "CelebReID"]))
    assert train.labels is None and train.unit_of is None


@pytest.mark.parametrize(("line", "message"), [
    (None, "outfit 'C' of person 200 .test. has images but no line .1 of 14 outfits"),
    ("test,201,C" + "," * 12, "outfit 'C' of person 201 .test. has a line but no image .*ALLOW_SUBSET")])
def test_file_and_folder_must_contain_the_same_outfits(tmp_path, prcc, line, message):
    path = tmp_path / "prcc" / "rgb" / FILE_NAME
    lines = path.read_text().splitlines()
    at = next(i for i, text in enumerate(lines) if text.startswith("test,200,C"))
    lines[at:at + 1] = [lines[at], line] if line else []
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"{FILE_NAME}: {message}"):
        PRCCAttributes(root=str(tmp_path))
    if line:
        assert len(PRCCAttributes(root=str(tmp_path), allow_subset=True).annotations.test) == 6


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    write_prcc(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"prcc/rgb/{FILE_NAME}: not found. Expected one line per"):
        PRCCAttributes(root=str(tmp_path))
