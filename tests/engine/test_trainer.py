"""Training and evaluation with FastReID's trainer: updated parameters, saved files, and rejected settings."""

import itertools
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.attributes import DUKEMTMC, GROUPS, SIDTable
from cerberus_plugin.data import build
from cerberus_plugin.data.build import build_train_set
from cerberus_plugin.engine.trainer import evaluate
from cerberus_plugin.evaluation import report
from cerberus_plugin.modeling.build import load_model

import pytest
import torch
from fastreid.utils.env import seed_all_rng
from support.data import random_labels, write_duke_folder, write_market_folder
from support.training import RESNET, read_config, trained

TESTS = "Market1501Attributes"


def test_every_trainable_parameter_is_updated_and_the_optimizer_has_state(run):
    still = [name for name, p in run.model.named_parameters() if p.requires_grad and torch.equal(p, run.start[name])]
    assert still == []
    assert len(run.optimizer.state) > 0


@pytest.mark.parametrize("chosen", [True, False])
def test_a_trainer_sets_cudnn_benchmark_also_without_default_setup(chosen, small_config, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not chosen)
    CerberusTrainer(small_config("CUDNN_BENCHMARK", chosen))
    assert torch.backends.cudnn.benchmark is chosen


def test_the_checkpoint_contains_tables_margins_and_classes_in_fastreids_order(run, market_people):
    state = torch.load(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")["model"]
    dataset = run.data_loader.dataset
    assert dataset.pids[:3] == ["market1501_10", "market1501_100", "market1501_101"]  # sorted as strings
    expected = torch.stack([market_people[0][int(pid.split("_")[1])] for pid in dataset.pids])
    assert torch.equal(dataset.labels, expected)
    reader = run.model.attribute_reader()
    assert torch.equal(reader.table.decode(state["prototypes.sid_of_class"]), expected)
    assert all((state[f"prototypes.margins_{group}"] > 0.58).all() for group in GROUPS)


def test_one_evaluation_gives_reid_par_and_aps_for_seen_and_unseen_categories(run):
    for key in ("mAP", "Rank-1", "mINP", "metric", "PAR/mA_official", "PAR/mA_binary", "PAR/mA_balanced",
                "PAR/official/upper colour", "PAR-majority/mA_official", "APS/mAP", "APS/Rank-1", "APS/seen/queries",
                "APS/unseen/mAP", "APS/upper+lower/mAP_given", "APS/upper+lower/mAP_full", "PAR/person/mA_official",
                "PAR (probability)/person/mA_balanced", "APS/person/mAP"):
        assert isinstance(run.results[key], float | int), key
    assert run.results["PAR/images"] == 18 and run.results["APS/images"] == 24  # no distractor


def test_the_run_folder_contains_the_documented_files(run):
    folder = Path(run.cfg.OUTPUT_DIR)
    for name in ("config.yaml", "model_final.pth", "model_best.pth", "last_checkpoint", "metrics.json", "results.json",
                 "results.txt", "semantic_ids.json", "before_training.json"):
        assert (folder / name).stat().st_size > 0, name
    record = json.loads((folder / "results.json").read_text())
    name = "Market1501Attributes"
    assert record["results"][name]["mAP"] == pytest.approx(run.results["mAP"])
    assert record["before training"][name]["APS/mAP"] != record["results"][name]["APS/mAP"]
    assert record["training"].pop("seconds") > 0
    assert record["training"] == {"epochs": 2, "seed": 1, "processes": 1, "resumed after epochs": []}
    assert "torch" in record["versions"] and "gpu" not in record["hardware"]
    table = (folder / "results.txt").read_text()
    for word in ("before training, binary", "majority class, official", "unseen in training", "upper colour", "mINP"):
        assert word in table


def test_results_json_has_every_evaluated_epoch_and_the_table_only_the_last(run):
    folder = Path(run.cfg.OUTPUT_DIR)
    evaluations = json.loads((folder / "results.json").read_text())["evaluations"][TESTS]
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    logged = next(line for line in lines if "mAP" in line)  # FastReID does not log the results after the last step
    assert list(evaluations) == ["1", "2"] and "PAR/mA_binary" in evaluations["1"]
    assert evaluations["1"] == pytest.approx({key: logged[key] for key in evaluations["1"]})
    assert evaluations["2"] == pytest.approx(report.summary(run.results)) != evaluations["1"]
    assert "best" not in (folder / "results.txt").read_text()


def test_evaluating_the_checkpoint_with_the_papers_configuration_gives_the_same_results(run):
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.MODEL.HEADS.NUM_CLASSES, cfg.MODEL.CERBERUS.SCHEMA, cfg.MODEL.CERBERUS.NUM_SIDS = 0, "", []
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, "moved/away.pth"
    cfg.OUTPUT_DIR += "-evaluated"
    cfg.TEST.BEST_EPOCH = True  # no effect without training
    results = evaluate(cfg)
    assert results == pytest.approx(run.results, nan_ok=True)
    record = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    assert record["training"] is None and record["evaluations"] == {}
    assert "epoch" not in (Path(cfg.OUTPUT_DIR) / "results.txt").read_text()


def test_alignment_is_logged(run):
    lines = [json.loads(line) for line in (Path(run.cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()]
    assert 0 < lines[0]["alignment/crop_ratio"] <= 1 and 0 <= lines[0]["alignment/fallback"] <= 1


def test_resuming_a_finished_run_evaluates_it_again(small_config):
    cfg = small_config("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1)
    first = trained(cfg)
    again = CerberusTrainer(cfg)
    again.resume_or_load(resume=True)
    assert again.train() == pytest.approx(first.results, nan_ok=True)
    record = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    assert record["evaluations"][TESTS] == {"1": pytest.approx(report.summary(first.results))}
    assert record["manifest"]["checkpoint"] == "model_final.pth" and record["manifest"]["training"]["images"] == 32


def test_margins_are_those_of_the_configuration_not_of_the_checkpoint(small_config, run):
    weights = str(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")
    trainer = CerberusTrainer(small_config("MODEL.WEIGHTS", weights, "MODEL.CERBERUS.MARGIN", "constant",
                                           "MODEL.CERBERUS.MARGIN_CONSTANT", 0.0))
    trainer.resume_or_load(resume=False)
    assert torch.equal(trainer.model.prototypes.rows["head"], run.model.prototypes.rows["head"])
    assert all((trainer.model.prototypes.margins(group) == 0).all() for group in GROUPS)


def test_results_before_training_are_never_those_of_an_earlier_run(small_config):
    cfg = small_config("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    (folder / "before_training.json").write_text('{"Market1501Attributes": {"mAP": 1}}')
    trained(cfg)
    assert "before training" not in (folder / "results.txt").read_text()


def test_seen_categories_and_the_majority_class_come_from_the_training_identities(run, small_config):
    assert torch.equal(run.model.attribute_reader().train_labels, run.data_loader.dataset.labels)
    results = trained(small_config("DATASETS.COMBINEALL", True, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1)).results
    assert results["APS/seen/queries"] == 6 and results["APS/unseen/queries"] == 0


def test_blocks_have_unit_length_after_the_flip_test(small_config, monkeypatch):
    cfg = small_config("TEST.FLIP.ENABLED", True)
    trainer, seen = CerberusTrainer(cfg), []
    monkeypatch.setattr("cerberus_plugin.engine.trainer.ReIDTask",
                        lambda cfg, **_: lambda g: seen.append(g.embeddings) or {})
    trainer.test(trainer.cfg, trainer.model)
    assert torch.allclose(seen[0].unflatten(1, (5, -1)).norm(dim=2), torch.ones(25, 5), atol=1e-5)


def test_an_alignment_that_crops_nothing_gives_a_warning(small_config, caplog):
    with caplog.at_level("WARNING", logger="fastreid.cerberus"):
        trained(small_config("MODEL.CERBERUS.SIGMA", 0.0, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1))
    assert "SIGMA does not fit the scale" in caplog.text


@pytest.mark.parametrize(("key", "value", "message"), [
    ("TEST.APS.PROTOCOL", "sap", "PROTOCOL is 'sap', expected one of asmr, sal, sal-all"),
    ("TEST.APS.PARTIAL", "sum", "PARTIAL is 'sum', expected one of mean, max"),
    ("TEST.APS.GROUPS", ["feet"], "GROUPS contains 'feet', expected names joined by"),
])
def test_options_of_the_evaluation_are_checked_before_training(small_config, key, value, message):
    with pytest.raises(ValueError, match=message):
        CerberusTrainer(small_config(key, value))


def test_weights_of_another_size_or_depth_are_rejected(run, small_config):
    weights = str(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")
    with pytest.raises(ValueError, match=r"\d+ of \d+ tensors of the model match, not"):
        load_model(small_config("MODEL.WEIGHTS", weights, "MODEL.HEADS.EMBEDDING_DIM", 64))
    with pytest.raises(ValueError, match=r"\d+ of \d+ tensors of the model match, not"):
        load_model(small_config("MODEL.WEIGHTS", weights, "MODEL.BACKBONE.FEAT_DIM", 8))


def test_a_run_is_resumed_from_the_last_complete_checkpoint(small_config, tmp_path, log):
    first = trained(small_config("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1))
    second = CerberusTrainer(small_config("SOLVER.MAX_EPOCH", 2, "TEST.EVAL_PERIOD", 1, "TEST.BEST_EPOCH", True))
    (tmp_path / "run" / "model_final.pth.tmp").write_bytes(b"half a checkpoint")  # left by a killed process
    second.resume_or_load(resume=True)
    assert second.start_epoch == 1
    assert torch.equal(second.model.prototypes.rows["head"], first.model.prototypes.rows["head"])
    assert "mAP" in second.train()
    table = (tmp_path / "run" / "results.txt").read_text()
    assert "this model, last epoch" in table and "of 2, the best on this test set by reID" in table
    assert f"Results of the last epoch and of the best:\n{table}" in log.messages
    evaluations = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"][TESTS]
    assert list(evaluations) == ["1", "2"] and evaluations["1"] == pytest.approx(report.summary(first.results))


def test_the_training_time_includes_steps_before_a_resume(small_config, tmp_path, monkeypatch, log):
    ticks = itertools.count()
    monkeypatch.setattr("cerberus_plugin.engine.hooks.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))

    def seconds(epochs: int) -> float | None:
        trainer = CerberusTrainer(small_config("SOLVER.MAX_EPOCH", epochs, "TEST.EVAL_PERIOD", 1,
                                               "TEST.BEST_EPOCH", True))
        trainer.resume_or_load(resume=True)
        trainer.train()
        return json.loads((tmp_path / "run" / "results.json").read_text())["training"]["seconds"]

    assert seconds(1) == 2.0  # two steps of one second
    assert seconds(2) == 4.0
    assert seconds(2) == 4.0  # nothing left to train
    path = tmp_path / "run" / "model_final.pth"
    checkpoint = torch.load(path)
    del checkpoint["clock"], checkpoint["evaluations"]
    torch.save(checkpoint, path)
    assert "no results of evaluated epochs" not in log.text
    assert seconds(3) is None  # an old checkpoint without the time
    assert "model_final.pth: contains no results of evaluated epochs; TEST.BEST_EPOCH" in log.text
    assert list(json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"][TESTS]) == ["3"]


@pytest.mark.parametrize("name", ["bot", "agw", "sbs", pytest.param("mgn", marks=pytest.mark.slow)])
def test_fastreids_models_use_the_same_trainer_and_have_no_par_or_aps(small_config, name):
    size = [96, 24] if name == "mgn" else [48, 24]
    backbone = {"agw": RESNET, "mgn": (*RESNET, "MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.FEAT_DIM", 2048)}
    cfg = small_config("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, "DATALOADER.NUM_INSTANCE", 4,
                       "SOLVER.DELAY_EPOCHS", 0, "SOLVER.FREEZE_ITERS", 0, "MODEL.FREEZE_LAYERS", [],
                       "INPUT.SIZE_TRAIN", size, "INPUT.SIZE_TEST", size, *backbone.get(name, ()),
                       file=f"configs/Market1501/{name}_R50.yml")
    results = trained(cfg).results
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    assert evaluate(cfg) == pytest.approx(results)
    assert "mAP" in results and not any(key.startswith(("PAR", "APS")) for key in results)
    assert "PAR" not in (Path(cfg.OUTPUT_DIR) / "results.txt").read_text()


def test_a_model_for_prediction_is_loaded_without_its_classifier(small_config, caplog, monkeypatch):
    cfg = small_config(file="configs/Market1501/bot_R50.yml")
    trainer = CerberusTrainer(cfg)
    trainer.checkpointer.save("model_final")
    assert len(trainer.model.heads.weight)
    host = logging.getLogger("fastreid.utils.checkpoint")
    monkeypatch.setattr(host, "handlers", [caplog.handler])  # FastReID's logger may not propagate
    with caplog.at_level("INFO", logger=host.name):
        loaded = load_model(small_config("MODEL.WEIGHTS", str(Path(cfg.OUTPUT_DIR) / "model_final.pth"),
                                         file="configs/Market1501/bot_R50.yml"))
    assert not len(loaded.heads.weight)
    assert "Loading checkpoint" in caplog.text and "heads.weight" not in caplog.text


def test_only_identities_can_be_trained_as_in_the_ablation(small_config):
    results = trained(small_config("MODEL.CERBERUS.LAMBDA_SEM", 0.0, "MODEL.CERBERUS.LAMBDA_REG", 0.0,
                                   "MODEL.CERBERUS.ALIGN", False, "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1)).results
    assert "mAP" in results and "PAR/mA_official" not in results


@pytest.mark.parametrize(("space", "lower"), [("observed", None), ("product", 40)])
def test_the_saved_configuration_contains_the_number_of_semantic_ids(small_config, space, lower):
    trainer = CerberusTrainer(small_config("MODEL.CERBERUS.SID_SPACE", space))
    saved = (Path(trainer.cfg.OUTPUT_DIR) / "config.yaml").read_text()
    assert "SCHEMA: market1501" in saved and trainer.cfg.MODEL.CERBERUS.NUM_SIDS[2] == (
        lower or len(trainer.model.prototypes.rows["lower"]))


def test_constant_margins_replace_the_adaptive_ones(small_config):
    trainer = CerberusTrainer(small_config("MODEL.CERBERUS.MARGIN", "constant", "MODEL.CERBERUS.MARGIN_CONSTANT", 0.6))
    assert all((trainer.model.prototypes.margins(group) == 0.6).all() for group in GROUPS)
    with pytest.raises(ValueError, match="MARGIN is 'fixed', expected 'adaptive' or 'constant'"):
        CerberusTrainer(small_config("MODEL.CERBERUS.MARGIN", "fixed"))


def test_a_checkpoint_of_another_sid_space_cannot_be_resumed(small_config):
    trained(small_config("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1))
    other = CerberusTrainer(small_config("MODEL.CERBERUS.SID_SPACE", "observed"))
    with pytest.raises(ValueError, match="model_final.pth: .*another MODEL.CERBERUS.SID_SPACE"):
        other.resume_or_load(resume=True)


def test_unusable_and_missing_checkpoints_are_rejected(small_config, tmp_path):
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: contains no semantic IDs"):
        load_model(small_config("MODEL.WEIGHTS", str(tmp_path / "other.pth")))
    torch.save({"model": {"prototypes.sid_of_class": torch.ones(2, 5), "prototypes.schema": torch.tensor(7)}},
               tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="foreign.pth: was trained with an unknown attribute schema"):
        load_model(small_config("MODEL.WEIGHTS", str(tmp_path / "foreign.pth")))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.pth: cannot be read as weights"):
        load_model(small_config("MODEL.WEIGHTS", str(tmp_path / "cut.pth")))
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS 'nowhere.pth' is not a file"):
        load_model(small_config("MODEL.WEIGHTS", "nowhere.pth"))


def test_the_error_for_a_loss_that_is_nan_names_the_iteration_and_the_terms(small_config):
    trainer = CerberusTrainer(small_config())
    trainer.model.prototypes.rows["lower"].data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="iteration 0: loss term.s. not finite: .*loss_sem.*loss_reg"):
        trainer.train()


def test_fewer_identities_than_a_batch_needs_are_rejected_before_training(small_config):
    with pytest.raises(ValueError, match="a batch needs 16 identities.*the training set has 8"):
        CerberusTrainer(small_config("SOLVER.IMS_PER_BATCH", 32, "DATALOADER.NUM_INSTANCE", 2))


def test_cerberus_rejects_a_dataset_without_attributes(small_config):
    with pytest.raises(ValueError, match="Market1501.* have no attributes, which Cerberus needs"):
        CerberusTrainer(small_config("DATASETS.NAMES", ["Market1501"]))


@pytest.fixture
def duke_config(tmp_path, use_root):
    """Return a configuration for a DukeMTMC with a missing `top` in training and a person with two lower colours."""
    labels = random_labels(DUKEMTMC, 14, seed=4)
    train, test = dict(zip((1, 2, 10, 100, 370, 371, 679, 700), labels)), dict(zip((3, 4, 5, 6, 7, 7000), labels[8:]))
    train[370][DUKEMTMC.index("top")] = -1  # stored as 0
    test[3][[DUKEMTMC.index("downblack"), DUKEMTMC.index("downwhite")]] = 1
    use_root(write_duke_folder(tmp_path / "duke", train, test))
    return read_config("OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1,
                       file="configs/DukeMTMC/cerberus_R50.yml")


def test_duke_can_be_trained_with_a_missing_label_and_unseen_test_labels(duke_config):
    trainer = trained(duke_config)
    prototypes = trainer.model.prototypes
    row = trainer.data_loader.dataset.pids.index("dukemtmc_370")
    assert (prototypes.sid_of_class[row] == -1).tolist() == [False, True, False, False, False]
    assert trainer.results["PAR/images"] == 24 and trainer.results["APS/queries"] == 6
    labels = torch.stack(list(trainer.data_loader.dataset.annotations[0].test.values()))
    listed = DUKEMTMC.column_truth(labels)[0][7].any(dim=1).double().mean().item()
    assert trainer.results["PAR/ceiling/lower colour"] == pytest.approx(100 * listed)


def test_apr_can_be_trained_on_duke_with_a_missing_label(duke_config):
    cfg = duke_config.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HEADS.NAME, cfg.MODEL.HEADS.EMBEDDING_DIM = "APR", "AttributeHead", 0
    trainer = trained(cfg)
    assert trainer.model.heads.attributes.out_features == 31
    assert sum(name.startswith("PAR/official/") for name in trainer.results) == 10
    assert trainer.results["APS/mAP"] > 0


def test_a_model_is_evaluated_on_its_attributes_in_another_dataset(run, duke_config):
    figures = CerberusTrainer.test(duke_config, run.model)
    known = {name.removeprefix("PAR/official/") for name, value in figures.items()
             if name.startswith("PAR/official/") and not math.isnan(value)}
    assert known == {"gender", "backpack", "handbag", "bag", "hat", "upper colour", "lower colour"}
    assert not math.isnan(figures["PAR/mA_official"]) and figures["APS/mAP"] > 0


def test_all_images_of_both_splits_can_be_trained_on(small_config):
    train_set = build_train_set(small_config("DATASETS.COMBINEALL", True))
    assert train_set.num_classes == 8 + 6
    assert (train_set.labels >= 0).all()  # test identities have the labels of the test split


def test_datasets_of_two_schemas_are_converted_to_a_merged_schema(duke_config, market_people, tmp_path):
    write_market_folder(tmp_path / "duke", *market_people)
    duke_config.defrost()
    duke_config.DATASETS.NAMES = ("DukeMTMCAttributes", "Market1501Attributes")
    train = build_train_set(duke_config)
    schema = train.annotations[0].schema
    for path, pid, _ in train.img_items:
        values = schema.describe(train.known_of(path, pid)["attributes"])
        assert ("age" in values, "shoes" in values) == ("market" in pid, "market" not in pid) and "gender" in values


@pytest.mark.gpu
def test_every_iteration_is_logged_if_losses_are_read_late(small_config):
    trainer = trained(small_config("MODEL.DEVICE", "cuda", "SOLVER.FUSED", True, "SOLVER.AMP.ENABLED", False,
                                   "LOG_PERIOD", 1, "SOLVER.EMA", 0.9))
    assert trainer._trainer.late_scalars.waiting is None
    lines = map(json.loads, (Path(trainer.cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines())
    losses = {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}
    assert sorted(losses) == list(range(2 * trainer.iters_per_epoch)) and all(map(math.isfinite, losses.values()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cerberus", "bot"])
def test_mixed_precision_and_every_option_of_the_evaluation_work_on_a_gpu(small_config, name):
    results = trained(small_config(
        "MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True, "SOLVER.AUTOCAST", "", "TEST.FLIP.ENABLED", True,
        "TEST.AQE.ENABLED", True, "TEST.RERANK.ENABLED", True, "TEST.ROC.ENABLED", True,
        file=f"configs/Market1501/{name}_R50.yml")).results
    assert results["mAP"] > 0 and ("PAR/mA_official" in results) == (name == "cerberus")


def test_test_batches_do_not_depend_on_the_number_of_loader_processes(small_config):
    def first(workers: int) -> dict:
        seed_all_rng(3)
        loader, _ = CerberusTrainer.build_test_loader(
            small_config("DATALOADER.NUM_WORKERS", workers, "DATALOADER.RESIDENT", False), TESTS)
        return next(iter(loader))

    alone, together = first(0), first(1)
    assert alone["img_paths"] == together["img_paths"]
    assert torch.equal(alone["images"], together["images"]) and torch.equal(alone["attributes"], together["attributes"])


def test_test_sets_are_checked_before_an_evaluation_reads_images(run, tmp_path, market_people, use_root,
                                                                      monkeypatch):
    root = write_market_folder(tmp_path / "data", *market_people)
    for part in ("query", "bounding_box_test"):
        for image in sorted((root / "Market-1501-v15.09.15" / part).iterdir()):
            image.rename(image.with_name(image.name.replace(image.name[4:7], "_c3")))
    use_root(root)
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/model_final.pth", str(tmp_path / "evaluation")
    monkeypatch.setattr(CerberusTrainer, "run_tests", lambda *_: pytest.fail("evaluated"))
    with pytest.raises(ValueError, match="no query has a gallery image of its identity from another camera"):
        evaluate(cfg)


def test_datasets_are_read_and_semantic_ids_numbered_only_once(small_config, monkeypatch):
    read, numbered = [], []
    build_dataset, build_table = build.build_dataset, SIDTable.build
    monkeypatch.setattr(build, "build_dataset", lambda cfg, name, *schema, **options: read.append(
        name) or build_dataset(cfg, name, *schema, **options))
    monkeypatch.setattr(SIDTable, "build", lambda *args: numbered.append(args) or build_table(*args))
    trainer = CerberusTrainer(small_config("DATASETS.HOLD_OUT", 2, "DATASETS.TESTS", [TESTS, "held-out"],
                                           "TEST.EVAL_PERIOD", 1))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert read == [TESTS] and len(numbered) == 1


def test_batches_contain_the_labels_of_each_image_and_their_semantic_ids(run):
    batch = next(iter(run.data_loader))
    assert torch.equal(batch["attributes"], run.data.dataset.labels[batch["targets"]])
    assert torch.equal(batch["sids"], run.data.sid_table.lookup(batch["attributes"]))
