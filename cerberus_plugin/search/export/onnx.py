"""Export of a trained run to one ONNX file, which needs neither torch nor FastReID.

    cerberus export --run runs/demo --images crops --output model.onnx

The input of the exported graph is a batch of pixels of any batch size. The outputs are embeddings and, for Cerberus,
attributes, which the metadata of the file describes. The file is compared with the run before it is written.
`portable.ExportedEncoder` runs the file, and so does onnxruntime in other languages.
Shapes: N images, H x W input size of the model, E values of an embedding, K semantic IDs of a group, M columns, C
classes of a column, V classes of all columns.
"""

from __future__ import annotations

import importlib.metadata
import json
import keyword
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from ... import host
from ...attributes.marginals import LOWEST
from ...predictor import CerberusPredictor
from ...utils.files import write_whole
from ...utils.folders import walk
from ...utils.images import Unreadable, read_image
from ...utils.text import counted
from ..portable import AttributeModel, ExportedEncoder
from ..portable.exported import (
    ANSWERS,
    ATTRIBUTES_KEY,
    BICUBIC_FORMAT,
    EMBEDDING,
    ENCODER_KEY,
    FORMAT_KEY,
    INPUT,
    LOG_PROBABILITIES,
    METADATA_FORMAT,
    PROBABILITIES,
    VERSIONS_KEY,
    VOCABULARY_KEY,
)
from .torch_encoder import Embedder, TorchEncoder

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger("fastreid.cerberus")

NEEDED = ("onnx", "onnxscript", "onnxruntime")
LOWEST_COSINE = 0.9999
LARGEST_DIFFERENCE = 1e-3  # of probabilities
# Smaller differences of scores are ties: both runtimes round in float32, in different orders.
TIE = 1e-5

_exporting = threading.Lock()  # the export changes warning filters and the model


class ExportMismatch(RuntimeError):
    """Raised if an exported file does not give the same results as its run; the file is not written."""


@dataclass(frozen=True)
class Agreement:
    """Differences between an exported file and its run on some images.

    Attributes:
        pictures: number of compared images.
        cosine: lowest cosine between the embeddings, over all images and blocks.
        places: number of places that differ in the rankings of each image against the others, except ties.
        answers: number of predicted attributes that differ, except ties.
        probability: largest difference of a probability.
        same_model: whether the fingerprints are equal.
    """

    pictures: int
    cosine: float
    places: int
    answers: int = 0
    probability: float = 0.0
    same_model: bool = True

    @property
    def holds(self) -> bool:
        """Whether the differences are within the tolerances."""
        return (self.same_model and self.cosine >= LOWEST_COSINE and self.places == 0 and self.answers == 0
                and self.probability <= LARGEST_DIFFERENCE)

    def __str__(self) -> str:
        return (f"{counted(self.pictures, 'image')}: lowest cosine {self.cosine:.7f} (at least {LOWEST_COSINE}), "
                f"{counted(self.places, 'rank')} and {counted(self.answers, 'attribute')} differ, largest difference "
                f"of a probability {self.probability:.1e} (allowed {LARGEST_DIFFERENCE:.0e})"
                + ("" if self.same_model else ", fingerprints differ"))


