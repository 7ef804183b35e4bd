"""Draw rank lists of a trained model: queries with predicted attributes and top ranks, and searches by attributes.

    python -m cerberus_plugin.experiments.figures.rank_list logs/market1501/cerberus_R50 --queries 6 --searches 3
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure

from ...attributes import MISSING
from ...data.clothes import GALLERY_CAMERAS
from ...metrics.ranking import rank_matches
from ...predictor import CerberusPredictor
from ...utils.commands import add_blur_faces, faces_blurred, run_command
from ...utils.files import write_figure
from ...utils.images import Unreadable, for_display, read_image
from .exhibit import DPI, WIDTH, TestedModel, spread

if TYPE_CHECKING:
    from PIL.Image import Image

RIGHT, WRONG, UNKNOWN, ASKED = "right", "wrong", "unknown", "asked"  # verdicts on results and predictions
# Colour-blind safe; marks and frames also show the verdict.
COLOURS = {RIGHT: "#00795a", WRONG: "#c04a00", UNKNOWN: "#707070", ASKED: "black"}
MARKS = {RIGHT: "\u2713 ", WRONG: "\u2717 ", UNKNOWN: "? ", ASKED: ""}
FRAMES = {RIGHT: "solid", WRONG: (0, (2.5, 1.2))}
LINE = 0.135  # inches per line of text
WORDS_WIDTH = 1.9  # inches of the column of text


@dataclass(frozen=True)
class Row:
    """One row of the sheet: a query and its results.

    Args:
        picture: path of the query image; None for a search by attributes.
        title: of the row.
        words: (text, verdict) of each attribute.
        found: (path, verdict, caption) of each result, best first.
    """

    picture: str | None
    title: str
    words: list[tuple[str, str]]
    found: list[tuple[str, str, str]]


class Gallery:
    """Embedded queries and gallery of a test dataset, without unreadable images.

    Args:
        predictor: of the run.
        groups: compare images by these groups of Cerberus; all if empty.
        run: with the test dataset; None for the first one of the predictor.
    """

    def __init__(self, predictor: CerberusPredictor, groups: Sequence[str] = (),
                 run: TestedModel | None = None) -> None:
        run = run or TestedModel(predictor, predictor.cfg.DATASETS.TESTS[0])
        self.predictor = predictor
        self.groups = groups
        self.dataset, self.queries, self.items = run.images, run.items[:run.num_query], run.items[run.num_query:]
        self.pids, self.camids = (torch.tensor([item[k] for item in self.items]) for k in (1, 2))
        self.outfits = None
        if groups and self.dataset.outfit_of:
            self.outfits = torch.tensor([self.dataset.outfit_of(path) for path, *_ in self.items])
        self.query_embeddings = predictor.embed([path for path, _, _ in self.queries])
        self.embeddings = predictor.embed([path for path, _, _ in self.items])
        self.query_labels = self.labels = None
        if predictor.reader is not None and run.labels is not None:
            self.query_labels, self.labels = run.labels[:run.num_query], run.labels[run.num_query:]

    def query_row(self, index: int, top: int) -> Row:
        """Search by a query image, among images from other cameras; if groups are excluded, also in other outfits.

        Args:
            index: of the query.
            top: number of results.

        Returns:
            The row, with the predicted attributes of the query.
        """
        path, pid, camid = self.queries[index]
        scores = self.predictor.picture_scores(self.query_embeddings[index:index + 1], self.embeddings, self.groups)[0]
        order = scores.masked_fill(self._ignored(index), float("-inf")).sort(descending=True, stable=True).indices[:top]
        found = [(self.items[i][0], RIGHT if self.items[i][1] == pid else WRONG, f"{scores[i]:.2f}")
                 for i in order.tolist()]
        words = self.words(index) if self.labels is not None else []
        camera = f", camera {camid + 1}" if camid < GALLERY_CAMERAS else ""  # else the camera is unknown
        return Row(path, f"identity {pid}{camera}", words, found)

    def search_row(self, labels: torch.Tensor, top: int) -> Row:
        """Search by attributes; a result is right if its labels agree with the description.

        Args:
            labels: int64 (A,), -1 for attributes that are not described.
            top: number of results.
        """
        schema = self.predictor.reader.schema
        scores = self.predictor.reader.search(labels[None], self.embeddings)[0]
        order = scores.sort(descending=True, stable=True).indices[:top]
        fits = ((self.labels == labels) | (labels == MISSING)).all(dim=1)
        found = [(self.items[i][0], RIGHT if fits[i] else WRONG, f"{scores[i]:.2f}") for i in order.tolist()]
        described = [group for group in schema.group_names
                     if (labels[list(schema.group_fields(group))] != MISSING).any()]
        title = "search by " + ("attributes" if (labels != MISSING).all() else ", ".join(described))
        return Row(None, title, [(f"{k}: {v}", ASKED) for k, v in schema.describe(labels).items()], found)

    def spread_queries(self, count: int) -> list[int]:
        """Select queries of different identities with a match in the gallery, at equal distances in the list.

        Args:
            count: maximum number of queries.

        Returns:
            Indices of the queries.
        """
        first = {}
        for index, (_, pid, _) in enumerate(self.queries):
            if pid not in first and ((self.pids == pid) & ~self._ignored(index)).any():
                first[pid] = index
        return spread(list(first.values()), count)

    def searches(self, count: int, groups: Sequence[str] = ()) -> list[torch.Tensor]:
        """Select descriptions with a match in the gallery, at equal distances in order of average precision.

        Args:
            count: maximum number of descriptions.
            groups: that are described; all if empty.

        Returns:
            Labels of each description, int64 (A,), -1 for attributes that are not described.
        """
        schema = self.predictor.reader.schema
        left_open = [field for group in schema.group_names if groups and group not in groups
                     for field in schema.group_fields(group)]
        known = self.labels.clone()
        known[:, left_open] = 0
        labelled = self.labels[(known != MISSING).all(dim=1)]
        labelled[:, left_open] = MISSING
        distinct = labelled.unique(dim=0)
        relevant = ((distinct[:, None] == self.labels[None]) | (distinct[:, None] == MISSING)).all(dim=2)
        ranked = rank_matches(-self.predictor.reader.search(distinct, self.embeddings), relevant)
        order = ranked.ap.sort(descending=True).indices
        positions = torch.linspace(0, len(order) - 1, count + 2)[1:-1].long()
        return [distinct[i] for i in order[positions].unique_consecutive()]

    def words(self, index: int) -> list[tuple[str, str]]:
        """Predict the attributes of a query.

        Returns:
            Text and verdict of each attribute; a wrong prediction is followed by the label in brackets.
        """
        labels = self.query_labels[index]
        schema = self.predictor.reader.schema
        answers = self.predictor.reader.recognise(self.query_embeddings[index:index + 1])[0]
        truth, known = schema.column_truth(labels[None])
        described = schema.describe(labels)
        words = []
        for m, (column, k) in enumerate(zip(schema.columns, answers.tolist())):
            right = bool(truth[m][0, k]) if k >= 0 else not truth[m][0].any()
            verdict = (RIGHT if right else WRONG) if known[0, m] else UNKNOWN
            text = f"{column.name}: {column.classes[k] if k >= 0 else 'none'}"
            words.append((f"{text} ({described[column.name]})" if verdict == WRONG else text, verdict))
        return words

    def _ignored(self, index: int) -> torch.Tensor:
        """Images that the evaluation ignores for a query: the same person and camera, or outfit. Bool (N,)."""
        path, pid, camid = self.queries[index]
        alike = self.camids == camid
        if self.outfits is not None:
            alike |= self.outfits == self.dataset.outfit_of(path)
        return (self.pids == pid) & alike


def draw(rows: list[Row], path: str | Path, top: int) -> None:
    """Draw rows with `sheet` and write the image.

    Args:
        rows: to draw.
        path: of the image.
        top: number of results per row.
    """
    write_figure(path, sheet(rows, top), DPI)


def sheet(rows: list[Row], top: int) -> Figure:
    """Draw rows: the query on the left, then its results, best first, framed by verdict.

    Args:
        rows: to draw.
        top: number of results per row.

    Returns:
        The figure; a notebook displays it.
    """
    asked = [any(row.picture for row in rows), any(row.words for row in rows)]
    unit = (WIDTH - WORDS_WIDTH * asked[1]) / (top + asked[0])
    widths = [unit] * asked[0] + [WORDS_WIDTH] * asked[1] + [unit] * top
    paths = {path for row in rows for path in (row.picture, *(path for path, *_ in row.found)) if path}
    images = {path: read_image(path) for path in paths}
    tallest = max(image.height / image.width for image in images.values())
    height = max(tallest * unit + 0.3, LINE * (2 + max(len(row.words) for row in rows)))
    figure = Figure((WIDTH, height * len(rows)), layout="constrained")  # pyplot would use the backend of a notebook
    axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows):
        if row.picture:
            show_picture(line[0], images[row.picture], caption="" if asked[1] else row.title)
        elif asked[0]:
            show_words(line[0], [("attributes:", ASKED)])
        if asked[1]:
            show_words(line[sum(asked) - 1], row.words, row.title)
        for rank, (axis, (found, verdict, caption)) in enumerate(zip(line[sum(asked):], row.found), start=1):
            show_picture(axis, images[found], verdict, f"{rank} {MARKS[verdict]}{caption}")
    return figure


def show_picture(axis, picture: Image | str | os.PathLike, verdict: str = ASKED, caption: str = "") -> None:
    """Show an image, or the image at a path, with the frame of its verdict.

    Args:
        axis: to draw on.
        picture: image or path.
        verdict: RIGHT, WRONG, UNKNOWN or ASKED.
        caption: above the image.
    """
    axis.axis("on")
    image = read_image(picture) if isinstance(picture, str | os.PathLike) else picture
    axis.imshow(for_display(image))
    axis.set(xticks=[], yticks=[], anchor="N")
    axis.set_title(caption, fontsize=7.5, color=COLOURS[verdict], pad=3, parse_math=False)
    for side in axis.spines.values():
        side.set(visible=verdict in FRAMES, color=COLOURS[verdict], linewidth=2.2)
        side.set_linestyle(FRAMES.get(verdict, "solid"))


def show_words(axis, words: Sequence[tuple[str, str]], title: str = "") -> None:
    """Show lines of text with their verdicts.

    Args:
        axis: to draw on.
        words: (text, verdict) of each line, from the top.
        title: above the lines.
    """
    axis.axis("off")
    axis.set_title(title, fontsize=8, loc="left", pad=3, parse_math=False)
    for n, (text, verdict) in enumerate(words):
        axis.annotate(MARKS[verdict] + textwrap.shorten(text, 34, placeholder=" ..."), (0, 1),
                      xytext=(2, -72 * LINE * n - 1), xycoords="axes fraction", textcoords="offset points", va="top",
                      color=COLOURS[verdict], fontsize=7.5, annotation_clip=False).set_in_layout(False)


@contextmanager
def advised(run_folder: str | Path) -> Iterator[None]:
    """Add to the error of an unreadable test image how to replace or skip it.

    Args:
        run_folder: of the run, whose config.yaml has the option.
    """
    try:
        yield
    except Unreadable as error:
        raise ValueError(f"{error}. Replace the file, or set DATALOADER.ON_UNREADABLE to skip in "
                         f"{Path(run_folder) / 'config.yaml'} to exclude it.") from error


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", help="folder of a trained run")
    parser.add_argument("--queries", type=int, default=5, help="number of image queries (default: %(default)s)")
    parser.add_argument("--searches", type=int, default=2,
                        help="number of searches by attributes (default: %(default)s)")
    parser.add_argument("--top", type=int, default=10, help="results per row (default: %(default)s)")
    parser.add_argument("--output", help="file to write (default: RUN_FOLDER/rank_list.png)")
    parser.add_argument("--may-have-changed-clothes", action="store_true",
                        help="compare images by the groups that `experiments.groups` has chosen for changed clothes")
    add_blur_faces(parser)
    args = parser.parse_args(arguments)
    predictor = CerberusPredictor(args.run_folder)
    groups = predictor.groups_for_changed_clothes if args.may_have_changed_clothes else ()
    with advised(args.run_folder):
        gallery = Gallery(predictor, groups)
    rows = [gallery.query_row(index, args.top) for index in gallery.spread_queries(args.queries)]
    if gallery.labels is not None:
        rows += [gallery.search_row(labels, args.top) for labels in gallery.searches(args.searches)]
    path = args.output or str(Path(args.run_folder) / "rank_list.png")
    with faces_blurred(args.blur_faces):
        draw(rows, path, args.top)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
