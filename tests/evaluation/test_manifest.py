"""Manifests: counts and hashes of an evaluation, equal on every machine and different for other inputs."""

import hashlib
import json
import shutil
from pathlib import Path

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.attributes import DUKEMTMC, GROUPS, MARKET1501, Annotations
from cerberus_plugin.data.build import build_test_set, build_train_set
from cerberus_plugin.data.loader import AttributeDataset
from cerberus_plugin.engine.trainer import evaluate
from cerberus_plugin.evaluation.manifest import (
    EARLIER_TEXTS,
    config_sha256,
    manifest,
    of_test,
    of_training,
    ranking_rules,
)
from cerberus_plugin.experiments.manifest_diff import differences, main, read
from cerberus_plugin.utils.files import file_sha256

import pytest
from support.data import random_labels, write_duke_folder
from support.training import read_config

NAME = "Market1501Attributes"
BOT = "configs/Market1501/bot_demo.yml"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def written(folder) -> dict:
    return json.loads((Path(folder) / "results.json").read_text())["manifest"]


def without_files(items: list[tuple], **known) -> AttributeDataset:
    """A dataset of images without files."""
    return AttributeDataset(items, relabel=False, **{"folders": ["/data/market"], "distractors": {0, -1}, **known})


@pytest.fixture
def moved(market_root, tmp_path) -> Path:
    """A copy of the shared data in another folder."""
    return Path(shutil.copytree(market_root, tmp_path / "elsewhere" / "data"))


@pytest.fixture
def evaluation(run, use_root, market_root):
    """Configuration of an evaluation of the shared run."""
    use_root(market_root)
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.TEST.APS.GROUPS = []
    return cfg


def test_a_manifest_describes_training_set_test_set_and_rules(run, market_root):
    folder, made = Path(run.cfg.OUTPUT_DIR), written(run.cfg.OUTPUT_DIR)
    labels = {"file": "market_attribute.mat",
              "sha256": sha256((market_root / "Market-1501-v15.09.15/market_attribute.mat").read_bytes())}
    tested = made["tests"][NAME]
    assert tested | {"list sha256": ""} == {
        "query": {"images": 6, "identities": 6, "cameras": 1},
        "gallery": {"images": 19, "identities": 6, "cameras": 3, "distractors": 1},
        "left out": 0, "list sha256": "", "labels": labels}
    assert made["training"] | {"list sha256": ""} == {
        "data sets": [NAME], "images": 32, "identities": 8, "cameras": 4, "held out": 0, "without": None,
        "list sha256": "", "labels": labels, "began with": None}
    assert len({tested["list sha256"], made["training"]["list sha256"]}) == 2
    assert made["checkpoint"] == "model_final.pth"
    assert made["checkpoint sha256"] == sha256((folder / "model_final.pth").read_bytes())
    sizes = dict(zip(GROUPS, run.cfg.MODEL.CERBERUS.NUM_SIDS))
    assert made["SID space"] == {"name": "product", "sizes": sizes} and sizes["lower"] == 40
    assert made["AP"] == "rectangle" and "the camera of the query" in made["junk"]
    assert made["ranking"] == {"re-ranking": False, "query expansion": False}
    assert made["colours"]["force colour"] is False and made["pool"].startswith("query and gallery")
    assert "mean score of its images" in made["person"]


def test_an_evaluation_of_a_copied_run_on_copied_data_has_the_same_hashes(run, evaluation, moved, use_root, tmp_path):
    use_root(moved)
    folder = tmp_path / "copied"
    folder.mkdir()
    shutil.copy(evaluation.MODEL.WEIGHTS, folder)
    evaluation.MODEL.WEIGHTS, evaluation.OUTPUT_DIR = str(folder / "model_final.pth"), str(folder / "evaluation")
    evaluation.TEST.APS.GROUPS = run.cfg.TEST.APS.GROUPS
    evaluation.MODEL.HEADS.NUM_CLASSES, evaluation.MODEL.CERBERUS.NUM_SIDS = 0, []  # as in the paper's file
    evaluate(evaluation)
    made = written(folder / "evaluation")
    assert made == written(run.cfg.OUTPUT_DIR) | {"training": None}