class Graph(nn.Module):
    """The exported module: computes the embedding, and for Cerberus probabilities, answers and log-probabilities.

    The graph returns probabilities rather than cosines, so that programs without the attribute tables can show them.
    Answers are predicted as TEST.READING of the run says. Log-probabilities are those that a search adds up; they are
    not affected by calibration and forced colours. All of them can also be computed from the embedding with the
    vocabulary of the metadata.

    Args:
        embedder: computes embeddings.
        vocabulary: attribute tables; None for a model without them.
    """

    def __init__(self, embedder: Embedder, vocabulary: AttributeModel | None) -> None:
        super().__init__()
        self.embedder = embedder
        self.vocabulary = vocabulary
        if vocabulary is None:
            return
        for g, (group, allowed) in enumerate(zip(vocabulary.groups, vocabulary.allowed)):
            self.register_buffer(f"prototypes_{g}", torch.from_numpy(group.prototypes))
            self.register_buffer(f"log_prior_{g}", torch.from_numpy(vocabulary.marginals.log_priors[g]))
            self.register_buffer(f"penalty_{g}", torch.from_numpy(np.where(allowed, 0, -np.inf).astype(np.float32)))
        for m, (held, classes) in enumerate(zip(vocabulary.marginals.held, vocabulary.classes_of_sids)):
            self.register_buffer(f"held_{m}", torch.from_numpy(held))
            self.register_buffer(f"classes_{m}", torch.from_numpy(classes.astype(np.int64)))

    def forward(self, images: Tensor):
        """Compute the outputs of the graph.

        Args:
            images: uint8 (N, 3, H, W), RGB.

        Returns:
            the embedding, float (N, E); with a vocabulary a tuple of the embedding, the probabilities, float (N, V),
            the answers, int64 (N, M), and the log-probabilities, float (N, V).
        """
        embedding = self.embedder(images)
        if self.vocabulary is None:
            return embedding
        blocks = embedding.unflatten(1, (len(self.vocabulary.groups), -1)).unbind(1)
        cosines = [block @ getattr(self, f"prototypes_{g}").T for g, block in enumerate(blocks)]
        marginals = self.vocabulary.marginals.computed_by(
            "torch", [getattr(self, f"log_prior_{g}") for g in range(len(blocks))],
            [getattr(self, f"held_{m}") for m in range(len(self.vocabulary.columns))])
        probabilities, answers, searched = [], [], []
        for m, (column, g) in enumerate(zip(self.vocabulary.columns, marginals.column_groups)):
            logits, allowed = marginals.logits(m, cosines[g]), getattr(self, f"penalty_{g}")  # (N, K), (K,)
            temperature = self.vocabulary.temperatures.get(column.name, 1.0)
            shares = marginals.log_probabilities(m, (logits + allowed) / temperature).exp().float()  # (N, C)
            probabilities.append(shares)
            searched.append(marginals.log_probabilities(m, logits).clamp(min=LOWEST).float())
            answers.append(shares.argmax(dim=1) if self.vocabulary.reading == "probability" else
                           getattr(self, f"classes_{m}")[(cosines[g] + allowed).argmax(dim=1)])
        return embedding, torch.cat(probabilities, dim=1), torch.stack(answers, dim=1), torch.cat(searched, dim=1)


