"""Batched augmentation on any device: resize, pad, crop, flip and erase packed uint8 images in one pass.

The results equal those of the transforms that FastReID applies to single images.

Shapes: B images of a batch, H x W size of the result, h x w size of a stored image, P padding, N stored images.

Pillow's bicubic resize consists of two passes, along the width and then along the height, each rounded to uint8. A
result pixel is a sum of 4 neighbours with weights that are integer multiples of 2^-22. Padding, cropping and flipping
only determine the column and row of the resized image for each result pixel, and therefore the weights. So all of it
is two batched matrix products, computed in tiles of the result, because a tile needs only a few of the stored pixels.

The products equal Pillow's integers exactly, also in TF32: each weight is split into two numbers of at most 11
significant bits, pixels have 8 bits, and every partial sum is a multiple of one unit with less than 24 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PADDING_MODES = ("constant", "edge", "reflect", "symmetric")

_BITS = 22  # Pillow's fixed point for 8-bit images
_HALF_BITS = 12  # bits of the lower part of a weight; the upper part has the other 10
_TAPS = 4
_TILE = 32  # rows or columns of the result per product
_ATTEMPTS = 10  # to find a rectangle for erasing, as in torchvision


class Recipe(NamedTuple):
    """Parameters of the augmentation; the defaults only resize.

    Attributes:
        height: height of the result in pixels.
        width: width of the result in pixels.
        padding: pixels added on every side of the resized image, which is then cropped to its size at random.
        padding_mode: one of `PADDING_MODES`; constant is black.
        flip: probability of a horizontal flip.
        erase: probability of erasing a rectangle.
        erase_value: one value, or one per channel.
        erase_scale: range of the erased share of the image.
        erase_ratio: range of height over width of the rectangle.
    """

    height: int
    width: int
    padding: int = 0
    padding_mode: str = "constant"
    flip: float = 0.0
    erase: float = 0.0
    erase_value: tuple[float, ...] = (0.0,)
    erase_scale: tuple[float, float] = (0.02, 0.33)
    erase_ratio: tuple[float, float] = (0.3, 3.3)


class Draws(NamedTuple):
    """Random numbers of a batch, int64 on the CPU.

    Attributes:
        top: (B,), 0 to 2P, first row of the crop in the padded image.
        left: (B,), 0 to 2P, first column of the crop.
        flip: (B,), 0 or 1.
        box: (B, 4), top, left, height and width of the erased rectangle; height 0 for none.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    box: Tensor


class Packed(NamedTuple):
    """Images of different sizes in one buffer, each in the order (h, 3, w): a row of red, of green, of blue.

    Attributes:
        pixels: uint8 on the device, with a margin after the last image.
        offsets: int64 (N,) on the CPU, first element of each image.
        heights: int64 (N,) on the CPU.
        widths: int64 (N,) on the CPU.
    """

    pixels: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor


def pack(images: Sequence[Tensor], recipe: Recipe, device: torch.device | str = "cpu") -> Packed:
    """Copy images into one buffer.

    Args:
        images: uint8 (h, 3, w) each, none larger than the result.
        recipe: contains the size of the result.
        device: device of the buffer.
    """
    heights, widths = (torch.tensor([image.shape[axis] for image in images]) for axis in (0, 2))
    ends = (3 * heights * widths).cumsum(0)
    # A window may extend beyond its image: these pixels have weight 0, but must exist.
    margin = 3 * recipe.height * recipe.width + 2 * _TILE
    pixels = torch.zeros(int(ends[-1]) + margin, dtype=torch.uint8, device=device)
    for first in range(0, len(images), 1024):  # few copies, without a second buffer for all images
        some = torch.cat([image.reshape(-1) for image in images[first:first + 1024]])
        start = int(ends[first - 1]) if first else 0
        pixels[start:start + len(some)] = some.to(device)
    return Packed(pixels, ends - 3 * heights * widths, heights, widths)


