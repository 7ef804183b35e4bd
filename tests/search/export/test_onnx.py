"""Exported models: equal to their run, complete in one file, and not written if they differ."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from cerberus_plugin import CerberusPredictor, cli, config
from cerberus_plugin.attributes import GROUPS, MARKET1501
from cerberus_plugin.modeling import precision
from cerberus_plugin.search.calibration import Calibration
from cerberus_plugin.search.export.onnx import Agreement, ExportMismatch, build, compare, export, places_out_of_order
from cerberus_plugin.search.export.torch_encoder import Embedder, TorchEncoder, fingerprint_of
from cerberus_plugin.search.portable import ExportedEncoder, Verification
from cerberus_plugin.search.portable.exported import (
    BICUBIC_FORMAT,
    ENCODER_KEY,
    FORMAT_KEY,
    METADATA_FORMAT,
    VOCABULARY_KEY,
)
from cerberus_plugin.utils.images import read_image, to_array

import numpy as np
import onnx
import pytest
import torch
from fastreid.modeling.meta_arch import build_model
from onnx import numpy_helper
from PIL import Image
from support.processes import WITHOUT_TORCH

ROOT = Path(__file__).parents[3]
TEMPERATURES = {"gender": 0.5, "upper colour": 2.0}
CALIBRATION = Calibration(TEMPERATURES, {"gender": 0.1, "upper colour": math.inf},
                          Verification(20.0, -16.0, 0.5, "cosine", (), {0.01: 0.9}), record={})

pytestmark = pytest.mark.slow  # each export takes seconds


@pytest.fixture(scope="module", autouse=True)
def calibrated():
    """Give the shared run a calibration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CerberusPredictor, "calibration", CALIBRATION)
        yield


@pytest.fixture(scope="module")
def crops(market_root) -> Path:
    return market_root / "Market-1501-v15.09.15" / "bounding_box_test"


@pytest.fixture(scope="module")
def paths(crops) -> list[str]:
    return CerberusPredictor.images(crops)


@pytest.fixture(scope="module")
def images(paths) -> list:
    return list(map(read_image, paths))


@pytest.fixture(scope="module")
def predictor(run):
    return CerberusPredictor(run.cfg.OUTPUT_DIR, device="cpu", precise=True)


@pytest.fixture(scope="module")
def torch_encoder(predictor):
    return TorchEncoder(predictor, batch_size=5)


@pytest.fixture(scope="module")
def exported(run, crops, tmp_path_factory):
    """The file of the shared run, and the result of the export."""
    path = tmp_path_factory.mktemp("exported") / "deep" / "model.onnx"
    return path, export(run.cfg.OUTPUT_DIR, path, crops)


@pytest.fixture(scope="module")
def encoder(exported):
    return ExportedEncoder(exported[0], batch_size=4, threads=1)


@pytest.fixture
def changed(exported, tmp_path):
    """Write a modified copy of the exported file."""
    def change(edit) -> Path:
        model = onnx.load(exported[0])
        edit(model)
        onnx.save(model, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    return change


def set_metadata(model, key: str, edit) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == key)
    entry.value = edit(entry.value)


def change_initializer(model, which, edit) -> None:
    """Replace the values of the only initializer for which `which(name, values)` is true."""
    changed = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if which(tensor.name, values):
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(edit(values)), tensor.name))
            changed += 1
    assert changed == 1, changed


def test_an_exported_model_has_the_embeddings_and_attributes_of_the_run(exported, encoder, predictor, paths, images):
    assert exported[1].holds and exported[1].pictures == len(paths)
    embeddings = encoder.encode(images)
    assert embeddings == pytest.approx(predictor.embed(paths).numpy(), abs=1e-5)
    for row, expected in zip(encoder.vocabulary.recognise(embeddings), predictor.answers(paths)):
        assert {name: answer._replace(probability=0) for name, answer in row.items()} == {
            name: answer._replace(probability=0) for name, answer in expected.items()}
    assert {answer.abstained for answer in row.values()} == {True, False}


def test_both_encoders_of_a_model_have_the_same_attributes(encoder, torch_encoder, images):
    for name in ("fingerprint", "dim", "groups", "metric", "lasting_groups", "verification"):
        assert getattr(encoder, name) == getattr(torch_encoder, name)
    assert encoder.groups == GROUPS and len(encoder.fingerprint) == 64
    assert encoder.encode(images) == pytest.approx(torch_encoder.encode(images), abs=1e-5)
    assert encoder.vocabulary.temperatures == TEMPERATURES
    assert encoder.vocabulary.to_dict() == torch_encoder.vocabulary.to_dict()
    for one in (encoder, torch_encoder):
        assert one.encode([]).shape == (0, one.dim) and one.encode([]).dtype == np.float32


