"""Figure 7a: which rows of the map the alignment keeps, and what the strips are with and without it."""

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
STRIP_COLOURS = ("#cc79a7", "#e69f00", "#009e73")  # from the top, and again; told by their names as well
GAP = 0.05  # between strips, of a picture's height


class Rows(NamedTuple):
    """The alignment of N images on maps of H rows: heat float (N, H), the rest as `person_rows` returns it."""

    heat: Tensor
    top: Tensor
    bottom: Tensor
    fallback: Tensor

    @property
    def height(self) -> int:
        return self.heat.shape[1]

    @property
    def kept(self) -> Tensor:
        """Number of rows kept: int64 (N,)."""
        return self.bottom - self.top + 1


@torch.no_grad()
def rows_of(run: TestedModel, paths: list[str]) -> Rows:
    """The alignment of pictures by a run's model."""
    model, parts = run.predictor.model, []
    heads = model.heads
    for start in tqdm(range(0, len(paths), BATCH), desc="rows of the map", unit=" batches", disable=None):
        images = run.predictor.load_images(paths[start:start + BATCH])
        _, local_map = model.maps(model.preprocess_image(images))
        parts.append((row_heat(local_map, heads.squared_norm, heads.sigma_quantile),
                      *person_rows(local_map, heads.sigma, heads.squared_norm, heads.sigma_quantile)))
    return Rows(*(torch.cat(part).cpu() for part in zip(*parts)))


def choose(run: TestedModel, rows: Rows, count: int) -> list[int]:
    """The images that are cropped most, one a person; two that are not where none is."""
    people = sorted(run.of_people(), key=lambda index: rows.kept[index].item())
    cropped = [index for index in people if rows.kept[index] < rows.height]
    return run.first_images(cropped)[:count] or run.first_images(people)[:PEOPLE_A_LINE]


def make(run: TestedModel, people: int = 6) -> Exhibit:
    """Draw the figure of a run and say what it shows."""
    run.require_groups("alignment of strips")
    if not run.predictor.cfg.MODEL.CERBERUS.ALIGN:
        raise ValueError(f"{run.predictor.run_folder}: MODEL.CERBERUS.ALIGN is False, so nothing is aligned; name a "
                         "run that was trained with it.")
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
    caption = (f"{cropped} of {len(run.items)} test images of {run.dataset} ({share:.1f} %) are cropped at all; "
               f"{figures['rows kept, mean %']:.1f} % of the {rows.height} rows are kept on average. In "
               f"{figures['no row above sigma']} images no row exceeds sigma = {sigma:g}, so that the whole is taken. ")
    caption += ("Drawn are the images that are cropped most, one a person: " if cropped else
                "So sigma does not fit the scale of this model's maps; drawn are two of them: ")
    caption += ("the picture, the largest norm of each row of the local map against sigma (dark: kept, from the first "
                f"row above sigma to the last), and the strips that {', '.join(filter(None, strips))} read, of the "
                "whole picture and of the rows kept. Rows lie where their centres do; each also "
                "sees what is around it.")
    return Exhibit("Figure 7a: alignment", "Does the alignment find the person, and what does it change?", caption,
                   [Picture(figure, "The rows kept, and the strips with and without alignment")], figures)


def draw(pictures: np.ndarray, rows: Rows, strips: Sequence[str], sigma: float) -> Figure:
    """Four panels a person, two people a line.

    Args:
        pictures: as `TestedModel.seen` gives them.   rows: of these pictures.
        strips: what is read from each strip, from the top.
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
        for axis, title in zip(line, ("picture", "norm of rows", "not aligned", "aligned")):
            axis.set_title(title, fontsize=8.5, pad=3)
    return figure


def _picture(axis, picture: np.ndarray, top: float, end: float) -> None:
    """The picture, veiled where its rows are left out."""
    height, width = picture.shape[:2]
    axis.imshow(picture)
    for start, stop in ((0, top), (end, 1)):
        axis.axhspan(start * height - 0.5, stop * height - 0.5, color="white", alpha=0.55, linewidth=0)
    axis.plot([-0.5, width - 0.5, width - 0.5, -0.5, -0.5],
              [y * height - 0.5 for y in (top, top, end, end, top)], color=KEPT, linewidth=2)


def _heat(axis, heat: Tensor, top: int, bottom: int, sigma: float, size: tuple[int, int]) -> None:
    """Bars beside the picture's rows, and the limit."""
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
    """Strips, from the top, of the rows from `top` to `end`, shares of the height, drawn at the height of the whole."""
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
