"""A model exported to ONNX, run by onnxruntime alone.

Shapes: N images, H x W the model's input, E values of an embedding, M columns, V classes of all columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...attributes.attribute_model import AttributeModel
from ...utils.images import INTERPOLATIONS, to_array
from .verification import Verification

if TYPE_CHECKING:
    from PIL.Image import Image

# From 1.29 on, onnxruntime reports to its makers from the moment it is imported: names and hashes of models and graphs,
# and an identifier of the machine. A search for people tells nobody, unless its user has set this otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

METADATA_FORMAT = "3"  # of the metadata; raised where an older reader would misread it
BICUBIC_FORMAT = "2"  # written for models that resize bicubically, which readers of version 2 assume
READABLE = ("1", BICUBIC_FORMAT, METADATA_FORMAT)  # 1 has no prior of attributes and no log-probabilities
FORMAT_KEY = "cerberus.format"
ENCODER_KEY = "cerberus.encoder"  # what an `Encoder` has, and size and architecture
ATTRIBUTES_KEY = "cerberus.attributes"  # columns with their classes, in the order of the outputs, for other programs
VOCABULARY_KEY = "cerberus.vocabulary"  # see `AttributeModel.to_dict`
VERSIONS_KEY = "cerberus.versions"
INT8_KEY = "cerberus.int8"  # of a quantised model: settings and measured loss, see `export.int8.Int8Report`
INPUT, EMBEDDING, PROBABILITIES, ANSWERS = "images", "embedding", "attributes", "answers"
LOG_PROBABILITIES = "log_probabilities"
PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")


class ExportedEncoder:
    """The `Encoder` of a file that `cerberus export` has written.

    The graph takes "images", uint8 (N, 3, H, W) RGB, and gives "embedding", float32 (N, E); where the model knows
    attributes also "attributes", float32 (N, V), the probabilities of all classes column by column, "answers", int64
    (N, M), the class of each column, and "log_probabilities", float32 (N, V), which a search for described people adds
    up. Names of columns and classes are those of the vocabulary.

    Args:
        path: model.onnx.
        batch_size: images at a time.
        threads: that onnxruntime may use; its own choice if 0.
        providers: of onnxruntime, the best first; CUDA and the CPU, whichever there are, if None.
    """

    def __init__(self, path: str | os.PathLike, batch_size: int = 64, threads: int = 0,
                 providers: Sequence[str] | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self.path = Path(path)
        self.batch_size = batch_size
        self.session = _session(self.path, threads, providers)
        try:
            metadata = self.session.get_modelmeta().custom_metadata_map
            found = metadata.get(FORMAT_KEY)
        except Exception as error:  # text that is none
            raise ValueError(f"{path}: its metadata is damaged ({error!r}); export the model again") from error
        if found not in READABLE:
            what = ("was not exported from a run" if found is None else
                    f"has metadata of format {found}, not {METADATA_FORMAT}")
            raise ValueError(f"{path}: {what}; make one by the `cerberus export` of this version")
        try:
            record = json.loads(metadata[ENCODER_KEY])
            self.fingerprint: str = record["fingerprint"]
            self.dim: int = record["dim"]
            self.groups: tuple[str, ...] = tuple(record["groups"])
            self.metric: str = record["metric"]
            self.size: tuple[int, int] = tuple(record["size"])
            self.interpolation: str = record.get("resize", "bicubic")
            self.architecture: str = record["architecture"]
            known = json.loads(metadata.get(VOCABULARY_KEY, "null"))
            self.vocabulary = AttributeModel.from_dict(known) if known else None
            self.lasting_groups: tuple[str, ...] = tuple(record["lasting_groups"])
            fitted = record["verification"]
            self.verification = Verification.from_dict(fitted) if fitted else None
            self.int8: dict | None = json.loads(metadata.get(INT8_KEY, "null"))
            self.versions: dict[str, str] = json.loads(metadata.get(VERSIONS_KEY, "{}"))
            self._check()
        except Exception as error:  # whatever it holds: any text can be in its place
            raise ValueError(f"{path}: its metadata is damaged ({error!r}); export the model again") from error

    def _check(self) -> None:
        """Refuse metadata that speaks of another graph, or of blocks that embeddings do not have."""
        takes = {node.name: node.shape for node in self.session.get_inputs()}[INPUT][2:]
        gives = {node.name: node.shape for node in self.session.get_outputs()}[EMBEDDING][1]
        if list(self.size) != takes or self.dim != gives:
            raise ValueError(f"pictures of {self.size} and {self.dim} values, but the graph takes {takes} and gives "
                             f"{gives}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"images resized by {self.interpolation!r:.60}, expected one of "
                             f"{', '.join(INTERPOLATIONS)}")
        if not all(isinstance(name, str) for name in (self.fingerprint, *self.groups, *self.lasting_groups)):
            raise ValueError("names that are no text")
        if self.metric not in ("cosine", "euclidean") or self.dim % max(1, len(self.groups)):
            raise ValueError(f"metric '{self.metric}', {len(self.groups)} groups in {self.dim} values")
        if self.vocabulary and self.groups != tuple(group.name for group in self.vocabulary.groups):
            raise ValueError(f"groups {self.groups} of embeddings, others of attributes")

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """RGB pictures of any size to embeddings: float32 (N, E)."""
        return self.run(images, (EMBEDDING,))[EMBEDDING]

    def run(self, images: Sequence[Image], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs of the graph by name, all of them if None, for RGB pictures of any size."""
        if not len(images):
            return {EMBEDDING: np.zeros((0, self.dim), dtype=np.float32)}
        return self._joined(outputs, (to_array(images[start:start + self.batch_size], self.size, self.interpolation)
                                      for start in range(0, len(images), self.batch_size)))

    def run_pixels(self, pixels: np.ndarray, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return outputs of the graph by name, all of them if None, for pixels of the model's size.

        Args:
            pixels: uint8 (N, 3, H, W), RGB, N at least 1.
        """
        return self._joined(outputs, (pixels[start:start + self.batch_size]
                                      for start in range(0, len(pixels), self.batch_size)))

    def _joined(self, outputs: Sequence[str] | None, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        names = list(outputs or (node.name for node in self.session.get_outputs()))
        parts = [self._run(names, batch) for batch in batches]
        return {name: np.concatenate(own) for name, own in zip(names, zip(*parts))}

    def _run(self, names: Sequence[str], pixels: np.ndarray) -> list[np.ndarray]:
        """Outputs of one batch, uint8 (N, 3, H, W), refused where they are not finite or not one row an image."""
        try:
            outputs = self.session.run(names, {INPUT: pixels})
        except Exception as error:  # onnxruntime's errors share no class of their own
            raise ValueError(f"{self.path}: onnxruntime fails on {len(pixels)} pictures ({_line(error)}); export the "
                             "model again, or give it fewer at a time") from error
        for name, own in zip(names, outputs):
            if len(own) != len(pixels) or not np.isfinite(own).all():
                raise ValueError(f"{self.path}: output '{name}' is not finite, or not one row a picture; the "
                                 "weights of the model are damaged. Export it again from a sound checkpoint")
        return outputs


def _session(path: Path, threads: int, providers: Sequence[str] | None):
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; make it by cerberus export --run RUN --images DIR --output "
                                f"{path}")
    with open(path, "rb"):  # onnxruntime takes one that may not be read for damaged
        pass
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("onnxruntime runs exported models and is not installed: pip install onnxruntime") from error
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        onnxruntime.disable_telemetry_events()  # where another package has imported it before
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave cores to readers
    options.log_severity_level = 3  # errors; warnings are about the graph's optimiser
    there = onnxruntime.get_available_providers()
    chosen = [name for name in PREFERRED if name in there] if providers is None else list(providers)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # onnxruntime's errors share no class of their own
        raise ValueError(f"{path}: onnxruntime cannot run it ({_line(error)}). The file is damaged or of another kind; "
                         "export the model again") from error


def _line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split())