def test_the_graph_predicts_attributes_without_the_vocabulary(exported, encoder, images):
    outputs = encoder.run(images)
    assert (outputs["answers"] == encoder.vocabulary.nearest(outputs["embedding"])).all()
    shares = np.concatenate(encoder.vocabulary.probabilities(outputs["embedding"]), axis=1)
    assert outputs["attributes"] == pytest.approx(shares, abs=1e-5)
    searched = encoder.vocabulary.log_probabilities(outputs["embedding"])
    assert outputs["log_probabilities"] == pytest.approx(searched, abs=1e-4)
    columns = json.loads(encoder.session.get_modelmeta().custom_metadata_map["cerberus.attributes"])
    assert [column["name"] for column in columns] == [column.name for column in MARKET1501.columns]
    assert sum(len(column["classes"]) for column in columns) == shares.shape[1]


def test_embeddings_do_not_depend_on_the_batch_size(exported, images):
    rows = ExportedEncoder(exported[0], batch_size=1, providers=["CPUExecutionProvider"]).encode(images)
    assert ExportedEncoder(exported[0], batch_size=7).encode(images) == pytest.approx(rows, abs=1e-5)


def test_an_exported_model_runs_without_torch_and_without_telemetry(exported, encoder, images, paths, tmp_path):
    code = WITHOUT_TORCH + """
import json
from cerberus_plugin.search.portable import ExportedEncoder, read_image
encoder = ExportedEncoder(sys.argv[1], threads=1)
embedding = encoder.encode([read_image(sys.argv[2])])
print(json.dumps([embedding[0].tolist(), encoder.vocabulary.recognise(embedding)[0]]))
"""
    # The telemetry of onnxruntime writes a file to TMPDIR, except on CI servers.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    done = subprocess.run([sys.executable, "-c", code, str(exported[0]), paths[0]], capture_output=True, text=True,
                          cwd=ROOT, env=environment | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    embedding, answers = json.loads(done.stdout)
    here = encoder.encode(images[:1])
    assert embedding == pytest.approx(here[0].tolist(), abs=1e-5)
    assert {name: value for name, (value, *_) in answers.items()} == {
        name: answer.value for name, answer in encoder.vocabulary.recognise(here)[0].items()}


def test_the_export_is_one_file_without_paths_of_the_machine(exported):
    assert os.listdir(exported[0].parent) == [exported[0].name]
    for word in (str(ROOT), "cerberus_plugin/", "site-packages", sys.prefix):
        assert word.encode() not in exported[0].read_bytes()


def test_a_fingerprint_depends_on_weights_and_on_settings_that_affect_embeddings(predictor, monkeypatch):
    before = fingerprint_of(predictor)
    monkeypatch.setattr(predictor, "cfg", predictor.cfg.clone())
    predictor.cfg.MODEL.DEVICE, predictor.cfg.MODEL.WEIGHTS = "cuda", "elsewhere.pth"
    predictor.cfg.INPUT.SIZE_TEST = tuple(predictor.cfg.INPUT.SIZE_TEST)
    predictor.cfg.TEST.AUTOCAST, predictor.cfg.SOLVER.MAX_EPOCH = "bfloat16", 99
    assert fingerprint_of(predictor) == before
    with monkeypatch.context() as later:  # a version with one more key
        known = {**config.defaults(), "MODEL.LATER_KEY": 0}
        later.setattr(config, "defaults", lambda: known)
        predictor.cfg.MODEL.LATER_KEY = 0
        assert fingerprint_of(predictor) == before
        predictor.cfg.MODEL.LATER_KEY = 1
        assert fingerprint_of(predictor) != before
    del predictor.cfg.MODEL["LATER_KEY"]
    predictor.cfg.INPUT.SIZE_TEST = [96, 48]
    assert fingerprint_of(predictor) != before
    predictor.cfg.INPUT.SIZE_TEST, predictor.cfg.INPUT.INTERPOLATION = [48, 24], "bilinear"
    assert fingerprint_of(predictor) != before
    predictor.cfg.INPUT.INTERPOLATION = "bicubic"
    predictor.cfg.MODEL.CERBERUS.SIGMA += 1.0
    assert fingerprint_of(predictor) != before
    predictor.cfg.MODEL.CERBERUS.SIGMA -= 1.0
    weight = predictor.model.prototypes.rows["upper"]
    with torch.no_grad():
        weight[0, 0] += 1e-3
        assert fingerprint_of(predictor) != before
        weight[0, 0] -= 1e-3


