"""Functions without synchronisation points give the same results and the same log as FastReID's own."""

import functools
import importlib
import itertools
import json
import math
from types import SimpleNamespace

from cerberus_plugin import host
from cerberus_plugin.engine.hooks import ReadScalarsLate
from cerberus_plugin.host import LateScalars, waits
from cerberus_plugin.modeling import precision

import fastreid.solver
import pytest
import torch
from fastreid.engine import train_loop
from fastreid.layers.any_softmax import CircleSoftmax
from fastreid.layers.batch_norm import BatchNorm
from fastreid.modeling.losses import cross_entropy_loss, triplet_loss
from fastreid.modeling.meta_arch import MGN, Baseline
from fastreid.utils.events import JSONWriter, get_event_storage
from support.training import solver_cfg
from torch import nn

TARGETS = torch.tensor([0, 0, 1, 1, 4, 4])
module = importlib.import_module("fastreid.modeling.losses.triplet_loss")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Treat CPU tensors as GPU tensors, and events as completed."""
    monkeypatch.setattr(waits, "on_gpu", lambda tensor: True)
    event = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: event))


def with_gradient(function, x, *args):
    """Return the value of a function at x and the gradient of the sum of its squares."""
    x = x.clone().requires_grad_()
    value = function(x, *args)
    value.square().sum().backward()
    return value.detach(), x.grad


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_cross_entropy_equals_fastreids_mean_over_non_zero_losses(eps, as_on_a_gpu):
    logits = random(6, 5)
    logits[2] = torch.tensor([0.0, 200.0, 0.0, 0.0, 0.0])  # without smoothing its loss is 0
    expected = with_gradient(host.original(cross_entropy_loss), logits, TARGETS, eps)
    found = with_gradient(cross_entropy_loss, logits, TARGETS, eps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("norm_feat", [True, False])
def test_the_triplet_loss_without_a_margin_equals_fastreids_bit_by_bit(hard, norm_feat, as_on_a_gpu):
    expected = with_gradient(host.original(module.triplet_loss), random(6, 3), TARGETS, 0.0, norm_feat, hard)
    found = with_gradient(triplet_loss, random(6, 3), TARGETS, 0.0, norm_feat, hard)
    assert all(map(torch.equal, found, expected))


def test_an_overflowing_triplet_loss_is_the_hinge_with_a_finite_gradient(as_on_a_gpu):
    far = 1000 * random(6, 3)
    expected = with_gradient(host.original(module.triplet_loss), far, TARGETS, 0.0, False, True)
    found = with_gradient(triplet_loss, far, TARGETS, 0.0, False, True)
    assert expected[0] > 88 and expected[0].isfinite() and found[1].isfinite().all()
    assert all(map(torch.equal, found, expected))


def test_circle_logits_equal_fastreids_also_for_rows_without_a_class(as_on_a_gpu):
    targets = torch.tensor([0, 3, -1, 2, 4, -1])
    layer = CircleSoftmax(5, scale=64, margin=0.35)
    forward = host.original(CircleSoftmax.forward)
    expected = with_gradient(lambda x: forward(layer, x.clone(), targets), random(6, 5).tanh())
    found = with_gradient(lambda x: layer(x.clone(), targets), random(6, 5).tanh())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", [Baseline, MGN])
def test_a_model_gets_plain_targets_without_computing_their_sum(model, as_on_a_gpu, monkeypatch):
    seen = []
    parts = "b1 b2 b3 b1_head b2_head b21_head b22_head b3_head b31_head b32_head b33_head".split()
    fake = SimpleNamespace(training=True, preprocess_image=lambda batch: batch["images"], backbone=nn.Identity(),
                           heads=lambda x, targets: seen.append(targets), losses=lambda *args: args[-1],
                           **dict.fromkeys(parts, lambda x, targets=None: seen.append(targets) or x))
    waited = []
    plain = torch.Tensor.sum
    monkeypatch.setattr(torch.Tensor, "sum", lambda *args: waited.append(args) or plain(*args))
    for given, expected in (([3, 1], [3, 1]), ([-1, -1], [0, 0])):
        batch = {"images": torch.zeros(2, 3, 6, 2), "targets": torch.tensor(given)}
        targets = model.forward(fake, batch)
        assert not waited
        assert type(targets) is torch.Tensor and targets.tolist() == expected and targets.sum() == sum(expected)
        assert batch["targets"].tolist() == given
        waited.clear()
    assert all(t.tolist() in ([3, 1], [0, 0]) for t in seen if t is not None)


def test_batch_normalisation_equals_fastreids_without_counting_batches(as_on_a_gpu):
    mine, theirs = BatchNorm(3), BatchNorm(3)
    forward = host.original(BatchNorm.forward)
    for training in (True, True, False):
        x = random(4, 3, 2, 2)
        assert torch.equal(mine.train(training)(x), forward(theirs.train(training), x))
    assert torch.equal(mine.running_mean, theirs.running_mean) and torch.equal(mine.running_var, theirs.running_var)
    assert (mine.num_batches_tracked, theirs.num_batches_tracked) == (0, 2)
    mine.momentum = None  # the mean over all batches needs their number
    mine.train()(x)
    assert mine.num_batches_tracked == 1


class Line(nn.Module):
    """y = Wx with two loss terms and a scalar for the log; `poison` is added to the second term in step `bad`."""

    def __init__(self, bad: int | None = None, poison: float = math.nan) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.Linear(3, 2)
        self.steps, self.bad, self.poison = 0, bad, poison

    def forward(self, batch):
        y = self.heads(batch)
        get_event_storage().put_scalar("accuracy", y.detach().mean())
        with get_event_storage().name_scope("of_heads"):
            get_event_storage().put_scalar("largest", y.detach().max())
        self.steps += 1
        return {"loss_a": (y - 1).square().mean(),
                "loss_b": y.square().mean() + (self.poison if self.steps - 1 == self.bad else 0)}


class Loop(train_loop.TrainerBase):
    """FastReID's trainer with a fused optimizer, for two epochs of three steps; losses are read late or immediately."""

    def __init__(self, model: nn.Module, path, late: bool, opt: str = "Adam") -> None:
        super().__init__()
        optimizer, params = fastreid.solver.build_optimizer(solver_cfg(OPT=opt), model)
        precision.fuse(optimizer, True)
        if late:
            host.gather_gradients(optimizer, model.parameters())
        batches = (random(4, 3) + i for i in itertools.count())
        self.steps = train_loop.SimpleTrainer(model, batches, optimizer, params)
        self.after = []  # the weights after each step
        self.iters_per_epoch, self.path = 3, path
        if late:
            self.steps.late_scalars = LateScalars(self.steps)
            self.register_hooks([ReadScalarsLate(self.steps.late_scalars, 2)])

    def run_step(self):
        self.steps.iter = self.iter
        self.steps.run_step()
        self.after.append(self.steps.model.heads.weight.detach().clone())

    def run(self) -> list[str]:
        """Train, and return the lines of the log without times."""
        writer = JSONWriter(str(self.path))
        norm, line = train_loop.HookBase(), train_loop.HookBase()
        norm.after_step = lambda: self.storage.put_scalar("norm", self.after[-1].norm())
        line.after_step = lambda: (self.iter + 1) % 2 == 0 and writer.write()
        line.after_epoch = writer.write
        self.register_hooks([norm, line])
        self.train(0, 2, 3)
        return [{name: value for name, value in json.loads(text).items() if name != "data_time"}
                for text in self.path.read_text().splitlines()]


