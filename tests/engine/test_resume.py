"""A resumed training equals an uninterrupted one, and checkpoints of other runs are rejected."""

import copy
import itertools
import json
import math
import random
from pathlib import Path

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.data.build import build_train_loader
from cerberus_plugin.data.loader import SeparateGenerators
from cerberus_plugin.engine.label_tables import measure_scales
from cerberus_plugin.engine.trainer import setup
from cerberus_plugin.host.checkpoints import refuse_other_optimizers
from cerberus_plugin.modeling.checkpoint_tables import begin_from_other_weights

import numpy as np
import pytest
import torch
from fastreid.engine import default_argument_parser
from fastreid.solver import build_optimizer
from fastreid.utils.env import seed_all_rng
from support.data import write_market_folder
from support.processes import Killed
from support.training import read_config, solver_cfg

IDE = "configs/Market1501/ide_demo.yml"

RANDOM = ("INPUT.PADDING.ENABLED", True, "INPUT.REA.ENABLED", True, "INPUT.REA.PROB", 0.5, "SOLVER.AUTOCAST", "",
          "SOLVER.WARMUP_ITERS", 1, "SOLVER.MAX_EPOCH", 2, "TEST.EVAL_PERIOD", 2)


def run_until(cfg, kill_at: float = math.inf, seed: int = 1):
    """Train, resuming if possible, and raise Killed before step `kill_at`; return the trainer."""
    seed_all_rng(seed)
    trainer = CerberusTrainer(cfg)
    trainer.resume_or_load(resume=True)
    step = trainer.run_step

    def run_step():
        if trainer.iter >= kill_at:
            raise Killed
        step()

    trainer.run_step = run_step
    trainer.results = trainer.train()
    return trainer


def assert_equal(ours: dict, theirs: dict) -> None:
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


def record_of(cfg) -> dict:
    return json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())