def flip_channels(model) -> None:
    first = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    change_initializer(model, lambda name, _: name == first, lambda weight: weight[:, ::-1])


def age_by_one(model) -> None:
    ages = [0, 1, 2, 3, 0, 1, 2, 3]  # of the 8 semantic IDs of the group identity
    change_initializer(model, lambda _, values: values.shape == (8,) and sorted(values) == sorted(ages),
                       lambda classes: (classes + 1) % 4)


def flatten_probabilities(model) -> None:
    change_initializer(model, lambda name, _: name == "held_1", lambda held: np.full_like(held, 0.25))


def other_vocabulary(model) -> None:
    def edit(text: str) -> str:
        record = json.loads(text)
        record["groups"][1]["labels"].reverse()
        return json.dumps(record)

    set_metadata(model, VOCABULARY_KEY, edit)


def other_run(model) -> None:
    set_metadata(model, ENCODER_KEY, lambda text: json.dumps(json.loads(text) | {"fingerprint": "0" * 64}))


@pytest.mark.parametrize("edit, wrong", [
    (flip_channels, {"cosine", "places"}), (age_by_one, {"answers"}), (flatten_probabilities, {"probability"}),
    (other_vocabulary, {"answers"}), (other_run, {"same_model"})], ids=lambda value: getattr(value, "__name__", ""))
def test_the_comparison_detects_a_file_with_other_results(changed, torch_encoder, paths, edit, wrong):
    agreement = compare(ExportedEncoder(changed(edit), batch_size=4), torch_encoder, paths)
    assert not agreement.holds
    bad = {"cosine": agreement.cosine < 0.9999, "places": agreement.places > 0, "answers": agreement.answers > 0,
           "probability": agreement.probability > 1e-3, "same_model": not agreement.same_model}
    assert wrong <= {name for name, is_bad in bad.items() if is_bad}


def test_without_the_vocabulary_all_attributes_count_as_different(exported, torch_encoder, paths):
    encoder = ExportedEncoder(exported[0])
    encoder.vocabulary = None
    assert compare(encoder, torch_encoder, paths).answers == len(paths) * len(MARKET1501.columns)


def test_a_wrong_export_is_rejected_with_its_differences_and_keeps_the_previous_file(exported, run, crops, tmp_path,
                                                                                     monkeypatch):
    model = onnx.load(exported[0])
    flip_channels(model)
    monkeypatch.setattr("cerberus_plugin.search.export.onnx.build", lambda encoder: model)
    (tmp_path / "model.onnx").write_text("the previous file")
    with pytest.raises(ExportMismatch, match=r"model.onnx: not written.* lowest cosine -?0\.\d+ \(at least 0.9999\)"):
        export(run.cfg.OUTPUT_DIR, tmp_path / "model.onnx", crops)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "the previous file"


def test_differences_of_rankings_are_counted_except_for_rounding():
    right = np.array([[9, 0.5, 0.4, 0.3], [9, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]])
    assert places_out_of_order(right, right) == 0
    wrong = right.copy()
    wrong[0] = [9, 0.3, 0.4, 0.5]  # the second and the third are in the wrong order
    assert places_out_of_order(wrong, right) == 2
    rounding, nearly = right.copy(), right.copy()
    rounding[0, 2], nearly[0, 2] = 0.5 + 1e-9, 0.5 - 1e-6
    assert places_out_of_order(rounding, nearly) == 0 and places_out_of_order(rounding, right) == 1


@pytest.mark.parametrize("figures", [{"cosine": 0.99989}, {"places": 1}, {"answers": 1}, {"probability": 0.002},
                                     {"same_model": False}])
def test_agreement_requires_all_criteria(figures):
    good = {"pictures": 3, "cosine": 0.99999, "places": 0, "answers": 0, "probability": 1e-6, "same_model": True}
    assert Agreement(**good).holds and not Agreement(**good | figures).holds
    assert ("fingerprints differ" in str(Agreement(**good | figures))) == ("same_model" in figures)


