"""Labels, annotation files and image folders in the formats of the datasets."""

import os
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat


def random_labels(schema, count: int, seed: int = 0) -> torch.Tensor:
    """Return valid labels int64 (count, A): at most one colour per garment, and at most one carried object."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(field.values) for field in schema.fields]
    labels = torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], dim=1)
    exclusive = [column.fields for column in schema.columns if column.is_colour]
    exclusive += [tuple(schema.index(name) for name in names) for names in schema.exclusive]
    for fields in exclusive:
        choice = torch.randint(len(fields) + 1, (count,), generator=generator)  # the last: none
        labels[:, list(fields)] = (choice[:, None] == torch.arange(len(fields))).long()
    return labels


def write_annotations(path: Path, schema, train: dict, test: dict, root: str = "market_attribute", **changes) -> Path:
    """Write an annotation file in the published format; `changes` replace fields of train, None removes one."""

    def split(labels: dict) -> dict:
        fields = {"image_index": np.array([f"{pid:04d}" for pid in labels], dtype=object)}
        for i, field in enumerate(schema.fields):
            fields[field.name] = np.array([int(row[i]) + 1 for row in labels.values()], dtype=np.uint8)
        return fields

    first = split(train)
    for name, value in changes.items():
        first.pop(name) if value is None else first.__setitem__(name, value)
    savemat(path, {root: {"train": first, "test": split(test)}})
    return path


def market_labels() -> tuple[dict, dict]:
    """Return labels of 8 training and 6 test identities; the order of the numbers is not that of their strings."""
    from cerberus_plugin.attributes import MARKET1501

    labels = random_labels(MARKET1501, 14, seed=3)
    return dict(zip((2, 7, 10, 11, 23, 100, 101, 700), labels)), dict(zip((1, 3, 4, 5, 6, 1500), labels[8:]))


def write_bands(folder: Path, count: int) -> list[Path]:
    """Write images of four bands in random colours with noise; all versions of Pillow write the same bytes."""
    from PIL import Image

    folder.mkdir(parents=True)
    paths = [folder / f"{pid:04d}_c{pid}s1_{pid:06d}_00.bmp" for pid in range(1, count + 1)]
    for pid, path in enumerate(paths, start=1):
        rng = np.random.default_rng(pid)
        pixels = rng.integers(40, 216, (4, 1, 3)).repeat(12, axis=0) + rng.integers(-30, 30, (48, 24, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        os.utime(path, ns=(10**18, 10**18))  # an index compares size and time of change
    return paths


def write_market_folder(root: Path, train: dict, test: dict, images: int = 4) -> Path:
    """Write a Market-1501 with annotations; the images of an identity have the same colours with noise.

    Each identity has one image from each of the cameras 1 to `images`; the first image of a test identity is its query.
    There is one distractor.
    """
    from cerberus_plugin.attributes import MARKET1501

    from PIL import Image

    folder = root / "Market-1501-v15.09.15"
    for name in ("bounding_box_train", "bounding_box_test", "query"):
        (folder / name).mkdir(parents=True)

    def write(name: str, pid: int, camera: int) -> None:
        rng = np.random.default_rng([pid, camera])
        colour = np.random.default_rng(pid).integers(40, 216, (4, 1, 3)).repeat(6, axis=0)
        pixels = (colour + rng.integers(-30, 30, (24, 12, 3))).clip(0, 255).astype(np.uint8)
        path = folder / name / f"{pid:04d}_c{camera}s1_{camera:06d}_00.jpg"
        Image.fromarray(pixels).resize((24, 48)).save(path)

    for pid in train:
        for camera in range(1, images + 1):
            write("bounding_box_train", pid, camera)
    for pid in test:
        for camera in range(1, images + 1):
            write("query" if camera == 1 else "bounding_box_test", pid, camera)
    write("bounding_box_test", 0, 2)
    write_annotations(folder / "market_attribute.mat", MARKET1501, train, test)
    return root


def write_duke_folder(root: Path, train: dict, test: dict) -> Path:
    """Write a DukeMTMC-reID with annotations; all test identities but the last have a query."""
    from cerberus_plugin.attributes import DUKEMTMC

    from PIL import Image

    folder = root / "DukeMTMC-reID"
    rng = np.random.default_rng(0)
    for name, pids in (("bounding_box_train", train), ("bounding_box_test", test), ("query", list(test)[:-1])):
        (folder / name).mkdir(parents=True)
        for pid in pids:
            for camera in (1,) if name == "query" else (2, 3, 4, 5):
                pixels = rng.integers(0, 255, (48, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{pid:04d}_c{camera}_f{camera:07d}.jpg")
    write_annotations(folder / "duke_attribute.mat", DUKEMTMC, train, test, root="duke_attribute")
    return root


def batches(num: int = 90, num_people: int = 6, size: int = 16, seed: int = 0):
    """Yield batches of a test loader with embeddings of a model; identity 0 is a distractor."""
    from cerberus_plugin.attributes import MARKET1501

    pids = torch.arange(num) % num_people
    generator = torch.Generator().manual_seed(seed)
    labels = random_labels(MARKET1501, num_people, seed=9)
    labels[0] = -1
    centres = torch.randn(num_people, 40, generator=generator)
    embeddings = centres[pids] + 1.5 * torch.randn(num, 40, generator=generator)
    camids = torch.randint(4, (num,), generator=generator)
    for start in range(0, num, size):
        rows = slice(start, start + size)
        yield ({"targets": pids[rows], "camids": camids[rows], "attributes": labels[pids[rows]]}, embeddings[rows])
