"""Trained model with its test dataset, images of a figure, and their record.

Shapes: N images of the test set, queries before gallery, without unreadable images.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ...data.build import build_readable_test_set
from ...data.loader import AttributeDataset
from ...data.splits import HELD_OUT
from ...evaluation.manifest import config_sha256
from ...predictor import CerberusPredictor
from ...utils import environment
from ...utils.files import file_sha256, write_figure, write_json
from ...utils.images import for_display

FOLDER = "figures"  # subfolder of the report
WIDTH, DPI = 9.0, 200  # inches, dots per inch; text of 8 points is 11 pixels high if the image is shown 900 pixels wide


@dataclass(frozen=True)
class TestedModel:
    """A trained model with a test dataset.

    Args:
        predictor: of the run.
        dataset: name of the test dataset.
    """

    predictor: CerberusPredictor
    dataset: str

    @classmethod
    def load(cls, folder: str | Path, dataset: str = "", device: str | None = None) -> TestedModel:
        """Load a run.

        Args:
            folder: of the run.
            dataset: name of the test dataset; "" for the first of the run.
            device: "cuda" or "cpu"; None for "cuda" if it is available.
        """
        predictor = CerberusPredictor(folder, device=device)
        tests = predictor.cfg.DATASETS.TESTS
        return cls(predictor, dataset or next((name for name in tests if name != HELD_OUT), tests[0]))

    @cached_property
    def _test_set(self) -> tuple[AttributeDataset, list[tuple], list[tuple]]:
        reader = self.predictor.reader
        return build_readable_test_set(self.predictor.cfg, self.dataset, reader.schema if reader else None)

    @property
    def images(self) -> AttributeDataset:
        """The test dataset."""
        return self._test_set[0]

    @property
    def num_query(self) -> int:
        """Number of queries."""
        return len(self._test_set[1])

    @cached_property
    def items(self) -> list[tuple]:
        """Path, identity and camera of each image."""
        _, queries, gallery = self._test_set
        return queries + gallery

    @cached_property
    def labels(self) -> Tensor | None:
        """Attributes of each image, int64 (N, A); None if the dataset has none."""
        if self.images.labels is None:
            return None
        return torch.stack([self.images.known_of(path, pid)["attributes"] for path, pid, _ in self.items])

    def of_people(self) -> list[int]:
        """Return the indices of images of people, without distractors."""
        junk = self.images.annotations[0].schema.junk_pids if self.images.annotations else ()
        return [index for index, (_, pid, _) in enumerate(self.items) if pid not in junk]

    def seen(self, paths: Sequence[str]) -> np.ndarray:
        """Load images at the input size of the model, to show them.

        Args:
            paths: of the images.

        Returns:
            uint8 (len(paths), H, W, 3), RGB; heads are blurred if this was requested.
        """
        pixels = self.predictor.load_images(paths).byte().permute(0, 2, 3, 1).cpu().numpy()
        return np.stack([np.asarray(for_display(Image.fromarray(own))) for own in pixels])

    def first_images(self, indices: Iterable[int]) -> list[int]:
        """Return the first image of each identity, in the given order.

        Args:
            indices: of images.
        """
        first: dict = {}
        for index in indices:
            first.setdefault(self.items[index][1], index)
        return list(first.values())

    def require_groups(self, what: str) -> None:
        """Raise ValueError if the model is not Cerberus.

        Args:
            what: the model needs, for the error message.
        """
        name = self.predictor.cfg.MODEL.META_ARCHITECTURE
        if name != "Cerberus":
            raise ValueError(f"{self.predictor.run_folder}: {name} has no {what}; name a run of Cerberus.")


@dataclass(frozen=True)
class Picture:
    """An image of a figure with its caption; `suffix` is added to the file name of the figure."""

    figure: Figure
    caption: str
    suffix: str = ""


@dataclass(frozen=True)
class Exhibit:
    """A figure of the report: its images, and in `figures` the numbers of its captions."""

    title: str
    question: str
    caption: str
    pictures: Sequence[Picture]
    figures: dict


def spread(values: Sequence, count: int) -> list:
    """Select values at equal distances.

    Args:
        values: to select from.
        count: maximum number of values.

    Examples:
        >>> spread([0, 1, 2, 3, 4, 5], 3)
        [0, 2, 4]
    """
    step = max(len(values) // max(count, 1), 1)
    return list(values[::step][:count])


def write(exhibit: Exhibit, runs: Sequence[TestedModel], output: Path, name: str, command: str) -> dict:
    """Write the images of a figure and its record, NAME.json.

    Args:
        exhibit: the figure.
        runs: that it shows.
        output: folder of the report.
        name: of the files.
        command: that made the figure, for the record.

    Returns:
        The contents of the record.
    """
    pictures = []
    for picture in exhibit.pictures:
        file = f"{FOLDER}/{name}{picture.suffix}.png"
        write_figure(output / file, picture.figure, DPI)
        pictures.append({"file": file, "caption": picture.caption})
    record = {"exhibit": name, "title": exhibit.title, "question": exhibit.question,
              "caption": exhibit.caption, "pictures": pictures, "figures": exhibit.figures,
              "made by": made_by(runs, command)}
    write_json(str(output / FOLDER / f"{name}.json"), record)
    return record


def made_by(runs: Sequence[TestedModel], command: str) -> dict:
    """Describe how a figure was made; entries that differ between runs are lists, in the order of `runs`."""
    weights = [Path(run.predictor.cfg.MODEL.WEIGHTS) for run in runs]
    return {
        "command": command,
        "run folders": [str(run.predictor.run_folder) for run in runs],
        "model": [run.predictor.cfg.MODEL.META_ARCHITECTURE for run in runs],
        "dataset": runs[0].dataset,
        "config sha256": [config_sha256(run.predictor.cfg) for run in runs],
        "checkpoint": [path.name for path in weights],
        "checkpoint sha256": [file_sha256(path) for path in weights],
        "seed": [run.predictor.cfg.SEED for run in runs],
        "versions": environment.versions(),
        "hardware": environment.hardware(runs[0].predictor.cfg.MODEL.DEVICE),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
