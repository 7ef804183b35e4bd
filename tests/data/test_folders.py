"""Invalid folders, annotations and images are reported by the trainer before training starts."""

import shutil

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.data.build import build_test_set, build_train_set, build_training_data
from cerberus_plugin.data.splits import HELD_OUT
from cerberus_plugin.engine.label_tables import measure_scales
from cerberus_plugin.engine.trainer import setup

import pytest
from fastreid.engine import default_argument_parser
from support.clothes_folders import cloth_config, write_ltcc
from support.data import write_market_folder
from support.training import read_config

TESTS = "Market1501Attributes"


@pytest.fixture
def own_folder(tmp_path, market_people, use_root, small_config):
    """Return a dataset folder that a test may change, and its configuration."""
    cfg = small_config()
    use_root(write_market_folder(tmp_path / "data", *market_people))
    return tmp_path / "data" / "Market-1501-v15.09.15", cfg


@pytest.mark.filterwarnings("ignore:The current data structure is deprecated")
def test_the_error_for_a_missing_dataset_names_its_folder_and_the_synthetic_one(small_config, use_root, tmp_path):
    cfg = small_config()
    use_root(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match='nowhere.*" is not found. Set FASTREID_.*v15.09.15 with.*synthetic'):
        build_train_set(cfg)


def test_a_missing_configuration_file_key_or_gpu_is_reported_by_setup(monkeypatch):
    parse = default_argument_parser().parse_args
    with pytest.raises(FileNotFoundError, match="--config-file '' is not a file; for example"):
        setup(parse([]))
    misspelt = ["--config-file", "configs/Market1501/cerberus_R50.yml", "MODEL.CERBERUS.SIGMMA", "5"]
    with pytest.raises(ValueError, match="Non-existent key: MODEL.CERBERUS.SIGMMA.*cerberus_plugin/config.py.$"):
        setup(parse(misspelt))
    with pytest.raises(ValueError, match="options such as --eval-only before KEY VALUE"):
        setup(parse([*misspelt, "--eval-only", "yes"]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="torch finds no GPU; append `MODEL.DEVICE cpu`"):
        setup(parse(["--config-file", "configs/Market1501/cerberus_R50.yml"]))


def test_the_error_for_a_missing_annotation_file_names_both_folders(own_folder):
    folder, cfg = own_folder
    (folder / "market_attribute.mat").unlink()
    with pytest.raises(FileNotFoundError, match="market_attribute.mat not found; looked in"):
        build_train_set(cfg)


def test_an_identity_without_labels_is_named(own_folder):
    folder, cfg = own_folder
    image = next((folder / "bounding_box_train").glob("0002*"))
    shutil.copy(image, image.with_name("0999_c1s1_000001_00.jpg"))
    with pytest.raises(ValueError, match="no train labels for identity 0999 .1 of 9 identities"):
        build_train_set(cfg)


def test_labels_without_images_are_an_error_unless_a_subset_is_allowed(own_folder):
    folder, cfg = own_folder
    for image in (folder / "bounding_box_train").glob("0007*"):
        image.unlink()
    with pytest.raises(ValueError, match="identity 0007 is labelled for train but has no image .1 of 8"):
        build_train_set(cfg)
    cfg.defrost()
    cfg.DATASETS.ALLOW_SUBSET = True
    assert build_train_set(cfg).num_classes == 7


@pytest.mark.parametrize("name", ["query", "bounding_box_test"])
def test_an_empty_query_or_gallery_is_rejected(own_folder, name):
    folder, cfg = own_folder
    for image in (folder / name).iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=f"no {'gallery' if name != 'query' else 'query'} images"):
        build_train_set(cfg)


