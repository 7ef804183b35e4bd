"""Training steps: gradients that remain in the flat buffer, and errors that name the loss that is not finite."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .patching import original, replace


class _FlatGradients:
    """Mixin for an optimizer of FastReID's flat buffers: sets gradients to zero instead of None.

    `set_to_none` is ignored. Without its gradient the buffer would not be trained, and no error would be raised. Zeros
    need no additional memory, because the buffer remains allocated.

    Attributes:
        left_out: float (), 1 to skip the next step; read on the device, only by fused optimizers.
        segments: parameters and their segments of the gradient buffer, see `gather_gradients`.
    """

    left_out: Tensor | None = None
    segments: list[tuple[nn.Parameter, Tensor]] = []

    def zero_grad(self, set_to_none: bool = False) -> None:
        if not self.segments:
            super().zero_grad(set_to_none=False)
        for parameter, _ in self.segments:
            parameter.grad = None

    def step(self, closure: Callable | None = None) -> Any:
        def fill_after_closure() -> Any:
            loss = closure()
            self._fill_buffer()
            return loss

        self._fill_buffer()
        return self._step(closure and fill_after_closure)

    def _step(self, closure: Callable | None) -> Any:
        if self.left_out is None:
            return super().step(closure)
        of_scaler = getattr(self, "found_inf", None)
        self.found_inf = self.left_out if of_scaler is None else torch.maximum(self.left_out, of_scaler)
        try:
            return super().step(closure)
        finally:
            self.found_inf = of_scaler
            self.left_out = None

    def _fill_buffer(self) -> None:
        """Copy all gradients of the backward pass into the buffer; missing gradients become 0."""
        absent = [segment for parameter, segment in self.segments if parameter.grad is None]
        if absent:
            torch._foreach_zero_(absent)
        new = [(parameter, segment) for parameter, segment in self.segments
               if parameter.grad is not None and parameter.grad is not segment]
        if new:
            # The fast copy needs equal strides; strides of dimensions of size 1 are arbitrary.
            torch._foreach_copy_([segment for _, segment in new],
                                 [_with_strides(parameter.grad, segment) for parameter, segment in new])
        for parameter, segment in self.segments:
            parameter.grad = segment

    def __reduce__(self) -> tuple:
        # The class is created at run time: pickle and deepcopy create it again from its base class.
        return _empty_flat_optimizer, (type(self).__bases__[1],), self.__getstate__()


def _flat_class(base: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    return type(f"{base.__name__}WithFlatGradients", (_FlatGradients, base), {})


def _empty_flat_optimizer(base: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    flat = _flat_class(base)
    return flat.__new__(flat)


def keep_flat_gradients() -> None:
    """Make FastReID's optimizers update the weights on torch 2.

    FastReID copies all parameters into one flat buffer (utils/params.py) and passes it to the optimizer. Since torch
    2.0, `optimizer.zero_grad()` (engine/train_loop.py:248, :346) sets the `.grad` of the buffer to None. The backward
    pass then fills only the views of the parameters, and `step()` skips the buffer: no weight changes, and no error is
    raised (with AMP: "No inf checks were recorded"). The formats of buffers and checkpoints do not change.
    """
    if inspect.signature(torch.optim.Optimizer.zero_grad).parameters["set_to_none"].default is False:
        return
    import fastreid.solver.build
    from fastreid.utils.params import ContiguousParams

    def build(host_build):
        def build_optimizer(cfg, model, contiguous=True):
            optimizer, params = host_build(cfg, model, contiguous)
            if isinstance(params, ContiguousParams):
                # FastReID chooses the class of the optimizer, and torch has no hook for zero_grad.
                optimizer.__class__ = _flat_class(type(optimizer))
            return optimizer, params

        return build_optimizer

    replace(fastreid.solver.build, "build_optimizer", build)


def gather_gradients(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Copy all gradients into the flat buffer with one operation in the step, instead of one addition per parameter.

    Only for optimizers of flat buffers whose gradients are not read between the backward pass and the step (as a
    gradient scaler does). Call it after the buffers have their final memory format.

    Args:
        optimizer: built by FastReID with flat buffers.
        parameters: those of the model; their `.grad` are views of the buffer.
    """
    optimizer.segments = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]


