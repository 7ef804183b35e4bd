"""Damaged, truncated or outdated files of a run give errors that name the file and a remedy."""

import json
import math
import re
import shutil
from pathlib import Path

from cerberus_plugin import CerberusPredictor
from cerberus_plugin.evaluation.report import read_floor, read_results
from cerberus_plugin.experiments.compare import FinishedRun
from cerberus_plugin.modeling.build import load_model
from cerberus_plugin.search.calibration import Calibration
from cerberus_plugin.search.export.torch_encoder import TorchEncoder

import pytest
import torch
import yaml
from PIL import Image


@pytest.fixture
def folder(run, tmp_path) -> Path:
    """Return a separate run folder with a link to the checkpoint."""
    original = Path(run.cfg.OUTPUT_DIR)
    shutil.copy(original / "config.yaml", tmp_path)
    (tmp_path / "model_final.pth").symlink_to(original / "model_final.pth")
    return tmp_path


def changed(text: str, **changes) -> str:
    """Return a configuration with changed values; names use "__" for dots, and the value ... removes a key."""
    record = yaml.safe_load(text)
    for key, value in changes.items():
        *nodes, last = key.split("__")
        node = record
        for name in nodes:
            node = node[name]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return yaml.safe_dump(record)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda text: "", "cannot be read as configuration"),
    (lambda text: "[1, 2]", "cannot be read as configuration"),
    (lambda text: "plain words", "cannot be read as configuration"),
    (lambda text: text[:len(text) // 2], r"cannot be read as configuration|has no value for"),
    (lambda text: text[:text.index("\nTEST:")], r"has no value for TEST\.\S+, .* other keys.*truncated"),
    (lambda text: text.replace("MODEL:", "MODEL: {", 1), "cannot be read as configuration"),
    (lambda text: text.encode("utf-16"), "cannot be read as configuration"),
    (lambda text: b"\x80\x04\x95" + bytes(400), "cannot be read as configuration"),
    (lambda text: text + "#" * 2**20, "more than 1048576 bytes"),
    (lambda text: text + "\n_BASE_: 5\n", "cannot be read as configuration"),
    (lambda text: text + "\n_BASE_: config.yaml\n", "_BASE_ includes .* recursively"),
    (lambda text: changed(text, MODEL__FUTURE_KEY=1), "cannot be read as configuration .*FUTURE_KEY.*another version"),
    (lambda text: changed(text, MODEL__BACKBONE="resnet"), "cannot be read as configuration"),
    (lambda text: changed(text, MODEL__BACKBONE__FEAT_DIM="wide"), "cannot be read as configuration"),
    (lambda text: changed(text, MODEL__BACKBONE__NORM=...), r"has no value for MODEL.BACKBONE.NORM, which every"),
    (lambda text: changed(text, MODEL__BACKBONE__NORM=None), r"has no value for MODEL.BACKBONE.NORM, which every"),
    (lambda text: changed(text, MODEL__META_ARCHITECTURE="Hydra"), "the model cannot be built .*Hydra"),
    (lambda text: changed(text, MODEL__BACKBONE__NAME="build_resnet_backbone", MODEL__BACKBONE__DEPTH="19x"),
     "the model cannot be built .*19x"),
    (lambda text: changed(text, MODEL__HEADS__NORM="none of the host"), "the model cannot be built"),
    (lambda text: changed(text, TEST__METRIC="manhattan"), "TEST.METRIC is 'manhattan', expected one of cosine"),
], ids=range(20))
def test_the_error_for_a_damaged_configuration_names_the_file_and_a_remedy(folder, damage, message):
    path = folder / "config.yaml"
    data = damage(path.read_text())
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*(?:{message})") as caught:
        CerberusPredictor(folder)
    assert re.search("train again|[Cc]orrect|expected one of", str(caught.value))


def test_keys_that_an_earlier_version_did_not_have_may_be_missing(folder):
    path = folder / "config.yaml"
    path.write_text(changed(path.read_text(), SEED=..., MODEL__SYNC_BN=..., TEST__APS=...))
    assert CerberusPredictor(folder).cfg.TEST.METRIC == "cosine"


