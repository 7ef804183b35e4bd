"""More than one process: losses over the global batch, batch statistics that agree, SyncBN for CPUs as well.

With these, W processes of B / W images each compute the losses and gradients of one process with B images.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
from torch import Tensor, nn


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """All processes' rows; every process is to compute the same loss of them.

    Distributed training averages gradients over processes. A row's gradient reaches only the process it is from, so
    it counts W times there.
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
    """The batches of all processes as one; gradients pass.

    Args:
        representations: float (G, B, D); returned as (G, W * B, D).
        numbers: (B, ...) each; returned as (W * B, ...).
    """
    if num_processes() == 1:
        return representations, *numbers
    gathered = _Gather.apply(representations)  # (W, G, B, D)
    return gathered.transpose(0, 1).flatten(1, 2), *(_Gather.apply(each).flatten(0, 1) for each in numbers)


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Batch statistics over all processes in every batch normalisation of `model`; state and checkpoints keep names."""
    if num_processes() == 1:
        return model
    if next(model.parameters()).device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # In place: a new module would have to copy what the host's subclasses keep beside torch's arguments.
            module.__class__ = _SyncBatchNormOnCPU
    return model


class _SyncBatchNormOnCPU(nn.BatchNorm2d):
    """torch's own refuses CPU tensors; this one asks for nothing but a differentiable sum over processes."""

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
    """One set of running statistics for all processes: without SyncBN each has gathered those of its own images.

    A checkpoint would hold those of the first process alone, and an evaluation would mix embeddings of all.
    """
    if num_processes() == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            for statistics in (module.running_mean, module.running_var):
                dist.all_reduce(statistics)
                statistics /= num_processes()


def unwrapped(model: nn.Module | None) -> nn.Module | None:
    """Without the wrapper of distributed training."""
    return getattr(model, "module", model)
