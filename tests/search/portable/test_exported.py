"""Damaged files and files that were not exported are rejected."""

import json
import math
import signal
import sys
from pathlib import Path

from cerberus_plugin.search.portable import ExportedEncoder

import onnx
import pytest
from PIL import Image
from support.galleries import draw_many
from support.processes import command, imported


@pytest.fixture
def tiny(tmp_path):
    """Write a valid ONNX file with this metadata."""
    def write(**metadata) -> Path:
        pixels = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", 3, 4, 2])
        same = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.UINT8, ["batch", 24])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Flatten", ["images"], ["embedding"])], "tiny", [pixels],
                                       [same])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        onnx.helper.set_model_props(model, {f"cerberus.{name}": text for name, text in metadata.items()})
        onnx.save(model, tmp_path / "tiny.onnx")
        return tmp_path / "tiny.onnx"

    return write


def test_invalid_exported_files_are_rejected(tiny, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.onnx: not found; .* cerberus export --run RUN"):
        ExportedEncoder(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="text.onnx: onnxruntime cannot run it"):
        ExportedEncoder(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        ExportedEncoder(tmp_path / "any.onnx", batch_size=0)
    with pytest.raises(ValueError, match="was not exported from a run; export"):
        ExportedEncoder(tiny())
    with pytest.raises(ValueError, match="has metadata of format 9, not 3"):
        ExportedEncoder(tiny(format="9"))
    good = {"fingerprint": "0", "dim": 24, "groups": [], "metric": "cosine", "size": [4, 2], "architecture": "tiny",
            "lasting_groups": [], "verification": None}
    assert ExportedEncoder(tiny(format="1", encoder=json.dumps(good))).encode([Image.new("RGB", (9, 9))]).sum() == 0
    for damaged in ({}, {"encoder": "nothing"}, {"encoder": "[]"}, {"encoder": json.dumps(good | {"size": 4})},
                    *({"encoder": json.dumps(good | wrong)} for wrong in (
                        {"size": [5, 2]}, {"size": "ab"}, {"dim": 25}, {"dim": None}, {"fingerprint": 7},
                        {"groups": ["a"] * 5}, {"groups": [1, 2]}, {"metric": "manhattan"}, {"lasting_groups": [1]},
                        {"verification": {"slope": 1}})),
                    {"encoder": json.dumps(good), "vocabulary": '{"schema": "market1501"}'}):
        with pytest.raises(ValueError, match="its metadata is damaged .*; export the model again"):
            ExportedEncoder(tiny(format="1", **damaged))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="onnxruntime runs exported models and is not installed: pip install"):
        ExportedEncoder(tiny())


GOOD = {"fingerprint": "0", "dim": 24, "groups": [], "metric": "cosine", "size": [4, 2], "architecture": "tiny",
        "lasting_groups": [], "verification": None}
FITTED = {"slope": 20.0, "intercept": -10.0, "prior": 0.1, "metric": "cosine", "groups": [], "thresholds": [[0.1, 0.7]]}


@pytest.mark.parametrize("damage", [
    {"encoder": "[" * 100_000}, {"vocabulary": "7"}, {"versions": "{"},
    *({"encoder": json.dumps(GOOD | {"verification": FITTED | wrong})} for wrong in (
        {"slope": math.nan}, {"intercept": "1"}, {"prior": 2}, {"metric": None}, {"groups": [1]},
        {"thresholds": [[0.1, math.inf]]}))], ids=range(9))
def test_metadata_with_invalid_values_is_rejected(tiny, damage):
    assert ExportedEncoder(tiny(format="1", encoder=json.dumps(GOOD | {"verification": FITTED})))
    with pytest.raises(ValueError, match=r"tiny.onnx: its metadata is damaged .*; export the model again"):
        ExportedEncoder(tiny(format="1", **({"encoder": json.dumps(GOOD)} | damage)))


def test_a_graph_with_nan_or_errors_is_reported_with_a_remedy(tiny):
    path = tiny(format="1", encoder=json.dumps(GOOD))
    encoder, model = ExportedEncoder(path), onnx.load(path)
    picture = Image.new("RGB", (2, 4))
    model.graph.node[0].output[0] = "flat"
    model.graph.node.extend([onnx.helper.make_node("Cast", ["flat"], ["zero"], to=onnx.TensorProto.FLOAT),
                             onnx.helper.make_node("Div", ["zero", "zero"], ["embedding"])])
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, path)
    with pytest.raises(ValueError, match="tiny.onnx: output 'embedding' is not finite.*Export it again"):
        ExportedEncoder(path).encode([picture])
    encoder.size = (5, 2)
    with pytest.raises(ValueError, match="tiny.onnx: onnxruntime fails on 1 image .*; export the model again"):
        encoder.encode([picture])


def test_help_has_no_slow_imports():
    packages = imported(command("--help"), "cerberus COMMAND --help")
    assert "cerberus_plugin" in packages
    assert not packages & {"torch", "torchvision", "fastreid", "numpy", "PIL", "faiss"}


def test_the_command_imports_no_torch_for_an_exported_model(tiny, tmp_path):
    model = tiny(format="1", encoder=json.dumps(GOOD | {"metric": "euclidean"}))
    crops, index = tmp_path / "crops", tmp_path / "index"
    draw_many(crops, 3)
    packages = imported(command("index", "--model", model, "--images", crops, "--out", index), "3 images; 3 new")
    packages |= imported(command("recognise", "--model", model, crops), "does not predict attributes")
    serving = command("serve", index, "--model", model, "--port", "0")
    assert serving.stdout.readline().startswith("3 images: http")
    serving.send_signal(signal.SIGINT)
    packages |= imported(serving, "stopped")
    assert {"onnxruntime", "starlette", "cerberus_plugin"} <= packages
    assert not packages & {"torch", "torchvision", "fastreid"}


@pytest.mark.slow
def test_the_command_imports_torch_and_fastreid_for_a_run(tmp_path):
    for job in (["recognise", "--run", tmp_path, tmp_path], ["export", "--run", tmp_path, "--images", tmp_path]):
        assert {"torch", "fastreid"} <= imported(command(*job), "config.yaml: not found")
