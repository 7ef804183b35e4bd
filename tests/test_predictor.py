"""`CerberusPredictor`, and plots of rank lists."""

import re
from pathlib import Path

from cerberus_plugin import CerberusPredictor
from cerberus_plugin.attributes import MARKET1501
from cerberus_plugin.experiments.figures import rank_list
from cerberus_plugin.search.export.torch_encoder import TorchEncoder
from cerberus_plugin.search.gallery import GalleryIndex, Pace, Query

import pytest
import torch
from PIL import Image
from support.training import trained


@pytest.fixture(scope="module")
def predictor(run):
    return CerberusPredictor(run.cfg.OUTPUT_DIR)


@pytest.fixture(scope="module")
def crops(market_root) -> str:
    return str(market_root / "Market-1501-v15.09.15" / "query")


def test_embeddings_are_those_of_the_evaluation(run, predictor, crops):
    loader, _ = run.build_test_loader(run.cfg, "Market1501Attributes")
    batch = next(iter(loader))
    model = run.model.eval()
    with torch.no_grad():
        expected = dict(zip(batch["img_paths"], model(batch)))
    for path, embedding in zip(predictor.images(crops), predictor.embed(predictor.images(crops), batch_size=2)):
        assert torch.allclose(embedding, expected[path], atol=1e-5)


def test_a_warning_says_that_searches_are_not_re_ranked(run, tmp_path, log):
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.TEST.RERANK.ENABLED = True
    (tmp_path / "config.yaml").write_text(cfg.dump())
    CerberusPredictor(tmp_path, weights=Path(run.cfg.OUTPUT_DIR) / "model_final.pth")
    assert "TEST.RERANK only applies to the evaluation" in log.text


def test_pictures_is_an_alias_of_images(crops):
    assert CerberusPredictor.pictures(crops) == CerberusPredictor.images(crops)


def test_predicted_attributes_have_values_of_the_schema(predictor, crops):
    words = predictor.recognise(crops + "/" + Path(predictor.images(crops)[0]).name)[0]
    assert list(words) == [column.name for column in MARKET1501.columns]
    assert all(words[column.name] in (*column.classes, "none") for column in MARKET1501.columns)


def test_a_folder_is_searched_by_attributes_and_by_image(predictor, crops):
    by_words = predictor.search({"upper colour": "red", "gender": "female"}, crops, top=3)
    assert len(by_words) == 3 and by_words[0].score >= by_words[1].score
    image = predictor.images(crops)[2]
    assert predictor.search(image, crops, top=1)[0].path == image
    assert predictor.search(image, predictor.images(crops), top=1)[0].score == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_predictor_and_an_index_have_the_same_scores(predictor, crops, tmp_path, monkeypatch, metric):
    monkeypatch.setattr(predictor, "cfg", predictor.cfg.clone())
    predictor.cfg.TEST.METRIC = metric
    encoder = TorchEncoder(predictor)
    index = GalleryIndex.build(tmp_path, crops, encoder, dtype="float32", pace=Pace(progress=False))
    words, image = {"upper colour": "red", "gender": "female"}, predictor.images(crops)[2]
    embedding = index.embed(encoder, image)
    for query, options, same in (
            (words, {}, Query(words=words)), (image, {}, Query(embedding)),
            (image, {"groups": ("head", "lower")}, Query(embedding, leave_out=("upper", "identity", "carrying"))),
            (image, {"may_have_changed_clothes": True}, Query(embedding, may_have_changed_clothes=True))):
        found = {match.path: match.score for match in predictor.search(query, crops, top=1000, **options)}
        assert found == pytest.approx({hit.path: hit.score for hit in index.search(same, 1000)}, abs=1e-4)
    with pytest.raises(ValueError, match="unknown group 'legs', expected one of head, upper"):
        predictor.search(image, crops, groups=("legs",))


