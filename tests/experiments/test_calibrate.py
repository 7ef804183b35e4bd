"""Tests of the command that calibrates a run, and of a predictor with and without calibration."""

import contextlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from cerberus_plugin import CerberusPredictor
from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.evaluation.embeddings import Gathered
from cerberus_plugin.experiments import calibrate
from cerberus_plugin.experiments.calibrate import read_calibration
from cerberus_plugin.inference import ProbabilityReader
from cerberus_plugin.search import calibration
from cerberus_plugin.search.calibration import Calibration
from cerberus_plugin.search.calibration.run_calibration import answers_of
from cerberus_plugin.search.export.torch_encoder import TorchEncoder

import pytest
import torch
import yaml
from support.data import random_labels

NAMES = [column.name for column in MARKET1501.columns]
OPTIONS = ("--accuracy", "0.6", "--confidence", "0.6", "--false-match-rate", "0.3", "1e-6",
           "--device", "cpu")

pytestmark = pytest.mark.slow  # trains a model


def copy_of(run, folder: Path) -> Path:
    """Create a run folder with a link to the weights of another."""
    folder.mkdir()
    original = Path(run.cfg.OUTPUT_DIR)
    shutil.copy(original / "config.yaml", folder)
    (folder / "model_final.pth").symlink_to(original / "model_final.pth")
    return folder


@pytest.fixture(scope="module")
def calibrated(run, market_root, tmp_path_factory):
    """A run that was calibrated on three test identities and measured on the other three, and the printed text."""
    folder = copy_of(run, tmp_path_factory.mktemp("calibrated") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(market_root))
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            calibrate.main([str(folder), *OPTIONS])
    return folder, shown.getvalue()


@pytest.fixture(scope="module")
def folder(calibrated):
    return calibrated[0]


@pytest.fixture(scope="module")
def predictor(folder):
    return CerberusPredictor(folder, device="cpu")


@pytest.fixture(scope="module")
def crops(market_root) -> list[str]:
    return CerberusPredictor.images(market_root / "Market-1501-v15.09.15" / "query")


@pytest.fixture
def altered(predictor, monkeypatch, market_root, use_root):
    """The predictor with a configuration that a test may change."""
    use_root(market_root)
    monkeypatch.setattr(predictor, "cfg", predictor.cfg.clone())
    return predictor


def test_the_command_writes_table_plot_and_record(calibrated, run):
    folder, shown = calibrated[0] / "calibration", calibrated[1]
    assert (folder / "calibration.txt").read_text() in shown and " always " in shown
    assert "With a confidence of 60 %, for each attribute separately, at least 60 % of the certain predictions" in shown
    assert "rejected: 3 people, needs 1,355" in shown
    assert (folder / "calibration.png").stat().st_size > 10_000
    record = json.loads((folder / "calibration.json").read_text())
    assert record["fitted on"] == "3 of the test identities" and record["measured on"] == "3 test identities"
    assert list(record["columns"]) == NAMES
    scales = CerberusPredictor(run.cfg.OUTPUT_DIR, device="cpu").reader.scales  # fitted on the training images
    assert len(set(scales.values())) > 1
    for name, row in record["columns"].items():
        assert row["cosine scale"] == pytest.approx(scales[name] / row["temperature"])
        assert row["fitted on"] == row["measured on"] == {"images": 12, "identities": 3}
    manifest = json.loads((Path(run.cfg.OUTPUT_DIR) / "results.json").read_text())["manifest"]
    assert record["checkpoint sha256"] == manifest["checkpoint sha256"] is not None


def test_temperatures_increase_the_likelihood_on_the_images_to_fit_on(altered):
    fitting, measuring, _ = calibrate.fit_and_measure_on(altered, "Market1501Attributes")
    assert not set(fitting.pids.tolist()) & set(measuring.pids.tolist())
    columns = calibrate.Columns(altered.reader, fitting)
    fitted = [columns.fit(m) for m in range(len(NAMES))]
    found = read_calibration(altered.run_folder)
    assert list(found.temperatures.values()) == pytest.approx(fitted)
    for m, temperature in enumerate(fitted):
        likelier = columns.negative_log_likelihood(m, temperature) <= columns.negative_log_likelihood(m, 1.0)
        right = columns.right[m][:, columns.answers[m] + 1]
        mean = ((columns.scores[m] / temperature).softmax(dim=1) * right).sum(dim=1).mean().item()
        assert likelier or mean == pytest.approx(4 / 5, abs=1e-4), "the limit for three people"


