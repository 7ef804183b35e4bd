"""Freezing of layers in the first iterations: which layers, how long, and after a resume."""

from types import SimpleNamespace

from cerberus_plugin import CerberusTrainer
from cerberus_plugin.engine.hooks import FrozenLayers, frozen_layers

import pytest
import torch
from fastreid.modeling.meta_arch import build_model
from support.training import RESNET, read_config, trained
from torch import nn

NORMS = ("trunk.1", "global_branch.1.0.bn2")


class Branches(nn.Module):
    """Modules with common prefixes in their names, as in MGN."""

    def __init__(self):
        super().__init__()
        for name in ("backbone", "b1", "b1_head", "b10", "heads"):
            setattr(self, name, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def optimizer_of(model: nn.Module, *options, file="configs/Market1501/bot_demo.yml"):
    return CerberusTrainer.build_optimizer(read_config(*options, file=file), model)


def moved_by_a_step(model: nn.Module, optimizer, params) -> set[str]:
    """Return the names of the parameters that a step changes, with a gradient of 1 for all parameters."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(1.0)
    optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_names_are_full_paths_of_modules():
    model = Branches()
    optimizer, params = optimizer_of(model, "MODEL.FREEZE_LAYERS", ["b1", "heads.0"], "SOLVER.FREEZE_ITERS", 1)
    moved = moved_by_a_step(model, optimizer, params)
    assert {name for name, _ in model.named_parameters()} - moved == {"b1.0.weight", "b1.0.bias", "b1.1.weight",
                                                                       "b1.1.bias", "heads.0.weight", "heads.0.bias"}


@pytest.mark.slow
def test_the_heads_of_mgn_train_while_its_backbone_and_branches_are_frozen():
    file = "configs/Market1501/mgn_R50.yml"
    options = (*RESNET, "MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.FEAT_DIM", 2048, "MODEL.HEADS.NUM_CLASSES", 4)
    model = build_model(read_config(*options, file=file))
    moved = moved_by_a_step(model, *optimizer_of(model, *options, file=file))
    assert len(moved) == 32 and all("_head." in name for name in moved)
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad and name not in moved}
    assert frozen == {"backbone", "b1", "b2", "b3"}


def test_backbone_means_all_parts_of_a_backbone_that_a_model_splits():
    model = build_model(read_config("MODEL.HEADS.NUM_CLASSES", 4, file="configs/PRCC/cssc_demo.yml"))
    frozen = [model.get_submodule(path) for path in frozen_layers(model, ["backbone"])]
    found = {p for module in frozen for p in module.parameters()}
    added = {name for name, p in model.named_parameters() if p not in found}
    assert {name.split(".")[0] for name in added} == {"content_branch", "salient_branch", "bn", "classifier"}
    assert all(".smr." in name for name in added if "branch" in name)


@pytest.mark.parametrize(("names", "message"), [
    (["backbon"], "MODEL.FREEZE_LAYERS has 'backbon', but Cerberus has no such module; expected any of backbone, "
                  "trunk, global_branch, local_branch, heads, prototypes, or the full path"),
    (["heads", "heads.b"], "has 'heads.b', but Cerberus"),
    (["trunk.*"], r"has 'trunk.\*', but Cerberus"),
])
def test_the_error_for_an_unknown_name_lists_the_modules(small_config, names, message):
    with pytest.raises(ValueError, match=message):
        CerberusTrainer(small_config("MODEL.FREEZE_LAYERS", names, "SOLVER.FREEZE_ITERS", 3))


@pytest.mark.parametrize("options", [("MODEL.FREEZE_LAYERS", ["backbone"]), ("SOLVER.FREEZE_ITERS", 3)])
def test_layers_without_iterations_and_iterations_without_layers_are_rejected(options):
    with pytest.raises(ValueError, match=r"FREEZE_LAYERS is .* and SOLVER.FREEZE_ITERS \d, so nothing would be frozen"):
        optimizer_of(Branches(), *options)


def test_a_learning_rate_of_heads_is_rejected_for_a_model_without_heads():
    model = Branches()
    optimizer_of(model, "SOLVER.HEADS_LR_FACTOR", 2.0)
    del model.heads
    with pytest.raises(ValueError, match="HEADS_LR_FACTOR is 2.0, but .* heads, and Branches has none"):
        optimizer_of(model, "SOLVER.HEADS_LR_FACTOR", 2.0)


def test_layers_are_frozen_in_the_first_iterations_and_not_again_after_a_resume(small_config, log):
    """Two iterations per epoch, an evaluation after each epoch, and three frozen iterations."""
    options = ("MODEL.FREEZE_LAYERS", ["backbone"], "SOLVER.FREEZE_ITERS", 3, "TEST.EVAL_PERIOD", 1)
    trainer = trained(small_config(*options, "SOLVER.MAX_EPOCH", 2))
    steps = [trainer.model.get_submodule(name).num_batches_tracked for name in (*NORMS, "heads.bn.head")]
    assert steps == [1, 1, 4]  # the evaluation in between does not unfreeze the statistics
    layers = "layers trunk, global_branch, local_branch are"
    assert {record.message for record in log.records if layers in record.message} == {
        f"Iteration 0: {layers} frozen until iteration 3",
        f"Iteration 3: {layers} not frozen, because SOLVER.FREEZE_ITERS is 3"}

    log.clear()
    resumed = CerberusTrainer(small_config(*options, "SOLVER.MAX_EPOCH", 3))
    resumed.resume_or_load(resume=True)
    before = {name: p.detach().clone() for name, p in resumed.model.named_parameters()}
    resumed.train()
    assert [resumed.model.get_submodule(name).num_batches_tracked for name in NORMS] == [3, 3]
    still = [name for name, p in resumed.model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert still == []
    assert {record.message for record in log.records if layers in record.message} == {
        f"Iteration 4: {layers} not frozen, because SOLVER.FREEZE_ITERS is 3"}


def test_the_status_of_groups_is_set_by_iteration_after_loading_a_checkpoint():
    model = Branches()
    optimizer, params = optimizer_of(model, "MODEL.FREEZE_LAYERS", ["b1"], "SOLVER.FREEZE_ITERS", 5)
    hook = FrozenLayers(model, optimizer, ["b1"], 5)
    optimizer.load_state_dict(optimizer.state_dict())
    for hook.trainer in (SimpleNamespace(iter=4), SimpleNamespace(iter=5)):
        hook.before_step()
        assert ("b1.0.weight" in moved_by_a_step(model, optimizer, params)) == (hook.trainer.iter == 5)
        assert model.b1[1].training == (hook.trainer.iter == 5) and model.b10.training
