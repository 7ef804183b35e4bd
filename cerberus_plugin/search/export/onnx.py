"""A trained run as one ONNX file that needs neither torch nor FastReID, checked against the run before it is kept.

    cerberus export --run runs/demo --images crops --output model.onnx

The file takes pixels as they are, in a batch of any size, and gives embeddings and, for Cerberus, attributes; what
these mean rides in its metadata. `portable.ExportedEncoder` runs it, and so does onnxruntime in any language.
Shapes: N images, H x W the model's input, E values of an embedding, K semantic IDs of a group, M columns, C classes
of a column, V classes of all columns.
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
# Scores this near are equal: both runtimes round in float32, each in its own order.
TIE = 1e-5

_exporting = threading.Lock()  # warning filters, and the model itself, are changed meanwhile


class ExportMismatch(RuntimeError):
    """An exported file does not compute what its run does; it is not kept."""


@dataclass(frozen=True)
class Agreement:
    """How near an exported file comes to its run on some pictures.

    Attributes:
        pictures: compared.   cosine: the lowest of any block of any picture's embedding.
        places: of the ranks of each picture among the others, out of the run's order by more than rounding.
        answers: attributes that differ by more than rounding.   probability: the largest difference of one.
        same_model: the file carries the run's fingerprint.
    """

    pictures: int
    cosine: float
    places: int
    answers: int = 0
    probability: float = 0.0
    same_model: bool = True

    @property
    def holds(self) -> bool:
        return (self.same_model and self.cosine >= LOWEST_COSINE and self.places == 0 and self.answers == 0
                and self.probability <= LARGEST_DIFFERENCE)

    def __str__(self) -> str:
        return (f"{self.pictures} pictures: lowest cosine {self.cosine:.7f} (at least {LOWEST_COSINE}), {self.places} "
                f"places of ranks differ, {self.answers} attributes differ, probabilities by {self.probability:.1e} at "
                f"most (allowed {LARGEST_DIFFERENCE:.0e})" + ("" if self.same_model else ", fingerprints differ"))


class Graph(nn.Module):
    """What is exported: pixels to the embedding, the probabilities of attributes, the answers and log-probabilities.

    Probabilities are given rather than cosines: a program in any language shows them as they are. Answers are those of
    the run's reading. Log-probabilities are those that a search adds up, which neither calibration nor forced colours
    touch. With the vocabulary of the metadata all of them follow from the embedding.
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
        """uint8 (N, 3, H, W) to float (N, E), and for Cerberus float (N, V), int64 (N, M) and float (N, V)."""
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
    """Write a run as ONNX; a file of this name is replaced in one step, and only by one that agrees with the run.

    Args:
        run_folder, weights: see `CerberusPredictor`; a run's calibration goes with it.
        output: such as model.onnx.
        images: pictures to check it on, of the kind it is for: a folder of them and those below, or their paths.
        pictures: of these at most, spread evenly.

    Returns:
        how near the file comes to the run.

    Raises:
        ExportMismatch: with the numbers; nothing is written.
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
            raise ExportMismatch(f"{output}: not written, for it does not compute what {run_folder} does on "
                                 f"{agreement}. Another version of torch or onnxscript may translate this model.")

    agreement = None
    write_whole(output, write)
    return agreement


def build(encoder: TorchEncoder) -> ModelProto:
    """The graph with its metadata; parts of it name no file of this machine."""
    import onnx

    size = _input_size(encoder.predictor)
    graph = Graph(encoder.embedder, encoder.vocabulary).eval()
    names = [EMBEDDING] if encoder.vocabulary is None else [EMBEDDING, PROBABILITIES, ANSWERS,
                                                                     LOG_PROBABILITIES]
    pixels = torch.zeros(2, 3, *size, dtype=torch.uint8)
    with _exporting, warnings.catch_warnings(), torch.no_grad(), _no_keywords(graph):
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(graph, (pixels,), dynamo=True, input_names=[INPUT], output_names=names,
                                    dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}}, verbose=False)
    model = program.model_proto
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportMismatch(f"{encoder.predictor.run_folder}: the graph of this model takes batches of "
                             f"{len(pixels)} images alone; a part of it counts them by len(), not by shape[0]")
    _forget_sources(model)
    onnx.checker.check_model(model)
    onnx.helper.set_model_props(model, {key: value if key == FORMAT_KEY else json.dumps(value)
                                        for key, value in _metadata(encoder, size).items()})
    return model


def compare(exported: ExportedEncoder, encoder: TorchEncoder, paths: Sequence[str | Path]) -> Agreement:
    """An exported file beside its run, each reading the pictures its own way, the first of them also alone."""
    expected = _run_embeddings(encoder, paths)
    images = [read_image(path) for path in paths]
    alone, others = exported.run(images[:1]), exported.run(images[1:])
    outputs = {name: np.concatenate([alone[name], others[name]]) for name in alone}
    embeddings = outputs[EMBEDDING]
    figures = {"pictures": len(paths), "cosine": _lowest_cosine(embeddings, expected, max(1, len(encoder.groups))),
               "places": places_out_of_order(_scores(embeddings, encoder.metric), _scores(expected, encoder.metric)),
               "same_model": exported.fingerprint == encoder.fingerprint}
    if encoder.vocabulary is not None:
        figures |= _attributes_beside(outputs, exported.vocabulary, encoder, expected)
    return Agreement(**figures)


def places_out_of_order(scores: np.ndarray, expected: np.ndarray) -> int:
    """Places at which ranking by `scores` puts something after what `expected` puts later, ties aside.

    Args:
        scores, expected: float (N, N), higher is nearer; each row ranks all but itself.
    """
    tie, places = TIE * max(1.0, float(np.abs(expected).max())), 0
    for i, (row, right) in enumerate(zip(scores, expected)):
        order = np.argsort(-row, kind="stable")
        ranked = right[order[order != i]]
        places += int((ranked > np.minimum.accumulate(ranked) + tie).sum())
    return places


def _attributes_beside(outputs: Mapping[str, np.ndarray], vocabulary: AttributeModel | None, encoder: TorchEncoder,
                       embeddings: np.ndarray) -> dict[str, float]:
    """`answers` and `probability` of `Agreement`: of the graph and of the file's vocabulary beside the run's reader."""
    columns = encoder.vocabulary.columns
    if vocabulary is None or vocabulary.columns != columns:
        return {"answers": len(embeddings) * len(columns), "probability": 1.0}
    reader, temperatures = encoder.predictor.reader, encoder.vocabulary.temperatures
    reader = reader.calibrated(temperatures) if temperatures else reader  # they may change the most probable class
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
    """By how much the best of each row leads: (N, K) -> (N,); infinite where there is no other."""
    best = np.sort(np.concatenate([cosines, np.full((len(cosines), 1), -np.inf)], axis=1), axis=1)
    return best[:, -1] - best[:, -2]


def _lowest_cosine(one: np.ndarray, other: np.ndarray, blocks: int) -> float:
    one, other = (x.reshape(len(x), blocks, -1).astype(np.float64) for x in (one, other))
    lengths = np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2)
    return float(((one * other).sum(axis=2) / np.maximum(lengths, 1e-12)).min())


def _scores(embeddings: np.ndarray, metric: str) -> np.ndarray:
    """Higher is nearer: (N, E) -> (N, N)."""
    exact = embeddings.astype(np.float64)
    products = exact @ exact.T
    if metric == "cosine":
        lengths = np.sqrt(np.diagonal(products))
        return products / np.maximum(np.outer(lengths, lengths), 1e-12)
    squares = np.diagonal(products)
    return -np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))


@torch.no_grad()
def _run_embeddings(encoder: TorchEncoder, paths: Sequence[str | Path]) -> np.ndarray:
    """As the run itself reads and embeds pictures: float32 (N, E)."""
    size = encoder.batch_size
    return np.concatenate([encoder.embedder(encoder.predictor.images(paths[start:start + size])).numpy()
                           for start in range(0, len(paths), size)])


def readable_images(images: str | Path | Sequence[str | Path], most: int) -> list[str | Path]:
    """Some of the pictures, evenly spread; those that cannot be read are left out and named in the log."""
    paths = [Path(images) / found.path for found in walk(images)] if isinstance(images, str | Path) else list(images)
    readable = []
    for i in sorted(set(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int).tolist())):
        try:
            read_image(paths[i])
            readable.append(paths[i])
        except Unreadable as error:
            logger.warning(f"left out of the check: {error}")
    if len(readable) < 3:
        raise ValueError(f"export: {len(readable)} readable pictures to check the model on, expected at least 3: ranks "
                         "need some; give more by `images` and `pictures`")
    return readable


def _input_size(predictor: CerberusPredictor) -> tuple[int, int]:
    """(H, W) that every picture is resized to."""
    size, crop = list(predictor.cfg.INPUT.SIZE_TEST), predictor.cfg.INPUT.CROP.ENABLED
    if len(size) != 2 or min(size) < 1 or crop:
        raise ValueError(f"{predictor.run_folder}: INPUT.SIZE_TEST is {size} and INPUT.CROP.ENABLED {crop}; only "
                         "models whose pictures are all resized to one height and width can be exported")
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
    """Parameters with names such as "global" as constants: torch.export writes names into Python that it compiles."""
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
    """Take out what the exporter notes of each operator: stack traces, with paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info,
                 *model.functions, *(node for function in model.functions for node in function.node)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
