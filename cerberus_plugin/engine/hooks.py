"""Hooks of the trainer beside the host's own: seeds, frozen layers, statistics, averaged weights, time, figures."""

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


class ReadScalarsLate(hooks.HookBase):
    """Bring the log up to date where it is read: at a line of progress, at the end of an epoch and of the training.

    Comes before all other hooks.

    Args:
        late: of the trainer's steps.
        period: iterations between two lines of progress.
    """

    def __init__(self, late: LateScalars, period: int) -> None:
        self.late = late
        self.period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done % self.trainer.iters_per_epoch == 0:
            self.late.write()

    def after_train(self) -> None:
        # Something is left after an error alone. Other processes may not have got here, so nobody waits for them.
        if comm.get_world_size() == 1:
            self.late.write()


class SeedEpochs(hooks.HookBase):
    """Make an epoch depend on the run's seed and its own number alone, so that a resumed run repeats it bit by bit.

    At the start of an epoch the global generators, which dropout draws from, are seeded, and a resumed run begins with
    the batch that comes next. The batches carry their own seeds, see `SeededBatches`.
    """

    def before_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter > 0:
            trainer.data_loader.batch_sampler.start = trainer.start_iter
            trainer._trainer._data_loader_iter = iter(trainer.data_loader)  # the host has begun with the first batch

    def before_epoch(self) -> None:
        seed = self.trainer.data_loader.batch_sampler.seed
        seed_all_rng(seed_of(seed, FOR_EPOCH, comm.get_rank(), self.trainer.epoch))


def frozen_layers(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Paths of the modules that MODEL.FREEZE_LAYERS names.

    A name is the full path of a module, such as `heads` or `heads.bn`; it stands for that module and everything in it,
    and for no other module whose name begins alike. Where a model takes the backbone apart, `backbone` stands for the
    modules that hold its parts: the model lists them in `backbone_layers`.

    Raises:
        ValueError: a name is no module of the model.
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
    """Keep weights and batch statistics of some layers as they are for the first iterations.

    In place of the host's LayerFreeze. Whether a step is one of the first iterations depends on the iteration of the
    trainer alone, so a resumed run is not frozen a second time.

    Args:
        model: without the wrapper of distributed training.
        optimizer: the parameters of these layers are in groups with "freeze_status" "freeze", as the host's
            `build_optimizer` makes them, and its step leaves out groups with that status.
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
        if frozen:  # before each step, as every evaluation puts the whole model back into training mode
            for module in self.modules:
                module.eval()

    def _set(self, frozen: bool) -> None:
        self.frozen = frozen
        for i in self.groups:  # by number: loading a checkpoint makes new groups
            self.optimizer.param_groups[i]["freeze_status"] = "freeze" if frozen else "normal"
        if not frozen:
            for module in self.modules:
                module.train()
        logger.info(f"Iteration {self.trainer.iter}: layers {self.names} are " +
                    (f"frozen until iteration {self.iterations}" if frozen else
                     f"not frozen, as SOLVER.FREEZE_ITERS is {self.iterations}"))


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


class TrainingIdentities:
    """Refuses to resume on other identities: a classifier of as many of them would load, row by row.

    Args:
        names: of the identities, in the order of their class indices.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.digest = hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()

    def state_dict(self) -> dict:
        return {"sha256": self.digest}

    def load_state_dict(self, state: dict) -> None:
        if state["sha256"] != self.digest:
            raise ValueError("the checkpoint was trained on other identities than this run's; resume with the data and "
                             "the DATASETS keys of its config.yaml (NAMES, HOLD_OUT, HOLD_OUT_SEED, LEAVE_OUT_*)")


class WeightSettings:
    """Keeps in the checkpoint what pretrained weights decided about the model, such as the normalisation of pixels.

    A model is then evaluated as it was trained, whatever configuration file it is evaluated with.

    Args:
        settings: values by dotted key of the configuration.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def state_dict(self) -> dict:
        return dict(self.settings)

    def load_state_dict(self, state: dict) -> None:
        different = [f"{key} {value} (here {self.settings[key]})" for key, value in state.items()
                     if self.settings.get(key, value) != value]
        if different:
            raise ValueError(f"the checkpoint was trained with {', '.join(different)}; resume with the config.yaml of "
                             "its run folder")


class TrainingClock(hooks.HookBase):
    """Seconds of the steps behind the present weights, without evaluations and checkpoints, and where it was resumed.

    Both are kept in the checkpoint: a resumed run goes on counting, and steps that a kill has undone do not count.
    `resumed` lists the epochs after which the training was resumed, from 1 on.
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
