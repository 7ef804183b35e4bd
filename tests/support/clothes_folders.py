"""Tiny folders in the formats of the cloth-changing datasets, and a configuration for them."""

from pathlib import Path

from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.attributes.outfits import FILE_NAME, write_outfits
from cerberus_plugin.data.clothes import PRCC

import numpy as np
from PIL import Image

from support.data import random_labels
from support.training import read_config


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_prcc(root: Path, images: int = 2) -> Path:
    """Write a PRCC with four training and three test persons, and `images` images per camera."""
    folder = root / "prcc" / "rgb"
    for person in (2, 10, 11, 100):
        for k, camera in enumerate("ABC" * images):
            write(folder / "train" / f"{person:03d}" / f"{camera}_cropped_rgb{k:03d}.jpg", person * 100 + k)
    for person in (3, 4, 200):
        for k, camera in enumerate("ABC" * images):
            write(folder / "test" / camera / f"{person:03d}" / f"cropped_rgb{k:03d}.jpg", person * 100 + k)
    return folder


def write_ltcc(root: Path, gallery: str = "test") -> Path:
    """Write an LTCC with training persons 0 and 5 (two outfits each) and test persons 7 (two) and 8 (one)."""
    folder = root / "LTCC_ReID"
    names = {"train": ["000_1_c1_000001", "000_1_c2_000002", "000_2_c12_000003", "005_1_c3_000004", "005_2_c3_000005"],
             "query": ["007_1_c1_000006", "008_1_c1_000007"],
             gallery: ["007_1_c2_000008", "007_2_c1_000009", "007_2_c3_000010", "008_1_c2_000011"]}
    for split, listed in names.items():
        for k, name in enumerate(listed):
            write(folder / split / f"{name}.png", k)
    (folder / "info").mkdir()
    for name, persons in (("change_id_train", (0, 5)), ("unchange_id_train", ()), ("change_id_test", (7,)),
                          ("unchange_id_test", (8,))):
        (folder / "info" / f"cloth-{name}.txt").write_text("".join(f"{person}\n" for person in persons))
    return folder


def write_celeb(root: Path) -> Path:
    """Write a Celeb-reID with persons 1 and 2 in training, and two others with the same numbers in the test."""
    folder = root / "Celeb-reID"
    for split, count in (("train", 5), ("query", 1), ("gallery", 3)):
        for person in (1, 2):
            for k in range(count):
                write(folder / split / f"{person}_{k}_0.jpg", 10 * person + k)
    return folder


def label(folder, plain, seed: int = 5) -> dict:
    """Write random labels for every outfit of a folder, and return them."""
    keys = plain(root=str(folder.parents[1] if plain is PRCC else folder.parent), allow_subset=True).outfit_keys
    labels = dict(zip(keys, random_labels(MARKET1501, len(keys), seed)))
    write_outfits(folder / FILE_NAME, MARKET1501, labels)
    return labels


def cloth_config(tmp_path, name: str, *options, file: str = "configs/Market1501/bot_demo.yml"):
    """Return a configuration for training and test on one of these datasets."""
    return read_config("DATASETS.NAMES", [name], "DATASETS.TESTS", [name], "OUTPUT_DIR", str(tmp_path / "run"),
                       "SOLVER.IMS_PER_BATCH", 8, "DATALOADER.NUM_INSTANCE", 4, *options,
                       file=file)
