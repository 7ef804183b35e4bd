"""Batched augmentation gives the same pixels and distributions as Pillow and torchvision."""

import math

from cerberus_plugin.data.augment import Augmentation, Draws, Recipe, bicubic_taps, draw, erase, pack

import numpy as np
import pytest
import torch
from fastreid.data.transforms import ToTensor
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

MANY = 20_000
BICUBIC = 3  # as FastReID passes it


def noisy_images(*sizes, seed: int = 0) -> list[Image.Image]:
    """Return images (height, width) of noise with edges from 0 to 255, for which bicubic filters overshoot."""
    rng = np.random.default_rng(seed)
    noise = [rng.integers(0, 256, (*size, 3)) for size in sizes]
    return [Image.fromarray(np.where(rng.random(n.shape) < 0.3, 255 * (n > 127), n).astype(np.uint8)) for n in noise]


def packed(images, recipe, device="cpu"):
    return pack([torch.from_numpy(np.asarray(image).transpose(0, 2, 1).copy()) for image in images], recipe, device)


def no_draws(recipe: Recipe, count: int) -> Draws:
    """Return random numbers with which the image is only resized."""
    centre, zero = torch.full((count,), recipe.padding), torch.zeros(count, dtype=torch.int64)
    return Draws(centre, centre, zero, zero[:, None].expand(-1, 4))


def batch(images, recipe, draws=None, **options):
    augmentation = Augmentation(recipe, packed(images, recipe), **options)
    return augmentation(torch.arange(len(images)), draws or no_draws(recipe, len(images)))[0]


def one_by_one(images, recipe, draws):
    """Apply FastReID's transforms to each image with the given random numbers."""
    results = []
    for image, top, left, flip, (y, x, height, width) in zip(images, *(d.tolist() for d in draws)):
        image = F.pad(T.Resize([recipe.height, recipe.width], BICUBIC)(image), recipe.padding,
                      padding_mode=recipe.padding_mode)
        image = F.crop(image, top, left, recipe.height, recipe.width)
        image = ToTensor()(F.hflip(image) if flip else image)
        results.append(F.erase(image, y, x, height, width, torch.tensor(recipe.erase_value)[:, None, None])
                       if height else image)
    return torch.stack(results)


@pytest.mark.parametrize(("native", "target"), [
    ((128, 64), (384, 128)), ((128, 64), (256, 128)), ((57, 31), (384, 128)), ((383, 127), (384, 128)),
    ((384, 128), (384, 128)), ((24, 12), (48, 24)), ((30, 11), (100, 37)), ((2, 3), (48, 24)), ((1, 1), (48, 24))])
def test_resize_equals_pillows_bicubic_in_every_pixel(native, target):
    images = noisy_images(native, native)
    expected = [np.asarray(image.resize(target[::-1], Image.Resampling.BICUBIC)) for image in images]
    expected = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).float()
    assert torch.equal(batch(images, Recipe(*target)), expected)


def test_weights_add_up_to_one_and_stay_inside_the_image():
    for size in range(1, 129):
        start, units = bicubic_taps(size, 128)
        assert ((units.sum(dim=1) - 2**22).abs() <= 2).all()
        behind = start[:, None] + torch.arange(4) >= size
        assert (units[behind] == 0).all() and (start >= 0).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
def test_pad_crop_flip_and_erase_give_the_pixels_of_single_transforms(mode, channels_last):
    recipe = Recipe(96, 40, padding=10, padding_mode=mode, flip=0.5, erase=0.5, erase_value=(1.5, 200.0, 30.25))
    images = noisy_images((64, 32), (96, 40), (33, 40), (20, 7)) * 8
    draws = draw(recipe, len(images), torch.Generator().manual_seed(0))
    corner = Draws(*(torch.cat([d[:28], torch.tensor(extreme).expand(2, *d.shape[1:]), d[30:]]) for d, extreme in
                     zip(draws, (0, 20, 1, (0, 0, 95, 39)))))  # the outermost crop and the largest rectangle
    got = batch(images, recipe, corner, channels_last=channels_last)
    assert got.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(got, one_by_one(images, recipe, corner))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("value", [(7.0,), (7.0, 8.0, 9.0)])
def test_erasing_with_one_mask_equals_erasing_each_rectangle(memory_format, value):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 20, 12, generator=generator).contiguous(memory_format=memory_format)
    boxes = draw(Recipe(20, 12, erase=0.7), 40, generator).box
    boxes[0], boxes[1] = torch.tensor([0, 0, 20, 12]), torch.tensor([19, 11, 1, 1])
    value = torch.tensor(value).view(-1, 1, 1)
    expected = images.clone()
    for image, (top, left, height, width) in zip(expected, boxes.tolist()):
        image[:, top:top + height, left:left + width] = value
    erase(images, boxes.T, value)
    assert torch.equal(images, expected) and images.is_contiguous(memory_format=memory_format)
    assert 0 < (boxes[:, 2] == 0).sum() < 20


