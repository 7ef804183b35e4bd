"""Training steps on a GPU in which the host's models and trainer do not wait for the device.

Python waits for a device whenever it reads a value, or a size that depends on values. The queue then runs empty, and
the device idles until the next operations are there. Each function here computes what the host's own does. On a CPU,
where reading is free, the host's own run.
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .patching import replace
from .training import write_losses


class _Step(NamedTuple):
    """Scalars of a step on their way to the CPU.

    `values` are complete once the event `copied` is reached. Those of `others` come first, which are put at an
    iteration, with a name and a hint for smoothing; then the losses.
    """

    iteration: int
    others: list[tuple[int, str, bool]]
    losses: list[str]
    values: Tensor
    copied: torch.cuda.Event
    data_time: float


class LateScalars:
    """Reads the losses of a step on a GPU while the device works on the next step, so that no step waits for its own.

    The log is as without it: each scalar counts for the iteration that it was computed in. Whoever reads the log calls
    `write` first. A step whose losses are not finite moves no parameter: the optimiser is told on the device to leave
    it out, and the error comes with the next step or `write`.

    Args:
        trainer: the host's SimpleTrainer or AMPTrainer; its optimiser is over flat buffers and has a fused step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.put: list[tuple[tuple[int, str, bool], Tensor]] = []  # beside the losses, since the last step
        self.waiting: _Step | None = None
        self.exchanged = -1  # the last iteration whose losses are here; its later scalars are read at once

    def exchange(self, losses: Mapping[str, Tensor], data_time: float) -> None:
        """Write the scalars of the step before, and begin to copy those of this one."""
        from fastreid.utils.events import get_event_storage

        self.write()
        get_event_storage().late_scalars = self
        values = torch.stack([value.detach().float().reshape(()) for value in
                              (*(value for _, value in self.put), *losses.values())])
        bad = (0 * values[len(self.put):]).sum().ne(0).float()  # 0 * x is NaN where x is not finite
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self.trainer.optimizer.left_out = bad
        copy = values.to("cpu", non_blocking=True)  # pinned memory
        copied = torch.cuda.current_stream(values.device).record_event()
        self.waiting = _Step(self.trainer.iter, [where for where, _ in self.put], list(losses), copy, copied, data_time)
        self.put, self.exchanged = [], self.trainer.iter

    def write(self) -> None:
        """Bring the log up to date. All processes call it together, since the host averages over them.

        Raises: FloatingPointError for losses that are not finite, see `training.name_bad_losses`.
        """
        from fastreid.utils.events import get_event_storage

        if self.waiting is None:
            return
        step, self.waiting = self.waiting, None
        step.copied.synchronize()
        storage = get_event_storage()
        now = storage.iter
        try:
            for (storage.iter, name, hint), value in zip(step.others, step.values):
                storage.put_scalar(name, value.item(), smoothing_hint=hint)
            storage.iter = step.iteration
            losses = dict(zip(step.losses, step.values[len(step.others):]))
            write_losses(self.trainer, step.iteration, losses, step.data_time)
        finally:
            storage.iter = now


def read_scalars_late() -> None:
    """Let a scalar on a GPU, such as the host's accuracy of classes, wait for the losses where they are read late.

    utils/events.py:304 reads it at once.
    """
    from fastreid.utils.events import EventStorage

    def build(host_put):
        def put_scalar(self, name: str, value: Any, smoothing_hint: bool = True) -> None:
            late = vars(self).get("late_scalars")
            if late is not None and late.exchanged < self.iter and isinstance(value, Tensor) and on_gpu(value):
                late.put.append(((self.iter, self._current_prefix + name, smoothing_hint), value.detach()))
            else:
                host_put(self, name, value, smoothing_hint)

        return put_scalar

    replace(EventStorage, "put_scalar", build)


def count_losses_on_the_device() -> None:
    """The host's cross-entropy divides by the number of losses that are not 0, and asks for their places.

    That is in modeling/losses/cross_entroy_loss.py:50. Adaptive smoothing, MODEL.LOSSES.CE.EPSILON below 0, and
    smoothing of more than a half are left to the host.
    """
    from fastreid.modeling.losses import cross_entroy_loss

    def build(host_loss):
        def cross_entropy_loss(pred_class_outputs, gt_classes, eps, alpha=0.2):
            if not on_gpu(pred_class_outputs) or not 0 <= eps <= 0.5:
                return host_loss(pred_class_outputs, gt_classes, eps, alpha)
            return smoothed_cross_entropy(pred_class_outputs, gt_classes, eps)

        return cross_entropy_loss

    replace(cross_entroy_loss, "cross_entropy_loss", build)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, eps: float) -> Tensor:
    """Cross-entropy with 1 - eps for the own class and eps shared by the others, over the losses that are not 0.

    Args:
        logits: float (B, C).   targets: int64 (B,).   eps: share of the other classes, 0 to 0.5.
    """
    # torch shares its smoothing among all classes, the own one included.
    classes = logits.shape[1]
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=eps * classes / (classes - 1))
    return each.sum() / each.detach().count_nonzero().clamp(min=1)


