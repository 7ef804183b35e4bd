"""Manifests: what was evaluated, counted and hashed, the same on every machine and different for anything else."""

import hashlib
import json
import shutil
from pathlib import Path

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.attributes import DUKEMTMC, GROUPS, MARKET1501, Annotations
from cerberus_plugin.data.build import build_test_set, build_train_set
from cerberus_plugin.data.loader import AttributeDataset
from cerberus_plugin.engine.trainer import evaluate
from cerberus_plugin.evaluation.manifest import config_sha256, manifest, of_test, of_training, ranking_rules
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


def invented(items: list[tuple], **known) -> AttributeDataset:
    """A data set of images that are nowhere."""
    return AttributeDataset(items, relabel=False, **{"folders": ["/data/market"], "distractors": {0, -1}, **known})


@pytest.fixture
def moved(market_root, tmp_path) -> Path:
    """The shared data below another root."""
    return Path(shutil.copytree(market_root, tmp_path / "elsewhere" / "data"))


@pytest.fixture
def evaluation(run, use_root, market_root):
    """Configuration of an evaluation of the shared run, options as on the command line."""
    use_root(market_root)
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.TEST.APS.GROUPS = []
    return cfg


def test_a_training_says_what_it_learned_from_and_was_tested_on(run, market_root):
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
    assert made["AP"] == "rectangle" and "own camera" in made["junk"]
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
    evaluation.MODEL.HEADS.NUM_CLASSES, evaluation.MODEL.CERBERUS.NUM_SIDS = 0, []  # as the paper's file
    evaluate(evaluation)
    made = written(folder / "evaluation")
    assert made == written(run.cfg.OUTPUT_DIR) | {"training": None}


def test_the_list_is_of_part_name_identity_and_camera_in_order():
    items = [("/data/market/query/1.jpg", 1, 0), ("/data/market/test/b.jpg", 1, 1), ("/data/market/test/a.jpg", 0, 2)]
    text = "gallery\ttest/a.jpg\t0\t2\ngallery\ttest/b.jpg\t1\t1\nquery\tquery/1.jpg\t1\t0\n"
    expected = sha256(text.encode())
    assert of_test(invented(items), 1, 0)["list sha256"] == expected
    assert of_test(invented([items[0], items[2], items[1]]), 1, 0)["list sha256"] == expected
    for index, item in enumerate([("/data/market/query/2.jpg", 1, 0), ("/data/market/test/b.jpg", 2, 1),
                                  ("/data/market/test/a.jpg", 0, 3)]):
        other = [*items[:index], item, *items[index + 1:]]
        assert of_test(invented(other), 1, 0)["list sha256"] != expected
    assert of_test(invented(items), 2, 0)["list sha256"] != expected


def test_names_are_those_within_the_innermost_folder_and_bare_ones_outside_of_all():
    text = "gallery\tb.jpg\t1\t1\nquery\tquery/a.jpg\t1\t0\n"
    for folders in (["/data", "/data/market/"], ["/data/market", "/data", ""]):
        items = [("/data/market/query/a.jpg", 1, 0), ("/other/place/b.jpg", 1, 1)]
        assert of_test(invented(items, folders=folders), 1, 0)["list sha256"] == sha256(text.encode())


@pytest.mark.filterwarnings("ignore:The current data structure")  # the host's, of the last root
def test_a_data_set_is_the_same_below_any_root_and_with_or_without_attributes(small_config, market_root, moved,
                                                                              use_root):
    roots = [market_root, Path(f"{moved}/"), moved / "Market-1501-v15.09.15"]  # the last: without the folder's name
    accounts = []
    for root in roots:
        use_root(root)
        accounts.append(of_test(*build_test_set(small_config(), NAME), 0))
    assert accounts[0] == accounts[1] == accounts[2]
    plain = of_test(*build_test_set(small_config(), "Market1501"), 0)
    assert plain == accounts[0] | {"labels": None}


def test_held_out_identities_and_several_training_sets_are_the_same_below_any_root(small_config, market_root, moved,
                                                                                   use_root, tmp_path):
    held_out, of_two = (small_config("DATASETS.HOLD_OUT", 2),
                        small_config("DATASETS.NAMES", ["Market1501", "DukeMTMC"], file=BOT))
    both = Path(shutil.copytree(moved, tmp_path / "both"))
    labels = dict(zip(range(1, 6), random_labels(DUKEMTMC, 5)))
    for root in (moved, both):
        write_duke_folder(root, {1: labels[1], 2: labels[2]}, {pid: labels[pid] for pid in (3, 4, 5)})
    accounts = []
    for root in (moved, both):
        use_root(root)
        accounts.append([of_test(*build_test_set(held_out, "held-out"), 0), of_training(held_out,
                         build_train_set(held_out)), of_training(of_two, build_train_set(of_two))])
    assert accounts[0] == accounts[1]
    test, training, two = accounts[0]
    assert (test["query"]["images"], test["gallery"]["images"], test["gallery"]["identities"]) == (2, 6, 2)
    assert (training["held out"], training["identities"], training["images"]) == (2, 6, 24)
    assert (two["data sets"], two["identities"], two["images"]) == (["Market1501", "DukeMTMC"], 10, 40)
    use_root(market_root)
    other = small_config("DATASETS.HOLD_OUT", 2, "DATASETS.HOLD_OUT_SEED", 1)
    assert of_training(other, build_train_set(other))["list sha256"] != training["list sha256"]


