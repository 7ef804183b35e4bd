"""Figure 6: results of searches by image and by attributes, and predicted attributes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ...utils.images import read_image
from .exhibit import WIDTH, Exhibit, Picture, TestedModel
from .rank_list import LINE, RIGHT, Gallery, Row, sheet, show_picture, show_words

MODES = ("reid", "par", "aps", "partial")
CARDS_A_LINE = 3
CARD = (1, 1.9)  # relative widths of an image and its text


def make(run: TestedModel, people: int = 5, modes: Sequence[str] | None = None, groups: Sequence[str] | None = None,
         top: int = 8) -> Exhibit:
    """Draw one sheet per mode.

    Args:
        run: to show.
        people: rows of each sheet.
        modes: some of `MODES`; None for all that the model supports.
        groups: groups that a partial search describes; None for upper and lower, or else the first group.
        top: images per row.

    Raises:
        ValueError: If the model or the dataset has no attributes and a mode needs them.
    """
    known = run.predictor.groups
    groups = groups or [group for group in ("upper", "lower") if group in known] or known[:1]
    predictor = run.predictor
    reads = predictor.reader is not None and run.labels is not None
    unable = [mode for mode in modes or () if mode != "reid"] if not reads else []
    if unable:
        why = ("the model does not predict attributes" if predictor.reader is None else
               f"{run.dataset} has no attributes")
        raise ValueError(f"{predictor.run_folder}: no sheet of {', '.join(unable)}, because {why}; use --modes reid, "
                         "or name another run or dataset.")
    modes = modes or (MODES if reads else MODES[:1])
    gallery = Gallery(predictor, run=run)
    figures, pictures = {}, []
    for mode in modes:
        if mode == "par":
            cards = [(gallery.queries[index][0], f"identity {gallery.queries[index][1]}", gallery.words(index))
                     for index in gallery.spread_queries(CARDS_A_LINE * people)]
            figure = draw_cards(cards)
            verdicts = [verdict for *_, words in cards for _, verdict in words]
        else:
            rows = rows_of(gallery, mode, people, groups, top)
            figure = sheet(rows, top)
            verdicts = [verdict for row in rows for _, verdict, _ in row.found]
        figures[mode] = {"right": verdicts.count(RIGHT), "shown": len(verdicts)}
        pictures.append(Picture(figure, f"{_caption(mode, groups)} {figures[mode]['right']} of the {len(verdicts)} "
                                        f"{'predictions' if mode == 'par' else 'images'} shown are right.", f"_{mode}"))
    caption = (f"Test images of {run.dataset}. Queries are taken at equal distances in the list, regardless of their "
               "results. A tick and a solid frame mean right, a cross and a dashed frame wrong.")
    return Exhibit("Figure 6: retrieval and recognition", "What does the model find, and which errors does it make?",
                   caption, pictures, figures)


def rows_of(gallery: Gallery, mode: str, count: int, groups: Sequence[str], top: int) -> list[Row]:
    """Create the rows of a sheet.

    Args:
        gallery: to search.
        mode: "reid", "aps" or "partial".
        count: number of rows.
        groups: that a partial search describes.
        top: results per row.
    """
    if mode == "reid":
        rows = [gallery.query_row(index, top) for index in gallery.spread_queries(count)]
        return [Row(row.picture, row.title.partition(",")[0], [], row.found) for row in rows]
    asked = gallery.searches(count) if mode == "aps" else gallery.searches(count, groups)
    return [gallery.search_row(labels, top) for labels in asked]


def _caption(mode: str, groups: Sequence[str]) -> str:
    return {
        "reid": "reID: query images and the most similar images from other cameras, with their scores.",
        "par": "PAR: predicted attributes; if a prediction is wrong, the label follows in brackets.",
        "aps": "APS: searches by all attributes; a result is right if every attribute agrees. The descriptions are "
               "taken at equal distances in order of average precision.",
        "partial": f"Partial APS: searches by the attributes of {' and '.join(groups)}; a result is right if these "
                   "attributes agree.",
    }[mode]


def draw_cards(cards: Sequence[tuple[str, str, list[tuple[str, str]]]]) -> Figure:
    """Draw a sheet of images with their predicted attributes.

    Args:
        cards: path, title and (text, verdict) lines of each image.
    """
    lines = -(-len(cards) // CARDS_A_LINE)
    unit = WIDTH / (sum(CARD) * CARDS_A_LINE)
    height = max(2.4 * unit, LINE * (2 + max(len(words) for *_, words in cards)))
    figure = Figure((WIDTH, height * lines), layout="constrained")
    axes = figure.subplots(lines, 2 * CARDS_A_LINE, squeeze=False, width_ratios=CARD * CARDS_A_LINE)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    for axis in axes.flat:
        axis.axis("off")
    for n, (picture, title, words) in enumerate(cards):
        left, right = axes.reshape(-1, 2)[n]
        show_picture(left, read_image(picture))
        show_words(right, words, title)
    return figure
