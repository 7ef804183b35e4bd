"""Figure 8: where each of the five representations of a person comes from.

A gradient of the cosine to the person's own representation would say nothing: a cosine to oneself is at its maximum,
and there its gradient is zero. But layer and batch normalisation of a group are affine, and the pooling is a mean, so
the representation is the mean of what its layer makes of the single places of the map. A place's weight is that part of
it that points where the representation points: 1 on the mean over what the group reads, more where the person is told
by the place, below 0 where the place speaks against it. So channels are weighed by the group's own layer, and nothing
is approximated.
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

TOLERANCE = 1e-2  # of a cosine; half precision stays within
COLOURS = "inferno"
BRIGHTEST = 0.98  # quantile of the weights that the colours reach


@torch.no_grad()
def weights_of_places(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What each place of the map gives to each representation, and how much of each row the group reads.

    Args:
        images: as `CerberusPredictor.images` gives them.

    Returns:
        weights: float (B, G, H, W), G groups, 1 on the mean over what is read.
        rows: float (B, G, H), shares that add up to 1.
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
        own_map = local_map if strip is not None else global_map.expand(-1, -1, height, width)  # of a class token 1 x 1
        places = own_map.permute(0, 2, 3, 1).flatten(0, 2)  # (B * H * W, C)
        layered = heads.bn[group](heads.fc[group](places)[:, :, None, None]).view(batch, height, width, -1)
        mean = torch.einsum("bh,bhwd->bd", read, layered) / width
        weights.append(torch.einsum("bhwd,bd->bhw", layered, mean) / mean.square().sum(dim=1)[:, None, None])
        rows.append(read)
        own.append(mean)
    _check_mean(torch.stack(own, dim=1), heads((global_map, local_map)), list(heads.strip_of_group))
    return torch.stack(weights, dim=1), torch.stack(rows, dim=1)


def _check_mean(own: Tensor, embeddings: Tensor, groups: Sequence[str]) -> None:
    """Refuse a model whose representations are no means over places: (B, G, D) against (B, G * D)."""
    cosine = (F.normalize(own, dim=2) * blocks(embeddings.float(), len(groups))).sum(dim=2)  # (B, G)
    if cosine.min() < 1 - TOLERANCE:
        group = groups[cosine.amin(dim=0).argmin()]
        raise ValueError(f"attention: the mean over the map has a cosine of {cosine.min():.3f} to the model's own "
                         f"representation '{group}', expected 1: this model pools in another way, which cannot be "
                         "shared out among places. Name a run that pools by the mean.")


def make(run: TestedModel, people: int = 5) -> Exhibit:
    """Draw the figure of a run and say what it shows."""
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
    caption = (f"{len(paths)} people of {run.dataset}, one a line, and where their {len(groups)} representations come "
               "from: what a group's own layer makes of each place of its map, as far as it points where the whole "
               "representation points. 1 is the mean of what the group reads; "
               f"{', '.join(strips)} read a strip of "
               f"the rows that the alignment keeps (framed), {', '.join(others)} the whole picture. One scale for "
               "all; places below 0 are drawn as 0.")
    return Exhibit("Figure 8: attention", "Does each representation look at its own part of a person?", caption,
                   [Picture(figure, "Weights of places for each representation, a line a person")],
                   {"largest weight": figures})


def draw(pictures: np.ndarray, weights: Tensor, rows: Tensor, groups: Sequence[str]) -> Figure:
    """A line a person, the picture and a map of each group.

    Args:
        pictures: as `TestedModel.seen` gives them.   weights, rows: as `weights_of_places` gives them.
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
    for axis, title in zip(axes[0], ("picture", *groups)):
        axis.set_title(title, fontsize=10, pad=4)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=30, pad=0.01, extend="max")
    bar.set_label("weight of a place (mean 1)", fontsize=9)
    bar.ax.tick_params(labelsize=9)
    return figure


def _overlaid(axis, picture: np.ndarray, weights: Tensor, rows: Tensor, limit: float):
    """The map over the grey picture, within the rows that are read."""
    height, width = picture.shape[:2]
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2) / 255
    axis.imshow(0.35 + 0.65 * grey)  # pale, so that what is not read steps back
    read = (rows > 0).nonzero().flatten()
    inside = torch.arange(len(rows)).clamp(read[0].item(), read[-1].item())  # nothing from beyond the strip shines in
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
    """Where the rows that are read, (H,), begin and end, in shares of the height.

    A row at an end counts by its share of the one that is read most, so that a strip is as high as in the picture.
    """
    share = rows / rows.max()
    read = (share > 0).nonzero().flatten()
    first, last = read[0].item(), read[-1].item()
    height = len(rows)
    return (first + 1 - share[first].item()) / height, (last + share[last].item()) / height