def test_thresholds_are_fitted_on_the_pairs_of_the_people_to_fit_on(altered):
    fitting, _, _ = calibrate.fit_and_measure_on(altered, "Market1501Attributes")
    pairs = calibration.collect_pairs(altered.picture_scores, fitting.embeddings, fitting.pids, fitting.camids)
    assert len(pairs.different) == 36
    found = read_calibration(altered.run_folder).verification.threshold(0.3)
    assert found == pytest.approx(calibration.threshold_for(pairs, 0.3, 0.6))


def test_answers_have_calibrated_probabilities_and_some_are_uncertain(predictor, crops):
    answers = predictor.answers(crops)
    assert len(answers) == len(crops) and list(answers[0]) == NAMES
    reader = predictor.reader.calibrated(predictor.calibration.temperatures)
    classes, probabilities = reader.confidences(predictor.embed(crops))
    for n, row in enumerate(answers):
        for m, column in enumerate(MARKET1501.columns):
            answer, k = row[column.name], classes[n, m].item()
            assert answer.probability == pytest.approx(probabilities[n, m].item())
            assert answer.value == (column.classes[k] if k >= 0 else "none") and answer.calibrated
            assert answer.abstained == (answer.probability < predictor.calibration.withhold_below[column.name])
    told = TorchEncoder(predictor).vocabulary.recognise(predictor.embed(crops).numpy())
    for row, portable in zip(answers, told):
        for name, answer in portable.items():
            assert answer._replace(probability=0) == row[name]._replace(probability=0)
            assert answer.probability == pytest.approx(row[name].probability, abs=1e-5)
    assert not predictor.reader.temperatures, "recognition, search and acceleration do not change"
    assert any(answer.abstained for row in answers for answer in row.values())


def test_each_answer_states_whether_it_is_calibrated(predictor, crops):
    whole, embeddings = predictor.calibration, predictor.embed(crops[:1])
    part = Calibration({"hat": whole.temperatures["hat"]}, {"hat": 1.1}, whole.verification, whole.record)
    answers = answers_of(predictor.reader, embeddings, part)[0]
    assert {name for name, answer in answers.items() if answer.calibrated} == {"hat"}
    assert answers["hat"].abstained and not answers["gender"].abstained


def test_the_probability_that_two_images_show_the_same_person_depends_on_the_prior(predictor, crops):
    fitted = predictor.calibration.verification
    score = predictor.picture_scores(*(predictor.embed(crop) for crop in crops[:2])).item()
    assert predictor.same_person(*crops[:2]) == pytest.approx(fitted.probability(score), rel=1e-4)
    one, rare = predictor.same_person(crops[0], crops[0]), predictor.same_person(crops[0], crops[0], prior=0.01)
    assert one > 0.5 and one / (1 - one) == pytest.approx(99 * rare / (1 - rare), rel=1e-3)


def test_a_run_without_calibration_warns_and_gives_uncalibrated_answers(run, tmp_path, crops, log):
    bare = CerberusPredictor(copy_of(run, tmp_path / "run"), device="cpu")
    assert bare.calibration is None
    answers = bare.answers(crops[0])[0]
    assert "attributes are not calibrated" in log.text
    probabilities = bare.reader.confidences(bare.embed(crops[0]))[1][0]
    assert [answer.probability for answer in answers.values()] == pytest.approx(probabilities.tolist())
    assert not any(answer.calibrated or answer.abstained for answer in answers.values())
    with pytest.raises(FileNotFoundError, match="calibration.json: not found; scores are not probabilities"):
        bare.same_person(*crops[:2])
    with pytest.raises(FileNotFoundError, match="not found, this run is not calibrated; calibrate with"):
        read_calibration(tmp_path / "run")


