"""Figure 7a: rows of the feature map that the alignment keeps, and the strips with and without alignment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ...modeling.heads import person_rows, row_heat
from .exhibit import WIDTH, Exhibit, Picture, TestedModel

BATCH = 64
PEOPLE_A_LINE = 2
KEPT, LEFT, LIMIT = "#1b6ca8", "#c9c9c9", "#c04a00"
STRIP_COLOURS = ("#cc79a7", "#e69f00", "#009e73")  # from the top, then repeated; strips also have names
GAP = 0.05  # between strips, as a share of the image height


class Rows(NamedTuple):
    """Alignment of N images with maps of H rows, as `row_heat` and `person_rows` return it."""

    heat: Tensor  # float (N, H), norm of each row
    top: Tensor  # int64 (N,), first row kept
    bottom: Tensor  # int64 (N,), last row kept
    fallback: Tensor  # bool (N,), no row is above sigma

    @property
    def height(self) -> int:
        """Number of rows of the map."""
        return self.heat.shape[1]

    @property
    def kept(self) -> Tensor:
        """Number of rows kept: int64 (N,)."""
        return self.bottom - self.top + 1


@torch.no_grad()
def rows_of(run: TestedModel, paths: list[str]) -> Rows:
    """Compute the alignment of images.

    Args:
        run: with the model.
        paths: of N images.
    """
    model, parts = run.predictor.model, []
    heads = model.heads
    for start in tqdm(range(0, len(paths), BATCH), desc="rows of the map", unit=" batches", disable=None):
        images = run.predictor.load_images(paths[start:start + BATCH])
        _, local_map = model.maps(model.preprocess_image(images))
        parts.append((row_heat(local_map, heads.squared_norm, heads.sigma_quantile),
                      *person_rows(local_map, heads.sigma, heads.squared_norm, heads.sigma_quantile)))
    return Rows(*(torch.cat(part).cpu() for part in zip(*parts)))


def choose(run: TestedModel, rows: Rows, count: int) -> list[int]:
    """Return the most cropped images, one per person; two images that are not cropped if none is.

    Args:
        run: with the images.
        rows: alignment of all images of the run.
        count: maximum number of images.
    """
    people = sorted(run.of_people(), key=lambda index: rows.kept[index].item())
    cropped = [index for index in people if rows.kept[index] < rows.height]
    return run.first_images(cropped)[:count] or run.first_images(people)[:PEOPLE_A_LINE]


def make(run: TestedModel, people: int = 6) -> Exhibit:
    """Draw the figure for a run.

    Args:
        run: of Cerberus with alignment.
        people: maximum number of people to draw.

    Raises:
        ValueError: If the model has no alignment.
    """
    run.require_groups("alignment of strips")
    if not run.predictor.cfg.MODEL.CERBERUS.ALIGN:
        raise ValueError(f"{run.predictor.run_folder}: MODEL.CERBERUS.ALIGN is False, so there is no alignment; name "
                         "a run that was trained with alignment.")
    rows = rows_of(run, [path for path, *_ in run.items])
    chosen = choose(run, rows, people)
    heads = run.predictor.model.heads
    sigma = heads.sigma
    strips = [", ".join(group for group, own in heads.strip_of_group.items() if own == strip)
              for strip in range(heads.num_strips)]
    figure = draw(run.seen([run.items[i][0] for i in chosen]), Rows(*(part[chosen] for part in rows)), strips, sigma)
    cropped = int((rows.kept < rows.height).sum())
    figures = {"images": len(run.items), "cropped": cropped, "no row above sigma": int(rows.fallback.sum()),
               "rows kept, mean %": 100 * rows.kept.float().mean().item() / rows.height, "rows of the map": rows.height,
               "sigma": sigma}
    share = 100 * cropped / len(run.items)
    caption = (f"{cropped} of {len(run.items)} test images of {run.dataset} ({share:.1f} %) are cropped; "
               f"{figures['rows kept, mean %']:.1f} % of the {rows.height} rows are kept on average. In "
               f"{figures['no row above sigma']} images no row exceeds sigma = {sigma:g}, so the whole image is used. ")
    caption += ("Shown are the most cropped images, one per person. " if cropped else
                "Sigma does not fit the scale of this model's maps; two images are shown. ")
    caption += ("From left to right: the image; the largest norm in each row of the local map, with sigma (dark: kept, "
                f"from the first row above sigma to the last); the input strips of {', '.join(filter(None, strips))} "
                "in the whole image and in the rows kept. A row is drawn at its centre; its receptive field is larger.")
    return Exhibit("Figure 7a: alignment", "Does the alignment find the person, and how does it change the strips?",
                   caption, [Picture(figure, "Rows kept, and the strips with and without alignment")], figures)


def draw(pictures: np.ndarray, rows: Rows, strips: Sequence[str], sigma: float) -> Figure:
    """Draw four panels per person, two people per row.

    Args:
        pictures: images as `TestedModel.seen` returns them.
        rows: alignment of these images.
        strips: names of the groups of each strip, from the top.
        sigma: threshold of the alignment.
    """
    size = pictures.shape[1:3]
    lines = -(-len(pictures) // PEOPLE_A_LINE)
    widths = [1, 1, 1, 1, 0.12] * PEOPLE_A_LINE
    panel = WIDTH / (sum(widths) + 1)
    figure = Figure((WIDTH, lines * (panel * size[0] / size[1] + 0.45)), layout="constrained")
    axes = figure.subplots(lines, len(widths), squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        axis.axis("off")
    for n, picture in enumerate(pictures):
        first = n % PEOPLE_A_LINE * (len(widths) // PEOPLE_A_LINE)
        line = axes[n // PEOPLE_A_LINE, first:first + 4]
        top, end = rows.top[n].item() / rows.height, (rows.bottom[n].item() + 1) / rows.height
        _picture(line[0], picture, top, end)
        _heat(line[1], rows.heat[n], rows.top[n].item(), rows.bottom[n].item(), sigma, size)
        draw_strips(line[2], picture, strips, 0, 1, named=True)
        draw_strips(line[3], picture, strips, top, end)
        for axis, title in zip(line, ("image", "norm of rows", "not aligned", "aligned")):
            axis.set_title(title, fontsize=8.5, pad=3)
    return figure


def _picture(axis, picture: np.ndarray, top: float, end: float) -> None:
    """Show the image; rows that are not kept are pale."""
    height, width = picture.shape[:2]
    axis.imshow(picture)
    for start, stop in ((0, top), (end, 1)):
        axis.axhspan(start * height - 0.5, stop * height - 0.5, color="white", alpha=0.55, linewidth=0)
    axis.plot([-0.5, width - 0.5, width - 0.5, -0.5, -0.5],
              [y * height - 0.5 for y in (top, top, end, end, top)], color=KEPT, linewidth=2)


def _heat(axis, heat: Tensor, top: int, bottom: int, sigma: float, size: tuple[int, int]) -> None:
    """Show the norms of rows as bars, and sigma as a line."""
    axis.axis("on")
    rows = np.arange(len(heat))
    colours = [KEPT if top <= row <= bottom else LEFT for row in rows]
    axis.barh(rows + 0.5, heat.numpy(), height=0.85, color=colours)
    axis.axvline(sigma, color=LIMIT, linestyle="dashed", linewidth=1.5)
    right = 1.12 * max(heat.max().item(), sigma)
    axis.set(ylim=(len(heat), 0), xlim=(0, right), yticks=[], xticks=[0, sigma])
    axis.set_xticklabels(["0", f"\u03c3 = {sigma:g}"], fontsize=8)
    axis.set_box_aspect(size[0] / size[1])
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def draw_strips(axis, picture: np.ndarray, names: Sequence[str], top: float, end: float, named: bool = False) -> None:
    """Show the strips between two heights of the image, stretched to the full height.

    Args:
        axis: to draw on.
        picture: uint8 (H, W, 3).
        names: of the strips, from the top.
        top: where the strips begin, as a share of the height.
        end: where they end, as a share of the height.
        named: write the names.
    """
    height, width = picture.shape[:2]
    edges = [round(height * (top + (end - top) * k / len(names))) for k in range(len(names) + 1)]
    own = (1 - GAP * (len(names) - 1)) / len(names)
    for k, (name, colour) in enumerate(zip(names, itertools.cycle(STRIP_COLOURS))):
        start = k * (own + GAP) * height
        stop = start + own * height
        axis.imshow(picture[edges[k]:max(edges[k + 1], edges[k] + 1)], extent=(0, width, stop, start), aspect="auto")
        axis.plot([0, width, width, 0, 0], [start, start, stop, stop, start], color=colour, linewidth=2)
        if named:
            axis.text(-0.06 * width, (start + stop) / 2, name, rotation=90, ha="right", va="center", fontsize=8.5)
    axis.set(xlim=(-0.01 * width, 1.01 * width), ylim=(1.005 * height, -0.005 * height), aspect="equal")
