"""Loaders with images on the device yield the same batches as FastReID's, or give the reason why they cannot."""

import itertools
import shutil
from pathlib import Path

from cerberus_plugin import CerberusTrainer, host
from cerberus_plugin.data import resident
from cerberus_plugin.data.build import build_train_loader, build_train_set
from cerberus_plugin.data.resident import ResidentLoader, recipe_of
from cerberus_plugin.engine.trainer import evaluate

import numpy as np
import pytest
import torch
from fastreid.data.transforms import build_transforms
from PIL import Image
from support.training import trained

TESTS = "Market1501Attributes"
PLAIN = ("INPUT.FLIP.ENABLED", False, "INPUT.REA.ENABLED", False)


@pytest.fixture(autouse=True)
def no_resident_images(monkeypatch):
    monkeypatch.setattr(host.data, "_device", torch.device("cpu"))
    resident.release()
    yield
    resident.release()


@pytest.fixture
def own_folder(market_root, use_root, tmp_path, small_config):
    """Return a copy of the dataset that a test may change."""
    shutil.copytree(market_root, tmp_path / "data")
    use_root(tmp_path / "data")
    return tmp_path / "data" / "Market-1501-v15.09.15"


def train_batches(cfg, count: int = 4) -> list[dict]:
    loader = build_train_loader(cfg)
    assert isinstance(loader, ResidentLoader) == cfg.DATALOADER.RESIDENT
    return list(itertools.islice(loader, count))


def evaluation_batches(cfg) -> list[dict]:
    loader, num_query = CerberusTrainer.build_test_loader(cfg, TESTS)
    assert isinstance(loader, ResidentLoader) == cfg.DATALOADER.RESIDENT and num_query == 6
    batches = list(loader)
    assert len(loader) == len(batches)
    return batches


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert list(a) == list(b)
        for key in a:
            if isinstance(b[key], torch.Tensor):
                assert a[key].dtype == b[key].dtype and a[key].device == b[key].device, key
                assert torch.equal(a[key], b[key]), key
            else:
                assert a[key] == b[key], key


@pytest.mark.parametrize("size", [[48, 24], [96, 40], [32, 24], [40, 16]])  # as stored, larger, smaller
@pytest.mark.parametrize("name", [TESTS, "Market1501"])
def test_without_augmentation_training_batches_equal_those_of_fastreids_loader(small_config, name, size):
    options = (*PLAIN, "INPUT.SIZE_TRAIN", size, "DATASETS.NAMES", [name])
    ours = train_batches(small_config("DATALOADER.RESIDENT", True, *options))
    assert_same(ours, train_batches(small_config(*options)))
    assert ours[0]["images"].shape == (16, 3, *size) and ("attributes" in ours[0]) == (name == TESTS)


def test_test_batches_equal_those_of_fastreids_loader(small_config):
    options = ("TEST.IMS_PER_BATCH", 10, "INPUT.SIZE_TEST", [96, 40])
    assert_same(evaluation_batches(small_config("DATALOADER.RESIDENT", True, *options)),
                evaluation_batches(small_config(*options)))


def test_the_recipe_is_taken_from_fastreids_transforms(small_config):
    cfg = small_config("INPUT.PADDING.ENABLED", True, "INPUT.PADDING.MODE", "reflect", "INPUT.FLIP.PROB", 0.3)
    assert recipe_of(build_transforms(cfg, is_train=True)) == resident.Recipe(
        48, 24, 10, "reflect", 0.3, 0.25, (0.485 * 255, 0.456 * 255, 0.406 * 255), (0.02, 0.33), (0.3, 3.3))
    assert recipe_of(build_transforms(cfg, is_train=False)) == resident.Recipe(48, 24)


def test_batches_depend_on_the_seed_only(small_config):
    options = ("DATALOADER.RESIDENT", True, "INPUT.PADDING.ENABLED", True)
    first = train_batches(small_config(*options))
    assert_same(first, train_batches(small_config(*options)))
    assert not torch.equal(first[0]["images"], train_batches(small_config(*options, "SEED", 2))[0]["images"])


