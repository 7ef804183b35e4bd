"""Weight gradients as matrix products: they equal those of autograd, and only apply to supported convolutions."""

import copy

from cerberus_plugin.modeling.convolutions import (
    adapt_to_cpu,
    avoid_strided_points,
    speed_up_weight_gradients,
    weight_gradient,
)

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("size", [(3, 5, 4, 6, 3), (1, 2, 3, 1, 1), (2, 4, 4, 8, 8)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_weight_gradient_equals_that_of_autograd(size, memory_format):
    batch, channels, outputs, height, width = size
    images = torch.randn(batch, channels, height, width, dtype=torch.float64).to(memory_format=memory_format)
    weight = torch.randn(outputs, channels, 3, 3, dtype=torch.float64, requires_grad=True)
    out = nn.functional.conv2d(images, weight, padding=1)
    gradient = torch.randn_like(out)
    expected, = torch.autograd.grad(out, weight, gradient)
    torch.testing.assert_close(weight_gradient(images, gradient), expected)


def gradients(layer, images, autocast=True):
    images = images.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = layer(images)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return out.detach(), images.grad, layer.weight.grad.clone()


def fast_copy(layer):
    fast = copy.deepcopy(layer)
    speed_up_weight_gradients(fast)
    return fast


def test_only_weight_gradients_change_and_stay_as_exact():
    layer = nn.Conv2d(256, 8, 3, padding=1, bias=False)
    images = torch.randn(16, 256, 6, 3)
    exact = gradients(layer, images, autocast=False)[2]
    out, of_images, plain = gradients(layer, images)
    fast_out, fast_of_images, fast = gradients(fast_copy(layer), images)
    assert torch.equal(out, fast_out) and torch.equal(of_images, fast_of_images)
    assert fast.dtype == torch.float32 and not torch.equal(fast, plain)  # other order of sums
    assert (fast - exact).abs().max() <= 1.5 * (plain - exact).abs().max()


@pytest.mark.parametrize(("layer", "width"), [
    (nn.Conv2d(256, 8, 3, padding=1, bias=False), 5), (nn.Conv2d(255, 8, 3, padding=1, bias=False), 3),
    (nn.Conv2d(256, 8, 3, padding=1, bias=False, stride=2), 3), (nn.Conv2d(256, 8, 3, padding=1), 3),
    (nn.Conv2d(256, 8, 3, padding=1, bias=False, groups=2), 3), (nn.Conv2d(256, 8, 1, bias=False), 3),
    (nn.Conv2d(256, 8, 3, padding=2, dilation=2, bias=False), 3)])
def test_other_convolutions_and_wide_maps_are_not_changed(layer, width):
    images = torch.randn(2, layer.in_channels, 6, width)
    for before, after in zip(gradients(layer, images), gradients(fast_copy(layer), images)):
        assert torch.equal(before, after)


def test_without_autocast_nothing_changes():
    layer, images = nn.Conv2d(256, 8, 3, padding=1, bias=False), torch.randn(4, 256, 6, 3)
    for before, after in zip(gradients(layer, images, False), gradients(fast_copy(layer), images, False)):
        assert torch.equal(before, after)


def test_frozen_weights_get_no_gradient_and_images_do():
    layer = fast_copy(nn.Conv2d(256, 8, 3, padding=1, bias=False))
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 256, 6, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(images).float().sum().backward()
    assert layer.weight.grad is None and images.grad is not None


def with_nan_in_free_memory(call):
    """Fill memory with NaN that is allocated next, so that reads outside of inputs give NaN."""
    for size in (2**6, 2**10, 2**14, 2**18):
        torch.full((size,), float("nan"), dtype=torch.bfloat16)
    return call()


@pytest.mark.parametrize(("stride", "padding", "kernel", "size"), [
    (2, 1, 3, (6, 2)), (2, 1, 3, (6, 1)), (2, 3, 7, (12, 2)), (3, 1, 3, (6, 6)), (2, 1, 3, (6, 4))])
def test_strided_convolutions_to_one_pixel_are_correct_under_autocast(stride, padding, kernel, size):
    layer = nn.Conv2d(64, 32, kernel, stride, padding, bias=False)
    images = torch.randn(4, 64, *size)
    expected = gradients(layer, images, autocast=False)
    adapt_to_cpu(layer)
    found = with_nan_in_free_memory(lambda: gradients(layer, images))
    for name, want, got in zip(("output", "gradient of images", "gradient of weight"), expected, found):
        assert (got.float() - want).abs().max() <= 0.03 * want.abs().max(), name


def test_other_strided_convolutions_stay_in_bfloat16():
    layer = nn.Conv2d(64, 32, 3, 2, 1, bias=False)
    adapt_to_cpu(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 64, 6, 3)).dtype == torch.bfloat16
        assert layer(torch.randn(2, 64, 6, 2)).dtype == torch.float32


@pytest.mark.parametrize("stride", [1, 2])
def test_subclasses_of_convolutions_keep_their_forward_pass(stride):
    class Doubled(nn.Conv2d):
        def forward(self, images):
            return 2 * super().forward(images)

    layer, images = Doubled(256, 8, 3, stride, 1, bias=False), torch.randn(2, 256, 6, 3)
    expected = gradients(layer, images)
    adapt_to_cpu(layer)
    speed_up_weight_gradients(layer)
    assert all(map(torch.equal, gradients(layer, images), expected))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_strided_1x1_convolutions_avoid_the_crashing_kernel(memory_format):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 48, 1, stride=2)
    images = torch.randn(4, 3, 9, 6)
    expected = plain(images)
    model = nn.Sequential(copy.deepcopy(plain), nn.Conv2d(48, 8, 1, stride=2), nn.Conv2d(8, 3, 3, stride=2))
    avoid_strided_points(model)
    assert ["forward" in vars(layer) for layer in model] == [True, False, False]
    given = model[0](images.to(memory_format=memory_format))
    assert torch.allclose(given, expected, atol=1e-6)
    given.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(model[0].weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    assert torch.allclose(model[0].bias.grad, plain.bias.grad, rtol=1e-4, atol=1e-4)
