"""Hooks of the trainer: seeds, frozen layers, batch statistics, averaged weights, training time, results by epoch."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fastreid.engine import hooks
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..data.loader import FOR_EPOCH, seed_of
from ..evaluation import report
from ..host import LateScalars
from ..utils.distributed import average_batch_statistics

logger = logging.getLogger("fastreid.cerberus")


class AgreeOnStatistics(hooks.HookBase):
    """Average the batch statistics over all processes before each evaluation and checkpoint."""

    def after_epoch(self) -> None:
        average_batch_statistics(self.trainer.model)


class BeforeEvaluations(hooks.HookBase):
    """Calls a function at the end of each epoch with an evaluation or a checkpoint.

    Register it before FastReID's hooks for both.

    Args:
        function: the function to call.
        periods: epochs between two evaluations, and between two checkpoints; 0 for only the last epoch.
    """

    def __init__(self, function: Callable[[], None], periods: Sequence[int]) -> None:
        self.function = function
        self.periods = [period for period in periods if period > 0]

    def after_epoch(self) -> None:
        done = self.trainer.epoch + 1
        if done == self.trainer.max_epoch or any(done % period == 0 for period in self.periods):
            self.function()


class ReadScalarsLate(hooks.HookBase):
    """Writes pending scalars to the log before it is read: for a log line, and at the end of an epoch and of training.

    Register it before all other hooks.

    Args:
        late: pending scalars of the trainer's steps.
        period: iterations between two log lines.
    """

    def __init__(self, late: LateScalars, period: int) -> None:
        self.late = late
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done % self.trainer.iters_per_epoch == 0:
            self.late.write()

    def after_train(self) -> None:
        # Scalars are pending only after an error. Other processes may not get to this point, so do not wait for them.
        if comm.get_world_size() == 1:
            self.late.write()


class SeedEpochs(hooks.HookBase):
    """Makes an epoch depend only on the seed of the run and its number, so that a resumed run is identical bit by bit.

    At the start of each epoch, the global generators, which dropout uses, are seeded. A resumed run continues with the
    next batch. Batches have their own seeds, see `SeededBatches`.
    """

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter > 0:
            trainer.data_loader.batch_sampler.start = trainer.start_iter
            trainer._trainer._data_loader_iter = iter(trainer.data_loader)  # FastReID started at the first batch

    def before_epoch(self) -> None:
        seed = self.trainer.data_loader.batch_sampler.seed
        seed_all_rng(seed_of(seed, FOR_EPOCH, comm.get_rank(), self.trainer.epoch))


def frozen_layers(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the paths of the modules that are named in MODEL.FREEZE_LAYERS.

    A name is the full path of a module, such as `heads` or `heads.bn`. It includes all submodules, but not other
    modules with the same prefix. If a model splits the backbone, `backbone` means the modules with its parts, which
    the model lists in `backbone_layers`.

    Args:
        model: without the wrapper of distributed training.
        names: MODEL.FREEZE_LAYERS.

    Raises:
        ValueError: if the model has no such module.

    Examples:
        >>> frozen_layers(nn.Sequential(nn.Linear(1, 1)), ["0"])
        ['0']
    """
    aliases = {"backbone": list(model.backbone_layers)} if hasattr(model, "backbone_layers") else {}
    modules = dict(model.named_modules())
    unknown = [name for name in names if not name or name not in modules | aliases]
    if unknown:
        known = [*aliases, *(name for name, child in model.named_children()
                             if name not in aliases and next(child.parameters(), None) is not None)]
        raise ValueError(f"MODEL.FREEZE_LAYERS has {', '.join(map(repr, unknown))}, but {type(model).__name__} has no "
                         f"such module; expected any of {', '.join(known)}, or the full path of a module in one of "
                         "them.")
    return [path for name in names for path in aliases.get(name, [name])]