def test_the_list_hash_covers_part_name_identity_and_camera_in_sorted_order():
    items = [("/data/market/query/1.jpg", 1, 0), ("/data/market/test/b.jpg", 1, 1), ("/data/market/test/a.jpg", 0, 2)]
    text = "gallery\ttest/a.jpg\t0\t2\ngallery\ttest/b.jpg\t1\t1\nquery\tquery/1.jpg\t1\t0\n"
    expected = sha256(text.encode())
    assert of_test(without_files(items), 1, 0)["list sha256"] == expected
    assert of_test(without_files([items[0], items[2], items[1]]), 1, 0)["list sha256"] == expected
    for index, item in enumerate([("/data/market/query/2.jpg", 1, 0), ("/data/market/test/b.jpg", 2, 1),
                                  ("/data/market/test/a.jpg", 0, 3)]):
        other = [*items[:index], item, *items[index + 1:]]
        assert of_test(without_files(other), 1, 0)["list sha256"] != expected
    assert of_test(without_files(items), 2, 0)["list sha256"] != expected


def test_names_are_relative_to_the_innermost_folder():
    text = "gallery\tb.jpg\t1\t1\nquery\tquery/a.jpg\t1\t0\n"
    for folders in (["/data", "/data/market/"], ["/data/market", "/data", ""]):
        items = [("/data/market/query/a.jpg", 1, 0), ("/other/place/b.jpg", 1, 1)]
        assert of_test(without_files(items, folders=folders), 1, 0)["list sha256"] == sha256(text.encode())


@pytest.mark.filterwarnings("ignore:The current data structure")  # of FastReID, for the last root
def test_the_manifest_of_a_dataset_does_not_depend_on_its_location(small_config, market_root, moved, use_root):
    roots = [market_root, Path(f"{moved}/"), moved / "Market-1501-v15.09.15"]  # the last: without the folder's name
    found = []
    for root in roots:
        use_root(root)
        found.append(of_test(*build_test_set(small_config(), NAME), 0))
    assert found[0] == found[1] == found[2]
    plain = of_test(*build_test_set(small_config(), "Market1501"), 0)
    assert plain == found[0] | {"labels": None}


def test_the_manifest_of_several_datasets_does_not_depend_on_their_location(small_config, market_root, moved, use_root,
                                                                            tmp_path):
    held_out, of_two = (small_config("DATASETS.HOLD_OUT", 2),
                        small_config("DATASETS.NAMES", ["Market1501", "DukeMTMC"], file=BOT))
    both = Path(shutil.copytree(moved, tmp_path / "both"))
    labels = dict(zip(range(1, 6), random_labels(DUKEMTMC, 5)))
    for root in (moved, both):
        write_duke_folder(root, {1: labels[1], 2: labels[2]}, {pid: labels[pid] for pid in (3, 4, 5)})
    found = []
    for root in (moved, both):
        use_root(root)
        found.append([of_test(*build_test_set(held_out, "held-out"), 0), of_training(held_out,
                         build_train_set(held_out)), of_training(of_two, build_train_set(of_two))])
    assert found[0] == found[1]
    test, training, two = found[0]
    assert (test["query"]["images"], test["gallery"]["images"], test["gallery"]["identities"]) == (2, 6, 2)
    assert (training["held out"], training["identities"], training["images"]) == (2, 6, 24)
    assert (two["data sets"], two["identities"], two["images"]) == (["Market1501", "DukeMTMC"], 10, 40)
    use_root(market_root)
    other = small_config("DATASETS.HOLD_OUT", 2, "DATASETS.HOLD_OUT_SEED", 1)
    assert of_training(other, build_train_set(other))["list sha256"] != training["list sha256"]