def export(run_folder: str | Path, output: str | Path, images: str | Path | Sequence[str | Path], *,
           weights: str | Path | None = None, pictures: int = 256) -> Agreement:
    """Export a run to ONNX. An existing file is replaced in one step, and only if the new one agrees with the run.

    Args:
        run_folder, weights: see `CerberusPredictor`; the calibration of the run is exported as well.
        output: path of the file, such as model.onnx.
        images: typical images to check the file on: a folder, with its subfolders, or a sequence of paths.
        pictures: maximum number of images to check; they are selected at equal distances.

    Returns:
        the differences between the file and the run.

    Raises:
        ExportMismatch: if the differences are too large.
        ImportError: if a package for the export is not installed.
        ValueError: if there are fewer than 3 readable images, or the model cannot be exported.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f"export needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    encoder = TorchEncoder(CerberusPredictor(run_folder, weights, device="cpu", precise=True))
    paths = readable_images(images, pictures)

    def write(file: BinaryIO) -> None:
        nonlocal agreement
        file.write(build(encoder).SerializeToString())
        file.flush()
        agreement = compare(ExportedEncoder(file.name, providers=["CPUExecutionProvider"]), encoder, paths)
        if not agreement.holds:
            raise ExportMismatch(f"{output}: not written, since its results differ from those of {run_folder} on "
                                 f"{agreement}. Try another version of torch or onnxscript.")

    agreement = None
    write_whole(output, write)
    return agreement


def build(encoder: TorchEncoder) -> ModelProto:
    """Translate a model to an ONNX graph with metadata; the graph contains no paths of this machine.

    Args:
        encoder: of the run.

    Raises:
        ExportMismatch: if the graph only supports a fixed batch size.
        ValueError: if the model does not resize images to one size.
    """
    import onnx

    size = _input_size(encoder.predictor)
    graph = Graph(encoder.embedder, encoder.vocabulary).eval()
    names = [EMBEDDING] if encoder.vocabulary is None else [EMBEDDING, PROBABILITIES, ANSWERS,
                                                                     LOG_PROBABILITIES]
    pixels = torch.zeros(2, 3, *size, dtype=torch.uint8)
    with _exporting, warnings.catch_warnings(), torch.no_grad(), _no_keywords(graph):
        warnings.simplefilter("ignore")  # internal warnings of the exporter
        program = torch.onnx.export(graph, (pixels,), dynamo=True, input_names=[INPUT], output_names=names,
                                    dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}, verbose=False)
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportMismatch(f"{encoder.predictor.run_folder}: the graph of this model only supports batches of "
                             f"{len(pixels)} images; use shape[0] instead of len() in the model")
    _forget_sources(model)
    onnx.checker.check_model(model)
    onnx.helper.set_model_props(model, {key: value if key == FORMAT_KEY else json.dumps(value)
                                        for key, value in _metadata(encoder, size).items()})
    return model


def compare(exported: ExportedEncoder, encoder: TorchEncoder, paths: Sequence[str | Path]) -> Agreement:
    """Compare an exported file with its run; each reads and resizes the images itself.

    The first image is also encoded alone, to check different batch sizes.

    Args:
        exported: the file.
        encoder: of the run.
        paths: image files.
    """
    expected = _run_embeddings(encoder, paths)
    images = [read_image(path) for path in paths]
    alone, others = exported.run(images[:1]), exported.run(images[1:])
    outputs = {name: np.concatenate([alone[name], others[name]]) for name in alone}
    embeddings = outputs[EMBEDDING]
    cosines = block_cosines(embeddings, expected, max(1, len(encoder.groups)))
    figures = {"pictures": len(paths), "cosine": float(cosines.min()),
               "places": places_out_of_order(_scores(embeddings, encoder.metric), _scores(expected, encoder.metric)),
               "same_model": exported.fingerprint == encoder.fingerprint}
    if encoder.vocabulary is not None:
        figures |= _attributes_beside(outputs, exported.vocabulary, encoder, expected)
    return Agreement(**figures)


def places_out_of_order(scores: np.ndarray, expected: np.ndarray) -> int:
    """Count the places where a ranking by `scores` has an item after one that `expected` ranks lower, except ties.

    Args:
        scores, expected: float (N, N), higher is more similar; each row ranks all items except itself.

    Returns:
        the number of places in all N rankings.

    Examples:
        >>> expected = np.array([[9.0, 2.0, 1.0], [2.0, 9.0, 1.0], [2.0, 1.0, 9.0]])
        >>> places_out_of_order(expected[:, ::-1], expected), places_out_of_order(expected, expected)
        (2, 0)
    """
    tie, places = TIE * max(1.0, float(np.abs(expected).max())), 0
    for i, (row, right) in enumerate(zip(scores, expected)):
        order = np.argsort(-row, kind="stable")
        ranked = right[order[order != i]]
        places += int((ranked > np.minimum.accumulate(ranked) + tie).sum())
    return places


def _attributes_beside(outputs: Mapping[str, np.ndarray], vocabulary: AttributeModel | None, encoder: TorchEncoder,
                       embeddings: np.ndarray) -> dict[str, float]:
    """Return `answers` and `probability` of `Agreement`: compare the graph and the vocabulary with the run's reader."""
    columns = encoder.vocabulary.columns
    if vocabulary is None or vocabulary.columns != columns:
        return {"answers": len(embeddings) * len(columns), "probability": 1.0}
    reader, temperatures = encoder.predictor.reader, encoder.vocabulary.temperatures
    reader = reader.calibrated(temperatures) if temperatures else reader  # can change the most probable class
    answers = reader.recognise(torch.from_numpy(embeddings)).numpy()  # (N, M), -1 for no colour
    answers = answers + np.array([column.is_colour for column in columns])
    if encoder.vocabulary.reading == "nearest":
        by_group = {group.name: _margin(cosine)
                    for group, cosine in zip(encoder.vocabulary.groups, encoder.vocabulary.cosines(embeddings))}
        margins = [by_group[column.group] for column in columns]
    else:
        margins = [_margin(shares) for shares in encoder.vocabulary.probabilities(embeddings)]
    clear = np.stack(margins, axis=1) > TIE  # (N, M)
    wrong = (outputs[ANSWERS] != answers) | (vocabulary.answers(outputs[EMBEDDING]) != answers)
    right = np.concatenate(encoder.vocabulary.probabilities(embeddings), axis=1)
    searched = np.exp(encoder.vocabulary.log_probabilities(embeddings))
    differences = [np.abs(found - right).max() for found in (
        outputs[PROBABILITIES], np.concatenate(vocabulary.probabilities(outputs[EMBEDDING]), axis=1))]
    differences += [np.abs(np.exp(found) - searched).max() for found in (
        outputs[LOG_PROBABILITIES], vocabulary.log_probabilities(outputs[EMBEDDING]))]
    return {"answers": int((wrong & clear).sum()), "probability": float(max(differences))}


def _margin(cosines: np.ndarray) -> np.ndarray:
    """Return the difference of the two largest values of each row: (N, K) -> (N,); infinity for K = 1."""
    best = np.sort(np.concatenate([cosines, np.full((len(cosines), 1), -np.inf)], axis=1), axis=1)
    return best[:, -1] - best[:, -2]


