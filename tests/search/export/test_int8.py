"""Quantised models: really int8, near float32, with a loss that is what their file says, and usable like float32."""

import json
import shutil
from pathlib import Path

from cerberus_plugin import CerberusPredictor, cli
from cerberus_plugin.metrics.ranking import reid_metrics_from_features
from cerberus_plugin.search.export import int8
from cerberus_plugin.search.export.int8 import (
    METHODS,
    Batches,
    Int8Report,
    export_int8,
    quantised,
    quantised_nodes,
)
from cerberus_plugin.search.export.onnx import block_cosines, export
from cerberus_plugin.search.gallery import GalleryIndex
from cerberus_plugin.search.portable import ExportedEncoder
from cerberus_plugin.utils.images import read_image

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.own_data import write_people

LOWEST = 0.99  # mean cosine of a tiny model; measured 0.9995


@pytest.fixture(scope="module")
def crops(market_root):
    return market_root / "Market-1501-v15.09.15" / "bounding_box_train"  # 32 images


@pytest.fixture(scope="module")
def root(market_root):
    """The test set of the shared run, wherever a fixture of this module reads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(market_root))
        yield market_root


@pytest.fixture(scope="module")
def made(run, crops, root, tmp_path_factory):
    """The float32 and the int8 file of the shared run, and the report of the latter."""
    folder = tmp_path_factory.mktemp("int8")
    export(run.cfg.OUTPUT_DIR, folder / "float32.onnx", crops)
    report = export_int8(run.cfg.OUTPUT_DIR, folder / "deep" / "int8.onnx", crops)
    return folder / "float32.onnx", folder / "deep" / "int8.onnx", report


@pytest.fixture
def quick(made, monkeypatch):
    """Translate no further model, and try one method."""
    monkeypatch.setattr(int8, "export", lambda run, path, *_, **__: shutil.copy(made[0], path))
    monkeypatch.setattr(int8, "METHODS", {"minmax": METHODS["minmax"]})


def of_nodes(model, kind):
    return [node for node in model.graph.node if node.op_type == kind]


@pytest.mark.slow
def test_weights_are_int8_with_a_scale_for_each_channel(made):
    model = onnx.load(made[1])
    onnx.checker.check_model(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = of_nodes(model, "Conv")
    assert len(convolutions) == len(of_nodes(onnx.load(made[0]), "Conv")) > 8
    for node in convolutions:
        values, weight = (makers[name] for name in node.input[:2])
        assert values.op_type == weight.op_type == "DequantizeLinear"
        quantised_weight, scales = (constants[name] for name in weight.input[:2])
        assert quantised_weight.dtype == np.int8 and scales.shape == (len(quantised_weight),)
        assert abs(quantised_weight).max() <= 64, "7 bits, so that no CPU overflows"
    assert len(of_nodes(model, "QuantizeLinear")) >= len(convolutions)


@pytest.mark.slow
def test_what_lies_behind_the_embedding_stays_float(made):
    one, other = (onnx.load(path) for path in made[:2])
    for kind in ("Softmax", "Exp", "Log", "ArgMax", "ReduceL2", "Pow"):
        assert len(of_nodes(one, kind)) == len(of_nodes(other, kind))
    names = {node.name for node in quantised_nodes(one)}
    kept = [node for node in one.graph.node if node.op_type == "MatMul" and node.name not in names]
    assert kept, "products with prototypes"
    makers = {name: node.op_type for node in other.graph.node for name in node.output}
    for node in kept:
        assert makers.get(node.input[0]) != "DequantizeLinear"


@pytest.mark.slow
def test_the_report_is_what_a_recomputation_gives(made, run, crops, root):
    from cerberus_plugin.data.build import build_test_set

    float_path, path, report = made
    encoders = [ExportedEncoder(each, providers=["CPUExecutionProvider"]) for each in (float_path, path)]
    images = list(map(read_image, CerberusPredictor.pictures(crops)))[1::2]
    cosines = block_cosines(encoders[1].encode(images), encoders[0].encode(images), 5)
    assert report.images == len(images) == report.calibration_images == 16
    assert report.cosine == pytest.approx(cosines.mean(), abs=1e-5) and report.cosine > LOWEST
    assert report.lowest_cosine == pytest.approx(cosines.min(), abs=1e-5)
    assert report.weight_bits == 7 and report.cosine_of_other_bits > report.cosine
    answers = [encoder.run(images)["answers"] for encoder in encoders]
    assert report.agreement == pytest.approx((answers[0] == answers[1]).mean())
    assert report.int8["size"] == path.stat().st_size and report.float32["size"] == float_path.stat().st_size
    assert set(report.tried) == set(METHODS) and report.tried[report.method] == max(report.tried.values())
    dataset, queries = build_test_set(CerberusPredictor(run.cfg.OUTPUT_DIR).cfg, "Market1501Attributes")
    paths, pids, camids = zip(*dataset.img_items)
    pids, camids = torch.tensor(list(map(int, pids))), torch.tensor(list(map(int, camids)))
    for encoder, found in zip(encoders, (report.float32, report.int8)):
        embeddings = torch.from_numpy(encoder.encode(list(map(read_image, paths))))
        expected = reid_metrics_from_features(
            embeddings[:queries], embeddings[queries:], pids[:queries], camids[:queries], pids[queries:],
            camids[queries:], metric="cosine").percentages()
        assert found["reID mAP"] == pytest.approx(expected["mAP"], abs=1e-3)
        assert found["reID Rank-1"] == pytest.approx(expected["Rank-1"], abs=1e-3)
        assert 0 < found["PAR accuracy"] <= 100 and 0 < found["APS mAP"] <= 100 and found["images/s"] > 0
    for name, key in int8.METRICS.items():
        assert report.float32[name] == pytest.approx(run.results[key], abs=0.5), "as the run was evaluated"


@pytest.mark.slow
def test_the_file_contains_its_report_and_a_fingerprint_of_its_own(made):
    one, other = (ExportedEncoder(path) for path in made[:2])
    assert one.int8 is None and other.int8 == json.loads(json.dumps(made[2].to_dict()))
    assert one.fingerprint != other.fingerprint and len(other.fingerprint) == 64
    assert (one.groups, one.metric, one.size) == (other.groups, other.metric, other.size)
    assert one.vocabulary.to_dict() == other.vocabulary.to_dict()
    assert [path.name for path in made[1].parent.iterdir()] == ["int8.onnx"]
    assert b"/tmp" not in made[1].read_bytes()


@pytest.mark.slow
def test_an_int8_model_takes_the_place_of_a_run_and_is_not_mixed_with_float32(made, crops, tmp_path, capsys):
    model, index = str(made[1]), str(tmp_path / "index")
    picture = CerberusPredictor.pictures(crops)[0]
    cli.main(["recognise", "--model", model, picture])
    assert "gender" in capsys.readouterr().out
    cli.main(["index", "--model", model, "--images", str(crops), "--out", index])
    capsys.readouterr()
    cli.main(["search", index, "--model", model, "--picture", picture, "--top", "1"])
    assert Path(picture).name in capsys.readouterr().out
    with pytest.raises(ValueError, match="model"):
        GalleryIndex.open(index).embed(ExportedEncoder(made[0]), picture)


@pytest.mark.slow
def test_the_command_prints_the_table_for_other_data(quick, run, crops, root, tmp_path, capsys, log):
    data = write_people(tmp_path / "people", people=6, cameras=2)
    output = tmp_path / "model.onnx"
    cli.main(["export", "--run", run.cfg.OUTPUT_DIR, "--images", str(crops), "--int8", "--full-range", "--data",
              str(data), "--output", str(output)])
    said = capsys.readouterr().out
    assert f"metrics on {data}" in said and "weights of 8 bits" in said and f"wrote {output}" in said
    assert "reID mAP" in said and "images are few to calibrate" in log.text
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(output).graph.initializer
               if tensor.data_type == TensorProto.INT8]
    assert max(abs(values.astype(int)).max() for values in weights) == 127


@pytest.mark.slow
def test_a_run_without_its_test_set_is_quantised_and_says_what_is_missing(quick, run, crops, use_root, tmp_path):
    use_root(tmp_path / "nowhere")
    report = export_int8(run.cfg.OUTPUT_DIR, tmp_path / "int8.onnx", crops)
    assert report.data == "" and "cannot be read" in report.not_measured and "--data" in report.table()
    assert set(report.int8) == {"size", "images/s"}
    with pytest.raises((OSError, ValueError), match="nowhere"):
        export_int8(run.cfg.OUTPUT_DIR, tmp_path / "int8.onnx", crops, data=str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_failure_leaves_the_former_file(quick, run, crops, root, tmp_path, monkeypatch):
    (tmp_path / "int8.onnx").write_text("the former one")
    monkeypatch.setattr(int8, "images_per_second", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_int8(run.cfg.OUTPUT_DIR, tmp_path / "int8.onnx", crops)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("int8.onnx", "the former one")]


def small_model(*, weights: bool = True):
    """uint8 images -> convolution -> ReLU -> convolution -> mean -> embedding, and a product behind it."""
    generator = np.random.default_rng(0)
    constants = [numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name) for name, shape in (
        ("w1", (4, 3, 3, 3)), ("w2", (6, 4, 3, 3)), ("prototypes", (6, 2)))]
    nodes = [helper.make_node("Cast", ["images"], ["x"], "cast", to=TensorProto.FLOAT),
             helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1] * 4),
             helper.make_node("Relu", ["a"], ["b"], "relu"),
             helper.make_node("Conv", ["b", "w2"], ["c"], "conv2", pads=[1] * 4),
             helper.make_node("Relu", ["c"], ["d"], "relu2"),
             helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
             helper.make_node("Flatten", ["e"], ["embedding"], "flat"),
             helper.make_node("MatMul", ["embedding", "prototypes"], ["answers"], "matmul")]
    if not weights:
        nodes = [nodes[0], helper.make_node("Flatten", ["x"], ["embedding"], "flat")]
    pixels = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 8, 4])
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 6 if weights else 96])]
    outputs += [helper.make_tensor_value_info("answers", TensorProto.FLOAT, ["batch", 2])] if weights else []
    return helper.make_model(helper.make_graph(nodes, "small", [pixels], outputs, constants if weights else []),
                             opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_layers_before_the_embedding_and_what_lies_between_are_chosen():
    assert [node.name for node in quantised_nodes(small_model())] == ["conv1", "relu", "conv2"]
    with pytest.raises(ValueError, match="nothing to quantise; leave out --int8"):
        quantised_nodes(small_model(weights=False))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("full_range, most", [(True, 127), (False, 64)])
def test_every_method_quantises_near_float32_and_prints_nothing(method, full_range, most, capsys):
    import onnxruntime

    model, pixels = small_model(), np.random.default_rng(1).integers(0, 256, (40, 3, 8, 4)).astype(np.uint8)
    before = model.SerializeToString()
    made = quantised(model, pixels[:24], method, full_range)
    assert model.SerializeToString() == before and capsys.readouterr().out == ""
    outputs = [onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        ["embedding"], {"images": pixels[24:]})[0] for each in (model, made)]
    assert block_cosines(*outputs, 1).min() > 0.995
    weights = [numpy_helper.to_array(each) for each in made.graph.initializer if each.data_type == TensorProto.INT8]
    assert max(abs(each.astype(int)).max() for each in weights if each.ndim == 4) <= most
    assert [node.op_type for node in made.graph.node][-1] == "MatMul"


def test_images_are_given_to_calibrate_on_a_batch_at_a_time_and_once():
    pixels = np.arange(20).repeat(3 * 2).reshape(20, 3, 2, 1).astype(np.uint8)
    reader, found = Batches(pixels), []
    assert len(reader) == 3
    for start in range(len(reader)):
        reader.set_range(start, start + 1)
        found.append(reader.get_next()["images"])
        assert reader.get_next() is None
    assert (np.concatenate(found) == pixels).all() and list(map(len, found)) == [8, 8, 4]


def test_a_table_has_every_row_and_its_change():
    report = Int8Report("minmax", {"minmax": 0.99, "entropy": 0.98}, 7, 0.995, 8, 9, 0.99, 0.9, 0.875,
                        {"size": 4e6, "images/s": 10.0, "reID mAP": 80.0, "APS mAP": 50.0},
                        {"size": 1e6, "images/s": 25.0, "reID mAP": 79.0, "APS mAP": 50.5}, "crops",
                        machine={"processor": "CPU", "cores": 2, "dot products": False})
    lines = [line.split() for line in report.table().splitlines()]
    assert ["reID", "mAP,", "%", "80.0", "79.0", "-1.0"] in lines
    assert ["APS", "mAP,", "%", "50.0", "50.5", "+0.5"] in lines
    assert ["file", "size,", "MB", "4.0", "1.0", "x", "0.25"] in lines
    assert ["images/s", "10.0", "25.0", "x", "2.50"] in lines
    assert ["equal", "attribute", "values,", "%", "100", "87.5"] in lines
    assert "weights of 7 bits (mean cosine of 8 bits: 0.9950)" in report.table()
    assert "metrics on crops" in report.table() and "without 8-bit dot products" in report.table()


@pytest.mark.parametrize("count", [0, 15])
def test_too_few_images_are_rejected_before_the_model_is_read(count, crops, tmp_path):
    paths = CerberusPredictor.pictures(crops)[:count]
    with pytest.raises(ValueError, match=f"{count} readable .*expect.* at least (16|3)"):
        export_int8(tmp_path / "nowhere", tmp_path / "int8.onnx", paths)


@pytest.mark.parametrize("arguments, message", [
    (["--int8"], "needs --images"), (["--int8", "--format", "reid"], "leave out --format reid"),
    (["--images", ".", "--data", "crops"], "--data belongs to --int8"),
    (["--images", ".", "--full-range"], "--full-range belongs to --int8")])
def test_options_that_do_not_go_together_are_named(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "--run", str(tmp_path), *arguments])
    assert message in str(ended.value.code)
