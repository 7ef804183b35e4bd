"""Cloth-changing datasets in tiny folders: items, fields of a batch, and errors for invalid folders."""

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.data import resident
from cerberus_plugin.data.build import build_train_set
from cerberus_plugin.data.clothes import LTCC, PRCC, CelebReID

import pytest
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.samplers import BalancedIdentitySampler
from support.clothes_folders import cloth_config, write, write_celeb, write_ltcc, write_prcc
from support.training import trained


def once(log) -> list[str]:
    """Return the messages without repetitions: the fixture may record a message twice."""
    return list(dict.fromkeys(log.messages))


WRITE = {"PRCC": write_prcc, "LTCC": write_ltcc, "CelebReID": write_celeb}


def test_the_datasets_are_registered_in_fastreid():
    assert [DATASET_REGISTRY.get(name) for name in WRITE] == [PRCC, LTCC, CelebReID]


def test_prcc_has_queries_b_and_c_gallery_a_and_the_same_outfits_in_a_and_b(tmp_path):
    write_prcc(tmp_path)
    data = PRCC(root=str(tmp_path))
    assert (len(data.train), len(data.query), len(data.gallery)) == (24, 12, 6)
    assert {camid for *_, camid in data.query} == {1, 2} and {camid for *_, camid in data.gallery} == {0}
    assert {pid for _, pid, _ in data.train} == {"prcc_2", "prcc_10", "prcc_11", "prcc_100"}
    assert data.train[0][2] == "prcc_0"
    worn = {(pid, camid): data.outfit_of(path) for path, pid, camid in data.query + data.gallery}
    for person in (3, 4, 200):
        assert worn[person, 0] == worn[person, 1] != worn[person, 2]
    assert sorted(set(data.outfits.values())) == list(range(14))  # two outfits of seven persons


@pytest.mark.parametrize("gallery", ["test", "gallery"])
def test_ltcc_reads_persons_outfits_and_cameras_from_names(tmp_path, gallery):
    write_ltcc(tmp_path, gallery)
    data = LTCC(root=str(tmp_path))
    assert [item[1:] for item in data.query] == [(7, 0), (8, 0)]
    assert [item[1:] for item in data.gallery] == [(7, 1), (7, 0), (7, 2), (8, 1)]
    assert data.train[2][1:] == ("ltcc_0", "ltcc_11")
    # Outfit 1 of person 7 and outfit 1 of person 8 are different outfits.
    numbers = [data.outfit_of(path) for path, *_ in data.train + data.query + data.gallery]
    assert numbers == [0, 0, 1, 2, 3, 4, 6, 4, 5, 5, 6]


def test_queries_and_gallery_of_celeb_reid_have_no_camera_in_common(tmp_path):
    write_celeb(tmp_path)
    data = CelebReID(root=str(tmp_path))
    assert [camid for *_, camid in data.query] == [0, 1]
    assert [camid for *_, camid in data.gallery] == [10**6 + j for j in range(6)]
    together = {pid for _, pid, _ in CelebReID(root=str(tmp_path), combineall=True).train}
    assert len(together) == 4  # persons 1 and 2 of the test are different from those of training
    assert data.outfits == {} and data.settings == ()


def test_the_balanced_sampler_selects_different_images_of_a_person_in_celeb_reid(tmp_path):
    write_celeb(tmp_path)
    train = CelebReID(root=str(tmp_path)).train
    drawn = iter(BalancedIdentitySampler(train, 8, 4, seed=1))
    for _ in range(5):
        batch = [next(drawn) for _ in range(8)]
        assert len(set(batch)) == 8 and sorted(train[i][1] for i in batch) == ["celebreid_1"] * 4 + ["celebreid_2"] * 4


@pytest.mark.parametrize("name", WRITE)
def test_a_table_and_a_warning_show_counts_that_differ_from_the_published_ones(tmp_path, log, name):
    WRITE[name](tmp_path)
    DATASET_REGISTRY.get(name)(root=str(tmp_path)).show_test()
    table, warning = once(log)
    expected = {"PRCC": "24 (published 17896)", "LTCC": "5 (published 9576)", "CelebReID": "10 (published 20208)"}[name]
    assert expected in table and "test" in table
    assert f"train has {expected.split()[0]} images, published are" in warning and "ALLOW_SUBSET" in warning
    log.clear()
    DATASET_REGISTRY.get(name)(root=str(tmp_path), allow_subset=True)
    assert len(once(log)) == 1