def block_cosines(one: np.ndarray, other: np.ndarray, blocks: int) -> np.ndarray:
    """Cosines of the blocks of embeddings, float (N, E) each, to float64 (N, blocks).

    Examples:
        >>> block_cosines(np.array([[1.0, 0, 2, 0]]), np.array([[3.0, 0, 0, 1]]), 2).tolist()
        [[1.0, 0.0]]
    """
    one, other = (side.reshape(len(side), blocks, -1).astype(np.float64) for side in (one, other))
    lengths = np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2)
    return (one * other).sum(axis=2) / np.maximum(lengths, 1e-12)


def _scores(embeddings: np.ndarray, metric: str) -> np.ndarray:
    """Return the scores of all pairs, higher is more similar: (N, E) -> (N, N)."""
    exact = embeddings.astype(np.float64)
    products = exact @ exact.T
    if metric == "cosine":
        lengths = np.sqrt(np.diagonal(products))
        return products / np.maximum(np.outer(lengths, lengths), 1e-12)
    squares = np.diagonal(products)
    return -np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))


@torch.no_grad()
def _run_embeddings(encoder: TorchEncoder, paths: Sequence[str | Path]) -> np.ndarray:
    """Return embeddings of images that are read by the run: float32 (N, E)."""
    size = encoder.batch_size
    return np.concatenate([encoder.embedder(encoder.predictor.load_images(paths[start:start + size])).numpy()
                           for start in range(0, len(paths), size)])


def readable_images(images: str | Path | Sequence[str | Path], most: int) -> list[str | Path]:
    """Select images at equal distances; unreadable ones are skipped and logged."""
    paths = [Path(images) / found.path for found in walk(images)] if isinstance(images, str | Path) else list(images)
    readable = []
    for i in sorted(set(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int).tolist())):
        try:
            read_image(paths[i])
            readable.append(paths[i])
        except Unreadable as error:
            logger.warning(f"skipped in the check: {error}")
    if len(readable) < 3:
        raise ValueError(f"export: found {counted(len(readable), 'readable image')} to check the model on, expected at "
                         "least 3 to compare rankings; give more images")
    return readable


def _input_size(predictor: CerberusPredictor) -> tuple[int, int]:
    """Return (H, W), the size to which images are resized."""
    size, crop = list(predictor.cfg.INPUT.SIZE_TEST), predictor.cfg.INPUT.CROP.ENABLED
    if len(size) != 2 or min(size) < 1 or crop:
        raise ValueError(f"{predictor.run_folder}: INPUT.SIZE_TEST is {size} and INPUT.CROP.ENABLED {crop}; only "
                         "models that resize all images to one height and width can be exported")
    return tuple(size)


def _metadata(encoder: TorchEncoder, size: tuple[int, int]) -> dict:
    import cerberus_plugin

    resize = encoder.predictor.cfg.INPUT.INTERPOLATION
    versions = {name: importlib.metadata.version(name) for name in ("torch", *NEEDED)}
    record = {
        FORMAT_KEY: BICUBIC_FORMAT if resize == "bicubic" else METADATA_FORMAT,
        ENCODER_KEY: {"fingerprint": encoder.fingerprint, "dim": encoder.dim, "groups": list(encoder.groups),
                      "metric": encoder.metric, "lasting_groups": list(encoder.lasting_groups),
                      "verification": encoder.verification.to_dict() if encoder.verification else None,
                      "size": list(size), "channels": "RGB", "resize": resize,
                      "architecture": encoder.predictor.cfg.MODEL.META_ARCHITECTURE},
        VERSIONS_KEY: {"cerberus_plugin": cerberus_plugin.__version__, "fastreid": host.version(), **versions},
    }
    vocabulary = encoder.vocabulary
    if vocabulary is None:
        return record
    return record | {
        ATTRIBUTES_KEY: [{"name": column.name, "group": column.group, "classes": list(column.classes)}
                         for column in vocabulary.columns],
        VOCABULARY_KEY: vocabulary.to_dict()}


@contextmanager
def _no_keywords(model: nn.Module) -> Iterator[None]:
    """Replace parameters named by Python keywords, such as "global", with constants; torch.export generates code."""
    replaced = []
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ParameterDict) and any(map(keyword.iskeyword, child)):
                replaced.append((parent, name, child))
    try:
        for parent, name, child in replaced:
            del parent._modules[name]
            setattr(parent, name, {key: value.detach() for key, value in child.items()})
        yield
    finally:
        for parent, name, child in replaced:
            if name in parent.__dict__:
                delattr(parent, name)
            parent._modules[name] = child


def _forget_sources(model: ModelProto) -> None:
    """Remove the stack traces that the exporter attaches to operators; they contain paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info,
                 *model.functions, *(node for function in model.functions for node in function.node)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
