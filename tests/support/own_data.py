"""Small own datasets: images and tables."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cerberus_plugin.attributes.schema import SCHEMAS

import numpy as np
from PIL import Image


@contextlib.contextmanager
def forgotten_schemas() -> Iterator[None]:
    """Unregister the schemas that are registered in the block."""
    before = set(SCHEMAS)
    try:
        yield
    finally:
        for name in set(SCHEMAS) - before:
            del SCHEMAS[name]


def write_picture(path: Path, *seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_people(folder: Path, people: int = 8, cameras: int = 3, attributes: bool = True) -> Path:
    """Write `metadata.csv` with one image per person and camera, a hat that differs between images, and a vest."""
    lines = ["file_name,person,camera" + ",hat,vest" * attributes]
    for person in range(people):
        for camera in range(cameras):
            name = f"img/{person}_{camera}.png"
            write_picture(folder / name, person, camera)
            words = f",{('yes', 'no')[(person + (camera == 2)) % 2]},{('red', 'none', 'blue')[person % 3]}"
            lines.append(f"{name},p{person},{camera}" + words * attributes)
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder
