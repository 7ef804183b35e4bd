"""Steps that train: gradients that stay in the flat buffer, and a NaN that says where it came from."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .patching import original, replace


class _FlatGradients:
    """Mixed into an optimiser over the host's flat buffers: zeroes gradients and never drops them.

    `set_to_none` is ignored: a dropped gradient would end training without a word, and a zero one costs nothing
    here because the buffer stays allocated anyway.

    Attributes:
        left_out: float (), 1 where the coming step is to be left out; read on the device by a fused step alone.
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
        """Copy the gradients of the backward pass into the buffer at once; those that there are not become 0."""
        absent = [segment for parameter, segment in self.segments if parameter.grad is None]
        if absent:
            torch._foreach_zero_(absent)
        new = [(parameter, segment) for parameter, segment in self.segments
               if parameter.grad is not None and parameter.grad is not segment]
        if new:
            # The fast copy wants equal strides, and those of a dimension of size 1 may be any.
            torch._foreach_copy_([segment for _, segment in new],
                                 [_with_strides(parameter.grad, segment) for parameter, segment in new])
        for parameter, segment in self.segments:
            parameter.grad = segment

    def __reduce__(self) -> tuple:
        # The class is made at run time, so pickle and deepcopy need its base to make it again.
        return _empty_flat_optimizer, (type(self).__bases__[1],), self.__getstate__()


def _flat_class(base: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    return type(f"{base.__name__}WithFlatGradients", (_FlatGradients, base), {})


def _empty_flat_optimizer(base: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    flat = _flat_class(base)
    return flat.__new__(flat)


def keep_flat_gradients() -> None:
    """Let the host's optimiser train on torch 2.

    The host flattens parameters (utils/params.py) and gives the flat buffer to the optimiser. Since torch 2.0
    `optimizer.zero_grad()` (engine/train_loop.py:248, :346) sets the buffer's `.grad` to None, backward fills only
    the per-parameter views, and `step()` skips a buffer without gradient: no parameter moves, no message, and with
    AMP "No inf checks were recorded". Buffers and checkpoints keep the host's format.
    """
    if inspect.signature(torch.optim.Optimizer.zero_grad).parameters["set_to_none"].default is False:
        return
    import fastreid.solver.build
    from fastreid.utils.params import ContiguousParams

    def build(host_build):
        def build_optimizer(cfg, model, contiguous=True):
            optimizer, params = host_build(cfg, model, contiguous)
            if isinstance(params, ContiguousParams):
                # torch has no hook for zero_grad, and the host chooses the class: this object must change it.
                optimizer.__class__ = _flat_class(type(optimizer))
            return optimizer, params

        return build_optimizer

    replace(fastreid.solver.build, "build_optimizer", build)


def gather_gradients(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Copy all gradients into the flat buffer at once, in the step, in place of one addition a parameter before it.

    For an optimiser over the host's flat buffers whose gradients nobody reads between the backward pass and the step,
    as a gradient scaler does. Call it after the buffers have their final memory order.
    """
    optimizer.segments = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]


def _with_strides(values: Tensor, like: Tensor) -> Tensor:
    """`values` with the strides of `like`, where these differ in dimensions of size 1 alone."""
    if any(size > 1 and a != b for size, a, b in zip(values.shape, values.stride(), like.stride())):
        return values
    return values.as_strided(like.shape, like.stride())


def compute_losses_in_float32() -> None:
    """Let the host's models compute their losses in float32, outside autocast.

    On a CPU autocast leaves softmax and the distances of triplets in bfloat16. The plugin's own losses do the same.
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
    """A model's outputs, nested by name as MGN's are, in float32."""
    if isinstance(outputs, Mapping):
        return {name: _float32(value) for name, value in outputs.items()}
    half = isinstance(outputs, torch.Tensor) and outputs.dtype in (torch.float16, torch.bfloat16)
    return outputs.float() if half else outputs


def name_bad_losses() -> None:
    """Name the loss term that is NaN or infinite, give them all, and read them only when they are there.

    On a GPU the host reads each term on a stream of its own (engine/train_loop.py:265), which waits for nothing: where
    nothing else in a step waits either, it reads memory that the forward pass has not reached. They are read here,
    in one copy on the stream that computes them; one step late where the trainer has `waits.LateScalars`.

    engine/train_loop.py:293 raises FloatingPointError with the mean over processes of every term. It raises before
    the optimiser's step, so the weights are still those of the last good one.
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
    """The host's method for loss terms on the CPU, with an error that names the bad ones."""
    from fastreid.engine.train_loop import SimpleTrainer

    try:
        return original(SimpleTrainer._write_metrics)(trainer, losses, data_time)
    except FloatingPointError as error:
        terms = {name: value.item() for name, value in losses.items()}
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        where = ", ".join(bad) or "none in this process (another one's, or only their sum)"
        raise FloatingPointError(
            f"iteration {iteration}: loss term(s) not finite: {where}; all terms: {terms}. "
            "No parameter has taken this step. Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS "
            "or set SOLVER.AMP.ENABLED to False."
        ) from error


def print_an_iteration_once() -> None:
    """Let runs of one or two iterations end.

    utils/events.py:219 divides by the iterations since its last line, which are none where the last iteration is
    also the end of an epoch and no step has been timed yet (the first three are not).
    """
    from fastreid.utils.events import CommonMetricPrinter, get_event_storage

    def build(host_write):
        def write(self):
            if self._last_write is None or self._last_write[0] != get_event_storage().iter:
                host_write(self)

        return write

    replace(CommonMetricPrinter, "write", build)
