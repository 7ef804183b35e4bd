"""What the trainer does beside the host's own hooks: batch statistics, the time of training, what evaluations found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fastreid.engine import hooks

from . import report
from .processes import average_batch_statistics


class AgreeOnStatistics(hooks.HookBase):
    """One set of batch statistics for all processes before each evaluation and checkpoint."""

    def after_epoch(self) -> None:
        average_batch_statistics(self.trainer.model)


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
