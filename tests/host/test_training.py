"""Training steps with FastReID's optimizers update every parameter, and a loss that is NaN is named."""

import copy
import itertools
import pickle
import types

from cerberus_plugin import host

import fastreid.data.build
import fastreid.engine.defaults
import fastreid.evaluation.rank
import fastreid.solver
import pytest
import torch
from fastreid.engine import train_loop
from fastreid.utils.events import EventStorage
from support.training import solver_cfg
from torch import nn

needs_torch_2 = pytest.mark.skipif(int(torch.__version__.split(".")[0]) < 2, reason="torch 1 keeps gradients")
quiet_autocast = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class Line(nn.Module):
    """y = Wx + b with two loss terms; `poison` is added to the second."""

    def __init__(self, poison=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 2)
        self.heads = nn.Linear(2, 1)
        self.poison = poison

    def forward(self, batch):
        y = self.heads(self.body(batch))
        return {"loss_a": (y - 1).square().mean(), "loss_b": y.square().mean() + self.poison}


BATCH = torch.arange(12.0).view(4, 3) / 12


def train(model, optimizer, params, trainer_class=train_loop.SimpleTrainer, steps=3, batch=BATCH, **kwargs):
    trainer = trainer_class(model, itertools.repeat(batch), optimizer, params, **kwargs)
    with EventStorage(0):
        for trainer.iter in range(steps):
            trainer.run_step()


def moved(model):
    """Return the names of the parameters that differ from those of a new model."""
    fresh = dict(Line().named_parameters())
    return {name for name, value in model.named_parameters() if not torch.equal(value.cpu(), fresh[name])}


EVERY = {"body.weight", "body.bias", "heads.weight", "heads.bias"}


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """Make AMPTrainer accept a CPU; GradScaler("cpu") then does the same as that of CUDA."""
    cuda = types.SimpleNamespace(is_available=lambda: True, stream=torch.cuda.stream)
    monkeypatch.setattr(train_loop, "torch", types.SimpleNamespace(cuda=cuda))
    return {"trainer_class": train_loop.AMPTrainer, "grad_scaler": torch.amp.GradScaler("cpu", init_scale=8.0)}


@pytest.mark.parametrize("opt", ["Adam", "SGD"])
def test_every_parameter_is_updated_and_the_optimizer_has_state(opt):
    model = Line()
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(OPT=opt), model)
    train(model, optimizer, params)
    assert moved(model) == EVERY
    assert len(optimizer.state) == len(optimizer.param_groups) > 0


@needs_torch_2
def test_without_the_adaptation_no_parameter_is_updated():
    model = Line()
    optimizer, params = host.original(fastreid.solver.build_optimizer)(solver_cfg(), model)
    train(model, optimizer, params)
    assert moved(model) == set()
    assert len(optimizer.state) == 0


@quiet_autocast
def test_every_parameter_is_updated_with_amp(amp_on_cpu):
    model = Line()
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model)
    train(model, optimizer, params, **amp_on_cpu)
    assert moved(model) == EVERY
    assert len(optimizer.state) == len(optimizer.param_groups)


@quiet_autocast
@needs_torch_2
def test_without_the_adaptation_amp_fails_at_the_first_step(amp_on_cpu):
    model = Line()
    optimizer, params = host.original(fastreid.solver.build_optimizer)(solver_cfg(), model)
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        train(model, optimizer, params, **amp_on_cpu)


@pytest.mark.gpu
@quiet_autocast
def test_every_parameter_is_updated_with_amp_on_a_gpu():
    model = Line().cuda()
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model)
    train(model, optimizer, params, train_loop.AMPTrainer, steps=20, batch=BATCH.cuda())
    assert moved(model) == EVERY


def test_training_with_flat_buffers_equals_training_without_them():
    flat, single = Line(), Line()
    for model, contiguous in ((flat, True), (single, False)):
        optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model, contiguous=contiguous)
        train(model, optimizer, params, steps=5)
    for a, b in zip(flat.parameters(), single.parameters()):
        torch.testing.assert_close(a, b)


def test_gradient_clipping_and_frozen_layers_still_work():
    model = Line()
    cfg = solver_cfg(FREEZE_ITERS=100)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.MODEL.FREEZE_LAYERS = ["body"]
    optimizer, params = fastreid.solver.build_optimizer(cfg, model)
    train(model, optimizer, params)
    assert moved(model) == {"heads.weight", "heads.bias"}


def test_the_checkpoint_format_of_the_optimizer_is_that_of_fastreid():
    adapted = fastreid.solver.build_optimizer(solver_cfg(), Line())[0]
    plain = host.original(fastreid.solver.build_optimizer)(solver_cfg(), Line())[0]
    plain.load_state_dict(adapted.state_dict())
    assert plain.state_dict().keys() == adapted.state_dict().keys()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copied_optimizer_sets_gradients_to_zero_too(copied):
    optimizer = copied(fastreid.solver.build_optimizer(solver_cfg(), Line())[0])
    buffer = optimizer.param_groups[0]["params"][0]
    buffer.grad = torch.ones_like(buffer)
    optimizer.zero_grad(set_to_none=True)
    assert torch.equal(buffer.grad, torch.zeros_like(buffer))


def test_fastreids_default_trainer_uses_the_adapted_optimizer():
    assert fastreid.engine.defaults.build_optimizer is fastreid.solver.build_optimizer
    assert fastreid.solver.build_optimizer is fastreid.solver.build.build_optimizer
    assert host.original(fastreid.solver.build_optimizer) is not fastreid.solver.build_optimizer


def test_a_loss_that_is_not_finite_is_named_with_its_iteration():
    model = Line(poison=float("nan"))
    optimizer, params = fastreid.solver.build_optimizer(solver_cfg(), model)
    with pytest.raises(FloatingPointError, match=r"iteration 0: loss term\(s\) not finite: loss_b; all terms:.*loss_a"):
        train(model, optimizer, params)
    assert moved(model) == set()


def test_the_log_line_of_an_iteration_is_printed_once(caplog):
    from fastreid.utils.events import CommonMetricPrinter

    printer = CommonMetricPrinter(2)
    with EventStorage(0) as storage, caplog.at_level("INFO", logger="fastreid.utils.events"):
        storage.epoch = 0
        printer.write()
        printer.write()
    assert caplog.text.count("epoch/iter") == 1
