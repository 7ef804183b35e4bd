"""Training in several processes: losses of the global batch, synchronised batch statistics, and SyncBN on CPUs.

With these functions, W processes with B / W images each compute the same losses and gradients as one process with B
images.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
from torch import Tensor, nn


def num_processes() -> int:
    """Return the number of processes of the training, 1 without distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Gathers the rows of all processes, from which every process computes the same loss.

    Distributed training averages gradients over the W processes. The gradient of a row is used only in the process of
    the row, and is therefore multiplied by W.
    """

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, own.contiguous())
        return torch.stack(gathered)  # (W, ...)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient[dist.get_rank()] * dist.get_world_size()


@torch.compiler.disable
def gather_batch(representations: Tensor, *numbers: Tensor) -> tuple[Tensor, ...]:
    """Concatenate the batches of all W processes; gradients are propagated.

    Args:
        representations: float (G, B, D).
        *numbers: tensors (B, ...), such as labels.

    Returns:
        representations (G, W * B, D), then each of `numbers` as (W * B, ...).
    """
    if num_processes() == 1:
        return representations, *numbers
    gathered = _Gather.apply(representations)  # (W, G, B, D)
    return gathered.transpose(0, 1).flatten(1, 2), *(_Gather.apply(each).flatten(0, 1) for each in numbers)


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Make every batch normalisation compute its statistics over all processes, on GPUs and CPUs.

    Args:
        model: changed in place; names of the state dict do not change.

    Returns:
        the model.
    """
    if num_processes() == 1:
        return model
    if next(model.parameters()).device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # In place: FastReID's subclasses have further attributes that a new module would have to copy.
            module.__class__ = _SyncBatchNormOnCPU
    return model


class _SyncBatchNormOnCPU(nn.BatchNorm2d):
    """SyncBatchNorm for CPUs, which torch's does not support; it needs only a differentiable sum over processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(x)
        dims, shape = (0, 2, 3), (1, -1, 1, 1)
        count = x.numel() // x.shape[1] * num_processes()
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = collective.all_reduce(exact.sum(dim=dims)) / count  # (C,)
        centred = exact - mean.view(shape)
        variance = collective.all_reduce(centred.square().sum(dim=dims)) / count  # (C,)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


@torch.no_grad()
def average_batch_statistics(model: nn.Module) -> None:
    """Average the running statistics of batch normalisation over all processes.

    Without SyncBN, each process has the statistics of its own images. A checkpoint would contain only those of the
    first process, and the embeddings of an evaluation would be computed with different statistics.
    """
    if num_processes() == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for statistics in (module.running_mean, module.running_var):
                dist.all_reduce(statistics)
                statistics /= num_processes()


def unwrapped(model: nn.Module | None) -> nn.Module | None:
    """Return the model without the wrapper of distributed training."""
    return getattr(model, "module", model)