@pytest.mark.parametrize(("name", "resident", "workers", "options"), [
    ("ide", False, 2, ("SOLVER.EMA", 0.9, "INPUT.AUTOAUG.ENABLED", True, "INPUT.AUTOAUG.PROB", 1.0)),
    ("ide", True, 0, ("TEST.UNTRAINED_FLOOR", True)),
    pytest.param("cerberus", True, 0, ("TEST.UNTRAINED_FLOOR", True, "DATALOADER.SAMPLER_TRAIN",
                                       "BalancedIdentitySampler"), marks=pytest.mark.slow),
    pytest.param("cerberus", False, 0, (), marks=pytest.mark.slow),
    pytest.param("cerberus", False, 2, ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2,
                                        "TEST.PRECISE_BN.DATASET", "Market1501Attributes"), marks=pytest.mark.slow),
    pytest.param("cerberus_plus", True, 0, ("SOLVER.EMA", 0.9), marks=pytest.mark.slow),
    pytest.param("apr", True, 0, ("MODEL.APR.DROPOUT", 0.5), marks=pytest.mark.slow),
    pytest.param("bot", False, 2, ("DATALOADER.SAMPLER_TRAIN", "ImbalancedDatasetSampler"), marks=pytest.mark.slow),
])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
        small_config, tmp_path, name, resident, workers, options):
    def config(folder: str):
        return small_config(*RANDOM, "DATALOADER.RESIDENT", resident, "DATALOADER.NUM_WORKERS", workers, *options,
                            "OUTPUT_DIR", str(tmp_path / folder), file=f"configs/Market1501/{name}_demo.yml")

    whole = run_until(config("whole"))
    with pytest.raises(Killed):
        run_until(config("parts"), kill_at=3)  # in the second epoch, after the checkpoint of the first
    resumed = run_until(config("parts"), seed=7)
    assert resumed.start_epoch == 1
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    ours, theirs = (torch.load(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")["optimizer"]["state"]
                    for run in (resumed, whole))
    for i, state in theirs.items():
        assert_equal(ours[i], state)
    assert resumed.results == pytest.approx(whole.results, abs=0, nan_ok=True)
    records = record_of(resumed.cfg), record_of(whole.cfg)
    assert records[0]["evaluations"] == records[1]["evaluations"]
    assert records[0].get("before training") == records[1].get("before training")
    assert [record["training"]["resumed after epochs"] for record in records] == [[1], []]


def test_fitting_scales_is_repeatable_and_does_not_change_the_generators(run, small_config):
    def states() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before, scales, training = states(), run.model.prototypes.log_scales.tolist(), run.model.training
    measure_scales(run.model, small_config(), run.data)
    assert states() == before and run.model.prototypes.log_scales.tolist() == scales and run.model.training == training


def images_of(loader, first: int, count: int) -> list[torch.Tensor]:
    loader.batch_sampler.start = first
    return [batch["images"] for batch in itertools.islice(loader, count)]


@pytest.mark.parametrize("sampler", ["TrainingSampler", "NaiveIdentitySampler", "BalancedIdentitySampler"])
@pytest.mark.parametrize("resident", [True, False])
def test_a_batch_depends_only_on_the_seed_and_its_number(small_config, sampler, resident):
    options = (*RANDOM, "DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.RESIDENT", resident)
    whole = images_of(build_train_loader(small_config(*options)), 0, 5)
    torch.rand(3), np.random.rand(3), random.random()  # other uses of random numbers must not matter
    later = images_of(build_train_loader(small_config(*options)), 2, 3)
    assert all(map(torch.equal, later, whole[2:]))
    assert not torch.equal(later[0], later[1])
    other = images_of(build_train_loader(small_config(*options, "SEED", 2)), 0, 1)
    assert not torch.equal(other[0], whole[0])


def test_batches_do_not_depend_on_the_number_of_loader_processes(small_config):
    alone, two = (images_of(build_train_loader(small_config(
        *RANDOM, "DATALOADER.RESIDENT", False, "DATALOADER.NUM_WORKERS", workers)), 1, 3) for workers in (0, 2))
    assert all(map(torch.equal, alone, two))


def test_processes_share_the_order_of_images_but_not_the_seeds_of_augmentation(small_config, monkeypatch):
    cfg = small_config("SOLVER.IMS_PER_BATCH", 16)
    batches = []
    for rank in (0, 1):
        monkeypatch.setattr("fastreid.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("fastreid.utils.comm.get_world_size", lambda: 2)
        monkeypatch.setattr("fastreid.utils.comm.shared_random_seed", lambda: np.random.randint(2**31))
        batches.append(next(iter(build_train_loader(cfg).batch_sampler)))
    assert set(batches[0]).isdisjoint(batches[1]) and batches[0].seed != batches[1].seed


def test_random_numbers_of_a_batch_do_not_change_the_global_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    seed_all_rng(5)
    expected = [draw() for _ in range(2)]
    seed_all_rng(5)
    inside = SeparateGenerators(3)
    found, drawn = [draw()], []
    for _ in range(2):
        with inside:
            drawn.append(draw())
    found.append(draw())
    seed_all_rng(3)
    assert found == expected and drawn == [draw(), draw()]


def optimizer_of(sizes: dict[str, int], opt: str = "Adam", lr_factor: float = 1.0, freeze=(), keep: bool = True):
    """Return an optimizer of FastReID's flat buffers after one step; each name is a layer with weight and bias."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, size) for name, size in sizes.items()})
    cfg = solver_cfg(OPT=opt, HEADS_LR_FACTOR=lr_factor, FREEZE_ITERS=9 if freeze else 0)
    cfg.MODEL.FREEZE_LAYERS = list(freeze)
    optimizer, _ = build_optimizer(cfg, model)
    sum(layer(torch.ones(1, 2)).sum() for layer in model.values()).backward()
    optimizer.step()
    if keep:
        refuse_other_optimizers(optimizer, model, opt)
    return optimizer


@pytest.mark.parametrize(("changes", "message"), [
    ({"sizes": {"body": 3, "heads": 5}}, r"group 0 has heads.weight \(4, 2\) where this run has heads.weight \(5, 2\)"),
    ({"sizes": {"body": 4, "heads": 3}}, r"group 0 has body.weight \(3, 2\) where this run has body.weight \(4, 2\)"),
    ({"sizes": {"heads": 4, "body": 3}}, r"group 0 has body.weight .* where this run has heads.weight"),
    ({"sizes": {"body": 3, "neck": 1, "heads": 4}}, r"group 0 has heads.weight .* where this run has neck.weight"),
    ({"lr_factor": 0.5}, r"group 0 has heads.weight \(4, 2\) where this run has nothing"),
    ({"freeze": ["body"]}, r"where this run has nothing"),
    ({"opt": "SGD"}, "SOLVER.OPT Adam, this run has SGD"),
    ({"opt": "AdamW"}, "SOLVER.OPT Adam, this run has AdamW"),
])
def test_the_state_of_another_optimizer_is_rejected_before_it_is_loaded(changes, message):
    saved = optimizer_of({"body": 3, "heads": 4}).state_dict()
    other = optimizer_of(**({"sizes": {"body": 3, "heads": 4}} | changes))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved)
    for i, state in other.state_dict()["state"].items():
        assert_equal({key: value for key, value in state.items() if value is not None},
                     {key: value for key, value in before["state"][i].items() if value is not None})


@pytest.mark.parametrize(("changes", "message"), [
    ({"sizes": {"body": 3, "heads": 5}}, r"'exp_avg' of tensor 0 has the shape \(21,\), in this run \(24,\)"),
    ({"freeze": ["body"]}, "groups of"),
    ({"opt": "SGD"}, "SOLVER.OPT of another kind, this run has SGD"),
    ({}, None),
])
def test_a_checkpoint_without_names_is_resumed_if_its_sizes_match(changes, message):
    saved = optimizer_of({"body": 3, "heads": 4}, keep=False).state_dict()
    own = optimizer_of(**({"sizes": {"body": 3, "heads": 4}} | changes))
    if message:
        with pytest.raises(ValueError, match=message):
            own.load_state_dict(saved)
    else:
        own.load_state_dict(saved)
        assert_equal(own.state_dict()["state"][0], saved["state"][0])
        assert own.state_dict()["param_groups"][0]["parameters"][0] == ["body.weight", [3, 2]]  # stored from now on


@pytest.fixture(scope="module")
def ide_run(tmp_path_factory, market_root):
    """Return the folder of a run of IDE that was killed after its first epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastreid.data.build._root", str(market_root))
        folder = tmp_path_factory.mktemp("ide") / "run"
        with pytest.raises(Killed):
            run_until(read_config("OUTPUT_DIR", str(folder), *RANDOM, file=IDE), kill_at=2)
        yield folder


@pytest.mark.parametrize(("options", "message"), [
    (("DATASETS.HOLD_OUT", 2), r"'heads.weight' is missing or has another size.*MODEL.WEIGHTS"),
    (("MODEL.BACKBONE.FEAT_DIM", 8), "is missing or has another size"),
    (("SOLVER.HEADS_LR_FACTOR", 0.5), "where this run has nothing. Resume with the config.yaml"),
    (("SOLVER.OPT", "SGD"), "SOLVER.OPT Adam, this run has SGD"),
    (("SOLVER.EMA", 0.9), "has no average of the weights, this run has SOLVER.EMA 0.9; resume with SOLVER.EMA 0"),
])
def test_a_checkpoint_of_another_run_cannot_be_resumed(small_config, ide_run, options, message):
    trainer = CerberusTrainer(small_config(*RANDOM, "OUTPUT_DIR", str(ide_run), *options, file=IDE))
    with pytest.raises(ValueError, match=f"model_0000.pth: .*{message}"):
        trainer.resume_or_load(resume=True)


def test_changed_settings_that_have_no_effect_on_a_resumed_run_are_logged(small_config, ide_run, log):
    for changes, named in (((), None), (("SOLVER.BASE_LR", 0.5), "initial_lr of group 0"),
                           (("SOLVER.MAX_EPOCH", 9), "T_max of lr_sched")):
        log.clear()
        trainer = CerberusTrainer(small_config(*RANDOM, "OUTPUT_DIR", str(ide_run), *changes, file=IDE))
        trainer.resume_or_load(resume=True)
        warnings = [line for line in log.messages if "continues with its original settings" in line]
        assert bool(warnings) == bool(changes) and all(named in line for line in warnings)


def test_a_resumed_run_uses_its_random_seed_and_logs_another_one(tmp_path, monkeypatch, log):
    def seed(*options: str) -> int:
        args = ["--resume", "--config-file", IDE, "OUTPUT_DIR", str(tmp_path), "SEED", *options]
        return setup(default_argument_parser().parse_args(args)).SEED

    def write_config(cfg, args) -> None:  # like FastReID, without a log
        (tmp_path / "config.yaml").write_text(cfg.dump())

    draws = itertools.count(100)
    monkeypatch.setattr("os.urandom", lambda size: next(draws).to_bytes(size, "big"))
    monkeypatch.setattr("cerberus_plugin.engine.trainer.default_setup", write_config)
    drawn = seed("-1")
    assert seed("-1") != drawn  # without a checkpoint, a new run starts
    drawn = seed("-1")
    (tmp_path / "last_checkpoint").write_text("model_0000.pth")
    assert seed("-1") == drawn and not any("started with SEED" in line for line in log.messages)
    assert seed("7") == 7 and f"started with SEED {drawn} and continues with SEED 7" in log.text
    (tmp_path / "config.yaml").write_text("SEED: [")
    assert seed("3") == 3


def test_other_identities_of_the_same_number_are_rejected(small_config, ide_run, market_people, tmp_path, use_root):
    people = dict(zip((3, 7, 10, 11, 23, 100, 101, 700), market_people[0].values()))  # 3 instead of 2
    use_root(write_market_folder(tmp_path / "data", people, market_people[1]))
    trainer = CerberusTrainer(small_config(*RANDOM, "OUTPUT_DIR", str(ide_run), file=IDE))
    with pytest.raises(ValueError, match="model_0000.pth: .*trained on other identities"):
        trainer.resume_or_load(resume=True)


def test_partly_written_checkpoints_are_removed_by_the_next_run_in_the_folder(small_config, tmp_path, log):
    cfg = small_config(*RANDOM, file=IDE)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir()
    for name in ("model_0000.pth.tmp", "model_0001.pth.5ae2.tmp", "last_checkpoint.tmp", "notes.tmp"):
        (folder / name).write_bytes(b"half")
    CerberusTrainer(cfg).resume_or_load(resume=True)
    assert [path.name for path in folder.glob("*.tmp")] == ["notes.tmp"]
    assert "model_0000.pth.tmp: removed" in log.text


def begun(small_config, run, *options):
    """Return a trainer of Cerberus with the weights of `run`, and the state of its model before they were loaded."""
    weights = str(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")
    trainer = CerberusTrainer(small_config("MODEL.WEIGHTS", weights, *options))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    return trainer, before


@pytest.mark.parametrize(("options", "left"), [
    (("DATASETS.HOLD_OUT", 2), {"heads.classifiers"}),  # other identities, the same semantic IDs
    (("MODEL.CERBERUS.SID_SPACE", "observed"), {"prototypes.rows"}),
    (("MODEL.HEADS.EMBEDDING_DIM", 64), {"heads.", "prototypes.rows", "prototypes.residuals"}),
])
def test_tensors_that_fit_are_loaded_from_another_model_and_the_others_are_logged(
        small_config, run, options, left, log):
    trainer, before = begun(small_config, run, *options)
    given, now = run.model.state_dict(), trainer.model.state_dict()
    tables = [name for name, _ in trainer.model.prototypes.named_buffers(prefix="prototypes") if name in now]
    assert_equal({name: now[name] for name in tables}, {name: before[name] for name in tables})
    weights = [name for name, _ in trainer.model.named_parameters()]
    taken = {name for name in weights if given[name].shape == now[name].shape and torch.equal(given[name], now[name])}
    kept = {name for name in weights if torch.equal(before[name], now[name])} - taken
    assert taken | kept == set(weights) and any(name.startswith("trunk") for name in taken)
    assert kept and all(name.startswith(tuple(left)) for name in kept)
    message = next(line for line in log.messages if "tensors loaded" in line)
    assert "model_final.pth: " in message and all(name.rpartition(".")[0] in message for name in kept)
    assert "prototypes (" in message  # the tables


def test_prototypes_of_the_same_semantic_ids_are_loaded_for_other_identities(small_config, run):
    trainer, _ = begun(small_config, run, "DATASETS.HOLD_OUT", 2)
    assert_equal(dict(trainer.model.prototypes.named_parameters()), dict(run.model.prototypes.named_parameters()))


def test_prototypes_are_not_loaded_if_the_values_of_semantic_ids_differ(small_config, run):
    path = Path(run.cfg.OUTPUT_DIR) / "model_final.pth"
    checkpoint = torch.load(path)
    checkpoint["model"]["prototypes.bits_head"] = 1 - checkpoint["model"]["prototypes.bits_head"]
    trainer = CerberusTrainer(small_config())
    prototypes = trainer.model.prototypes
    head, carried = prototypes.rows["head"].clone(), run.model.prototypes.rows["carrying"]
    begin_from_other_weights(trainer.model, True)
    trainer.model.load_state_dict(checkpoint["model"], strict=False)
    assert torch.equal(prototypes.rows["head"], head) and torch.equal(prototypes.rows["carrying"], carried)
    assert torch.equal(prototypes.residuals["head"], run.model.prototypes.residuals["head"])
    checkpoint["model"]["prototypes.schema"] += 1
    trainer = CerberusTrainer(small_config())
    residuals = trainer.model.prototypes.residuals["head"].clone()
    begin_from_other_weights(trainer.model, True)
    trainer.model.load_state_dict(checkpoint["model"], strict=False)
    assert torch.equal(trainer.model.prototypes.residuals["head"], residuals)


def test_weights_without_a_fitting_tensor_are_rejected(small_config, tmp_path):
    torch.save({"model": {"x": torch.ones(1)}}, tmp_path / "other.pth")
    trainer = CerberusTrainer(small_config("MODEL.WEIGHTS", str(tmp_path / "other.pth")))
    with pytest.raises(ValueError, match="other.pth: none of its tensors fits one of the model's"):
        trainer.resume_or_load(resume=False)
