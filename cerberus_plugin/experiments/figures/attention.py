"""Figure 8: contribution of each position of the feature map to each of the five representations.

A gradient of the cosine to the image's own representation cannot be used: this cosine is at its maximum, so its
gradient is zero. The linear layer and the batch normalisation of a group are affine and the pooling is a mean, so a
representation is the mean of the outputs of its layers at the single positions. The weight of a position is the
inner product of its output and the representation, divided by the squared norm of the representation. The mean weight
over the input of the group is 1, and a negative weight means that the position opposes the representation. Each channel
is weighted by the layers of the group, and the weights are exact, not an approximation.
Shapes: B images, C channels, H x W the map, D dimensions of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from ...inference import blocks
from ...modeling.heads import person_rows, resize_rows_matrix, strip_matrix
from .exhibit import WIDTH, Exhibit, Picture, TestedModel, spread

TOLERANCE = 1e-2  # of a cosine; enough for half precision
COLOURS = "inferno"
BRIGHTEST = 0.98  # quantile of the weights with the brightest colour


@torch.no_grad()
def weights_of_places(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the weight of each position of the map in each representation.

    Args:
        model: Cerberus.
        images: as `CerberusPredictor.load_images` returns them.

    Returns:
        weights: float (B, G, H, W), G groups; the mean over the input of a group is 1.
        rows: float (B, G, H), share of each row in the input of a group, sum 1.

    Raises:
        ValueError: If a representation is not a mean over positions.
    """
    heads = model.heads
    global_map, local_map = (m.float() for m in model.maps(model.preprocess_image(images)))
    batch, _, height, width = local_map.shape
    strips = strip_matrix(height, heads.num_strips, heads.strip_overlap, local_map.device)  # (S, H)
    if heads.align:
        top, bottom, _ = person_rows(local_map, heads.sigma, heads.squared_norm, heads.sigma_quantile)
        strips = strips @ resize_rows_matrix(top, bottom, height)
    strips = strips.expand(batch, -1, -1)
    weights, rows, own = [], [], []
    for group, strip in heads.strip_of_group.items():
        read = torch.full_like(strips[:, 0], 1 / height) if strip is None else strips[:, strip]  # (B, H)
        own_map = local_map if strip is not None else global_map.expand(-1, -1, height, width)  # a class token is 1 x 1
        places = own_map.permute(0, 2, 3, 1).flatten(0, 2)  # (B * H * W, C)
        layered = heads.bn[group](heads.fc[group](places)[:, :, None, None]).view(batch, height, width, -1)
        mean = torch.einsum("bh,bhwd->bd", read, layered) / width
        weights.append(torch.einsum("bhwd,bd->bhw", layered, mean) / mean.square().sum(dim=1)[:, None, None])
        rows.append(read)
        own.append(mean)
    _check_mean(torch.stack(own, dim=1), heads((global_map, local_map)), list(heads.strip_of_group))
    return torch.stack(weights, dim=1), torch.stack(rows, dim=1)


def _check_mean(own: Tensor, embeddings: Tensor, groups: Sequence[str]) -> None:
    """Raise ValueError if representations (B, G * D) are not the means over positions (B, G, D)."""
    cosine = (F.normalize(own, dim=2) * blocks(embeddings.float(), len(groups))).sum(dim=2)  # (B, G)
    if cosine.min() < 1 - TOLERANCE:
        group = groups[cosine.amin(dim=0).argmin()]
        raise ValueError(f"attention: the mean over the map has a cosine of {cosine.min():.3f} to the model's own "
                         f"representation '{group}', expected 1. This model does not use mean pooling, so the "
                         "representation cannot be divided among positions; name a run with mean pooling.")


