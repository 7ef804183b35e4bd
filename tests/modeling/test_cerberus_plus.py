"""Cerberus with all extensions: training, evaluation of the checkpoint, resuming, and inference."""

from pathlib import Path

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.engine.trainer import evaluate

import pytest
import torch
from support.training import read_config, trained

PLUS = "configs/Market1501/cerberus_plus_demo.yml"
OPTIONS = ("SOLVER.MAX_EPOCH", 1, "TEST.EVAL_PERIOD", 1, "MODEL.HEADS.EMBEDDING_DIM", 32,
           "MODEL.CERBERUS.POOL", "gem", "MODEL.CERBERUS.SPLIT", True, "SOLVER.EMA", 0.999)  # in addition to the file's


@pytest.fixture(scope="module")
def plus(tmp_path_factory, market_root):
    """A short run with all extensions, not modified by tests."""
    patch = pytest.MonkeyPatch()
    patch.setattr("fastreid.data.build._root", str(market_root))
    yield trained(read_config("OUTPUT_DIR", str(tmp_path_factory.mktemp("plus") / "run"), *OPTIONS, file=PLUS))
    patch.undo()


def changed(cfg, **changes):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([item for key, value in changes.items() for item in (key.replace("__", "."), value)])
    return cfg


def weights(run) -> str:
    return str(Path(run.cfg.OUTPUT_DIR) / "model_final.pth")


@pytest.mark.parametrize(("name", "softmax", "agreement", "smoothing"), [
    ("Market1501/cerberus_plus_R50", 1.0, 0.0, 0.0), ("DukeMTMC/cerberus_plus_R50", 1.0, 0.0, 0.0),
    ("Market1501/cerberus_plus_demo", 1.0, 0.0, 0.0), ("Market1501/cerberus_plus_R18_cpu", 16.0, 0.2, 0.1)])
def test_cerberus_plus_configurations_enable_the_selected_extensions(name, softmax, agreement,
                                                                                      smoothing):
    cfg = read_config(file=f"configs/{name}.yml")
    node = cfg.MODEL.CERBERUS
    assert (node.SOFTMAX, node.AGREEMENT, cfg.MODEL.LOSSES.CE.EPSILON) == (softmax, agreement, smoothing)
    assert (node.PROTOTYPES, node.SOFTMAX_PRIOR, cfg.TEST.READING) == ("composed", True, "probability")
    assert (node.LAMBDA_SEM, node.LAMBDA_REG, node.POOL, node.SPLIT, cfg.SOLVER.EMA) == (0, 0, "mean", False, 0)
    paper = read_config(file=f"configs/{name.replace('_plus', '')}.yml")
    node = paper.MODEL.CERBERUS
    assert (node.PROTOTYPES, node.SOFTMAX, node.AGREEMENT, node.LAMBDA_SEM) == ("free", 0, 0, 5.0)
    assert paper.TEST.READING == "nearest"


def test_every_parameter_moves_and_the_model_of_the_checkpoint_is_the_average(plus):
    assert [name for name, p in plus.model.named_parameters() if torch.equal(p, plus.start[name])] == []
    state = torch.load(weights(plus))
    average = plus.checkpointer.checkpointables["average"]
    for name, p in plus.model.named_parameters():
        assert torch.equal(state["model"][name], p) and torch.equal(state["average"]["beside"][name],
                                                                    average.beside[name])
    assert not torch.equal(average.beside["heads.fc.head.weight"], plus.model.heads.fc["head"].weight)


def test_evaluation_of_the_checkpoint_gives_the_same_metrics(plus, tmp_path):
    cfg = changed(plus.cfg, MODEL__WEIGHTS=weights(plus), OUTPUT_DIR=str(tmp_path), MODEL__HEADS__NUM_CLASSES=0,
                  MODEL__CERBERUS__SCHEMA="", MODEL__CERBERUS__NUM_SIDS=[])
    assert evaluate(cfg) == pytest.approx(plus.results, nan_ok=True)
    with pytest.raises(ValueError, match="130 of 132 tensors of the model match, not 'heads.exponents.global'"):
        torch.save({"model": {name: value for name, value in torch.load(weights(plus))["model"].items()
                              if "exponents" not in name}}, tmp_path / "other.pth")
        evaluate(changed(cfg, MODEL__WEIGHTS=str(tmp_path / "other.pth")))


def test_a_finished_run_is_evaluated_with_its_average(plus):
    again = CerberusTrainer(plus.cfg)
    again.resume_or_load(resume=True)
    assert again.train() == pytest.approx(plus.results, nan_ok=True)


def test_the_average_must_match_in_a_resumed_run_but_not_in_a_new_one(plus, tmp_path):
    other = CerberusTrainer(changed(plus.cfg, SOLVER__EMA=0.0))
    with pytest.raises(ValueError, match="model_final.pth: the checkpoint's weights are an average.*SOLVER.EMA 0"):
        other.resume_or_load(resume=True)
    other = CerberusTrainer(changed(plus.cfg, SOLVER__EMA=0.0, OUTPUT_DIR=str(tmp_path), MODEL__WEIGHTS=weights(plus)))
    other.resume_or_load(resume=False)
    assert torch.equal(other.model.heads.fc["head"].weight, plus.model.heads.fc["head"].weight)
    assert "average" not in other.checkpointer.checkpointables


def test_a_model_with_softmax_only_has_prototypes(small_config):
    model = CerberusTrainer(small_config("MODEL.CERBERUS.LAMBDA_SEM", 0.0, "MODEL.CERBERUS.LAMBDA_REG", 0.0,
                                         "MODEL.CERBERUS.SOFTMAX", 1.0)).model
    answers = model.attribute_reader().recognise(torch.randn(3, 5 * 128))
    assert len(answers) == 3