def test_a_calibration_of_another_checkpoint_or_score_is_rejected(folder, altered, tmp_path, crops):
    assert read_calibration(folder).record == read_calibration(folder, folder / "model_final.pth").record
    other = tmp_path / "model_best.pth"
    other.write_bytes(b"other weights")
    with pytest.raises(ValueError, match="was fitted with another checkpoint .* than .*model_best.pth"):
        read_calibration(folder, other)
    with pytest.raises(FileNotFoundError, match="nowhere.pth: cannot be read"):
        read_calibration(folder, "nowhere.pth")
    altered.cfg.TEST.GROUPS = ["head"]
    with pytest.raises(ValueError, match="fitted on cosine scores of all groups, but .* TEST.GROUPS .'head'."):
        altered.same_person(*crops[:2])


@pytest.mark.parametrize(("section", "option", "value", "was"), [
    (("TEST", "PAR"), "COSINE_SCALE", 64.0, 16.0), (("TEST", "PAR"), "FORCE_COLOUR", True, False),
    (("INPUT",), "SIZE_TEST", [128, 64], [48, 24])])
def test_a_calibration_of_other_settings_is_rejected(folder, tmp_path, crops, section, option, value, was):
    shutil.copytree(folder, tmp_path / "run", symlinks=True)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    node = config
    for name in section:
        node = node[name]
    node[option] = value
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    changed = CerberusPredictor(tmp_path / "run", device="cpu")
    now, then = re.escape(str(value)), re.escape(str(was))
    message = f"with other settings .{'.'.join((*section, option))} is {now}, but was {then}.,"
    for use in (lambda: changed.answers(crops[0]), lambda: changed.same_person(*crops[:2])):
        with pytest.raises(ValueError, match=message):
            use()
    assert read_calibration(tmp_path / "run").record["settings"]["reader"] == "PrototypeReader"


def test_held_out_identities_are_used_to_fit(altered):
    altered.cfg.DATASETS.HOLD_OUT = 4
    fitting, measuring, named = calibrate.fit_and_measure_on(altered, "Market1501Attributes")
    assert named == "4 held-out training identities" and len(fitting.pids.unique()) == 4
    assert len(measuring.pids.unique()) == 6 and 0 not in measuring.pids, "distractors are excluded"


def test_the_held_out_identities_are_rejected_as_a_test_dataset(altered):
    altered.cfg.DATASETS.HOLD_OUT = 4
    with pytest.raises(ValueError, match="--dataset held-out: the calibration is fitted on these identities"):
        calibrate.fit_and_measure_on(altered, "held-out")


def test_images_are_embedded_without_flips_like_by_a_predictor(altered, crops):
    altered.cfg.TEST.FLIP.ENABLED = True
    fitting, measuring, _ = calibrate.fit_and_measure_on(altered, "Market1501Attributes")
    own = torch.cat([part.query.embeddings for part in (fitting, measuring)])
    pids = torch.cat([part.query.pids for part in (fitting, measuring)])
    assert torch.allclose(own[pids.argsort()], altered.embed(crops), atol=1e-5)


def test_a_second_calibration_gives_the_same_result(altered, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "plot", lambda *args: None)
    calibrate.run(altered, "Market1501Attributes", [0.3, 1e-6], 0.6, 0.5, tmp_path, 0.6)
    first, again = (json.loads((where / "calibration.json").read_text())
                    for where in (altered.run_folder / "calibration", tmp_path))
    assert first == again