def test_images_are_augmented_differently_each_time(small_config):
    cfg = small_config("DATALOADER.RESIDENT", True, "INPUT.PADDING.ENABLED", True)
    seen = {}
    for batch in train_batches(cfg, 8):
        for path, image in zip(batch["img_paths"], batch["images"]):
            seen.setdefault(path, []).append(image)
    assert all(not torch.equal(views[0], views[1]) for views in seen.values())


@pytest.mark.parametrize(("options", "reason"), [
    (("INPUT.AUTOAUG.ENABLED", True), "the first transform is AutoAugment, not Resize"),
    (("INPUT.CROP.ENABLED", True), "the transform RandomResizedCrop has no batched form"),
    (("INPUT.CJ.ENABLED", True), "the transform ColorJitter has no batched form"),
    (("INPUT.AFFINE.ENABLED", True), "the transform RandomAffine has no batched form"),
    (("INPUT.AUGMIX.ENABLED", True), "the transform AugMix has no batched form"),
    (("INPUT.RPT.ENABLED", True), "the transform RandomPatch has no batched form"),
    (("INPUT.SIZE_TRAIN", [48]), "INPUT.SIZE_TRAIN or SIZE_TEST is one number"),
    (("INPUT.SIZE_TRAIN", [0, 0]), "the first transform is RandomHorizontalFlip, not Resize"),
    (("DATALOADER.RESIDENT_GIB", 1e-6), "32 images take 0.1 MiB, more than DATALOADER.RESIDENT_GIB 1e-06 allows"),
])
def test_fastreids_loader_is_used_with_a_reason_if_images_cannot_be_resident(
        small_config, caplog, options, reason):
    with caplog.at_level("INFO", logger="fastreid.cerberus"):
        loader = build_train_loader(small_config("DATALOADER.RESIDENT", True, *options))
    assert isinstance(loader, host.data.DeviceLoader)
    assert caplog.text.count("DATALOADER.RESIDENT: not used for the training images: ") == 1 and reason in caplog.text


def test_fastreids_loader_is_used_for_more_than_half_of_the_free_memory(small_config, caplog, monkeypatch):
    monkeypatch.setattr(resident, "free_bytes", lambda device: 2**17)
    with caplog.at_level("INFO", logger="fastreid.cerberus"):
        loader, _ = CerberusTrainer.build_test_loader(small_config("DATALOADER.RESIDENT", True), TESTS)
    assert isinstance(loader, host.data.DeviceLoader)
    assert "test images: 25 images take 0.1 MiB, more than half of the 0.1 MiB that are free on cpu" in caplog.text


def test_the_limit_applies_to_all_datasets_of_a_process_together(small_config, caplog):
    cfg = small_config("DATALOADER.RESIDENT", True, "DATALOADER.RESIDENT_GIB", 0.00016)  # 0.16 MiB; one takes 0.1
    with caplog.at_level("INFO", logger="fastreid.cerberus"):
        build_train_loader(cfg)
        loader, _ = CerberusTrainer.build_test_loader(cfg, TESTS)
    assert isinstance(loader, host.data.DeviceLoader) and "in addition to 0.1 MiB of other datasets" in caplog.text
    resident.release()
    assert isinstance(CerberusTrainer.build_test_loader(cfg, TESTS)[0], ResidentLoader)


@pytest.mark.parametrize("mode", ["CMYK", "L", "I;16"])
def test_images_of_other_modes_are_converted_as_in_fastreids_loader(own_folder, small_config, mode):
    image = next((own_folder / "query").iterdir())
    colours = Image.effect_noise((24, 48), 100)
    converted = Image.fromarray(np.asarray(colours) * np.uint16(257)) if mode == "I;16" else colours.convert(mode)
    converted.save(image, "JPEG" if mode == "CMYK" else "PNG")
    with Image.open(image) as stored:
        assert stored.mode == mode
    assert_same(evaluation_batches(small_config("DATALOADER.RESIDENT", True)), evaluation_batches(small_config()))