@pytest.mark.parametrize("mode", ["reflect", "symmetric"])
def test_padding_larger_than_the_image_equals_that_of_single_transforms(mode):
    recipe = Recipe(10, 6, padding=13, padding_mode=mode)
    draws = no_draws(recipe, 1)._replace(top=torch.tensor([0]), left=torch.tensor([26]))
    assert torch.equal(batch(noisy_images((5, 4)), recipe, draws), one_by_one(noisy_images((5, 4)), recipe, draws))


def test_weights_are_exact_in_tf32():
    """Each part of a weight has at most 11 significant bits, the precision of TF32; a pixel has 8 bits."""
    images = noisy_images((128, 64), (57, 31), (383, 127))
    augmentation = Augmentation(Recipe(384, 128), packed(images, Recipe(384, 128)))
    for axis in (augmentation._down, augmentation._across):
        for part, unit in zip(axis.weights.unbind(1), (2**10, 2**12)):
            whole = (part * unit).abs()
            assert torch.equal(whole, whole.round()) and whole.max() <= 2**11


def quantiles(values: torch.Tensor) -> torch.Tensor:
    return torch.quantile(values.double(), torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64))


@pytest.mark.parametrize("size", [(384, 128), (256, 128), (48, 16)])
def test_erased_rectangles_are_distributed_as_in_torchvision(size):
    torch.manual_seed(0)
    image = torch.zeros(1, *size)
    theirs = [T.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(MANY // 4)]
    theirs = torch.tensor([box for box in theirs if box[2:] != size]).double()
    ours = draw(Recipe(*size, erase=1.0), MANY, torch.Generator().manual_seed(0)).box
    found = ours[ours[:, 2] > 0].double()
    assert len(found) / MANY == pytest.approx(len(theirs) / (MANY // 4), abs=0.005)
    for measure in (lambda b: b[:, 2] * b[:, 3] / math.prod(size), lambda b: (b[:, 2] / b[:, 3]).log(),
                    lambda b: b[:, 0] / (size[0] - b[:, 2]), lambda b: b[:, 1] / (size[1] - b[:, 3])):
        a, b = measure(found), measure(theirs)
        assert torch.allclose(quantiles(a), quantiles(b), atol=0.05 * float(a.max() - a.min()))
    assert (found[:, 2] < size[0]).all() and (found[:, 3] < size[1]).all()
    assert (found[:, 0] + found[:, 2] <= size[0]).all() and (found[:, 1] + found[:, 3] <= size[1]).all()


def test_a_rectangle_that_never_fits_erases_nothing():
    ours = draw(Recipe(100, 2, erase=1.0, erase_scale=(0.9, 1.0)), 500, torch.Generator().manual_seed(0)).box
    assert (ours == 0).all()


def test_flips_erasures_and_crops_have_the_given_probabilities():
    recipe = Recipe(48, 24, padding=10, flip=0.3, erase=0.6)
    draws = draw(recipe, MANY, torch.Generator().manual_seed(0))
    assert draws.flip.double().mean().item() == pytest.approx(0.3, abs=0.015)
    assert (draws.box[:, 2] > 0).double().mean().item() == pytest.approx(0.6, abs=0.015)
    for offsets in (draws.top, draws.left):
        counts = torch.bincount(offsets, minlength=21)
        assert len(counts) == 21 and (counts / MANY * 21 - 1).abs().max() < 0.15
    assert abs(torch.corrcoef(torch.stack([draws.top, draws.left]).double())[0, 1]) < 0.03


def test_the_same_seed_gives_the_same_random_numbers():
    def some(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([draw(Recipe(48, 24, 10, flip=0.5, erase=0.5), 8, generator).box for _ in range(3)])

    assert torch.equal(some(1), some(1)) and not torch.equal(some(1), some(2))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["highest", "high"])  # float32, TF32
def test_a_gpu_gives_the_same_pixels_as_the_cpu(precision):
    recipe = Recipe(384, 128, padding=10, flip=0.5, erase=0.5, erase_value=(123.675, 116.28, 103.53))
    images = noisy_images((128, 64), (57, 31), (384, 128), (300, 90)) * 8
    draws = draw(recipe, len(images), torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        got = Augmentation(recipe, packed(images, recipe, "cuda"))(torch.arange(len(images)), draws)[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.cpu(), batch(images, recipe, draws))
