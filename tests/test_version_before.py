"""Files that the version before the modules moved has written open, and give the answers that it gave.

tests/files_of_version_before holds them, and says how they were made.
"""

import json
import shutil
from pathlib import Path

from cerberus_plugin import CerberusPredictor, CerberusTrainer
from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.config import read_run_config
from cerberus_plugin.experiments import manifest_diff
from cerberus_plugin.search.calibration import Calibration
from cerberus_plugin.search.export.torch_encoder import TorchEncoder
from cerberus_plugin.search.gallery import GalleryIndex, Pace, Query
from cerberus_plugin.search.portable import ExportedEncoder
from cerberus_plugin.utils.images import read_image

import numpy as np
import pytest
from support.data import write_bands

FOLDER = Path(__file__).parent / "files_of_version_before"
WORDS = {"gender": "female", "upper colour": "red"}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A copy of the files, beside the pictures that their answers are about."""
    folder = tmp_path_factory.mktemp("written")
    shutil.unpack_archive(FOLDER / "files.zip", folder)
    write_bands(folder / "crops", 6)
    return folder


@pytest.fixture(scope="module")
def then() -> dict:
    """What the version that wrote the files answered."""
    return json.loads((FOLDER / "answers.json").read_text())


@pytest.fixture(scope="module")
def predictor(written) -> CerberusPredictor:
    return CerberusPredictor(written / "run", device="cpu")


@pytest.fixture(scope="module")
def pictures(written) -> list[str]:
    return CerberusPredictor.images(written / "crops")


@pytest.fixture(scope="module")
def exported(written) -> ExportedEncoder:
    return ExportedEncoder(written / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def index(written) -> GalleryIndex:
    return GalleryIndex.open(written / "index", images=written / "crops")


def near(found, expected, tolerance: float = 1e-4) -> bool:
    return np.abs(np.asarray(found) - np.asarray(expected)).max() <= tolerance


def assert_same_hits(found, expected) -> None:
    scores = [hit.score for hit in found]
    assert {Path(hit.path).name: score for hit, score in zip(found, scores)} == pytest.approx(dict(expected), abs=1e-4)
    assert scores == sorted(scores, reverse=True)


def assert_same_answers(found, expected) -> None:
    for row, before in zip(found, expected, strict=True):
        assert {name: (own.value, own.abstained) for name, own in row.items()} == {
            name: (value, withheld) for name, (value, _, withheld) in before.items()}
        assert near([row[name].probability for name in before], [probability for _, probability, _ in before.values()])


def test_a_run_folder_gives_the_same_embeddings_and_searches(predictor, pictures, written, then):
    assert near(predictor.embed(pictures), then["embeddings"])
    assert_same_hits(predictor.search(WORDS, written / "crops"), then["search by words"])
    assert_same_hits(predictor.search(pictures[0], written / "crops"), then["search by picture"])


def test_a_run_folder_and_its_calibration_give_the_same_answers(predictor, pictures, then):
    assert predictor.recognise(pictures) == then["recognised"]
    assert_same_answers(predictor.answers(pictures), then["answers"])
    assert any(own.abstained for row in predictor.answers(pictures) for own in row.values())
    assert predictor.same_person(*pictures[:2]) == pytest.approx(then["same person"], rel=0.1)  # of steep odds


def test_a_run_goes_on_where_it_was(written, market_root, use_root, tmp_path):
    use_root(market_root)
    shutil.copytree(written / "run", tmp_path / "run")
    cfg = read_run_config(tmp_path / "run/config.yaml")
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_EPOCH", cfg.SOLVER.MAX_EPOCH + 1])
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_epoch == cfg.SOLVER.MAX_EPOCH - 1
    trainer.train()
    before, after = (json.loads((folder / "run/results.json").read_text()) for folder in (written, tmp_path))
    assert after["training"]["resumed after epochs"] == [cfg.SOLVER.MAX_EPOCH - 1]
    assert before["results"].keys() == after["results"].keys()
    differ = manifest_diff.differences(*(manifest_diff.read(folder / "run") for folder in (written, tmp_path)))
    assert not [name for name, *_ in differ if "list sha256" in name]  # the same images, whoever lists them


def test_an_index_searches_as_it_did(index, exported, pictures, then):
    assert_same_hits(index.search(Query(words=WORDS)), then["index by words"])
    by_picture = Query(index.embed(exported, pictures[0]), leave_out=["upper"])
    assert_same_hits(index.search(by_picture), then["index by picture"])


def test_an_index_has_nothing_to_embed_again_with_the_run_that_made_it(predictor, written, then, tmp_path):
    shutil.copytree(written / "index", tmp_path / "index")
    copy = GalleryIndex.open(tmp_path / "index", images=written / "crops")
    done = copy.update(TorchEncoder(predictor, 4), pace=Pace(progress=False))
    assert done == (0, 0, 0, 0, 6) and copy.lost == []  # pictures: new, changed, deleted, unreadable, in the index
    assert_same_hits(copy.search(Query(words=WORDS)), then["index by words"])


def test_an_exported_model_gives_the_same_embeddings_and_answers(exported, predictor, pictures, then):
    embeddings = exported.encode([read_image(path) for path in pictures])
    assert near(embeddings, then["exported embeddings"])
    assert_same_answers(exported.vocabulary.recognise(embeddings), then["exported answers"])
    assert exported.fingerprint == then["fingerprint"] == TorchEncoder(predictor).fingerprint
    assert predictor.model.schema is MARKET1501  # the checkpoint holds its fingerprint, not all of it


@pytest.mark.filterwarnings("ignore:cerberus_plugin:DeprecationWarning")
def test_the_files_are_read_by_the_names_that_modules_had(written, predictor, pictures, then):
    from cerberus_plugin.calibration import Calibration as OldCalibration
    from cerberus_plugin.encoding import TorchEncoder as OldEncoder
    from cerberus_plugin.gallery import GalleryIndex as OldIndex
    from cerberus_plugin.portable import ExportedEncoder as OldExported

    assert OldCalibration.read(written / "run/calibration/calibration.json") == Calibration.read(
        written / "run/calibration/calibration.json")
    assert len(OldIndex.open(written / "index")) == 6
    assert OldExported(written / "model.onnx").fingerprint == OldEncoder(predictor).fingerprint
