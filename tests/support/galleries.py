"""Images of five coloured bands, a model that recognises them, and its vocabulary, for tests of galleries.

Each of the five groups corresponds to one band of an image; its block is the colour of the band and a constant,
normalised to unit length.
"""

from collections import namedtuple
from pathlib import Path

from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.attributes.attribute_model import GroupTables
from cerberus_plugin.search.gallery import GalleryIndex, Pace
from cerberus_plugin.search.portable import Answer, AttributeModel

import numpy as np
from PIL import Image

GROUPS = ("head", "upper", "lower", "identity", "carrying")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
Column = namedtuple("Column", "name group classes display")
QUIET = Pace(batch_size=4, workers=2, part_rows=8, progress=False)


class Words:
    """A vocabulary with one column per group; its values are the first three dimensions of the block."""

    columns = tuple(Column(f"{group} colour", group, ("red", "green", "blue"), f"{group} colour") for group in GROUPS)
    values = columns[0].classes
    reading = "nearest"

    def __init__(self, scale=16.0):
        self.scale = scale

    def to_dict(self):
        return {"scale": self.scale}

    @classmethod
    def from_dict(cls, record):
        return cls(**record)

    def recognise(self, embeddings):
        scores = self.scale * np.asarray(embeddings).reshape(-1, 5, 4)[:, :, :3]
        weights = np.exp(scores)
        probabilities = weights / weights.sum(axis=2, keepdims=True)
        return [{column.name: self.answer(column.name, self.values[row.argmax()], float(row.max()))
                 for column, row in zip(self.columns, rows)} for rows in probabilities]

    def answer(self, column, value, probability):
        return Answer(value, probability, abstained=probability < 0.5)

    @staticmethod
    def canonical(words):
        return dict(words)

    def describe(self, words):
        blocks = np.zeros((5, 4), np.float32)
        for name, value in words.items():
            if name not in [column.name for column in self.columns] or value not in self.values:
                raise ValueError(f"search: unknown '{name}' or '{value}'")
            blocks[[column.name for column in self.columns].index(name), self.values.index(value)] = 1
        return blocks


class BandEncoder:
    """The model. It counts the images that it encodes, and can be set to fail at one of them."""

    fingerprint, dim, groups, metric = "a" * 64, 20, GROUPS, "cosine"
    lasting_groups, verification = ("head", "identity"), None

    def __init__(self, vocabulary=True, fails_at=None):
        self.vocabulary = Words() if vocabulary else None
        self.count, self.fails_at = 0, fails_at

    def encode(self, images):
        if self.fails_at is not None and self.count + len(images) > self.fails_at:
            raise MemoryError("no memory left")
        self.count += len(images)
        bands = np.stack([np.asarray(image.resize((1, 5), Image.Resampling.NEAREST)) for image in images])
        blocks = np.concatenate([bands[:, :, 0] / 255, np.full((len(images), 5, 1), 0.1)], axis=2)  # (N, 5, 4)
        return (blocks / np.linalg.norm(blocks, axis=2, keepdims=True)).reshape(len(images), 20).astype(np.float32)


def market_words() -> AttributeModel:
    """Return an attribute model of Market-1501 for `BandEncoder`: two semantic IDs per group, all 0 and all 1."""
    groups = []
    for group, bits in zip(GROUPS, MARKET1501.group_bits):
        labels = np.repeat([[0], [1]], len(MARKET1501.group_fields(group)), axis=1)
        groups.append(GroupTables(group, labels, np.eye(2, 4, dtype=np.float32), np.zeros((bits, 4), np.float32),
                                  np.ones(4, np.float32), np.zeros(bits, np.float32), np.array([1, 1])))
    return AttributeModel(MARKET1501, tuple(groups), {column.name: 16.0 for column in MARKET1501.columns})


class PlainEncoder:
    """A model without groups. The embedding is the mean colour, compared by Euclidean distance."""

    fingerprint, dim, groups, metric, vocabulary = "b" * 64, 3, (), "euclidean", None
    lasting_groups, verification = (), None

    def encode(self, images):
        return np.stack([np.asarray(image).mean(axis=(0, 1)) / 255 for image in images]).astype(np.float32)


def read(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def draw(path: Path, *bands) -> Path:
    """Write an image of five bands of 4 pixels each; a single colour fills the image."""
    bands = bands * 5 if len(bands) == 1 else bands
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(bands, np.uint8).repeat(4, axis=0)[:, None].repeat(8, axis=1)).save(path)
    return path


def draw_many(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write images of random bands with names in the form of Market-1501."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 5, 3))
    return [draw(folder / f"{i:04d}_c{i % 6 + 1}s1_{i:06d}_00.png", *bands) for i, bands in enumerate(colours)]


def build(folder: Path, encoder, **options) -> GalleryIndex:
    """Build an index of the images in `crops` with small batches and parts."""
    return GalleryIndex.build(folder / "index", folder / "crops", encoder,
                              **{"pace": QUIET, "read": read, "dtype": "float32", **options})


def stored(index: GalleryIndex) -> dict[str, np.ndarray]:
    """Return the embeddings of an index by path."""
    ids = index.store.ids
    return {row.path: e for row, e in zip(index.store.rows(ids), index.store.embeddings(ids))}
