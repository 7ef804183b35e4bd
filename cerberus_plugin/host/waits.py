"""Removes synchronisation points from the training steps of FastReID's models and trainer on a GPU.

Python waits for the device whenever it reads a value, or a size that depends on values. The queue of operations then
becomes empty, and the device idles. Each function computes the same result as FastReID's own. On a CPU, where reading
does not wait, FastReID's own functions are used.
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
    """Scalars of a step that are being copied to the CPU.

    `values` are complete once the event `copied` has completed: first one value for each of `others` (iteration, name
    and smoothing hint), then one for each of `losses`.
    """

    iteration: int
    others: list[tuple[int, str, bool]]
    losses: list[str]
    values: Tensor
    copied: torch.cuda.Event
    data_time: float


class LateScalars:
    """Reads the losses of a step on a GPU during the next step, so that no step waits for its own losses.

    The log does not change: each scalar is recorded for the iteration in which it was computed. Call `write` before
    reading the log. A step with losses that are not finite changes no parameter: a flag on the device makes the
    optimizer skip it, and the error is raised in the next step or by `write`.

    Args:
        trainer: FastReID's SimpleTrainer or AMPTrainer, with a fused optimizer of flat buffers.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.put: list[tuple[tuple[int, str, bool], Tensor]] = []  # scalars other than losses, since the last step
        self.waiting: _Step | None = None
        self.exchanged = -1  # last iteration passed to `exchange`; its later scalars are read immediately

    def exchange(self, losses: Mapping[str, Tensor], data_time: float) -> None:
        """Write the scalars of the previous step, and start copying those of this step."""
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
        """Write the pending scalars. All processes must call it, because FastReID averages over them.

        Raises:
            FloatingPointError: for losses that are not finite, see `training.name_bad_losses`.
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
    """Read scalars on a GPU, such as the classification accuracy, together with the losses of `LateScalars`.

    FastReID reads each of them immediately (utils/events.py:304).
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
    """Count the non-zero losses of the cross-entropy on the device.

    FastReID divides by their number, for which it reads their indices (modeling/losses/cross_entroy_loss.py:50).
    Adaptive smoothing (MODEL.LOSSES.CE.EPSILON below 0) and smoothing above 0.5 use FastReID's function.
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
    """Cross-entropy with weight 1 - eps for the target and eps divided among the other classes.

    Args:
        logits: float (B, C).
        targets: int64 (B,).
        eps: total weight of the other classes, 0 to 0.5.

    Returns:
        scalar, mean of the losses that are not 0.
    """
    # torch divides its smoothing among all classes, including the target.
    classes = logits.shape[1]
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=eps * classes / (classes - 1))
    return each.sum() / each.detach().count_nonzero().clamp(min=1)


def choose_triplet_loss_on_the_device() -> None:
    """Choose on the device between the soft triplet loss and the hinge with a margin of 0.3 that replaces it on
    overflow.

    FastReID reads the loss to decide (triplet_loss.py:112).
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
    """Mean of log(1 + exp(d(f, f_p) - d(f, f_n))), or the hinge with a margin of 0.3 if that is infinite.

    Args:
        embedding: float (B, D).
        targets: int64 (B,).
        norm_feat: MODEL.LOSSES.TRI.NORM_FEAT.
        hard_mining: MODEL.LOSSES.TRI.HARD_MINING.

    Returns:
        scalar.
    """
    module = importlib.import_module("fastreid.modeling.losses.triplet_loss")
    distances = (module.cosine_dist if norm_feat else module.euclidean_dist)(embedding, embedding)  # (B, B)
    same = targets[:, None] == targets
    mine = module.hard_example_mining if hard_mining else module.weighted_example_mining
    positive, negative = mine(distances, same.float(), (~same).float())  # (B,) each
    gap, ones = negative - positive, torch.ones_like(negative)
    overflows = (-gap.detach()).exp().isinf().any()
    # Without the mask, the gradient of the soft loss would be NaN also where the hinge is chosen.
    soft = F.soft_margin_loss(gap.masked_fill(overflows, 0), ones)
    return torch.where(overflows, F.margin_ranking_loss(negative, positive, ones, margin=0.3), soft)


def scale_circles_by_mask() -> None:
    """Compute CircleSoftmax with masks.

    FastReID selects the rows with and without a target by index (layers/any_softmax.py:77).
    """
    from fastreid.layers.any_softmax import CircleSoftmax

    def build(host_forward):
        def forward(self, logits, targets):
            if not on_gpu(logits):
                return host_forward(self, logits, targets)
            return circle_logits(logits, targets, self.m) * self.s

        return forward

    replace(CircleSoftmax, "forward", build)


def circle_logits(cosines: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Logits of the circle loss before scaling.

    Args:
        cosines: float (B, C).
        targets: int64 (B,), -1 for a row without a class.
        margin: m of the circle loss.

    Returns:
        float (B, C).
    """
    own = targets[:, None] == torch.arange(cosines.shape[1], device=targets.device)  # (B, C)
    constant = cosines.detach()
    positive = (1 + margin - constant).clamp(min=0) * (cosines - (1 - margin))
    negative = (constant + margin).clamp(min=0) * (cosines - margin)
    return torch.where(own, positive, negative)


class _Classes(Tensor):
    """Targets that are all class indices, whose sum is therefore not negative.

    The first call of `sum` is the check in FastReID's forward pass. It returns 0 without waiting for the device, and
    then turns the object into a plain tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # results of operations are plain tensors

    def sum(self) -> int:
        self.__class__ = Tensor
        return 0


def know_targets() -> None:
    """Replace negative targets by 0 on the device.

    FastReID's models check in each step whether the sum of the targets is negative, as with PreciseBN, whose targets
    are -1, and then set them to 0 (meta_arch/baseline.py:105).
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
    """Do not update `num_batches_tracked` of batch normalisation on a GPU if there is a momentum.

    It is used only without a momentum, and updating it takes one kernel launch per layer and step.
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
    """Return whether reading `tensor` waits for a device."""
    return tensor.is_cuda
