"""Results by epoch: collected together with FastReID's hooks, and after kills and resumes."""

import math
from collections import OrderedDict
from types import SimpleNamespace

from cerberus_plugin.engine.hooks import Evaluations

import pytest
import torch
from fastreid.engine import hooks
from fastreid.engine.train_loop import TrainerBase
from fastreid.utils.checkpoint import Checkpointer


class Killed(Exception):
    pass


class Loop(TrainerBase):
    """FastReID's loop, hooks and checkpoints for one layer; evaluation i returns the i-th of the metrics.

    `evaluated` counts the evaluations.
    """

    def __init__(self, folder, metrics, epochs, eval_period=1, checkpoint_period=1, tests=("A",), killed_in=None):
        super().__init__()
        self.metrics, self.tests, self.evaluated, self.killed_in = list(metrics), tests, 0, killed_in
        self.cfg = SimpleNamespace(DATASETS=SimpleNamespace(TESTS=tests))
        self.remembered = Evaluations(tests)
        self.checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(folder), evaluations=self.remembered)
        state = self.checkpointer.resume_or_load("")
        self.start, self.max_epoch = state.get("epoch", -1) + 1, epochs
        self.register_hooks([hooks.EvalHook(eval_period, self.evaluate), self.remembered,
                             hooks.PeriodicCheckpointer(self.checkpointer, checkpoint_period)])

    def evaluate(self):
        found = self.metrics[self.evaluated]
        self.evaluated += 1
        results = OrderedDict({name: OrderedDict(metric=found + i, mAP=found) for i, name in enumerate(self.tests)})
        self._last_eval_results = results if len(self.tests) > 1 else results[self.tests[0]]
        return self._last_eval_results

    def run_step(self):
        if self.epoch + 1 == self.killed_in:
            raise Killed

    def run(self) -> dict:
        try:
            self.train(self.start, self.max_epoch, 1)
        except Killed:
            pass
        return {name: {epoch: figures["metric"] for epoch, figures in epochs.items()}
                for name, epochs in self.remembered.figures.items()}


@pytest.mark.parametrize(("period", "expected"), [(1, {1: 5, 2: 7, 3: 6}), (2, {2: 5, 3: 7}), (3, {3: 5}), (9, {3: 5})])
def test_each_evaluation_is_stored_once_by_its_epoch(tmp_path, period, expected):
    loop = Loop(tmp_path, [5, 7, 6], epochs=3, eval_period=period)
    assert loop.run() == {"A": expected} and loop.evaluated == len(expected)


def test_a_resumed_run_continues_without_evaluations_lost_in_a_kill(tmp_path):
    killed = Loop(tmp_path, [1, 2, 99], epochs=5, checkpoint_period=2, killed_in=4)
    assert killed.run() == {"A": {1: 1, 2: 2, 3: 99}}  # the last checkpoint is that of epoch 2
    resumed = Loop(tmp_path, [3, math.nan, 5], epochs=5, checkpoint_period=2)
    assert resumed.start == 2 and list(resumed.remembered.figures["A"]) == [1, 2]
    found = resumed.run()["A"]
    assert [found[epoch] for epoch in (1, 2, 3, 5)] == [1, 2, 3, 5] and math.isnan(found[4])
    again = Loop(tmp_path, [], epochs=5)
    assert list(again.remembered.figures["A"]) == [1, 2, 3, 4, 5]


def test_an_old_checkpoint_without_evaluations_can_be_resumed(tmp_path):
    Loop(tmp_path, [1], epochs=1).run()
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)  # only plain types
    assert state.pop("evaluations") == {"figures": {"A": {1: {"metric": 1.0, "mAP": 1.0}}}}
    torch.save(state, tmp_path / "model_final.pth")
    assert Loop(tmp_path, [4], epochs=2).run() == {"A": {2: 4}}


def test_results_are_stored_by_test_dataset(tmp_path):
    assert Loop(tmp_path, [3, 1], epochs=2, tests=("A", "B")).run() == {"A": {1: 3, 2: 1}, "B": {1: 4, 2: 2}}


@pytest.mark.parametrize("tests", [("A",), ("A", "B")])
def test_a_process_without_results_stores_nothing(tmp_path, tests):
    loop = Loop(tmp_path, [], epochs=1, tests=tests)
    loop._last_eval_results = {name: OrderedDict() for name in tests} if len(tests) > 1 else OrderedDict()
    loop.epoch = 0
    loop.remembered.after_epoch()
    assert loop.remembered.figures == {}