def test_published_counts_give_no_warning(tmp_path, log, monkeypatch):
    write_celeb(tmp_path)
    counts = {"train": (10, 2, None), "query": (2, 2, None), "gallery": (6, 2, None), "test": (8, 2, None)}
    monkeypatch.setattr(CelebReID, "published", counts)
    CelebReID(root=str(tmp_path))
    assert len(once(log)) == 1 and "(published" not in once(log)[0]


@pytest.mark.parametrize(("name", "folder"), [("PRCC", "prcc/rgb"), ("LTCC", "LTCC_ReID"),
                                              ("CelebReID", "Celeb-reID")])
def test_a_missing_folder_is_named_with_the_layout_and_the_variable(tmp_path, name, folder):
    with pytest.raises(FileNotFoundError, match=rf"{folder}/train'.*expected {folder}.*FASTREID_DATASETS"):
        DATASET_REGISTRY.get(name)(root=str(tmp_path))


@pytest.mark.parametrize(("name", "split", "file"), [
    ("PRCC", "train", "prcc/rgb/train/002/D_cropped_rgb001.jpg"), ("PRCC", "test", "prcc/rgb/test/B/x3/cropped_1.jpg"),
    ("LTCC", "query", "LTCC_ReID/query/007_c1_000006.png"), ("LTCC", "camera", "LTCC_ReID/query/007_1_c13_000006.png"),
    ("CelebReID", "gallery", "Celeb-reID/gallery/face.jpg")])
def test_a_name_of_another_form_is_an_error_that_names_the_file(tmp_path, name, split, file):
    WRITE[name](tmp_path)
    write(tmp_path / file, 0)
    with pytest.raises(ValueError, match=rf"{file}: .*\(1 of \d+ images"):
        DATASET_REGISTRY.get(name)(root=str(tmp_path))


def test_other_files_than_images_are_skipped(tmp_path):
    folder = write_celeb(tmp_path)
    (folder / "query" / "Thumbs.db").write_bytes(b"")
    (folder / "query" / "._1_0_0.jpg").write_bytes(b"")
    assert len(CelebReID(root=str(tmp_path)).query) == 2


@pytest.mark.parametrize(("name", "part", "files"), [
    ("PRCC", "query B", "prcc/rgb/test/B/*/*"), ("LTCC", "train", "LTCC_ReID/train/*"),
    ("CelebReID", "gallery", "Celeb-reID/gallery/*")])
def test_an_empty_part_is_rejected(tmp_path, name, part, files):
    WRITE[name](tmp_path)
    for path in tmp_path.glob(files):
        path.unlink()
    with pytest.raises(ValueError, match=f"no {part} images found; expected"):
        DATASET_REGISTRY.get(name)(root=str(tmp_path))


def test_a_gallery_without_any_query_person_is_rejected(tmp_path):
    folder = write_celeb(tmp_path)
    for path in (folder / "query").iterdir():
        path.rename(path.with_name(f"9{path.name}"))
    with pytest.raises(ValueError, match=r"none of the 2 query persons \(91, ...\) is in the gallery, which has 2"):
        CelebReID(root=str(tmp_path))


def test_query_persons_who_are_not_in_the_gallery_are_counted(tmp_path, log):
    folder = write_prcc(tmp_path)
    for path in (folder / "test" / "A" / "200").iterdir():
        path.unlink()
    PRCC(root=str(tmp_path), allow_subset=True)
    assert "1 of 3 query persons (200, ...) have no gallery image" in once(log)[0]


def test_lists_of_persons_must_contain_all_persons_as_numbers(tmp_path):
    folder = write_ltcc(tmp_path)
    changing = folder / "info" / "cloth-change_id_test.txt"
    changing.write_text("99\n")
    with pytest.raises(ValueError, match=r"007_1_c1_000006.png: person 7 is neither in .*change_id_test.txt nor in "
                                         r"cloth-unchange_id_test.txt \(1 persons of 4 images"):
        LTCC(root=str(tmp_path))
    changing.write_text("7\n\nseven\n")
    with pytest.raises(ValueError, match="change_id_test.txt, line 3: 'seven', expected the number of a person"):
        LTCC(root=str(tmp_path))
    changing.write_bytes("7\né\n".encode("latin-1"))
    with pytest.raises(ValueError, match="change_id_test.txt, line 2: byte 0xe9 is not UTF-8"):
        LTCC(root=str(tmp_path))
    changing.unlink()
    assert len(LTCC(root=str(tmp_path)).query) == 2


