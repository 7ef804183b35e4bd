"""Convolutions on a CPU: workarounds for wrong oneDNN kernels, and faster weight gradients for narrow maps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.processor import processor_has

FEW_CHANNELS = 8  # block size of oneDNN
MIN_CHANNELS, MAX_WIDTH = 256, 4  # limits within which matrix products were faster, see benchmarks/README.md


def adapt_to_cpu(model: nn.Module) -> None:
    """Replace the forward pass of convolutions with wrong or slow kernels under autocast on a CPU."""
    for module in model.modules():
        if _runs_as_conv2d(module) and max(module.kernel_size) > 1 and max(module.stride) > 1:
            module.forward = functools.partial(_strided_forward, module)
    if processor_has("amx_bf16"):
        speed_up_weight_gradients(model)


def _runs_as_conv2d(module: nn.Module) -> bool:
    """Whether the module computes a plain convolution; a subclass can differ, such as one with standardised weights."""
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward


def _strided_forward(module: nn.Conv2d, images: Tensor) -> Tensor:
    """Use float32 if the output is one pixel wide or the stride is greater than 2.

    In these cases oneDNN's kernels for processors with AMX read memory outside the map (at least up to torch 2.13):
    outputs and gradients are wrong or NaN, and differ between calls (pytorch/pytorch#169688).
    """
    width = images.shape[-1] + 2 * module.padding[1] - module.dilation[1] * (module.kernel_size[1] - 1)
    if not torch.is_autocast_enabled("cpu") or (width > module.stride[1] and max(module.stride) <= 2):
        return nn.Conv2d.forward(module, images)
    with torch.autocast("cpu", enabled=False):
        return nn.Conv2d.forward(module, images.float())


def avoid_strided_points(model: nn.Module) -> None:
    """Compute strided 1x1 convolutions of a few channels, such as the first one of RepVGG, as matrix products.

    In channels-last order oneDNN's kernel (at least in torch 2.13) writes outside its memory: a convolution with 3
    input channels, 48 output channels and stride 2 crashes the process, sometimes with a delay.
    """
    for module in model.modules():
        if (_runs_as_conv2d(module) and module.kernel_size == (1, 1) and max(module.stride) > 1
                and module.padding == (0, 0) and module.groups == 1 and module.in_channels < FEW_CHANNELS):
            module.forward = functools.partial(_points_forward, module)


def _points_forward(module: nn.Conv2d, images: Tensor) -> Tensor:
    rows, columns = module.stride
    found = torch.einsum("bchw,oc->bohw", images[:, :, ::rows, ::columns], module.weight[:, :, 0, 0])
    return found if module.bias is None else found + module.bias[:, None, None].to(found.dtype)


def speed_up_weight_gradients(model: nn.Module) -> None:
    """Compute weight gradients of 3x3 convolutions on narrow maps as nine matrix products, under bfloat16 autocast.

    oneDNN's kernel for processors with AMX sums over one row of the map at a time and pads it to 32 pixels. For a small
    image of a person the maps of the last stages are 3 or 4 pixels wide, and the kernel takes 2 to 6 times as long as
    the matrix products. Both multiply in bfloat16 and add in float32; the order of the sums differs.
    """
    for module in model.modules():
        if _runs_as_conv2d(module) and _is_plain_3x3(module):
            module.forward = functools.partial(_forward, module)


def _is_plain_3x3(module: nn.Conv2d) -> bool:
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    return (geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") and module.bias is None
            and module.in_channels >= MIN_CHANNELS)


def _forward(module: nn.Conv2d, images: Tensor) -> Tensor:
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not (half and torch.is_grad_enabled() and module.weight.requires_grad and images.shape[-1] <= MAX_WIDTH):
        return nn.Conv2d.forward(module, images)
    return _Convolution3x3.apply(images.bfloat16(), module.weight.bfloat16())


class _Convolution3x3(torch.autograd.Function):
    """conv2d(images, weight, padding=1) of images (B, C, H, W) and a weight (O, C, 3, 3)."""

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, padding=1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        of_images = torch.nn.grad.conv2d_input(images.shape, weight, gradient, padding=1)
        return of_images if ctx.needs_input_grad[0] else None, weight_gradient(images, gradient)


def weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """Compute the gradient of the weight of a 3x3 convolution with padding 1 and stride 1.

    Args:
        images: float (B, C, H, W).
        gradient: float (B, O, H, W), of the output.

    Returns:
        float (O, C, 3, 3), in channels-last order.

    Examples:
        >>> weight_gradient(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))[0, 0].tolist()
        [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    """
    (_, channels, height, width), outputs = images.shape, gradient.shape[1]
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (B, H + 2, W + 2, C)
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, outputs).T  # (O, B H W)
    taps = [rows @ padded[:, i:i + height, j:j + width].reshape(-1, channels) for i in range(3) for j in range(3)]
    return torch.stack(taps, dim=1).view(outputs, 3, 3, channels).permute(0, 3, 1, 2)
