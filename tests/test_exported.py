"""Files that are no export, or a damaged one, are refused before they encode anything."""

import json
import sys
from pathlib import Path

from cerberus_plugin.portable import ExportedEncoder

import onnx
import pytest
from PIL import Image


@pytest.fixture
def tiny(tmp_path):
    """A file that onnxruntime runs, with this metadata."""
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


def test_misuse_of_exported_files_is_named(tiny, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere.onnx: not found; make it by cerberus export --run RUN"):
        ExportedEncoder(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="text.onnx: onnxruntime cannot run it"):
        ExportedEncoder(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        ExportedEncoder(tmp_path / "any.onnx", batch_size=0)
    with pytest.raises(ValueError, match="was not exported from a run; make one by"):
        ExportedEncoder(tiny())
    with pytest.raises(ValueError, match="has metadata of format 9, not 2"):
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
