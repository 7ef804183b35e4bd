"""What the trainer does beside the host's own hooks: statistics, averages of weights, time, what evaluations found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from fastreid.engine import hooks
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from . import report
from .processes import average_batch_statistics


class AgreeOnStatistics(hooks.HookBase):
    """One set of batch statistics for all processes before each evaluation and checkpoint."""

    def after_epoch(self) -> None:
        average_batch_statistics(self.trainer.model)


class BeforeEvaluations(hooks.HookBase):
    """Call a function at the end of each epoch that is evaluated or kept; comes before the host's hooks for both.

    Args:
        periods: epochs between two evaluations, and between two checkpoints; 0 for none but the last.
    """

    def __init__(self, function: Callable[[], None], periods: Sequence[int]) -> None:
        self.function = function
        self.periods = [period for period in periods if period > 0]

    def after_epoch(self) -> None:
        done = self.trainer.epoch + 1
        if done == self.trainer.max_epoch or any(done % period == 0 for period in self.periods):
            self.function()


class WeightAverage(hooks.HookBase):
    """Exponential moving average of the parameters, in the model's place from the end of each epoch to the next one.

    So evaluations and the "model" of a checkpoint are the average; the raw weights, from which training goes on, ride
    beside it. Comes before all other hooks. Parameters change in place alone: they may be views into the host's flat
    buffers. Buffers are shared, as they are.

    Args:
        decay: of a step, at most; after t steps it is no more than (1 + t) / (10 + t), so that short runs forget the
            weights they began with.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA is {decay}, expected 0 for no average or a decay below 1, such as 0.999")
        self.parameters = dict(model.named_parameters())
        self.decay = decay
        self.steps = 0
        self.beside: dict[str, Tensor] = {}  # the weights that the model does not hold
        self.in_use = False  # the model holds the average

    def before_train(self) -> None:
        if not self.beside:
            self.beside = {name: p.detach().clone() for name, p in self.parameters.items()}

    def before_epoch(self) -> None:
        if self.in_use:
            self._swap()

    def after_step(self) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(list(self.beside.values()), list(self.parameters.values()), None)
        self.steps += 1

    def after_epoch(self) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            held = parameter.clone()
            parameter.copy_(self.beside[name])
            self.beside[name].copy_(held)
        self.in_use = not self.in_use

    def state_dict(self) -> dict:
        return {"steps": self.steps, "in_use": self.in_use, "beside": self.beside}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """As saved; the model has been loaded, and holds what it held."""
        found = {name: value.shape for name, value in state["beside"].items()}
        if found != {name: parameter.shape for name, parameter in self.parameters.items()}:
            raise ValueError("checkpoint: the weights beside the average of SOLVER.EMA are of another model. Use the "
                             "config.yaml of its run folder.")
        self.steps, self.in_use = state["steps"], state["in_use"]
        self.beside = {name: torch.empty_like(parameter).copy_(state["beside"][name])
                       for name, parameter in self.parameters.items()}


class WithoutAverage:
    """Stands for `WeightAverage` where a run without one resumes: refuses a checkpoint that has one."""

    def load_state_dict(self, state: dict) -> None:
        raise ValueError("the checkpoint's weights are an average, and its optimiser's moments are of the raw weights; "
                         "this run has SOLVER.EMA 0: resume with the SOLVER.EMA that it began with")


class TrainingClock(hooks.HookBase):
    """Seconds of the steps behind the present weights, without evaluations and checkpoints.

    They are kept in the checkpoint: a resumed run goes on counting, and steps that a kill has undone do not count.
    """

    seconds = 0.0

    def before_step(self) -> None:
        self.start = time.perf_counter()

    def after_step(self) -> None:
        self.seconds += time.perf_counter() - self.start

    def state_dict(self) -> dict:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict) -> None:
        self.seconds = state["seconds"]


class Evaluations(hooks.HookBase):
    """Figures of each evaluated epoch, on the main process, which alone has any; comes after the host's EvalHook.

    They are kept in the checkpoint, so that a resumed run goes on remembering, and evaluations that a kill has undone
    do not count.

    Args:
        tests: names of the test data sets.
    """

    def __init__(self, tests: Sequence[str]) -> None:
        self.tests = tests
        self.figures: dict[str, dict[int, dict[str, float]]] = {}  # by test data set and epoch, from 1 on
        self._taken = None

    def remember(self, epoch: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Figures by test data set of the weights after this epoch."""
        for name, figures in results.items():
            if figures:
                self.figures.setdefault(name, {})[epoch] = report.summary(figures)

    def after_epoch(self) -> None:
        self._take()

    def after_train(self) -> None:
        self._take()  # the host evaluates at the end where TEST.EVAL_PERIOD does not divide the epochs

    def _take(self) -> None:
        # The host keeps what its EvalHook found there, and makes a new one for each evaluation.
        results = getattr(self.trainer, "_last_eval_results", None)
        if results is not self._taken:
            self._taken = results
            self.remember(self.trainer.epoch + 1, report.by_dataset(self.tests, results))

    def state_dict(self) -> dict:
        return {"figures": self.figures}

    def load_state_dict(self, state: dict) -> None:
        self.figures = state["figures"]