def choose_triplet_loss_on_the_device() -> None:
    """The host's triplet loss without a margin becomes one with a margin of 0.3 where it overflows.

    It reads the loss to know that (triplet_loss.py:112).
    """
    module = importlib.import_module("fastreid.modeling.losses.triplet_loss")  # the package has the function under it

    def build(host_loss):
        def triplet_loss(embedding, targets, margin, norm_feat, hard_mining):
            if not on_gpu(embedding) or margin > 0:
                return host_loss(embedding, targets, margin, norm_feat, hard_mining)
            return soft_triplet_loss(embedding, targets, norm_feat, hard_mining)

        return triplet_loss

    replace(module, "triplet_loss", build)


def soft_triplet_loss(embedding: Tensor, targets: Tensor, norm_feat: bool, hard_mining: bool) -> Tensor:
    """log(1 + exp(d(f, f_p) - d(f, f_n))), or the hinge with a margin of 0.3 where that is infinite.

    Args:
        embedding: float (B, D).   targets: int64 (B,).   norm_feat, hard_mining: of MODEL.LOSSES.TRI.
    """
    module = importlib.import_module("fastreid.modeling.losses.triplet_loss")
    distances = (module.cosine_dist if norm_feat else module.euclidean_dist)(embedding, embedding)  # (B, B)
    same = targets[:, None] == targets
    mine = module.hard_example_mining if hard_mining else module.weighted_example_mining
    positive, negative = mine(distances, same.float(), (~same).float())  # (B,) each
    gap, ones = negative - positive, torch.ones_like(negative)
    overflows = (-gap.detach()).exp().isinf().any()
    # Without the mask, the gradient of the one that is not chosen would be NaN.
    soft = F.soft_margin_loss(gap.masked_fill(overflows, 0), ones)
    return torch.where(overflows, F.margin_ranking_loss(negative, positive, ones, margin=0.3), soft)


def scale_circles_by_mask() -> None:
    """The host's CircleSoftmax looks for the rows with a target, and for those without (layers/any_softmax.py:77)."""
    from fastreid.layers.any_softmax import CircleSoftmax

    def build(host_forward):
        def forward(self, logits, targets):
            if not on_gpu(logits):
                return host_forward(self, logits, targets)
            return circle_logits(logits, targets, self.m) * self.s

        return forward

    replace(CircleSoftmax, "forward", build)


def circle_logits(cosines: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Logits of the circle loss, before scaling: (B, C) -> (B, C).

    Args:
        cosines: float (B, C).   targets: int64 (B,), -1 for a row whose class is none of them.
    """
    own = targets[:, None] == torch.arange(cosines.shape[1], device=targets.device)  # (B, C)
    constant = cosines.detach()
    positive = (1 + margin - constant).clamp(min=0) * (cosines - (1 - margin))
    negative = (constant + margin).clamp(min=0) * (cosines - margin)
    return torch.where(own, positive, negative)


class _Classes(Tensor):
    """Targets that are all indices of classes, so that their sum is known to be no less than 0.

    The first sum that is asked for is the host's. It is answered by 0, and from then on this is a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # what is computed of it are plain tensors

    def sum(self) -> int:
        self.__class__ = Tensor
        return 0


def know_targets() -> None:
    """The host's models ask in each step whether the targets are those of PreciseBN, -1 (meta_arch/baseline.py:105).

    Only then is their sum below 0, and they become 0.
    """
    from fastreid.modeling.meta_arch import MGN, Baseline

    def build(host_forward):
        def forward(self, batched_inputs):
            if self.training and isinstance(batched_inputs, Mapping) and "targets" in batched_inputs:
                targets = batched_inputs["targets"]
                if on_gpu(targets):
                    batched_inputs = {**batched_inputs, "targets": targets.clamp(min=0).as_subclass(_Classes)}
            return host_forward(self, batched_inputs)

        return forward

    for model in (Baseline, MGN):
        replace(model, "forward", build)


def count_no_batches() -> None:
    """Let the host's batch normalisation leave `num_batches_tracked` as it is, on a GPU and with a momentum.

    It is read where there is no momentum alone, and counting takes a launch a layer in every step.
    """
    from fastreid.layers.batch_norm import BatchNorm

    def build(host_forward):
        def forward(self, input):
            if not (on_gpu(input) and self.training and self.track_running_stats and self.momentum is not None):
                return host_forward(self, input)
            self._check_input_dim(input)
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum,
                                self.eps)

        return forward

    replace(BatchNorm, "forward", build)


def on_gpu(tensor: Tensor) -> bool:
    """Whether reading `tensor` waits for a device."""
    return tensor.is_cuda