def write_run(cfg) -> None:
    """Write the folder of a run with random weights."""
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, Path(cfg.OUTPUT_DIR) / "model_final.pth")
    (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump())


def test_a_baseline_only_exports_its_embedding(small_config, images, paths, tmp_path):
    cfg = small_config("MODEL.HEADS.NUM_CLASSES", 4, file="configs/Market1501/bot_R50.yml")
    write_run(cfg)
    assert export(cfg.OUTPUT_DIR, tmp_path / "bot.onnx", paths).holds
    encoder = ExportedEncoder(tmp_path / "bot.onnx")
    assert (encoder.vocabulary, encoder.groups) == (None, ())
    assert (encoder.metric, encoder.architecture) == ("cosine", "Baseline")
    assert list(outputs := encoder.run(images)) == ["embedding"]
    assert np.linalg.norm(outputs["embedding"], axis=1) == pytest.approx(1, abs=1e-5)
    embeddings = CerberusPredictor(cfg.OUTPUT_DIR, device="cpu").embed(paths)
    assert outputs["embedding"] == pytest.approx(torch.nn.functional.normalize(embeddings).numpy(), abs=1e-5)


def test_a_run_that_resizes_bilinearly_is_exported_with_its_interpolation(small_config, tmp_path):
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 4, 3)).astype(np.uint8)) for i in range(8)]
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]  # noise that is enlarged shows the interpolation
    for path, image in zip(paths, images):
        image.save(path)
    cfg = small_config("MODEL.HEADS.NUM_CLASSES", 4, "INPUT.INTERPOLATION", "bilinear",
                       file="configs/Market1501/bot_R50.yml")
    write_run(cfg)
    assert export(cfg.OUTPUT_DIR, tmp_path / "bilinear.onnx", paths).holds
    encoder = ExportedEncoder(tmp_path / "bilinear.onnx")
    assert encoder.interpolation == "bilinear"
    embeddings = torch.nn.functional.normalize(CerberusPredictor(cfg.OUTPUT_DIR, device="cpu").embed(paths)).numpy()
    assert encoder.encode(images) == pytest.approx(embeddings, abs=1e-5)
    encoder.interpolation = "bicubic"
    assert abs(encoder.encode(images) - embeddings).max() > 1e-2
    model = onnx.load(tmp_path / "bilinear.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}[FORMAT_KEY] == METADATA_FORMAT
    set_metadata(model, ENCODER_KEY, lambda text: json.dumps(json.loads(text) | {"resize": "bicubic"}))
    onnx.save(model, tmp_path / "wrong.onnx")
    torch_encoder = TorchEncoder(CerberusPredictor(cfg.OUTPUT_DIR, device="cpu", precise=True))
    assert not compare(ExportedEncoder(tmp_path / "wrong.onnx"), torch_encoder, paths).holds
    set_metadata(model, ENCODER_KEY, lambda text: json.dumps(json.loads(text) | {"resize": "nearest"}))
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(ValueError, match="its metadata is damaged .*resized by 'nearest', expected one of bicubic"):
        ExportedEncoder(tmp_path / "wrong.onnx")


def test_a_model_that_resizes_bicubically_is_written_for_earlier_readers_too(exported):
    assert ExportedEncoder(exported[0]).session.get_modelmeta().custom_metadata_map[FORMAT_KEY] == BICUBIC_FORMAT


class Powers(torch.nn.Module):
    """A module with a parameter named by a Python keyword, as in the heads; `count` returns the number of images."""

    def __init__(self, count) -> None:
        super().__init__()
        self.exponents = torch.nn.ParameterDict({"global": torch.nn.Parameter(torch.full((1,), 2.0))})
        self.count = count

    def forward(self, batch: dict) -> torch.Tensor:
        rows = batch["images"].flatten(1) ** self.exponents["global"]
        return rows * torch.ones(1, 1).expand(self.count(rows), -1)


@pytest.fixture
def powers(torch_encoder):
    def build_with(count):
        model = Powers(count)
        return model, build(SimpleNamespace(
            embedder=Embedder(model, 1, "euclidean"), vocabulary=None, groups=(), metric="euclidean", dim=3 * 48 * 24,
            fingerprint="0", lasting_groups=(), verification=None, predictor=torch_encoder.predictor))

    return build_with


def test_parameters_named_by_keywords_are_exported_and_restored(powers, tmp_path, images):
    model, graph = powers(lambda rows: rows.shape[0])
    assert isinstance(model.exponents, torch.nn.ParameterDict) and list(model.state_dict()) == ["exponents.global"]
    onnx.save(graph, tmp_path / "powers.onnx")
    pixels = to_array(images[:1], (48, 24)).astype(np.float32)
    assert ExportedEncoder(tmp_path / "powers.onnx").encode(images[:1]) == pytest.approx(pixels.reshape(1, -1) ** 2)


def test_a_graph_with_a_fixed_batch_size_is_rejected(powers):
    with pytest.raises(ExportMismatch, match="only supports batches of 2 images"):
        powers(len)


def test_embeddings_of_models_with_euclidean_distance_are_not_normalised():
    class Doubling(torch.nn.Module):
        def forward(self, batch):
            return 2 * batch["images"].flatten(1)

    pixels = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 2, 2)
    assert Embedder(Doubling(), 1, "euclidean")(pixels).tolist() == [[2.0 * i for i in range(12)]]
    assert Embedder(Doubling(), 1, "cosine")(pixels).norm().item() == pytest.approx(1)
    assert Embedder(Doubling(), 3, "euclidean")(pixels).norm().item() == pytest.approx(3 ** 0.5)