def test_without_attributes_only_pairs_are_calibrated(altered, monkeypatch, tmp_path, log, crops):
    reader = altered.reader
    monkeypatch.setattr(altered, "reader", None)
    record = calibrate.run(altered, "Market1501Attributes", [0.1], 0.95, 0.5, tmp_path)
    assert record["columns"] == {} and "does not predict attributes; only pairs" in log.text
    monkeypatch.setattr(altered, "reader", reader)
    parts = [replace(part, attributes=None)
             for part in calibrate.fit_and_measure_on(altered, "Market1501Attributes")[:2]]
    monkeypatch.setattr(calibrate, "fit_and_measure_on", lambda *args: (*parts, "three"))
    record = calibrate.run(altered, "Market1501", [0.1], 0.95, 0.5, tmp_path)
    assert record["columns"] == {} and "Market1501: has no attributes; only pairs" in log.text
    assert Calibration.read(tmp_path / "calibration.json").temperatures == {}
    monkeypatch.setattr(altered, "reader", None)
    with pytest.raises(ValueError, match="this model does not predict attributes"):
        altered.answers(crops[0])
    monkeypatch.setattr(altered, "reader", type("Bare", (), {"schema": reader.schema})())
    with pytest.raises(ValueError, match="predicts attributes without probabilities; use `recognise`"):
        altered.answers(crops[0])


def test_too_few_people_or_pairs_are_rejected(altered, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="fitted on 3 of the test identities: .* 3 identities are too few to "
                                         "guarantee an accuracy of 0.95 with a confidence of 0.9.* 45 .* 0.464. "
                                         "Fit on more people"):
        calibrate.run(altered, "Market1501Attributes", [0.1], 0.95, 0.5, tmp_path)
    fitting, measuring, named = calibrate.fit_and_measure_on(altered, "Market1501Attributes")
    one = calibrate.of_identities(fitting, fitting.pids[:1])
    monkeypatch.setattr(calibrate, "fit_and_measure_on", lambda *args: (one, measuring, named))
    with pytest.raises(ValueError, match="same person: found 6 pairs of images of one person and 0 pairs"):
        calibrate.run(altered, "Market1501Attributes", [0.1], 0.5, 0.5, tmp_path, 0.4)


@pytest.mark.parametrize(("option", "value"), [("--accuracy", "1"), ("--confidence", "1"), ("--prior", "0"),
                                               ("--false-match-rate", "-0.5")])
def test_numbers_outside_0_and_1_are_rejected(folder, capsys, option, value):
    with pytest.raises(SystemExit):
        calibrate.main([str(folder), option, value])
    assert f"{option}: {value}: expected a number between 0 and 1, exclusive" in capsys.readouterr().err


def test_an_attribute_without_labels_is_not_calibrated(altered, log):
    fitting, measuring, _ = calibrate.fit_and_measure_on(altered, "Market1501Attributes")
    labels = fitting.attributes.clone()
    labels[:, MARKET1501.index("hat")] = -1
    fitting = replace(fitting, attributes=labels)
    columns, curves = calibrate.calibrate_columns(altered.reader, fitting, measuring, 0.5, 0.5)
    assert list(columns) == list(curves) == [name for name in NAMES if name != "hat"]
    assert "hat: no labels in the images to fit on" in log.text
    assert torch.equal(curves["gender"][0][2], measuring.pids)


def test_a_classifier_without_none_is_wrong_if_no_colour_is_listed():
    draw = torch.Generator().manual_seed(0)
    labels = random_labels(MARKET1501, 40)
    reader = ProbabilityReader(MARKET1501, torch.randn(sum(MARKET1501.column_sizes), 6, generator=draw),
                               torch.zeros(sum(MARKET1501.column_sizes)))
    people = Gathered(torch.randn(40, 6, generator=draw), torch.arange(40), torch.zeros(40).long(), labels, 0)
    m = NAMES.index("upper colour")
    answers, (truth, _) = calibrate.Columns(reader, people).bare[m], MARKET1501.column_truth(labels)
    bare, said = ~truth[m].any(dim=1), reader.recognise(people.embeddings)[:, m]
    assert bare.any() and not answers[1][bare].any()
    assert answers[1].tolist() == truth[m][torch.arange(40), said].tolist()
    columns, _ = calibrate.calibrate_columns(reader, people, people, 0.5)
    row = columns["upper colour"]
    assert row["after"]["NLL"] < row["before"]["NLL"] and "cosine scale" not in row