def test_images_are_decoded_once_and_again_after_a_file_has_changed(own_folder, small_config, caplog):
    cfg = small_config("DATALOADER.RESIDENT", True)
    with caplog.at_level("INFO", logger="fastreid.cerberus"):
        first, second = evaluation_batches(cfg), evaluation_batches(cfg)
        assert_same(first, second)
        assert caplog.text.count("25 images on cpu: ") == 1
        image = next((own_folder / "query").iterdir())
        Image.new("RGB", (20, 40), (255, 0, 0)).save(image)
        third = evaluation_batches(cfg)
    assert caplog.text.count("25 images on cpu: ") == 2 and not torch.equal(first[0]["images"], third[0]["images"])


def test_a_process_decodes_only_its_share_of_the_test_images(small_config, monkeypatch):
    expected = [path for batch in evaluation_batches(small_config()) for path in batch["img_paths"]]
    monkeypatch.setattr("fastreid.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("fastreid.utils.comm.get_rank", lambda: 1)
    monkeypatch.setattr("fastreid.utils.comm.is_main_process", lambda: True)
    loader, _ = CerberusTrainer.build_test_loader(small_config("DATALOADER.RESIDENT", True), TESTS)
    assert [path for batch in loader for path in batch["img_paths"]] == expected[13:]
    assert len(loader.resident.packed.offsets) == 12


def test_an_unreadable_training_image_is_an_error_or_is_replaced(
        own_folder, small_config):
    def config(choice):
        return small_config("DATALOADER.RESIDENT", True, "DATALOADER.ON_UNREADABLE", choice, *PLAIN)

    broken = own_folder / "bounding_box_train" / "0007_c2s1_000002_00.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(RuntimeError, match="0007_c2s1_000002_00.jpg: is broken.*ON_UNREADABLE skip"):
        build_train_loader(config("stop"))
    cfg = config("skip")
    loader = build_train_loader(cfg)
    item = [path == str(broken) for path, _, _ in loader.dataset.img_items].index(True)
    row = loader.row_of[item]
    path = loader.fields["img_paths"][row]
    assert "0007_" in path and path != str(broken)
    assert loader.dataset.num_unreadable.item() == 1
    assert build_train_loader(cfg).dataset.num_unreadable.item() == 1  # counted again, although it is not decoded again
    theirs = build_train_set(cfg)[item]
    assert path == theirs["img_paths"]
    assert loader.fields["targets"][row] == theirs["targets"]


def test_an_unreadable_test_image_is_black_and_has_identity_minus_one(own_folder, small_config):
    broken = next((own_folder / "query").iterdir())
    broken.write_bytes(b"not an image")
    options = ("DATALOADER.ON_UNREADABLE", "skip")
    ours = evaluation_batches(small_config("DATALOADER.RESIDENT", True, *options))
    assert_same(ours, evaluation_batches(small_config(*options)))
    row = ours[0]["img_paths"].index(str(broken))
    assert ours[0]["targets"][row] == -1 and (ours[0]["images"][row] == 0).all()


def test_results_of_a_training_do_not_depend_on_the_loader_of_the_evaluation(small_config):
    cfg = small_config("DATALOADER.RESIDENT", True, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1,
                       "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2, "TEST.FLIP.ENABLED", True)
    trainer = trained(cfg)
    assert isinstance(trainer.data_loader, ResidentLoader)
    # 32 training and 25 test images: PreciseBN, without labels, uses the stored training images.
    assert resident.resident_bytes() < 1.1 * (32 + 25) * 48 * 24 * 3
    assert any(not torch.equal(p, trainer.start[name]) for name, p in trainer.model.named_parameters())
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    again = cfg.clone()
    again.DATALOADER.RESIDENT = False
    assert evaluate(cfg) == pytest.approx(trainer.results, nan_ok=True)
    assert evaluate(again) == pytest.approx(trainer.results, nan_ok=True)


@pytest.mark.gpu
def test_batches_on_a_gpu_equal_those_on_the_cpu(small_config):
    cfg = small_config("DATALOADER.RESIDENT", True, "INPUT.PADDING.ENABLED", True)
    expected = train_batches(cfg)
    host.use_device("cuda")
    for ours, theirs in zip(train_batches(cfg), expected):
        assert all(value.is_cuda for value in ours.values() if isinstance(value, torch.Tensor))
        assert_same([{k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in ours.items()}], [theirs])
