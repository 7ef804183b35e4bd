"""What the trainer does between the host's own hooks: one set of batch statistics, and the time behind the weights."""

from __future__ import annotations

import time

from fastreid.engine import hooks

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