@pytest.mark.parametrize("name", ["PRCC", "LTCC", "CelebReID"])
@pytest.mark.parametrize("kept", [False, True], ids=["FastReID's loader", "resident"])
def test_test_batches_contain_outfits_if_there_are_any(tmp_path, use_root, name, kept):
    WRITE[name](tmp_path)
    use_root(tmp_path)
    resident.release()
    loader, num_query = CerberusTrainer.build_test_loader(
        cloth_config(tmp_path, name, "DATALOADER.RESIDENT", kept), name)
    assert isinstance(loader, resident.ResidentLoader) == kept
    data = DATASET_REGISTRY.get(name)(root=str(tmp_path))
    assert num_query == len(data.query)
    first = min(data.outfit_of(path) for path, *_ in data.query + data.gallery) if data.outfits else 0
    for batch in loader:
        if name == "CelebReID":
            assert "outfits" not in batch
        else:
            assert batch["outfits"].dtype == batch["targets"].dtype
            assert batch["outfits"].tolist() == [data.outfit_of(path) - first for path in batch["img_paths"]]
    resident.release()


def test_the_replacement_of_an_unreadable_image_has_its_own_outfit(tmp_path, use_root):
    folder = write_ltcc(tmp_path)
    use_root(tmp_path)
    (folder / "train" / "005_1_c3_000004.png").write_bytes(b"no image")
    train = build_train_set(cloth_config(tmp_path, "LTCC", "DATALOADER.ON_UNREADABLE", "skip"))
    assert [train[i]["outfits"] for i in (2, 3, 4)] == [1, 3, 3]


def test_outfits_of_two_datasets_are_different_and_need_outfits_in_both(tmp_path, use_root):
    write_prcc(tmp_path), write_ltcc(tmp_path), write_celeb(tmp_path)
    use_root(tmp_path)
    both = build_train_set(cloth_config(tmp_path, "PRCC", "DATASETS.NAMES", ["PRCC", "LTCC"]))
    assert both[0]["outfits"] == 0 and both[24]["outfits"] == 8  # after two outfits of four persons
    mixed = build_train_set(cloth_config(tmp_path, "PRCC", "DATASETS.NAMES", ["PRCC", "CelebReID"]))
    assert "outfits" not in mixed[0]


def test_held_out_identities_are_evaluated_by_outfits(tmp_path, use_root):
    write_prcc(tmp_path)
    use_root(tmp_path)
    cfg = cloth_config(tmp_path, "PRCC", "DATASETS.HOLD_OUT", 2)
    loader, _ = CerberusTrainer.build_test_loader(cfg, "held-out")
    assert loader.dataset.settings == ("cloth-changing", "same-clothes")
    assert all("outfits" in batch for batch in loader)


def test_a_dataset_without_outfits_has_only_the_standard_results(tmp_path, use_root):
    write_celeb(tmp_path)
    use_root(tmp_path)
    loader, evaluator = CerberusTrainer.build_evaluator(cloth_config(tmp_path, "CelebReID"), "CelebReID")
    for batch in loader:
        evaluator.process(batch, torch.rand(len(batch["images"]), 4))
    results = evaluator.evaluate()
    assert "mAP" in results and not any("/" in name for name in results)


def test_the_results_of_a_run_contain_every_setting(tmp_path, use_root):
    write_prcc(tmp_path, images=1)
    use_root(tmp_path)
    results = trained(cloth_config(tmp_path, "PRCC", "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1)).results
    assert results["cloth-changing/queries"] == results["same-clothes/queries"] == 3
    assert results["metric"] == (results["cloth-changing/mAP"] + results["cloth-changing/Rank-1"]) / 2
    assert "single-shot, same-clothes" in (tmp_path / "run" / "results.txt").read_text()
    assert "under cloth-changing" in (tmp_path / "run" / "results.json").read_text()