@pytest.mark.parametrize("opt", ["Adam", "SGD"])
def test_reading_losses_late_changes_neither_the_log_nor_the_weights(opt, as_on_a_gpu, tmp_path):
    at_once = Loop(Line(), tmp_path / "at_once.json", late=False, opt=opt)
    late = Loop(Line(), tmp_path / "late.json", late=True, opt=opt)
    log = late.run()
    assert log == at_once.run()
    assert [line["iteration"] for line in log] == [1, 2, 3, 5]
    assert {"loss_a", "accuracy", "of_heads/largest", "norm"} <= log[-1].keys()
    assert all(map(torch.equal, late.after, at_once.after))


@pytest.mark.parametrize("poison", [math.nan, -math.inf])
@pytest.mark.parametrize(("bad", "steps"), [(0, 1), (2, 3), (3, 4)])  # the log has lines after steps 1, 2, 3 and 5
@pytest.mark.parametrize("opt", ["Adam", "SGD"])
def test_a_late_loss_that_is_not_finite_changes_no_parameter(bad, steps, poison, opt, as_on_a_gpu, tmp_path):
    late = Loop(Line(bad, poison), tmp_path / "late.json", late=True, opt=opt)
    with pytest.raises(FloatingPointError, match=rf"iteration {bad}: loss term\(s\) not finite: loss_b; all .*loss_a"):
        late.run()
    weight = late.steps.model.heads.weight
    good = [Line().heads.weight, *late.after[:bad]][-1]  # the weights before the bad step
    assert len(late.after) == steps and torch.equal(weight, good)


def test_the_error_of_a_late_loss_is_raised_after_another_error(as_on_a_gpu, tmp_path):
    late = Loop(Line(bad=2), tmp_path / "late.json", late=True)
    late.steps._data_loader_iter = iter([random(4, 3)] * 3)
    late.iters_per_epoch = late.steps.late_scalars.period = 100
    with pytest.raises(FloatingPointError, match="iteration 2") as caught:
        late.train(0, 1, 6)
    assert isinstance(caught.value.__context__.__context__, StopIteration)


def test_gathered_gradients_fill_the_buffer_in_every_memory_order():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), BatchNorm(2), nn.Flatten(), nn.Linear(8, 2))
    unused = nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    optimizer, flat = fastreid.solver.build_optimizer(solver_cfg(OPT="Adam"), model)
    precision.store_channels_last(optimizer, model)
    copied = []
    for gathers in (False, True):
        if gathers:
            host.gather_gradients(optimizer, model.parameters())
        optimizer.zero_grad()
        # Gradients of two backward passes are added.
        for images in random(2, 5, 3, 4, 4).to(memory_format=torch.preserve_format):
            model(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        optimizer._fill_buffer()
        flat.assert_buffer_is_valid()
        copied.append([group["params"][0].grad.clone() for group in optimizer.param_groups])
    assert all(map(torch.equal, *copied)) and unused.grad.tolist() == [0, 0]


def steps_with_a_closure(gathers: bool) -> tuple[list[float], torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer, _ = fastreid.solver.build_optimizer(solver_cfg(OPT="SGD"), model)
    if gathers:
        host.gather_gradients(optimizer, model.parameters())

    def loss_of(batch):
        optimizer.zero_grad()
        loss = model(batch).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(functools.partial(loss_of, batch)).item() for batch in random(3, 4, 3)]
    return losses, model.weight.detach()


def test_a_step_with_a_closure_uses_the_gradients_of_the_closure():
    (losses, weight), (expected, expected_weight) = map(steps_with_a_closure, (True, False))
    assert losses == expected and torch.equal(weight, expected_weight)