@pytest.mark.parametrize("reading", ["nearest", "probability"])
def test_a_predictor_and_an_index_have_the_same_scores_for_attributes(run, crops, tmp_path, log, reading):
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.TEST.READING, cfg.TEST.APS.PARTIAL = reading, "max"
    (tmp_path / "config.yaml").write_text(cfg.dump())
    predictor = CerberusPredictor(tmp_path, weights=Path(run.cfg.OUTPUT_DIR) / "model_final.pth")
    assert "TEST.APS.PARTIAL max only applies to the evaluation" in log.text
    index = GalleryIndex.build(tmp_path / "index", crops, TorchEncoder(predictor), dtype="float32",
                               pace=Pace(progress=False))
    full = predictor.recognise(predictor.images(crops)[0])[0]
    for words in (full, {"gender": "female", "hat": "yes"}, {"upper colour": "none"},
                  {"upper colour": "red and blue", "age": "old"}, {"sleeve length": "short sleeve"}):
        matches = predictor.search(words, crops, top=1000)
        hits = index.search(Query(words=words), 1000)
        found = {match.path: match.score for match in matches}
        assert [hit.score for hit in hits] == pytest.approx([match.score for match in matches], abs=1e-4)
        assert [found[hit.path] for hit in hits] == pytest.approx([match.score for match in matches], abs=1e-4)


def test_errors_are_reported(predictor, tmp_path, run):
    with pytest.raises(FileNotFoundError, match="config.yaml: not found; give the OUTPUT_DIR"):
        CerberusPredictor(tmp_path)
    (tmp_path / "config.yaml").write_text((Path(run.cfg.OUTPUT_DIR) / "config.yaml").read_text())
    with pytest.raises(FileNotFoundError, match="contains none of model_final.pth, model_best.pth"):
        CerberusPredictor(tmp_path)
    with pytest.raises(ValueError, match="no images found"):
        predictor.images(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
        predictor.images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="embed: no images given"):
        predictor.embed([])
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="broken.jpg: .*JPEG"):
        predictor.embed(tmp_path / "broken.jpg")
    with pytest.raises(ValueError, match="unknown attribute 'sleeves'"):
        predictor.search({"sleeves": "long"}, tmp_path.parent, top=1)


def test_a_model_without_attributes_is_rejected(predictor, crops, monkeypatch):
    monkeypatch.setattr(predictor, "reader", None)
    with pytest.raises(ValueError, match="this model does not predict attributes"):
        predictor.recognise(crops)


def test_a_baseline_embeds_and_searches_by_image(small_config, crops):
    cfg = small_config("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, file="configs/Market1501/bot_R50.yml")
    Path(cfg.OUTPUT_DIR).mkdir()
    trained(cfg)
    (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump())
    baseline = CerberusPredictor(cfg.OUTPUT_DIR)
    image = baseline.images(crops)[1]
    assert baseline.search(image, crops, top=1)[0].path == image
    rank_list.main([cfg.OUTPUT_DIR, "--queries", "1", "--top", "3"])
    assert (Path(cfg.OUTPUT_DIR) / "rank_list.png").is_file()


def test_the_plot_of_rank_lists_is_written(run, capsys):
    rank_list.main([run.cfg.OUTPUT_DIR, "--queries", "2", "--searches", "1", "--top", "4"])
    path = Path(re.search(r"wrote (\S+)", capsys.readouterr().out)[1])
    with Image.open(path) as image:
        assert image.width > 300 and image.height > 300


def test_rank_lists_exclude_the_camera_of_the_query_and_mark_matches_in_green(run, predictor):
    gallery = rank_list.Gallery(predictor)
    index = gallery.spread_queries(3)[1]
    row = gallery.query_row(index, top=5)
    _, pid, camid = gallery.queries[index]
    for path, colour, _ in row.found:
        found_pid, found_cam = next((p, c) for q, p, c in gallery.items if q == path)
        assert (found_pid, found_cam) != (pid, camid)
        assert (colour == rank_list.RIGHT) == (found_pid == pid)
    assert len(row.words) == len(MARKET1501.columns)
