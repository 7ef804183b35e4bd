"""Datasets, predictor, rank lists and figures read the same pixels and reject the same files."""

import copy
import io
import shutil
import struct
import zlib
from pathlib import Path

from cerberus_plugin import CerberusPredictor, CerberusTrainer
from cerberus_plugin.data import resident
from cerberus_plugin.data.build import build_test_set, build_train_set
from cerberus_plugin.data.loader import AttributeDataset
from cerberus_plugin.experiments.figures import __main__ as figures
from cerberus_plugin.experiments.figures import exhibit, rank_list
from cerberus_plugin.utils.images import read_image

import numpy as np
import pytest
import torch
from fastreid.data.data_utils import read_image as host_image
from fastreid.data.transforms import build_transforms
from PIL import Image, PngImagePlugin

TESTS = "Market1501Attributes"
ORIENTATION = 0x0112
SIZE = (12, 24)  # width and height


def noise(mode: str) -> Image.Image:
    """A random image of this mode; 16-bit values use the whole range."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, SIZE[::-1], dtype=np.uint16))
    colours = Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 4), dtype=np.uint8))
    return colours if mode == "RGBA" else colours.convert("RGB").convert(mode)


def as_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "I;16":
        return np.repeat((np.asarray(image) // 256).astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def save(image: Image.Image, path: Path, kind: str = "PNG", turn: int = 1) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    image.save(path, kind, exif=exif)
    return path


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def plain_png() -> bytes:
    buffer = io.BytesIO()
    noise("RGB").save(buffer, "PNG")
    return buffer.getvalue()


PNG = plain_png()  # 8 bytes of signature, 25 of size and mode, then the rest
BROKEN = {
    "not an image": b"nothing",
    "truncated": PNG[:-200],
    # Pillow raises DecompressionBombError for this file, and ValueError for the next.
    "200 megapixels": PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)) + PNG[33:],
    "a text chunk of many megabytes": PNG[:33] + chunk(
        b"zTXt", b"key\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1))) + PNG[33:],
}


@pytest.fixture
def own_folder(market_root, use_root, tmp_path, small_config) -> Path:
    """A copy of the synthetic dataset whose files a test may change; replaces the root that `small_config` sets."""
    root = Path(shutil.copytree(market_root, tmp_path / "data"))
    use_root(root)
    return root / "Market-1501-v15.09.15"


@pytest.fixture(scope="module")
def predictor(run) -> CerberusPredictor:
    return CerberusPredictor(run.cfg.OUTPUT_DIR, device="cpu")


@pytest.fixture
def run_config(run):
    """The configuration of the trained run; a test may change it."""
    cfg = run.cfg.clone()
    cfg.defrost()
    return cfg


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"),
                                            ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "1"),
                                            ("PNG", "I;16")])
@pytest.mark.parametrize("turn", [1, 6])
def test_datasets_and_predictor_read_the_pixels_of_the_rgb_version(predictor, small_config, tmp_path, kind, mode, turn):
    path = save(noise(mode), tmp_path / "crop.jpg", kind, turn)
    with Image.open(path) as stored:
        assert stored.mode == mode
        expected = as_rgb(stored if kind == "PNG" else stored.copy())
    expected = np.rot90(expected, -1) if turn == 6 else expected
    assert (np.asarray(read_image(path)) == expected).all()
    if mode == "RGB":  # as read by FastReID, so earlier results do not change
        assert (np.asarray(host_image(str(path))) == expected).all()
    cfg = small_config("INPUT.FLIP.ENABLED", False, "INPUT.REA.ENABLED", False)
    rgb = [build_transforms(cfg, is_train)(Image.fromarray(expected)) for is_train in (False, True)]
    items = [(str(path), 1, 0)]
    assert torch.equal(AttributeDataset(items, build_transforms(cfg, False), relabel=False)[0]["images"], rgb[0])
    assert torch.equal(AttributeDataset(items, build_transforms(cfg, True))[0]["images"], rgb[1])
    assert torch.equal(predictor.load_images([path])[0], rgb[0])


def test_palette_images_have_the_same_results_as_their_rgb_versions(own_folder, run, run_config):
    files = [*(own_folder / "query").iterdir(), *(own_folder / "bounding_box_test").iterdir()]
    palettes = {path: Image.open(path).quantize(64) for path in files}
    results = []
    for mode in ("RGB", "P"):
        for path, image in palettes.items():
            image.convert(mode).save(path, "PNG")  # with the same name
        results.append(CerberusTrainer.test(run_config, run.model))
    assert results[0] == pytest.approx(results[1], abs=0, nan_ok=True)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_images_are_named_or_skipped_for_any_error_of_the_decoder(own_folder, small_config, broken):
    path = own_folder / "bounding_box_test" / "0003_c2s1_000002_00.jpg"
    trained_on = own_folder / "bounding_box_train" / "0007_c2s1_000002_00.jpg"
    for file in (path, trained_on):
        file.write_bytes(BROKEN[broken])
    for resident_images in (False, True):
        options = ("DATALOADER.RESIDENT", resident_images)
        cfg, skipping = small_config(*options), small_config(*options, "DATALOADER.ON_UNREADABLE", "skip")
        with pytest.raises(RuntimeError, match=f"{path.name}: .*set DATALOADER.ON_UNREADABLE skip"):
            list(CerberusTrainer.build_test_loader(cfg, TESTS)[0])
        batches = list(CerberusTrainer.build_test_loader(skipping, TESTS)[0])
        pids = {name: pid for batch in batches for name, pid in zip(batch["img_paths"], batch["targets"].tolist())}
        assert [name for name, pid in pids.items() if pid == -1] == [str(path)]
        resident.release()
    for cfg in (small_config(), small_config("DATALOADER.ON_UNREADABLE", "skip")):
        train_set = build_train_set(cfg)
        index = [item[0] for item in train_set.img_items].index(str(trained_on))
        if train_set.on_unreadable == "stop":
            with pytest.raises(RuntimeError, match=f"{trained_on.name}: .*set DATALOADER.ON_UNREADABLE skip"):
                train_set[index]
        else:
            assert train_set[index]["targets"] == train_set.pid_dict["market1501_7"]


def test_rank_lists_and_figures_exclude_the_same_images_as_the_evaluation(own_folder, predictor, run_config, tmp_path,
                                                                      monkeypatch):
    broken = [own_folder / "query" / "0004_c1s1_000001_00.jpg",
              own_folder / "bounding_box_test" / "0003_c2s1_000002_00.jpg"]
    for path in broken:
        path.write_bytes(b"not an image")
    predictor = copy.copy(predictor)
    monkeypatch.setattr(rank_list, "CerberusPredictor", lambda folder: predictor)
    monkeypatch.setattr(exhibit.TestedModel, "load", lambda *_: exhibit.TestedModel(predictor, TESTS))
    for command in (lambda: rank_list.main(["RUN"]), lambda: figures.main(["alignment", "RUN", "--output", "."])):
        with pytest.raises(ValueError, match="0004_c1s1_000001_00.jpg: .*_UNREADABLE to skip in RUN.conf"):
            command()
    run_config.DATALOADER.ON_UNREADABLE = "skip"
    predictor.cfg = run_config
    sheet = tmp_path / "sheet.png"
    rank_list.main(["RUN", "--queries", "1", "--searches", "0", "--top", "2", "--output", str(sheet)])
    assert sheet.is_file()
    gallery, looked_at = rank_list.Gallery(predictor), exhibit.TestedModel(predictor, TESTS)
    assert gallery.queries + gallery.items == looked_at.items and looked_at.num_query == len(gallery.queries) == 5
    dataset, _ = build_test_set(run_config, TESTS)
    assert looked_at.items == [item for item in dataset.img_items if item[0] not in map(str, broken)]
    assert len(gallery.embeddings) == len(gallery.items) == 18
    for path in (own_folder / "query").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 query and 18 gallery images can be read"):
        rank_list.Gallery(predictor)


@pytest.mark.parametrize(("mode", "turn"), [("L", 1), ("P", 1), ("I;16", 1), ("RGB", 6)])
def test_rank_lists_and_figures_show_the_pixels_that_the_model_reads(own_folder, predictor, run_config, mode, turn):
    query, found = sorted((own_folder / "query").iterdir())[0], sorted((own_folder / "bounding_box_test").iterdir())[0]
    for path in (query, found):
        save(noise(mode), path, turn=turn)
    looked_at = exhibit.TestedModel(predictor, TESTS)
    dataset, _ = build_test_set(run_config, TESTS)
    index = [path for path, *_ in dataset.img_items].index(str(query))
    seen = looked_at.seen([str(query)])
    assert seen.dtype == np.uint8
    assert torch.equal(torch.from_numpy(seen[0]).permute(2, 0, 1).float(), dataset[index]["images"])
    figure = rank_list.sheet([rank_list.Row(str(query), "", [], [(str(found), rank_list.RIGHT, "")])], top=1)
    for axis in figure.axes:
        pixels = np.asarray(axis.images[0].get_array())
        assert pixels.shape == ((12, 24, 3) if turn == 6 else (24, 12, 3))
        assert (pixels == np.asarray(read_image(query))).all()