class FrozenLayers(hooks.HookBase):
    """Freezes the weights and batch statistics of some layers during the first iterations.

    Replaces FastReID's LayerFreeze. Freezing depends only on the iteration of the trainer, so the layers of a resumed
    run are not frozen a second time.

    Args:
        model: without the wrapper of distributed training.
        optimizer: FastReID's `build_optimizer` puts the parameters of these layers into groups with "freeze_status"
            "freeze", and the optimizer skips groups with this status.
        layers: paths of modules, see `frozen_layers`.
        iterations: SOLVER.FREEZE_ITERS.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, layers: Sequence[str],
                 iterations: int) -> None:
        self.optimizer = optimizer
        self.groups = [i for i, group in enumerate(optimizer.param_groups) if group["freeze_status"] == "freeze"]
        self.modules = [model.get_submodule(path) for path in layers]
        self.names = ", ".join(layers)
        self.iterations = iterations
        self.frozen: bool | None = None

    def before_step(self) -> None:
        frozen = self.trainer.iter < self.iterations
        if frozen != self.frozen:
            self._set(frozen)
        if frozen:  # before each step, because each evaluation sets the whole model to training mode
            for module in self.modules:
                module.eval()

    def _set(self, frozen: bool) -> None:
        self.frozen = frozen
        for i in self.groups:  # by index: loading a checkpoint replaces the groups
            self.optimizer.param_groups[i]["freeze_status"] = "freeze" if frozen else "normal"
        if not frozen:
            for module in self.modules:
                module.train()
        logger.info(f"Iteration {self.trainer.iter}: layers {self.names} are " +
                    (f"frozen until iteration {self.iterations}" if frozen else
                     f"not frozen, because SOLVER.FREEZE_ITERS is {self.iterations}"))


class WeightAverage(hooks.HookBase):
    """Exponential moving average of the parameters, which the model contains between two epochs.

    Evaluations and the "model" of a checkpoint use the average. The raw weights, with which training continues, are
    stored separately in the checkpoint. Register it before all other hooks. Parameters are only changed in place,
    because they may be views of FastReID's flat buffers. Buffers of the model are not averaged.

    Args:
        model: without the wrapper of distributed training.
        decay: maximum decay per step. After t steps the decay is at most (1 + t) / (10 + t), so that the average of a
            short run does not depend on the initial weights.

    Attributes:
        beside: by name, the raw weights while the model contains the average, otherwise the average.
        in_use: whether the model contains the average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA is {decay}, expected 0 for no average or a decay below 1, such as 0.999")
        self.parameters = dict(model.named_parameters())
        self.decay = decay
        self.steps = 0
        self.beside: dict[str, Tensor] = {}
        self.in_use = False

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
        """Restore the saved state; the weights of the model must have been loaded before."""
        found = {name: value.shape for name, value in state["beside"].items()}
        if found != {name: parameter.shape for name, parameter in self.parameters.items()}:
            raise ValueError("checkpoint: the raw weights stored for SOLVER.EMA belong to another model. Use the "
                             "config.yaml of its run folder.")
        self.steps, self.in_use = state["steps"], state["in_use"]
        self.beside = {name: torch.empty_like(parameter).copy_(state["beside"][name])
                       for name, parameter in self.parameters.items()}


class TrainingIdentities:
    """Prevents resuming with other training identities: a classifier of the same size would load without an error.

    Args:
        names: names of the identities in the order of their class indices.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.digest = hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()

    def state_dict(self) -> dict:
        return {"sha256": self.digest}

    def load_state_dict(self, state: dict) -> None:
        if state["sha256"] != self.digest:
            raise ValueError("the checkpoint was trained on other identities; resume with the same data and the "
                             "DATASETS keys of its config.yaml (NAMES, HOLD_OUT, HOLD_OUT_SEED, LEAVE_OUT_*)")


class WeightSettings:
    """Stores the settings that pretrained weights require, such as the pixel normalisation, in the checkpoint.

    An evaluation then uses the settings of the training, regardless of its configuration file.

    Args:
        settings: values by dotted configuration key.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def state_dict(self) -> dict:
        return dict(self.settings)

    def load_state_dict(self, state: dict) -> None:
        different = [f"{key} {value} (this run: {self.settings[key]})" for key, value in state.items()
                     if self.settings.get(key, value) != value]
        if different:
            raise ValueError(f"the checkpoint was trained with {', '.join(different)}; resume with the config.yaml of "
                             "its run folder")


class TrainingClock(hooks.HookBase):
    """Measures the time of the training steps that led to the current weights, without evaluations and checkpoints.

    Both attributes are stored in the checkpoint: a resumed run continues counting, and steps that were lost when a run
    was killed are not counted.

    Attributes:
        seconds: time of the training steps.
        resumed: epochs, counted from 1, after which the training was resumed.
    """

    seconds = 0.0

    def __init__(self) -> None:
        self.resumed: list[int] = []

    def before_train(self) -> None:
        if self.trainer.start_epoch > 0:
            self.resumed.append(self.trainer.start_epoch)

    def before_step(self) -> None:
        self.start = time.perf_counter()

    def after_step(self) -> None:
        self.seconds += time.perf_counter() - self.start

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "resumed": self.resumed}

    def load_state_dict(self, state: dict) -> None:
        self.seconds, self.resumed = state["seconds"], list(state.get("resumed", []))


class Evaluations(hooks.HookBase):
    """Collects the metrics of each evaluated epoch on the main process.

    They are stored in the checkpoint: a resumed run continues the list, and evaluations that were lost when a run was
    killed are not in it. Register it after FastReID's EvalHook.

    Args:
        tests: names of the test datasets.

    Attributes:
        figures: metrics by test dataset and epoch, counted from 1.
    """

    def __init__(self, tests: Sequence[str]) -> None:
        self.tests = tests
        self.figures: dict[str, dict[int, dict[str, float]]] = {}
        self._taken = None

    def remember(self, epoch: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Store metrics.

        Args:
            epoch: number of completed epochs.
            results: metrics by test dataset.
        """
        for name, figures in results.items():
            if figures:
                self.figures.setdefault(name, {})[epoch] = report.summary(figures)

    def after_epoch(self) -> None:
        self._take()

    def after_train(self) -> None:
        self._take()  # FastReID evaluates at the end if the number of epochs is no multiple of TEST.EVAL_PERIOD

    def _take(self) -> None:
        # FastReID stores the results of its EvalHook in this attribute, a new object for each evaluation.
        results = getattr(self.trainer, "_last_eval_results", None)
        if results is not self._taken:
            self._taken = results
            self.remember(self.trainer.epoch + 1, report.by_dataset(self.tests, results))

    def state_dict(self) -> dict:
        return {"figures": self.figures}

    def load_state_dict(self, state: dict) -> None:
        self.figures = state["figures"]
