"""A trained run as an ONNX file with int8 weights and activations, and the loss against float32, measured.

    cerberus export --run runs/demo --images crops --int8 --output model_int8.onnx

Static quantisation by onnxruntime in the QDQ format: weights are symmetric int8 with a scale for each output channel,
activations uint8 with ranges that are calibrated on images. Convolutions and fully connected layers are quantised, and
what lies between two convolutions. Pooling, normalisation and everything behind the embedding stay float32.
Shapes: N images, H x W the model's input, E values of an embedding.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tabulate import tabulate

from ... import host
from ...config import with_values
from ...engine.trainer import CerberusTrainer, TestSets, build_test_sets
from ...predictor import CerberusPredictor
from ...utils.files import write_whole
from ...utils.images import read_image, to_array
from ...utils.processor import processor, processor_has, usable_cores
from ..portable import ExportedEncoder
from ..portable.exported import ANSWERS, EMBEDDING, ENCODER_KEY, INPUT, INT8_KEY
from .onnx import block_cosines, export, readable_images

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

logger = logging.getLogger("fastreid.cerberus")

# Rules for the range of an activation: onnxruntime's method and its options. The one with the highest mean cosine wins.
METHODS: dict[str, tuple[str, Mapping[str, float]]] = {
    "minmax": ("MinMax", {}), "entropy": ("Entropy", {}),
    "percentile 99.999": ("Percentile", {"CalibPercentile": 99.999}),
    "percentile 99.99": ("Percentile", {"CalibPercentile": 99.99})}
WEIGHTED = ("Conv", "Gemm", "MatMul")
# Computed in int8 where they lie between two convolutions, so that activations need no detour through float32.
BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "HardSigmoid", "MaxPool", "Mul", "Relu",
           "Sigmoid")
FEWEST_IMAGES = 16  # half of them to calibrate on, half to choose and measure on
ADVISED_IMAGES = 100
BATCH, ROUNDS = 32, 5  # of the measurement of speed
CALIBRATION_BATCH = 8  # the values of all activations of a batch are in memory at once
LOW_COSINE = 0.95  # mean cosine below which the command warns
METRICS = {"reID mAP": "mAP", "reID Rank-1": "Rank-1", "PAR accuracy": "PAR/mA_with_none", "APS mAP": "APS/mAP"}
# Instructions that add four products of 8 bits into 32 bits; without them x86 adds two products into 16 bits.
DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp")


@dataclass(frozen=True)
class Int8Report:
    """Settings of a quantised model and its loss against float32.

    Attributes:
        method: key of `METHODS` by which the ranges of activations were calibrated.
        tried: mean cosine by method.
        weight_bits: 8, or 7 for CPUs without 8-bit dot products.
        cosine_of_other_bits: mean cosine with 7 bits in place of 8, or 8 in place of 7.
        calibration_images, images: number of images to calibrate on, and others to measure `cosine` and `agreement` on.
        cosine, lowest_cosine: between int8 and float32 embeddings, mean over images and lowest of any image; of
            Cerberus over the blocks of all groups.
        agreement: share of predicted attribute values that are equal; None for a model without attributes.
        float32, int8: "size" in bytes, "images/s", and in percent what `METRICS` names, where labels are known.
        data: dataset of these metrics; "" if they were not measured.
        not_measured: reason, if they were not measured.
        machine: processor, cores, and whether it has 8-bit dot products.
    """

    method: str
    tried: Mapping[str, float]
    weight_bits: int
    cosine_of_other_bits: float
    calibration_images: int
    images: int
    cosine: float
    lowest_cosine: float
    agreement: float | None
    float32: Mapping[str, float]
    int8: Mapping[str, float]
    data: str = ""
    not_measured: str = ""
    machine: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Return plain values, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return the comparison as text, with the choice of the calibration method."""
        one, other = self.float32, self.int8
        rows = [["cosine of embeddings, mean", "1", f"{self.cosine:.4f}", ""],
                ["cosine of embeddings, lowest", "1", f"{self.lowest_cosine:.4f}", ""]]
        if self.agreement is not None:
            rows.append(["equal attribute values, %", "100", f"{100 * self.agreement:.1f}", ""])
        rows += [["file size, MB", f"{one['size'] / 1e6:.1f}", f"{other['size'] / 1e6:.1f}",
                  f"x {other['size'] / one['size']:.2f}"],
                 ["images/s", f"{one['images/s']:.1f}", f"{other['images/s']:.1f}",
                  f"x {other['images/s'] / one['images/s']:.2f}"]]
        rows += [[f"{name}, %", f"{one[name]:.1f}", f"{other[name]:.1f}", f"{other[name] - one[name]:+.1f}"]
                 for name in METRICS if name in one]
        where = (f"metrics on {self.data}" if self.data else
                 f"reID, PAR and APS were not measured: {self.not_measured}")
        tried = ", ".join(f"{name} {cosine:.4f}" for name, cosine in self.tried.items())
        machine = self.machine
        return "\n".join([
            tabulate(rows, ["", "float32", "int8", "change"], disable_numparse=True,
                     colalign=("left", "right", "right", "right")),
            f"{where}; cosine and attributes on {self.images} images, calibrated on {self.calibration_images} others",
            f"calibrated by {self.method} (mean cosine of {tried})",
            f"weights of {self.weight_bits} bits (mean cosine of {15 - self.weight_bits} bits: "
            f"{self.cosine_of_other_bits:.4f})",
            f"images/s: {machine['processor']}, {machine['cores']} cores, "
            f"{'with' if machine['dot products'] else 'without'} 8-bit dot products (VNNI), batches of {BATCH}, the "
            f"best of {ROUNDS} rounds"])