def make(run: TestedModel, people: int = 5) -> Exhibit:
    """Draw the figure for a run.

    Args:
        run: of Cerberus.
        people: number of people to draw.

    Raises:
        ValueError: If the model has no groups, or does not use mean pooling.
    """
    run.require_groups("representations of groups")
    groups = run.predictor.groups
    queries = [index for index in run.of_people() if index < run.num_query]
    paths = [run.items[index][0] for index in spread(run.first_images(queries), people)]
    weights, rows = weights_of_places(run.predictor.model, run.predictor.load_images(paths))
    figure = draw(run.seen(paths), weights.cpu(), rows.cpu(), groups)
    read = (rows > 0)[..., None].expand_as(weights)
    figures = {group: weights[:, g][read[:, g]].max().item() for g, group in enumerate(groups)}
    strips = [group.name for group in run.predictor.model.groups if group.strip is not None]
    others = [group for group in groups if group not in strips]
    caption = (f"{len(paths)} people of {run.dataset}, one per row, with the weight of each position of the map in "
               f"their {len(groups)} representations: the inner product of the output of the group's layers at this "
               "position and the representation, scaled to a mean of 1 over the input of the group. The input of "
               f"{', '.join(strips)} is a strip of the rows that the alignment keeps (framed), that of "
               f"{', '.join(others)} the whole image. All maps have one colour scale; negative weights are drawn as 0.")
    return Exhibit("Figure 8: attention", "Does each representation depend on its own part of the person?", caption,
                   [Picture(figure, "Weights of positions in each representation, one row per person")],
                   {"largest weight": figures})


def draw(pictures: np.ndarray, weights: Tensor, rows: Tensor, groups: Sequence[str]) -> Figure:
    """Draw one row per person with the image and one map per group.

    Args:
        pictures: images as `TestedModel.seen` returns them.
        weights: as `weights_of_places` returns them.
        rows: as `weights_of_places` returns them.
        groups: names of the groups.
    """
    ratio = pictures.shape[1] / pictures.shape[2]
    panel = WIDTH / (1 + len(groups)) - 0.25
    figure = Figure((WIDTH, len(pictures) * (panel * ratio + 0.1) + 0.3), layout="constrained")
    axes = figure.subplots(len(pictures), 1 + len(groups), squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    limit = weights[(rows > 0)[..., None].expand_as(weights)].quantile(BRIGHTEST).clamp(min=1).item()
    for n, picture in enumerate(pictures):
        axes[n, 0].imshow(picture)
        for g in range(len(groups)):
            image = _overlaid(axes[n, 1 + g], picture, weights[n, g], rows[n, g], limit)
    for axis, title in zip(axes[0], ("image", *groups)):
        axis.set_title(title, fontsize=10, pad=4)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, pad=0.01, extend="max")
    bar.set_label("weight of a position (mean 1)", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    return figure


def _overlaid(axis, picture: np.ndarray, weights: Tensor, rows: Tensor, limit: float):
    """Show the map over the grey image, in the rows of the input."""
    height, width = picture.shape[:2]
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2) / 255
    axis.imshow(0.35 + 0.65 * grey)  # pale outside the input
    read = (rows > 0).nonzero().flatten()
    inside = torch.arange(len(rows)).clamp(read[0].item(), read[-1].item())  # interpolate within the strip only
    fine = F.interpolate(weights[inside][None, None], size=(height, width), mode="bicubic", align_corners=False)[0, 0]
    start, stop = extent(rows)
    first, last = round(start * height), max(round(stop * height), round(start * height) + 1)
    opacity = np.zeros((height, width))
    opacity[first:last] = 0.72
    axis.imshow(grey, alpha=(opacity > 0).astype(float))
    axis.imshow(fine.clamp(min=0).numpy(), cmap=COLOURS, vmin=0, vmax=limit, alpha=opacity)
    axis.plot([0, width - 1, width - 1, 0, 0], [first, first, last - 1, last - 1, first], color="black", linewidth=1)
    return ScalarMappable(Normalize(0, limit), COLOURS)


def extent(rows: Tensor) -> tuple[float, float]:
    """Compute where the input rows of a group begin and end, as shares of the height.

    The first and the last row count by their share relative to the largest, so a strip has its exact height.

    Args:
        rows: float (H,), share of each row in the input.

    Examples:
        >>> extent(torch.tensor([0.0, 0.2, 0.4, 0.4]))
        (0.375, 1.0)
    """
    share = rows / rows.max()
    read = (share > 0).nonzero().flatten()
    first, last = read[0].item(), read[-1].item()
    height = len(rows)
    return (first + 1 - share[first].item()) / height, (last + share[last].item()) / height
