"""Averaged weights: values, use in evaluations and checkpoints, and training that continues with the raw weights."""

from types import SimpleNamespace

from cerberus_plugin.engine.hooks import WeightAverage
from cerberus_plugin.modeling import precision

import pytest
import torch
from fastreid.engine import hooks
from fastreid.engine.train_loop import TrainerBase
from fastreid.solver import build_optimizer
from fastreid.utils.checkpoint import Checkpointer
from support.training import SMALL, model_of, small_batch, solver_cfg


def weight_of(model) -> list[float]:
    return model[0].weight.detach().flatten().tolist()


class Loop(TrainerBase):
    """FastReID's loop, hooks and checkpoints for one layer and SGD with momentum; two steps per epoch.

    `evaluated` contains the weights of each evaluation, `trained` those after each step.
    """

    def __init__(self, folder, epochs: int, decay: float = 0.9, checkpoint_period: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False), torch.nn.BatchNorm1d(1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.average = WeightAverage(self.model, decay)
        self.evaluated, self.trained = [], []
        folder.mkdir(exist_ok=True)
        self.cfg = SimpleNamespace(DATASETS=SimpleNamespace(TESTS=("A",)))
        self.checkpointer = Checkpointer(self.model, str(folder), optimizer=self.optimizer, average=self.average)
        state = self.checkpointer.resume_or_load("")
        self.start, self.max_epoch = state.get("epoch", -1) + 1, epochs
        self.register_hooks([self.average, hooks.EvalHook(2, self.evaluate),
                             hooks.PeriodicCheckpointer(self.checkpointer, checkpoint_period)])

    def evaluate(self) -> dict:
        self.evaluated.append(weight_of(self.model))
        return {"metric": float(self.epoch)}

    def run_step(self):
        generator = torch.Generator().manual_seed(self.iter)
        loss = (self.model(torch.randn(8, 3, generator=generator)) - torch.arange(8.0)[:, None]).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.trained.append(weight_of(self.model))

    def run(self):
        self.train(self.start, self.max_epoch, 2)
        return self


def averaged(start: list[float], steps: list[list[float]], decay: float) -> list[float]:
    """Compute the average step by step from its definition."""
    for t, weights in enumerate(steps):
        d = min(decay, (1 + t) / (10 + t))
        start = [d * a + (1 - d) * w for a, w in zip(start, weights)]
    return start


def test_the_average_of_three_steps_equals_a_calculation_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, 0.15)
    average.before_train()
    for value, expected in ((2.0, 1.9), (4.0, 3.685), (0.0, 0.55275)):  # decays 1 / 10, then 0.15 instead of 2 / 11
        model.weight.data.fill_(value)
        average.after_step()
        assert average.beside["weight"].item() == pytest.approx(expected)
        assert model.weight.item() == value


@pytest.mark.parametrize("decay", [0.9, 0.2])
def test_evaluations_use_the_average_and_training_the_raw_weights(tmp_path, decay):
    loop = Loop(tmp_path, epochs=3, decay=decay)
    start = weight_of(loop.model)
    loop.run()
    without = Loop(tmp_path / "other", epochs=3)
    without._hooks = []
    without.run()
    assert loop.trained == without.trained
    # Evaluations after the second epoch, and after the third, at the end of training.
    assert loop.evaluated == [pytest.approx(averaged(start, loop.trained[:n], decay), rel=1e-5) for n in (4, 6)]
    assert loop.evaluated[1] != pytest.approx(loop.trained[5], rel=1e-3)


def test_checkpoints_contain_the_average_and_unchanged_batch_statistics(tmp_path):
    loop = Loop(tmp_path, epochs=2)
    start = weight_of(loop.model)
    loop.run()
    for name, steps in (("model_0000", 2), ("model_best", 4), ("model_final", 4)):
        state = torch.load(tmp_path / f"{name}.pth", weights_only=True)  # only plain types
        assert state["model"]["0.weight"].flatten().tolist() == pytest.approx(
            averaged(start, loop.trained[:steps], 0.9), rel=1e-5)
        assert state["average"]["beside"]["0.weight"].flatten().tolist() == loop.trained[steps - 1]
        assert state["model"]["1.num_batches_tracked"] == steps and "1.running_mean" not in state["average"]["beside"]
    assert weight_of(loop.model) == state["model"]["0.weight"].flatten().tolist()  # the model after training, too


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole = Loop(tmp_path / "whole", epochs=4, decay=0.3).run()
    Loop(tmp_path / "parts", epochs=1, decay=0.3).run()
    resumed = Loop(tmp_path / "parts", epochs=4, decay=0.3)
    assert resumed.start == 1 and resumed.average.steps == 2
    resumed.run()
    assert resumed.trained == whole.trained[2:] and resumed.evaluated == whole.evaluated
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_checkpoint_saved_within_an_epoch_can_be_resumed(tmp_path):
    loop = Loop(tmp_path, epochs=1).run()
    loop.average.before_epoch()  # the model contains the raw weights again
    loop.checkpointer.save("model_between", epoch=0)
    again = Loop(tmp_path, epochs=1)
    assert not again.average.in_use and weight_of(again.model) == loop.trained[-1]
    assert torch.equal(again.average.beside["0.weight"], loop.average.beside["0.weight"])


@pytest.mark.parametrize("decay", [1.0, -0.5])
def test_a_decay_outside_0_to_1_is_rejected(decay):
    with pytest.raises(ValueError, match=f"SOLVER.EMA is {decay}, expected 0 for no average or a decay below 1"):
        WeightAverage(torch.nn.Linear(1, 1), decay)


def test_weights_of_another_model_are_rejected():
    state = WeightAverage(torch.nn.Linear(2, 1), 0.9)
    state.before_train()
    with pytest.raises(ValueError, match="SOLVER.EMA belong to another model"):
        WeightAverage(torch.nn.Linear(3, 1), 0.9).load_state_dict(state.state_dict())


def test_parameters_remain_in_the_flat_buffer_and_in_their_memory_format():
    model = model_of(*SMALL).train()
    optimizer, flat = build_optimizer(solver_cfg(OPT="Adam", BASE_LR=1e-2), model)
    precision.store_channels_last(optimizer, model)
    average = WeightAverage(model, 0.999)
    average.before_train()
    layout = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    for _ in range(2):
        sum(model(small_batch(model)).values()).backward()
        optimizer.step()
        average.after_step()
    raw = [p.detach().clone() for p in model.parameters()]
    average.after_epoch()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), raw))
    average.before_epoch()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), raw))
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == layout
    assert [a.stride() for a in average.beside.values()] == [stride for _, stride in layout]
    flat.assert_buffer_is_valid()
