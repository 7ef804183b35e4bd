"""What all figures share: the run that is looked at, the pictures, and the record that stands beside them.

Shapes: N images of the test set, query before gallery, without those that evaluation leaves out as unreadable.
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

FOLDER = "figures"  # in the folder of the report
WIDTH, DPI = 9.0, 200  # inches and dots: text of 8 points is 11 pixels high where the picture is shown 900 wide


@dataclass(frozen=True)
class TestedModel:
    """A trained model and the test data set that it is shown."""

    predictor: CerberusPredictor
    dataset: str

    @classmethod
    def load(cls, folder: str | Path, dataset: str = "", device: str | None = None) -> TestedModel:
        """A run folder, with a test data set by name; its own first one if left out."""
        predictor = CerberusPredictor(folder, device=device)
        tests = predictor.cfg.DATASETS.TESTS
        return cls(predictor, dataset or next((name for name in tests if name != HELD_OUT), tests[0]))

    @cached_property
    def _test_set(self) -> tuple[AttributeDataset, list[tuple], list[tuple]]:
        reader = self.predictor.reader
        return build_readable_test_set(self.predictor.cfg, self.dataset, reader.schema if reader else None)

    @property
    def images(self) -> AttributeDataset:
        return self._test_set[0]

    @property
    def num_query(self) -> int:
        return len(self._test_set[1])

    @cached_property
    def items(self) -> list[tuple]:
        """Path, identity and camera of each image."""
        _, queries, gallery = self._test_set
        return queries + gallery

    @cached_property
    def labels(self) -> Tensor | None:
        """Attributes of each image, int64 (N, A); None where the data set has none."""
        if self.images.labels is None:
            return None
        return torch.stack([self.images.known_of(path, pid)["attributes"] for path, pid, _ in self.items])

    def of_people(self) -> list[int]:
        """Images that show a person: distractors have an identity of the annotations' own, and no labels."""
        junk = self.images.annotations[0].schema.junk_pids if self.images.annotations else ()
        return [index for index, (_, pid, _) in enumerate(self.items) if pid not in junk]

    def seen(self, paths: Sequence[str]) -> np.ndarray:
        """The pixels of images at the model's input size, to be shown: uint8 (len(paths), H, W, 3)."""
        pixels = self.predictor.load_images(paths).byte().permute(0, 2, 3, 1).cpu().numpy()
        return np.stack([np.asarray(for_display(Image.fromarray(own))) for own in pixels])

    def first_images(self, indices: Iterable[int]) -> list[int]:
        """The first of these images of each identity, in their order."""
        first: dict = {}
        for index in indices:
            first.setdefault(self.items[index][1], index)
        return list(first.values())

    def require_groups(self, what: str) -> None:
        """Refuse a model without the five representations."""
        name = self.predictor.cfg.MODEL.META_ARCHITECTURE
        if name != "Cerberus":
            raise ValueError(f"{self.predictor.run_folder}: {name} has no {what}; name a run of Cerberus.")


@dataclass(frozen=True)
class Picture:
    """A drawn picture with what it shows; `suffix` follows the exhibit's name in the name of its file."""

    figure: Figure
    caption: str
    suffix: str = ""


@dataclass(frozen=True)
class Exhibit:
    """A figure of the report: its pictures, and in `figures` the numbers that its captions name."""

    title: str
    question: str
    caption: str
    pictures: Sequence[Picture]
    figures: dict


def spread(values: Sequence, count: int) -> list:
    """Some of the values, evenly over the list."""
    step = max(len(values) // max(count, 1), 1)
    return list(values[::step][:count])


def write(exhibit: Exhibit, runs: Sequence[TestedModel], output: Path, name: str, command: str) -> dict:
    """Write the pictures of a figure, and its record beside them; returns what the record holds."""
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
    """What is needed to make a figure again; what belongs to a run is a list, a run each."""
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