def test_images_that_could_not_be_read_are_counted_in_every_evaluation_anew(run, evaluation, moved, use_root):
    use_root(moved)
    evaluation.DATALOADER.ON_UNREADABLE = "skip"
    for name in ("bounding_box_test/0003_c2s1_000002_00.jpg", "query/0004_c1s1_000001_00.jpg"):
        (moved / "Market-1501-v15.09.15" / name).write_bytes(b"not a picture")
    for _ in range(2):
        tested = CerberusTrainer.run_tests(evaluation, run.model)[1][NAME]
        assert tested["left out"] == 2
        assert tested["query"]["images"] == 6 and tested["gallery"]["images"] == 19


def test_each_of_several_test_data_sets_has_its_account(run, evaluation, tmp_path):
    evaluation.DATASETS.TESTS, evaluation.OUTPUT_DIR = (NAME, "Market1501"), str(tmp_path)
    made = manifest(evaluation, *CerberusTrainer.run_tests(evaluation, run.model)[:2], run.model)
    assert list(made["tests"]) == [NAME, "Market1501"]
    assert made["tests"][NAME]["labels"] and made["tests"]["Market1501"]["labels"] is None
    assert made["checkpoint"] is made["checkpoint sha256"] is None


def test_other_processes_make_no_account(run, evaluation, monkeypatch):
    monkeypatch.setattr("cerberus_plugin.engine.trainer.comm.is_main_process", lambda: False)
    assert CerberusTrainer.run_tests(evaluation, run.model)[1] == {}


def test_figures_without_an_account_are_written_all_the_same(small_config):
    made = manifest(small_config(file=BOT), {"mAP": 1.0, "metric": 1.0}, {})
    assert made["tests"] == {} and "outfit" not in made["junk"]
    assert made["colours"] is made["pool"] is made["SID space"] is None


def test_a_configuration_is_the_same_wherever_it_runs_and_however_it_was_set(run, tmp_path):
    own = read_config("OUTPUT_DIR", "here", "MODEL.BACKBONE.PRETRAIN_PATH", "/one/resnet50.pth")
    expected = config_sha256(own)
    (tmp_path / "config.yaml").write_text(own.dump())
    for options in (["OUTPUT_DIR", "there"], ["MODEL.DEVICE", "cuda"], ["MODEL.WEIGHTS", "there/model_final.pth"],
                    ["MODEL.HEADS.NUM_CLASSES", 751], ["MODEL.BACKBONE.PRETRAIN_PATH", "/two/resnet50.pth"]):
        assert config_sha256(read_config(*options, file=str(tmp_path / "config.yaml"))) == expected, options
    for options in (["SEED", 2], ["TEST.GROUPS", ["head"]], ["MODEL.BACKBONE.PRETRAIN_PATH", "/one/resnet18.pth"]):
        assert config_sha256(read_config(*options, file=str(tmp_path / "config.yaml"))) != expected, options
    assert config_sha256(run.cfg) == written(run.cfg.OUTPUT_DIR)["config sha256"]


def test_weights_that_a_training_began_with_are_named(small_config, tmp_path):
    (tmp_path / "first.pth").write_bytes(b"weights")
    cfg = small_config("MODEL.WEIGHTS", str(tmp_path / "first.pth"))
    assert of_training(cfg, invented([]))["began with"] == {"file": "first.pth", "sha256": sha256(b"weights")}


def test_several_label_files_are_hashed_together_and_one_that_is_gone_not_at_all(tmp_path):
    (tmp_path / "one.mat").write_bytes(b"1")
    (tmp_path / "two.mat").write_bytes(b"2")

    def labels(*names: str) -> dict:
        files = [Annotations(MARKET1501, {}, {}, str(tmp_path / name)) for name in names]
        return of_test(invented([], annotations=files), 0, 0)["labels"]

    assert labels("one.mat") == {"file": "one.mat", "sha256": sha256(b"1")}
    assert labels("one.mat", "two.mat") == {"file": "one.mat and two.mat",
                                            "sha256": sha256((sha256(b"1") + sha256(b"2")).encode())}
    assert labels("one.mat", "gone.mat") == {"file": "one.mat and gone.mat", "sha256": None}
    assert file_sha256(str(tmp_path)) is None


def test_the_reader_prints_a_manifest_and_what_differs_between_two(run, tmp_path, capsys):
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


def test_rules_of_ranking_of_an_earlier_record_are_those_of_its_protocol(run, tmp_path):
    record = json.loads((Path(run.cfg.OUTPUT_DIR) / "results.json").read_text())
    del record["manifest"]["ranking"]
    for reranking, different in ((False, []), (True, [("ranking: re-ranking", False, True)])):
        record["protocol"]["reid"]["re-ranking"] = reranking
        (tmp_path / "results.json").write_text(json.dumps(record))
        assert differences(read(run.cfg.OUTPUT_DIR), read(tmp_path)) == different


def test_a_record_from_before_manifests_is_named_with_what_to_do(run, tmp_path):
    record = json.loads((Path(run.cfg.OUTPUT_DIR) / "results.json").read_text())
    del record["manifest"]
    (tmp_path / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="results.json: has no manifest; .* --eval-only writes RUN/evaluation"):
        read(tmp_path)
    with pytest.raises(ValueError, match="has no manifest"):
        main([run.cfg.OUTPUT_DIR, str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="results.json: not found"):
        main([str(tmp_path / "nowhere")])


def test_the_variant_and_sizes_of_re_ranking_are_rules_of_an_evaluation(run):
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.TEST.RERANK.ENABLED = cfg.TEST.AQE.ENABLED = True
    assert ranking_rules(cfg) == {"re-ranking": "paper, k1 20, k2 6, lambda 0.3",
                                           "query expansion": "k 5, times 1, alpha 3"}
    before = config_sha256(cfg)
    cfg.TEST.RERANK.VARIANT = "fastreid"
    assert ranking_rules(cfg)["re-ranking"].startswith("fastreid,")
    assert config_sha256(cfg) != before