def calibration(**changes) -> dict:
    return {"format": 2, "checkpoint": "model_final.pth", "checkpoint sha256": "0", "settings": {},
            "columns": {"hat": {"temperature": 2, "withhold below": None}},
            "same person": {"slope": 20, "intercept": -10, "prior": 0.1, "metric": "cosine", "groups": ["head"],
                            "false-match rates": [{"rate": 0.01, "threshold": 0.7}]}} | changes


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"\xff\xfe{", b"[" * 100_000, json.dumps(calibration())[:-40].encode(),
    *(json.dumps(calibration(**changes)).encode() for changes in (
        {"format": [2]}, {"columns": []}, {"columns": {"hat": None}}, {"same person": 3}, {"checkpoint": 7},
        {"settings": []}, {"columns": {"hat": {"temperature": math.nan, "withhold below": None}}},
        {"columns": {"hat": {"temperature": -1, "withhold below": None}}},
        {"columns": {"hat": {"temperature": "2", "withhold below": None}}},
        {"columns": {"hat": {"temperature": 2, "withhold below": math.nan}}},
        *({"same person": calibration()["same person"] | wrong} for wrong in (
            {"slope": math.inf}, {"slope": None}, {"prior": 1}, {"metric": ["cosine"]}, {"groups": 5}, {"groups": [1]},
            {"false-match rates": [{"rate": [1], "threshold": 1}]}, {"false-match rates": [4]},
            {"false-match rates": [{"rate": 0.1, "threshold": math.nan}]}))))], ids=range(26))
def test_the_error_for_a_damaged_calibration_names_the_file_and_a_remedy(tmp_path, content):
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*write it again with python -m"):
        Calibration.read(path)


def test_the_error_of_an_encoder_names_the_damaged_calibration(folder):
    path = folder / "calibration/calibration.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("[]")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
        TorchEncoder(CerberusPredictor(folder))


@pytest.mark.parametrize(("name", "content", "read"), [
    ("groups/groups.json", "{", lambda folder: CerberusPredictor(folder).groups_for_changed_clothes),
    ("groups/groups.json", '{"chosen": ["hat"]}', lambda folder: CerberusPredictor(folder).groups_for_changed_clothes),
    ("results.json", "{", read_results), ("results.json", '{"results": [1]}', read_results),
    ("before_training.json", "[", read_floor), ("before_training.json", "[1]", read_floor),
    ("config.yaml", "a: [", lambda folder: sound(folder, FinishedRun.read))])
def test_the_error_for_other_damaged_files_names_the_file_and_a_remedy(folder, name, content, read):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*(again|delete)"):
        read(folder)


def sound(folder, read):
    (folder / "results.json").write_text('{"results": {}}')
    return read(folder)


@pytest.fixture
def diverged(folder) -> Path:
    """Return a run folder with a checkpoint in which one weight is NaN."""
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    name = next(name for name in checkpoint["model"] if name.endswith("conv.weight"))
    checkpoint["model"][name][3, 1, 0, 0] = math.nan
    (folder / "model_final.pth").unlink()
    torch.save(checkpoint, folder / "model_final.pth")
    return folder


def test_weights_that_are_nan_are_rejected_in_prediction_and_evaluation(run, diverged):
    message = "model_final.pth: 1 of .* tensors .*NaN.*conv.weight"
    with pytest.raises(ValueError, match=message):
        CerberusPredictor(diverged)
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(diverged / "model_final.pth")
    with pytest.raises(ValueError, match=message):
        load_model(cfg)


def test_embeddings_that_are_not_finite_are_an_error(folder, tmp_path):
    predictor = CerberusPredictor(folder)
    Image.new("RGB", (24, 48), (90, 60, 30)).save(tmp_path / "person.png")
    with torch.no_grad():
        next(predictor.model.parameters()).fill_(math.nan)
    picture = str(tmp_path / "person.png")
    encoder = TorchEncoder(predictor)
    asks = {"embed": predictor.embed, "recognise": predictor.recognise, "answers": predictor.answers,
            "search by picture": lambda path: predictor.search(path, [path]),
            "search by words": lambda path: predictor.search({"gender": "female"}, [path]),
            "encoder": lambda path: encoder.encode([Image.open(path)])}
    for ask in asks.values():
        with pytest.raises(ValueError, match="model_final.pth: 1 of 1 embeddings are not finite.*Use another checkp"):
            ask(picture)