def export_int8(run_folder: str | Path, output: str | Path, images: str | Path | Sequence[str | Path], *,
                weights: str | Path | None = None, pictures: int = 256, data: str = "",
                full_range: bool = False) -> Int8Report:
    """Write a run as ONNX with int8 weights, and measure the loss; a file of this name is replaced in one step.

    The float32 model is exported and compared with the run first, as by `onnx.export`. The report is also stored in the
    metadata of the file. The model has its own fingerprint: its embeddings are not compared with those of float32.

    Args:
        run_folder, weights: see `CerberusPredictor`.
        output: such as model_int8.onnx.
        images: folder of typical images and those below, or their paths. Every other one calibrates the ranges of
            activations, the rest choose the method and measure the loss of the embeddings.
        pictures: number of these at most, spread evenly.
        data: dataset for reID, PAR and APS: a folder of own data, or a name; the run's first test set if empty.
        full_range: weights of 8 bits, for CPUs with 8-bit dot products; 7 bits otherwise, which cannot overflow.

    Raises:
        ValueError: if there are too few images, `data` cannot be evaluated, or nothing can be quantised.
        ExportMismatch: if the float32 model does not agree with the run.
    """
    import onnx

    if find_spec("onnxruntime.quantization") is None:
        raise ImportError("export --int8 needs onnxruntime with its module quantization: pip install onnxruntime")
    paths = readable_images(images, pictures)
    if len(paths) < FEWEST_IMAGES:
        raise ValueError(f"export: {len(paths)} readable images, --int8 expects at least {FEWEST_IMAGES} (better "
                         f"{ADVISED_IMAGES} or more) to calibrate and measure on; give more by --images and "
                         "--max-images")
    if len(paths) < ADVISED_IMAGES:
        logger.warning(f"{len(paths)} images are few to calibrate int8 on; {ADVISED_IMAGES} or more are better")
    predictor = CerberusPredictor(run_folder, weights, device="cpu", precise=True)
    cfg, tests, not_measured = _test_sets(predictor, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.onnx"
        export(run_folder, path, paths, weights=weights)
        float32, model = ExportedEncoder(path, providers=["CPUExecutionProvider"]), onnx.load(path)
        pixels = to_array([read_image(image) for image in paths], float32.size, float32.interpolation)
        calibration, held_out = pixels[::2], pixels[1::2]
        expected = float32.run_pixels(held_out)

        def measured(method: str, full_range: bool) -> tuple:
            made = quantised(model, calibration, method, full_range)
            onnx.save(made, Path(folder) / "int8.onnx")
            session = ExportedEncoder(Path(folder) / "int8.onnx", providers=["CPUExecutionProvider"])
            found = session.run_pixels(held_out)
            return made, session, found, block_cosines(found[EMBEDDING], expected[EMBEDDING],
                                                       max(1, len(float32.groups)))

        by_method = {method: measured(method, full_range) for method in METHODS}
        tried = {method: float(cosines.mean()) for method, (*_, cosines) in by_method.items()}
        method = max(tried, key=lambda name: tried[name])
        made, session, found, cosines = by_method[method]
        other_bits = float(measured(method, not full_range)[-1].mean())
        one, other = {"size": float(path.stat().st_size)}, {"size": 0.0}
        one["images/s"], other["images/s"] = images_per_second((float32, session), held_out)
        if tests:
            one |= metrics_of(float32, predictor, cfg, tests)
            other |= metrics_of(session, predictor, cfg, tests)
            logger.info(f"float32 and int8 were evaluated on {next(iter(tests))}")
    agreement = float((found[ANSWERS] == expected[ANSWERS]).mean()) if ANSWERS in expected else None

    def report(size: int) -> Int8Report:
        return Int8Report(method, tried, 8 if full_range else 7, other_bits, len(calibration), len(held_out),
                          float(cosines.mean()), float(cosines.min()), agreement, one, other | {"size": float(size)},
                          next(iter(tests), ""), not_measured,
                          {"processor": processor(), "cores": usable_cores(),
                           "dot products": processor_has(*DOT_PRODUCTS)})

    final = report(0)
    while final.int8["size"] != made.ByteSize():  # the file contains its own size
        final = report(made.ByteSize())
        _set_metadata(made, final, float32.fingerprint)
    write_whole(output, lambda file: file.write(made.SerializeToString()))
    if final.cosine < LOW_COSINE:
        advice = (f"with --full-range, for CPUs with 8-bit dot products, it is {other_bits:.3f}"
                  if not full_range and other_bits > final.cosine else
                  "prefer the float32 model, or a backbone that loses less, such as a ResNet")
        logger.warning(f"{output}: int8 embeddings have a mean cosine of {final.cosine:.3f} with those of float32; "
                       f"{advice}")
    return final


def quantised(model: ModelProto, calibration: np.ndarray, method: str, full_range: bool = False) -> ModelProto:
    """Quantise an exported model.

    Args:
        model: of `onnx.build`; not changed.
        calibration: uint8 (N, 3, H, W).
        method: key of `METHODS`.
        full_range: see `export_int8`.

    Raises:
        ValueError: if the model has no convolution or fully connected layer before its embedding.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    chosen = quantised_nodes(model)
    kind, options = METHODS[method]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder, _silent():
        path = str(Path(folder) / "int8.onnx")
        quantize_static(
            copy, path, Batches(calibration), quant_format=QuantFormat.QDQ, per_channel=True,
            reduce_range=not full_range, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=sorted({node.op_type for node in chosen}),
            nodes_to_quantize=[node.name for node in chosen], calibrate_method=CalibrationMethod[kind],
            # A batch at a time: of all activations of all images no memory is left. Ranges are those of the values, not
            # symmetric around 0, which would waste half of them behind a ReLU.
            extra_options={"CalibStridedMinMax": 1, "CalibTensorRangeSymmetric": False, **options})
        made = onnx.load(path)
    onnx.checker.check_model(made)
    return made


def quantised_nodes(model: ModelProto) -> list[NodeProto]:
    """Nodes to quantise: layers with weights before the embedding, and `BETWEEN` on a path from one to a convolution.

    Raises:
        ValueError: if there is none.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = _ancestors(model, [EMBEDDING])
    weighted = [node for node in nodes if node.op_type in WEIGHTED and node.input[1] in constants]
    before = {id(node) for node in _ancestors(model, [node.input[0] for node in weighted if node.op_type == "Conv"])}
    after: set[str] = set()  # tensors behind a convolution
    chosen = []
    for node in nodes:  # in order
        behind = any(name in after for name in node.input)
        if node.op_type == "Conv" or behind:
            after.update(node.output)
        if node in weighted or node.op_type in BETWEEN and behind and id(node) in before:
            chosen.append(node)
    if not weighted:
        raise ValueError("export --int8: the model has no convolution or fully connected layer with constant weights "
                         "before its embedding, so there is nothing to quantise; leave out --int8")
    return chosen


class Batches:
    """Images as onnxruntime's `CalibrationDataReader`, a batch of `CALIBRATION_BATCH` at a time.

    Args:
        pixels: uint8 (N, 3, H, W).
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._batches = [{INPUT: pixels[start:start + CALIBRATION_BATCH]}
                         for start in range(0, len(pixels), CALIBRATION_BATCH)]
        self.set_range(0, len(self._batches))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


def images_per_second(encoders: Sequence[ExportedEncoder], pixels: np.ndarray) -> list[float]:
    """Images per second of each model without reading and resizing; the best round of `ROUNDS`, which alternate.

    Args:
        pixels: uint8 (N, 3, H, W), of which `BATCH` are used.
    """
    pixels = pixels[:BATCH]
    seconds = [float("inf")] * len(encoders)
    for _ in range(ROUNDS + 1):  # the first round of each allocates its memory
        for i, encoder in enumerate(encoders):
            start = time.perf_counter()
            encoder.run_pixels(pixels, (EMBEDDING,))
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return [len(pixels) / each for each in seconds]


def metrics_of(encoder: ExportedEncoder, predictor: CerberusPredictor, cfg, tests: TestSets) -> dict[str, float]:
    """Evaluate an exported model on one test set: `METRICS` by name, in percent, those that the labels allow.

    Embeddings are of the exported model; attributes are read from them by the reader of the run, without calibration.
    Images are not flipped. PAR and APS need attributes in the exported model, which Cerberus alone has.
    """
    (name, test_set), = tests.items()
    host.use_device("cpu")
    loader, evaluator = CerberusTrainer.build_evaluator(cfg, name, model=predictor.model if encoder.vocabulary else
                                                        None, test_set=test_set)
    for inputs in loader:
        pixels = inputs["images"].round().to(torch.uint8).cpu().numpy()
        evaluator.process(inputs, torch.from_numpy(encoder.run_pixels(pixels, (EMBEDDING,))[EMBEDDING]))
    results = evaluator.evaluate()
    return {title: float(results[key]) for title, key in METRICS.items() if key in results}


def _test_sets(predictor: CerberusPredictor, data: str):
    """Configuration, test set by name, and the reason if there is none."""
    cfg = predictor.cfg
    if data:
        cfg = with_values(cfg, {"DATASETS.TESTS": (data,), "DATASETS.NAME_PATTERN": "", "DATASETS.ALLOW_SUBSET": True,
                                "DATASETS.SPLIT_FILE": ""})
    elif not cfg.DATASETS.TESTS:
        return cfg, {}, "the run has no test set; give a dataset with labels by --data"
    name = cfg.DATASETS.TESTS[0]
    cfg = with_values(cfg, {"DATASETS.TESTS": (name,), "DATALOADER.RESIDENT": False, "TEST.FLIP.ENABLED": False,
                            "TEST.APS.GROUPS": []})
    try:
        tests = build_test_sets(cfg, predictor.reader.schema if predictor.attribute_model else None)
    except (OSError, ValueError) as error:
        if data:
            raise
        return cfg, {}, f"the run's test set cannot be read ({error}); give a dataset with labels by --data"
    if not tests[name][0].identified and not predictor.attribute_model:
        reason = f"{name} has no identities, and the model exports no attributes"
        if data:
            raise ValueError(f"--data {data}: {reason}, so there is nothing to evaluate; leave out --data")
        return cfg, {}, reason
    return cfg, tests, ""


def _set_metadata(model: ModelProto, report: Int8Report, fingerprint: str) -> None:
    """Store the report and a fingerprint that no float32 model has."""
    import onnx

    graph = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
    record = {entry.key: entry.value for entry in model.metadata_props}
    encoder = json.loads(record[ENCODER_KEY])
    encoder["fingerprint"] = hashlib.sha256(f"{fingerprint} int8 {graph}".encode()).hexdigest()
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, record | {ENCODER_KEY: json.dumps(encoder),
                                                 INT8_KEY: json.dumps(report.to_dict())})


def _ancestors(model: ModelProto, names: Sequence[str]) -> list[NodeProto]:
    """Nodes that compute these tensors, in the order of the graph."""
    makers = {name: node for node in model.graph.node for name in node.output}
    seen, waiting = set(), list(names)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(node.input)
    return [node for node in model.graph.node if id(node) in seen]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the progress that onnxruntime prints, and its advice to optimise a model that torch has optimised."""
    root, level = logging.getLogger(), logging.getLogger().level
    with contextlib.redirect_stdout(io.StringIO()):
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
