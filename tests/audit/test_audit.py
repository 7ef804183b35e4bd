"""`cerberus audit`: with models of folds, after an interruption, and with a trained run."""

import json
import shlex

from cerberus_plugin import cli
from cerberus_plugin.audit import auditing, predictions, trust
from cerberus_plugin.audit.auditing import audit, text
from cerberus_plugin.audit.predictions import predict_by_folds, predict_by_run
from cerberus_plugin.own_data.people import read_people, read_wording, split_people

import numpy as np
import pytest
from support import training  # noqa: F401  registers the tiny backbone
from support.own_data import forgotten_schemas, write_people

TINY = {"MODEL.BACKBONE.NAME": "build_tiny_backbone", "MODEL.BACKBONE.FEAT_DIM": "16",
        "MODEL.HEADS.EMBEDDING_DIM": "16", "INPUT.SIZE_TRAIN": "[48, 24]",
        "INPUT.SIZE_TEST": "[48, 24]"}


@pytest.fixture(scope="module", autouse=True)
def own_schemas():
    """Unregister the schemas of these folders afterwards."""
    with forgotten_schemas():
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Eight people, two of them with the same image, and their audit with two folds."""
    folder = write_people(tmp_path_factory.mktemp("own") / "site")
    (folder / "img/1_0.png").write_bytes((folder / "img/0_0.png").read_bytes())
    out = folder.parent / "audit"
    return folder, out, audit(str(folder), out, folds=2, epochs=2, given=TINY)


def test_the_model_of_a_fold_is_trained_without_the_people_of_the_fold(site):
    folder, out, _ = site
    own = read_people(folder)
    texts = [(out / f"fold{k}/split.csv").read_text() for k in (1, 2)]
    sides = [dict(line.split(",") for line in text.splitlines()[1:]) for text in texts]
    for k in (0, 1):
        trained = {own.person[row] for row, name in enumerate(own.files) if sides[k][name] == "train"}
        judged = {own.person[row] for row, name in enumerate(own.files) if sides[k][name] != "train"}
        assert len(trained) == len(judged) == 4 and not trained & judged
        config = (out / f"fold{k + 1}/config.yaml").read_text()
        assert f"SPLIT_FILE: {out}/fold{k + 1}/split.csv" in config
    assert not (folder / "split.csv").exists()


def test_the_files_contain_all_findings_and_copies_under_two_people(site):
    _, out, found = site
    record = json.loads((out / "audit.json").read_text())
    assert record["people"] == 8 and len(record["findings"]) == len(found.findings)
    confidences = [one.confidence for one in found.findings]
    assert confidences == sorted(confidences, reverse=True)
    copy, = (one for one in found.findings if one.kind == "copies")
    assert (copy.person, copy.proposed, copy.confidence) == ("p0", "p1", 1.0)
    assert copy.choices[0].rows == (("img/1_0.png", "", "", "person", "p0", "p1"),)
    assert (out / "audit.html").read_text().count("<article") == len(found.findings)


def test_a_finished_audit_is_not_trained_again_and_other_settings_raise_an_error(site, monkeypatch):
    folder, out, found = site

    def fail(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(predictions, "train_once", fail)
    assert audit(str(folder), out, folds=2, epochs=2, given=TINY).findings == found.findings
    with pytest.raises(ValueError, match="fold1/config.yaml: the run in this folder was made with SOLVER.MAX_EPOCH 2"):
        audit(str(folder), out, folds=2, epochs=3, given=TINY)


def test_predictions_come_from_the_model_that_was_not_trained_on_the_person(site):
    folder, out, _ = site
    own = read_people(folder)
    found = predict_by_folds(str(folder), own, read_wording(own), out, folds=2, epochs=2, given=TINY)
    assert [column.name for column in found.columns] == ["hat", "vest"]
    assert [p.shape for p in found.probabilities] == [(24, 2), (24, 3)]
    for k in (0, 1):
        with np.load(out / f"fold{k + 1}/predictions.npz") as own_file:
            assert np.allclose(found.probabilities[1][found.model == k], own_file["column1"][found.model == k])
    assert all(np.allclose(p.sum(axis=1), 1, atol=1e-5) for p in found.probabilities)
    assert np.allclose(np.linalg.norm(found.embeddings[0].astype(float), axis=1), 1, atol=1e-2)


def test_people_that_a_run_was_trained_on_are_excluded(site, tmp_path):
    folder, out, _ = site
    own = split_people(read_people(folder), write=False)
    wording = read_wording(own)
    found = predict_by_run(str(folder), own, wording, tmp_path, out / "fold1")
    assert (found.model == -1).tolist() == own.is_in("train").tolist()
    assert np.isnan(found.probabilities[0][own.is_in("train")]).all()
    assert "was trained on 4 people of the data (12 images)" in found.notes[0]
    (tmp_path / "other").mkdir()
    other = write_people(tmp_path / "other/site")
    elsewhere = split_people(read_people(other), write=False)
    found = predict_by_run(str(other), elsewhere, wording, tmp_path, out / "fold1")
    assert (found.model == 0).all() and "count as unknown" in found.notes[0]


def test_the_command_prints_a_table_and_errors(site, tmp_path, capsys, monkeypatch):
    folder, out, _ = site
    monkeypatch.setattr(auditing, "MOST_EXAMPLES", 1)
    options = shlex.join(word for pair in TINY.items() for word in pair)
    cli.main(shlex.split(f"audit {folder} --out {out} --folds 2 --epochs 2 {options}"))
    printed = capsys.readouterr().out
    assert "copies" in printed and "audit.html" in printed
    with pytest.raises(SystemExit, match="--folds is 9, expected 2 to 4"):
        cli.main(["audit", str(folder), "--out", str(tmp_path / "more"), "--folds", "9"])


def test_the_files_the_page_and_the_terminal_show_the_accuracy_of_the_models(site):
    folder, out, found = site
    own = read_people(folder)
    wording = read_wording(own)
    predicted = predict_by_folds(str(folder), own, wording, out, folds=2, epochs=2, given=TINY)
    record = json.loads((out / "audit.json").read_text())["models"]
    vest = record["attributes"][1]
    # Each person has one label and one image under each of three cameras: geometric means of three images.
    mean = np.log(predicted.probabilities[1].clip(1e-6)).reshape(8, 3, 3).mean(axis=1).argmax(axis=1)
    label = np.array([predicted.columns[1].answers.index(own.attributes["vest"][3 * person]) for person in range(8)])
    assert vest["labels"] == 8 and vest["right"] == pytest.approx((mean == label).mean())
    assert (vest["frequent"], vest["constant"]) == ("none", 3 / 8)  # three each of none and red: the first one
    # Two epochs on noise are not enough to judge anything.
    assert not any(one["judged"] for one in record["attributes"]) and not record["people"]["judged"]
    assert {one.kind for one in found.findings} == {"copies"}
    page = (out / "audit.html").read_text()
    for words in (text(found), page):
        assert "vest" in words and "38% (none)" in words and "--epochs" in words and "--run" in words


def test_without_identities_labels_are_corrected_by_image(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "LEVEL", 1.1)  # judge all attributes, although two epochs on noise teach nothing
    folder = write_people(tmp_path / "site")
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join(",".join(line.split(",")[i] for i in (0, 3, 4)) for line in lines)
                                         + "\n")
    found = audit(str(folder), tmp_path / "audit", folds=2, epochs=2, given=TINY)
    assert found.findings and {one.kind for one in found.findings} == {"label"}
    assert found.trust.people is None and found.trust.attributes[0].labels == 24
    assert all(row[0] and not row[1] for one in found.findings for choice in one.choices for row in choice.rows)