def test_an_unreadable_image_is_an_error_or_is_skipped_and_counted(own_folder):
    folder, cfg = own_folder
    broken = folder / "bounding_box_train" / "0007_c2s1_000002_00.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    train_set = build_train_set(cfg)
    index = [str(broken) == item[0] for item in train_set.img_items].index(True)
    with pytest.raises(RuntimeError, match="0007_c2s1_000002_00.jpg: is broken.*ON_UNREADABLE skip"):
        train_set[index]
    cfg.defrost()
    cfg.DATALOADER.ON_UNREADABLE = "skip"
    train_set = build_train_set(cfg)
    item = train_set[index]
    assert item["targets"] == train_set.pid_dict["market1501_7"] and item["img_paths"] != str(broken)
    assert train_set.num_unreadable.item() == 1
    for image in (folder / "bounding_box_train").glob("0007*"):
        image.write_bytes(b"")
    with pytest.raises(RuntimeError, match="no image of identity market1501_7 can be read .4 files"):
        train_set[index]


@pytest.mark.parametrize(("held_out", "learned"), [(0, False), (2, False), (0, True), (2, True)])
def test_cosine_scales_are_fitted_on_readable_images(own_folder, monkeypatch, held_out, learned):
    folder, cfg = own_folder
    cfg.defrost()
    cfg.DATALOADER.ON_UNREADABLE, cfg.DATASETS.HOLD_OUT = "skip", held_out
    cfg.MODEL.CERBERUS.SOFTMAX, cfg.MODEL.CERBERUS.SOFTMAX_PRIOR = float(learned), learned
    trainer = CerberusTrainer(cfg)
    whole = build_test_set(cfg, HELD_OUT)[0] if held_out else trainer.data_loader.dataset
    broken = whole.img_items[3][0]
    (folder / "bounding_box_train" / broken).write_bytes(b"not an image")
    seen = []
    monkeypatch.setattr("cerberus_plugin.engine.label_tables.fit_scale",
                        lambda cosines, *_: seen.append(cosines) or 5.0)
    data = build_training_data(cfg, semantic_ids=True)
    measure_scales(trainer.model, trainer.cfg, data)
    if learned and not held_out:  # learned scales are not replaced by scales fitted on training images
        assert not seen and trainer.model.prototypes.log_scales is None
        return
    assert trainer.model.prototypes.log_scales.exp().tolist() == pytest.approx([5.0] * 12)
    # In training, another image of the person replaces it; a test ignores it.
    assert [len(cosines) for cosines in seen] == [len(whole) - bool(held_out)] * 12
    assert data.dataset.num_unreadable.item() == 0


def test_an_unreadable_test_image_is_ignored_in_the_evaluation(own_folder):
    folder, cfg = own_folder
    cfg.defrost()
    cfg.DATALOADER.ON_UNREADABLE = "skip"
    (folder / "bounding_box_test" / "0003_c2s1_000002_00.jpg").write_bytes(b"not an image")
    trainer = CerberusTrainer(cfg)
    results = trainer.test(trainer.cfg, trainer.model)
    assert results["PAR/images"] == 17 and results["APS/images"] == 23


def test_an_unknown_value_of_on_unreadable_is_rejected(small_config):
    with pytest.raises(ValueError, match="ON_UNREADABLE is 'ignore', expected one of"):
        build_train_set(small_config("DATALOADER.ON_UNREADABLE", "ignore"))


def test_an_evaluation_without_readable_images_is_an_error(own_folder):
    folder, cfg = own_folder
    for image in [*(folder / "query").iterdir(), *(folder / "bounding_box_test").iterdir()]:
        image.write_bytes(b"")
    cfg.defrost()
    cfg.DATALOADER.ON_UNREADABLE = "skip"
    for resident in (True, False):
        cfg.DATALOADER.RESIDENT = resident
        with pytest.raises(RuntimeError, match="none of the 25 test images can be read"):
            next(iter(CerberusTrainer.build_test_loader(cfg, TESTS)[0]))


def move(folder, name):
    """Rename the images of a folder with a function of their names."""
    for image in sorted(folder.iterdir()):
        image.rename(image.with_name(name(image.name)))


ONE_CAMERA = "no query has a gallery image of its identity from another camera .6 queries, .* 1 camera"