def test_each_evaluation_counts_its_unreadable_images(run, evaluation, moved, use_root):
    use_root(moved)
    evaluation.DATALOADER.ON_UNREADABLE = "skip"
    for name in ("bounding_box_test/0003_c2s1_000002_00.jpg", "query/0004_c1s1_000001_00.jpg"):
        (moved / "Market-1501-v15.09.15" / name).write_bytes(b"not an image")
    for _ in range(2):
        tested = CerberusTrainer.run_tests(evaluation, run.model)[1][NAME]
        assert tested["left out"] == 2
        assert tested["query"]["images"] == 6 and tested["gallery"]["images"] == 19


def test_a_manifest_describes_each_of_several_test_datasets(run, evaluation, tmp_path):
    evaluation.DATASETS.TESTS, evaluation.OUTPUT_DIR = (NAME, "Market1501"), str(tmp_path)
    made = manifest(evaluation, *CerberusTrainer.run_tests(evaluation, run.model)[:2], run.model)
    assert list(made["tests"]) == [NAME, "Market1501"]
    assert made["tests"][NAME]["labels"] and made["tests"]["Market1501"]["labels"] is None
    assert made["checkpoint"] is made["checkpoint sha256"] is None


def test_only_the_main_process_describes_test_datasets(run, evaluation, monkeypatch):
    monkeypatch.setattr("cerberus_plugin.engine.trainer.comm.is_main_process", lambda: False)
    assert CerberusTrainer.run_tests(evaluation, run.model)[1] == {}


def test_a_manifest_needs_no_description_of_test_datasets(small_config):
    made = manifest(small_config(file=BOT), {"mAP": 1.0, "metric": 1.0}, {})
    assert made["tests"] == {} and "outfit" not in made["junk"]
    assert made["colours"] is made["pool"] is made["SID space"] is None


def test_the_hash_of_a_configuration_does_not_depend_on_folders_or_device(run, tmp_path):
    own = read_config("OUTPUT_DIR", "here", "MODEL.BACKBONE.PRETRAIN_PATH", "/one/resnet50.pth")
    expected = config_sha256(own)
    (tmp_path / "config.yaml").write_text(own.dump())
    for options in (["OUTPUT_DIR", "there"], ["MODEL.DEVICE", "cuda"], ["MODEL.WEIGHTS", "there/model_final.pth"],
                    ["MODEL.HEADS.NUM_CLASSES", 751], ["MODEL.BACKBONE.PRETRAIN_PATH", "/two/resnet50.pth"]):
        assert config_sha256(read_config(*options, file=str(tmp_path / "config.yaml"))) == expected, options
    for options in (["SEED", 2], ["TEST.GROUPS", ["head"]], ["MODEL.BACKBONE.PRETRAIN_PATH", "/one/resnet18.pth"]):
        assert config_sha256(read_config(*options, file=str(tmp_path / "config.yaml"))) != expected, options
    assert config_sha256(run.cfg) == written(run.cfg.OUTPUT_DIR)["config sha256"]


def test_the_initial_weights_of_a_training_are_named(small_config, tmp_path):
    (tmp_path / "first.pth").write_bytes(b"weights")
    cfg = small_config("MODEL.WEIGHTS", str(tmp_path / "first.pth"))
    assert of_training(cfg, without_files([]))["began with"] == {"file": "first.pth", "sha256": sha256(b"weights")}