def draw(recipe: Recipe, count: int, generator: torch.Generator) -> Draws:
    """Draw random numbers from the same distributions as FastReID; they do not depend on the device.

    Args:
        recipe: probabilities and ranges.
        count: number of images, B.
        generator: generator on the CPU.
    """
    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def below(limit: int | Tensor, *shape: int) -> Tensor:
        return (uniform(*shape) * limit).long()

    size = torch.tensor([recipe.height, recipe.width])
    top, left = below(2 * recipe.padding + 1, 2, count)
    flip = (uniform(count) < recipe.flip).long()
    # As in torchvision: uniform area, log-uniform ratio, and the first of 10 rectangles that is smaller than the image.
    low, high = recipe.erase_scale
    area = (low + (high - low) * uniform(count, _ATTEMPTS)) * (recipe.height * recipe.width)
    low, high = (math.log(ratio) for ratio in recipe.erase_ratio)
    ratio = (low + (high - low) * uniform(count, _ATTEMPTS)).exp()
    sides = torch.stack([area * ratio, area / ratio], dim=2).sqrt().round().long()  # (count, attempts, 2)
    fits = (sides < size).all(dim=2)
    sides = sides[torch.arange(count), fits.long().argmax(dim=1)]  # (count, 2); argmax: the first that fits
    erased = (uniform(count) < recipe.erase) & fits.any(dim=1)
    corner = below(size - sides + 1, count, 2)
    return Draws(top, left, flip, torch.cat([corner, sides], dim=1) * erased[:, None])


def bicubic_taps(size: int, target: int) -> tuple[Tensor, Tensor]:
    """Compute Pillow's weights for bicubic resizing along one axis.

    Args:
        size: number of stored pixels.
        target: number of result pixels, not less than `size`.

    Returns:
        int64 (target,), first stored pixel of each window of 4 pixels, and int64 (target, 4), weights in units of
        2^-22.

    Examples:
        >>> start, weights = bicubic_taps(8, 16)
        >>> (weights.sum(dim=1) - 2**22).abs().max().item() <= 2  # the weights add up to 1, but for rounding
        True
    """
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * (size / target)
    first = (centre - 1.5).long().clamp(min=0)  # both are truncated towards 0, as in C
    stop = (centre + 2.5).long().clamp(max=size)
    places = first[:, None] + torch.arange(_TAPS)
    x = (places - centre[:, None] + 0.5).abs()
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5)
    weights = torch.where((x < 2) & (places < stop[:, None]), weights, 0.0)
    total = weights[:, 0] + weights[:, 1] + weights[:, 2] + weights[:, 3]  # in Pillow's order
    weights = weights * (1 / total)[:, None]
    units = (weights * 2**_BITS + torch.copysign(torch.tensor(0.5), weights)).long()
    # At the far border, the window is moved back into the image, and the weights are shifted within it.
    start = first.clamp(max=max(size - _TAPS, 0))
    source = torch.arange(_TAPS) - (first - start)[:, None]
    return start, torch.where(source >= 0, units.gather(1, source.clamp(min=0)), 0)