def test_euclidean_ranks_are_by_distance():
    from cerberus_plugin.search.export.onnx import _scores

    assert _scores(np.array([[0.0, 0], [3, 4]], dtype=np.float32), "euclidean").tolist() == [[0, -5], [-5, 0]]


def test_the_command_prints_the_comparison(exported, run, crops, tmp_path, monkeypatch, capsys, log):
    (tmp_path / "crops").mkdir()
    for path in sorted(crops.iterdir())[:6]:
        (tmp_path / "crops" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "crops" / "zzz.jpg").write_bytes(b"broken")
    model = onnx.load(exported[0])
    monkeypatch.setattr("cerberus_plugin.search.export.onnx.build", lambda encoder: model)
    output = tmp_path / "model.onnx"
    set_metadata(model, VOCABULARY_KEY, lambda text: json.dumps(json.loads(text) | {"temperatures": {},
                                                                                     "withhold_below": {}}))
    # The graph's probabilities are calibrated.
    monkeypatch.setattr("cerberus_plugin.search.export.onnx.LARGEST_DIFFERENCE", 1.0)
    cli.main(["export", "--run", run.cfg.OUTPUT_DIR, "--output", str(output), "--images", str(tmp_path / "crops"),
              "--pictures", "4"])
    assert f"wrote {output}; 3 images: lowest cosine " in capsys.readouterr().out
    assert "skipped in the check: " in log.text and "zzz.jpg: " in log.text


def test_errors_of_the_export_are_reported(run, torch_encoder, crops, paths, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="export: found 2 readable images to check the model on, expected at least 3"):
        export(run.cfg.OUTPUT_DIR, tmp_path / "model.onnx", paths[:2])
    monkeypatch.setattr(torch_encoder.predictor, "cfg", torch_encoder.predictor.cfg.clone())
    torch_encoder.predictor.cfg.INPUT.SIZE_TEST = [48]
    with pytest.raises(ValueError, match=r"INPUT.SIZE_TEST is \[48\] and INPUT.CROP.ENABLED False; only models"):
        build(torch_encoder)
    monkeypatch.setattr("cerberus_plugin.search.export.onnx.find_spec",
                        lambda name: None if name.startswith("onnxs") else name)
    with pytest.raises(ImportError, match="export needs onnxscript: pip install onnxscript"):
        export(run.cfg.OUTPUT_DIR, tmp_path / "model.onnx", crops)
    assert list(tmp_path.iterdir()) == []


def test_a_precise_predictor_computes_in_float32(run):
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "computes_in_half", lambda device: True)
        patch.setattr(precision, "cast_forward", lambda model, *precisions, **_: asked.append(precisions))
        folder = Path(run.cfg.OUTPUT_DIR)
        text = (folder / "config.yaml").read_text()
        changed = run.cfg.clone()
        changed.defrost()
        changed.TEST.AUTOCAST = "bfloat16"
        (folder / "config.yaml").write_text(changed.dump())
        try:
            CerberusPredictor(folder, device="cpu")
            CerberusPredictor(folder, device="cpu", precise=True)
        finally:
            (folder / "config.yaml").write_text(text)
    assert [evaluation for _, evaluation in asked] == ["bfloat16", ""]