def test_label_files_are_hashed_together_unless_one_is_missing(tmp_path):
    (tmp_path / "one.mat").write_bytes(b"1")
    (tmp_path / "two.mat").write_bytes(b"2")

    def labels(*names: str) -> dict:
        files = [Annotations(MARKET1501, {}, {}, str(tmp_path / name)) for name in names]
        return of_test(without_files([], annotations=files), 0, 0)["labels"]

    assert labels("one.mat") == {"file": "one.mat", "sha256": sha256(b"1")}
    assert labels("one.mat", "two.mat") == {"file": "one.mat and two.mat",
                                            "sha256": sha256((sha256(b"1") + sha256(b"2")).encode())}
    assert labels("one.mat", "gone.mat") == {"file": "one.mat and gone.mat", "sha256": None}
    assert file_sha256(str(tmp_path)) is None


def test_manifest_diff_prints_a_manifest_or_the_differences_of_two(run, tmp_path, capsys):
    folder = run.cfg.OUTPUT_DIR
    main([folder])
    shown = capsys.readouterr().out
    assert "distractors: 1\n" in shown and written(folder)["config sha256"] in shown
    record = json.loads((Path(folder) / "results.json").read_text())
    record["manifest"] |= {"config sha256": "f" * 64, "training": None,
                           "tests": {"Market1501": record["manifest"]["tests"][NAME] | {"left out": 4}}}
    (tmp_path / "results.json").write_text(json.dumps(record))
    main([folder, str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = {line.split("  ")[0]: line.split()[-2:] for line in lines}
    assert cells["tests: Market1501: left out"] == ["0", "4"]
    assert cells["config sha256"] == [written(folder)["config sha256"][:16], "f" * 16]
    assert cells["training: images"] == ["32", "none"]
    assert not any(name.startswith(("checkpoint", "tests: Market1501: query")) for name in cells)
    assert differences(read(folder), read(folder)) == []
    main([folder, folder])
    assert "no differences" in capsys.readouterr().out


def test_ranking_rules_of_an_earlier_record_are_read_from_its_protocol(run, tmp_path):
    record = json.loads((Path(run.cfg.OUTPUT_DIR) / "results.json").read_text())
    del record["manifest"]["ranking"]
    for reranking, different in ((False, []), (True, [("ranking: re-ranking", False, True)])):
        record["protocol"]["reid"]["re-ranking"] = reranking
        (tmp_path / "results.json").write_text(json.dumps(record))
        assert differences(read(run.cfg.OUTPUT_DIR), read(tmp_path)) == different


def test_earlier_wordings_of_the_rules_are_no_difference(run, tmp_path):
    text = json.dumps(json.loads((Path(run.cfg.OUTPUT_DIR) / "results.json").read_text()))
    found = []
    for earlier, current in EARLIER_TEXTS.items():
        found.append(json.dumps(current)[1:-1] in text)
        text = text.replace(json.dumps(current)[1:-1], json.dumps(earlier)[1:-1])
    assert sum(found) == 6 and len(found) == 7  # the run has no outfits
    (tmp_path / "results.json").write_text(text)
    assert differences(read(run.cfg.OUTPUT_DIR), read(tmp_path)) == []


def test_a_record_without_manifest_raises_an_error_with_a_remedy(run, tmp_path):
    record = json.loads((Path(run.cfg.OUTPUT_DIR) / "results.json").read_text())
    del record["manifest"]
    (tmp_path / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="results.json: has no manifest; .* --eval-only writes RUN/evaluation"):
        read(tmp_path)
    with pytest.raises(ValueError, match="has no manifest"):
        main([run.cfg.OUTPUT_DIR, str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="results.json: not found"):
        main([str(tmp_path / "nowhere")])


def test_ranking_rules_contain_variant_and_parameters_of_reranking(run):
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.TEST.RERANK.ENABLED = cfg.TEST.AQE.ENABLED = True
    assert ranking_rules(cfg) == {"re-ranking": "paper, k1 20, k2 6, lambda 0.3",
                                           "query expansion": "k 5, times 1, alpha 3"}
    before = config_sha256(cfg)
    cfg.TEST.RERANK.VARIANT = "fastreid"
    assert ranking_rules(cfg)["re-ranking"].startswith("fastreid,")
    assert config_sha256(cfg) != before