@pytest.mark.parametrize("file", ["configs/Market1501/cerberus_demo.yml", "configs/Market1501/bot_demo.yml"])
@pytest.mark.parametrize("test", ["Market1501Attributes", "Market1501"])
def test_a_test_set_with_one_camera_is_rejected_before_the_model_is_built(own_folder, file, test, monkeypatch):
    folder, _ = own_folder
    for part in ("query", "bounding_box_test"):
        move(folder / part, lambda name: name.replace(name[4:7], "_c3"))
    cfg = read_config("DATASETS.TESTS", [test], "OUTPUT_DIR", str(folder / "run"), file=file)
    monkeypatch.setattr(CerberusTrainer, "build_model", lambda cfg: pytest.fail("built"))
    with pytest.raises(ValueError, match=f"DATASETS.TESTS '{test}' in .*{ONE_CAMERA}"):
        CerberusTrainer(cfg)


def test_query_expansion_over_too_few_images_is_rejected_before_training(small_config, monkeypatch):
    cfg = small_config("TEST.AQE.ENABLED", True, "TEST.AQE.QE_K", 500)
    monkeypatch.setattr(CerberusTrainer, "build_model", lambda cfg: pytest.fail("built"))
    with pytest.raises(ValueError, match="TEST.AQE.QE_K is 500, but there are .* query and .* gallery images"):
        CerberusTrainer(cfg)


def test_query_and_gallery_of_different_people_are_rejected_before_training(own_folder):
    folder, cfg = own_folder
    cfg.defrost()
    cfg.DATASETS.NAMES, cfg.DATASETS.TESTS = ["Market1501"], ["Market1501"]
    cfg.MODEL.META_ARCHITECTURE = "Baseline"
    move(folder / "query", lambda name: f"7{name}")
    with pytest.raises(ValueError, match=r"none of the 6 query identities \(70001, ...\) is in the gall.* has 7"):
        CerberusTrainer(cfg)


@pytest.mark.parametrize("part", ["query", "bounding_box_test"])
def test_fastreids_dataset_without_query_or_gallery_is_rejected_before_training(own_folder, part):
    folder, cfg = own_folder
    cfg.defrost()
    cfg.DATASETS.NAMES, cfg.DATASETS.TESTS = ["Market1501"], ["Market1501"]
    cfg.MODEL.META_ARCHITECTURE = "Baseline"
    shutil.rmtree(folder / part)
    (folder / part).mkdir()
    with pytest.raises(ValueError, match=f"has no {'query' if part == 'query' else 'gallery'} images, so there is not"):
        CerberusTrainer(cfg)
    shutil.rmtree(folder / "bounding_box_train")
    (folder / "bounding_box_train").mkdir()
    with pytest.raises(ValueError, match="DATASETS.NAMES 'Market1501' in .* has no training images"):
        CerberusTrainer(cfg)


def test_held_out_identities_of_one_camera_are_rejected_before_training(own_folder):
    folder, cfg = own_folder
    cfg.defrost()
    cfg.DATASETS.TESTS, cfg.DATASETS.HOLD_OUT = ["held-out"], 2
    move(folder / "bounding_box_train", lambda name: f"{name[:4]}_c1s1_00000{name[6]}_00.jpg")
    with pytest.raises(ValueError, match="DATASETS.TESTS 'held-out': no query has a gallery image of its identity"):
        CerberusTrainer(cfg)


def test_a_setting_of_outfits_without_a_match_is_a_warning_before_training(tmp_path, use_root, log):
    folder = write_ltcc(tmp_path)
    use_root(tmp_path)
    for name in ("007_2_c1_000009", "007_2_c3_000010"):  # the other outfits of person 7
        (folder / "test" / f"{name}.png").unlink()
    CerberusTrainer(cloth_config(tmp_path, "LTCC", "DATASETS.ALLOW_SUBSET", True, "SOLVER.IMS_PER_BATCH", 4,
                                 "DATALOADER.NUM_INSTANCE", 2))
    assert any("no query has a match under the setting 'cloth-changing'" in text for text in log.messages)