def _with_strides(values: Tensor, like: Tensor) -> Tensor:
    """Return `values` with the strides of `like` if they differ only in dimensions of size 1."""
    if any(size > 1 and a != b for size, a, b in zip(values.shape, values.stride(), like.stride())):
        return values
    return values.as_strided(like.shape, like.stride())


def compute_losses_in_float32() -> None:
    """Make FastReID's models compute their losses in float32, outside autocast, as the plugin's own losses do.

    On a CPU, autocast computes softmax and the distances of the triplet loss in bfloat16.
    """
    from fastreid.modeling.meta_arch import MGN, Baseline, Distiller, MoCo

    def build(host_losses):
        def losses(self, *outputs, **named):
            with torch.autocast(self.device.type, enabled=False):
                return host_losses(self, *map(_float32, outputs), **_float32(named))

        return losses

    for model in (Baseline, Distiller, MGN, MoCo):
        replace(model, "losses", build)


def _float32(outputs: Any) -> Any:
    """Convert the outputs of a model, nested dictionaries for MGN, to float32."""
    if isinstance(outputs, Mapping):
        return {name: _float32(value) for name, value in outputs.items()}
    half = isinstance(outputs, torch.Tensor) and outputs.dtype in (torch.float16, torch.bfloat16)
    return outputs.float() if half else outputs


def name_bad_losses() -> None:
    """Name the loss terms that are NaN or infinite, and read loss values only after they have been computed.

    On a GPU, FastReID reads each term on a separate stream without synchronisation (engine/train_loop.py:265), so it
    can read memory before the forward pass has written it. Here all terms are read with one copy on the stream that
    computes them, or one step later if the trainer has `waits.LateScalars`.

    FastReID raises FloatingPointError with the mean of all terms over the processes (engine/train_loop.py:293). This
    happens before the step of the optimizer, so the weights are those of the last finite step.
    """
    from fastreid.engine.train_loop import SimpleTrainer

    def build(host_write):
        def _write_metrics(self, loss_dict: dict[str, Tensor], data_time: float) -> Any:
            late = vars(self).get("late_scalars")
            if late is not None:
                return late.exchange(loss_dict, data_time)
            values = torch.stack([value.detach().float() for value in loss_dict.values()]).cpu()
            return write_losses(self, self.iter, dict(zip(loss_dict, values)), data_time)

        return _write_metrics

    replace(SimpleTrainer, "_write_metrics", build)


def write_losses(trainer: Any, iteration: int, losses: dict[str, Tensor], data_time: float) -> Any:
    """Write loss terms to the log with FastReID's method.

    Args:
        trainer: FastReID's SimpleTrainer or AMPTrainer.
        iteration: number of the iteration, for the error message.
        losses: scalars on the CPU by name.
        data_time: time for loading the batch in seconds.

    Raises:
        FloatingPointError: if the total loss is not finite; names the terms that are not finite.
    """
    from fastreid.engine.train_loop import SimpleTrainer

    try:
        return original(SimpleTrainer._write_metrics)(trainer, losses, data_time)
    except FloatingPointError as error:
        terms = {name: value.item() for name, value in losses.items()}
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        where = ", ".join(bad) or "none in this process (those of another process, or only the sum)"
        raise FloatingPointError(
            f"iteration {iteration}: loss term(s) not finite: {where}; all terms: {terms}. "
            "This step was not applied. Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS "
            "or set SOLVER.AMP.ENABLED to False."
        ) from error


def print_an_iteration_once() -> None:
    """Avoid a division by zero in runs of one or two iterations.

    utils/events.py:219 divides by the number of iterations since the last log line. It is 0 if the last iteration is
    also the end of an epoch and no step has been timed yet (the first three steps are not timed).
    """
    from fastreid.utils.events import CommonMetricPrinter, get_event_storage

    def build(host_write):
        def write(self):
            if self._last_write is None or self._last_write[0] != get_event_storage().iter:
                host_write(self)

        return write

    replace(CommonMetricPrinter, "write", build)