class Augmentation:
    """Applies a recipe to batches of packed images.

    Args:
        recipe: parameters of the augmentation.
        packed: images, none taller or wider than the result.
        channels_last: memory format of the batches; the values are the same.
    """

    def __init__(self, recipe: Recipe, packed: Packed, channels_last: bool = False) -> None:
        assert recipe.padding_mode in PADDING_MODES, recipe.padding_mode
        self.recipe = recipe
        self.packed = packed
        self.device = packed.pixels.device
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._down = _Axis(packed.heights, recipe.height, recipe, self.device)
        self._across = _Axis(packed.widths, recipe.width, recipe, self.device)
        self._height = int(packed.heights.max())
        self._numbers = torch.arange(max(3 * self._height, self._down.window, self._across.window), device=self.device)
        self._value = torch.tensor(recipe.erase_value, device=self.device).reshape(-1, 1, 1)
        # A GPU computes the whole batch at once, a CPU parts that fit its cache, about 1 MiB.
        self._at_once = max(1, 2**18 // (3 * recipe.height * recipe.width)) if self.device.type == "cpu" else None

    def __call__(self, rows: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            rows: int64 (B,) on the CPU, indices of the packed images.
            draws: random numbers of the batch.

        Returns:
            images float32 (B, 3, H, W), 0 to 255, and `rows`, both on the device.
        """
        packed, recipe, on_gpu = self.packed, self.recipe, self.device.type == "cuda"
        # One asynchronous copy to the device for all numbers of the batch.
        sent = torch.stack([rows, packed.offsets[rows], packed.widths[rows], self._down.size_of[rows],
                            self._across.size_of[rows], draws.top, draws.left, draws.flip, *draws.box.T])
        if on_gpu:
            sent = sent.pin_memory().to(self.device, non_blocking=True)
        rows, offsets, widths, size_down, size_across, top, left, flip, *_ = sent.unbind(0)
        y = self._down.places + top[:, None] - recipe.padding  # (B, H), in the resized image
        x = self._across.places
        x = torch.where(flip[:, None] == 1, recipe.width - 1 - x, x) + left[:, None] - recipe.padding
        down, across = self._down.windows(size_down, y), self._across.windows(size_across, x)
        images = torch.empty(len(rows), 3, recipe.height, recipe.width, device=self.device,
                             memory_format=self.memory_format)
        step = self._at_once or len(rows)
        for part in (slice(i, i + step) for i in range(0, len(rows), step)):
            images[part] = self._resized(offsets[part], widths[part], *(t[part] for t in (*down, *across)))
        if recipe.erase and on_gpu:  # one kernel over all pixels is faster than one kernel per image
            erase(images, sent[-4:], self._value)
        elif recipe.erase:
            for i in draws.box[:, 2].nonzero().flatten().tolist():
                top, left, height, width = draws.box[i].tolist()
                images[i, :, top:top + height, left:left + width] = self._value
        return images, rows

    def _resized(self, offsets: Tensor, widths: Tensor, first_rows: Tensor, down: Tensor, first_columns: Tensor,
                 across: Tensor) -> Tensor:
        """Resize images to (B, 3, H, W), a view with another memory order; see `_Axis.windows` for the tiles."""
        count, wide, tall = len(offsets), first_columns.shape[1], first_rows.shape[1]
        lines = self._numbers[:3 * self._height]
        start = offsets[:, None] + first_columns  # (B, tiles)
        index = start[:, :, None] + lines * widths[:, None, None]  # (B, tiles, 3h)
        index = index[..., None] + self._numbers[:across.shape[3]]
        pixels = self.packed.pixels[index].float()  # (B, tiles, 3h, window)
        parts = (pixels @ across.transpose(2, 3)).unflatten(3, (2, _TILE))
        lined_up = pixels.new_empty(count, 3 * self._height, wide, _TILE)
        _rounded(parts.select(3, 0), parts.select(3, 1), out=lined_up.transpose(1, 2))
        # Line numbers of each window; lines beyond the image have weight 0.
        index = (first_rows[..., None] + self._numbers[:down.shape[3]]).clamp(max=self._height - 1)
        index = index + self._height * torch.arange(count, device=self.device)[:, None, None]
        lines = lined_up.view(count * self._height, -1).index_select(0, index.view(-1))  # each 3 x tiles x _TILE
        parts = torch.bmm(down.flatten(0, 1), lines.view(count * tall, down.shape[3], -1))
        parts = parts.view(count, tall, 2, _TILE, 3, -1)
        full = _rounded(parts.select(2, 0), parts.select(2, 1)).flatten(1, 2)  # (B, rows, 3, columns) of whole tiles
        return full[:, :self.recipe.height, :, :self.recipe.width].transpose(1, 2)


def erase(images: Tensor, boxes: Tensor, value: Tensor) -> None:
    """Write a value into a rectangle of each image, in place, with one mask for the batch.

    Args:
        images: float (B, 3, H, W).
        boxes: int64 (4, B) on the device of the images: top, left, height and width; height 0 for no change.
        value: float, (1, 1, 1) or (3, 1, 1).

    Examples:
        >>> images = torch.zeros(1, 3, 4, 4)
        >>> erase(images, torch.tensor([[1], [0], [2], [3]]), torch.ones(1, 1, 1))
        >>> images[0, 0].sum().item()
        6.0
    """
    height, width = images.shape[2:]
    low, size = boxes.view(2, 2, -1, 1)  # (2, B, 1) each: rows, columns
    places = torch.arange(max(height, width), device=images.device)
    inside = (low <= places) & (places < low + size)  # (2, B, places)
    mask = inside[0, :, :height, None] & inside[1, :, None, :width]  # (B, H, W)
    torch.where(mask[:, None], value, images, out=images)


class _Axis:
    """Weights along one axis for every stored size, and their tiles for a batch.

    Args:
        sizes: int64 (N,), size of each image along the axis.
        target: size of the result.
        recipe: padding and its mode.
        device: device of the weights.
    """

    def __init__(self, sizes: Tensor, target: int, recipe: Recipe, device: torch.device) -> None:
        distinct, self.size_of = torch.unique(sizes, return_inverse=True)
        assert distinct[-1] <= target, "larger images are resized before they are packed"
        starts, units = zip(*(bicubic_taps(int(size), target) for size in distinct))
        units = torch.stack(units)
        upper = (units + 2**(_HALF_BITS - 1)) >> _HALF_BITS
        lower = units - (upper << _HALF_BITS)
        # In the units that `_rounded` expects; division by powers of two is exact.
        weights = torch.stack([upper / 2.0**(_BITS - _HALF_BITS), lower / 2.0**_HALF_BITS], dim=2)
        self.starts = torch.stack(starts).flatten().to(device)  # (sizes x target,)
        self.weights = weights.flatten(0, 1).to(device)  # (sizes x target, 2, 4)
        self.target, self.recipe = target, recipe
        self.tiles = -(-target // _TILE)
        # Columns or rows of the result, extended to whole tiles.
        self.places = torch.arange(self.tiles * _TILE, device=device).clamp(max=target - 1)
        self.taps = torch.arange(_TAPS, device=device)
        self.window = math.ceil((_TILE - 1) * int(distinct[-1]) / target) + _TAPS

    def windows(self, size: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the window of stored pixels and the weights of each tile of the result.

        Args:
            size: int64 (B,), index of the stored size.
            places: int64 (B, tiles x tile), positions in the resized image; those below 0 or from `target` on are in
                the padding.

        Returns:
            int64 (B, tiles), first stored pixel, and float32 (B, tiles, 2 x tile, window), upper, then lower weights.
        """
        inside = _folded(places, self.target, self.recipe.padding_mode) if self.recipe.padding else places
        at = size[:, None] * self.target + inside
        weights = self.weights[at]
        if self.recipe.padding and self.recipe.padding_mode == "constant":
            weights = weights * (inside == places)[:, :, None, None]
        starts = self.starts[at].unflatten(1, (self.tiles, _TILE))
        first = starts.amin(dim=2)
        taps = (starts - first[:, :, None])[..., None] + self.taps
        weights = weights.unflatten(1, (self.tiles, _TILE)).transpose(2, 3)  # (B, tiles, 2, tile, 4)
        matrix = weights.new_zeros(*weights.shape[:4], self.window)
        matrix.scatter_(4, taps[:, :, None].expand_as(weights), weights)
        return first, matrix.flatten(2, 3)


def _folded(places: Tensor, size: int, mode: str) -> Tensor:
    """Map positions of an infinitely padded image to pixels.

    Args:
        places: int64, positions; 0 is the first pixel of the image.
        size: number of pixels.
        mode: one of `PADDING_MODES`.

    Examples:
        >>> _folded(torch.arange(-2, 5), 3, "reflect").tolist()
        [2, 1, 0, 1, 2, 1, 0]
    """
    if mode in ("constant", "edge"):
        return places.clamp(0, size - 1)
    if mode == "symmetric":
        places = places.remainder(2 * size)
        return torch.minimum(places, 2 * size - 1 - places)
    places = places.remainder(max(2 * (size - 1), 1))
    return torch.minimum(places, 2 * (size - 1) - places)


def _rounded(upper: Tensor, lower: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute floor(upper + lower * 2^-10 + 1/2), clamped to 0 to 255, from the two parts of exact sums.

    The fraction of `lower` cannot change the result. It is removed first, in place, and the rest fits float32.
    """
    total = torch.add(upper, lower.floor_(), alpha=2.0**(_HALF_BITS - _BITS), out=out)
    return total.add_(0.5).floor_().clamp_(0, 255)
