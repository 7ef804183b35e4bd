"""One picture of what a trained model finds: queries with their top ranks and attributes, and searches by words.

    python -m cerberus_plugin.visualise logs/market1501/cerberus_R50 --queries 6 --searches 3
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image

from .assembly import build_test_set
from .attributes import MISSING
from .metrics.ranking import rank_matches
from .predictor import CerberusPredictor

RIGHT, WRONG, NEUTRAL = "#2c9f45", "#d43d35", "#888888"


@dataclass(frozen=True)
class Row:
    """One line of the picture: what was asked, in a picture or in words, and what was found.

    `words` are (text, colour) lines; `found` are (path, colour, caption), best first.
    """

    picture: str | None
    title: str
    words: list[tuple[str, str]]
    found: list[tuple[str, str, str]]


class Gallery:
    """Query and gallery of a test data set, embedded once by a predictor.

    Args:
        groups: compare pictures by these groups of Cerberus alone; all where empty.
    """

    def __init__(self, predictor: CerberusPredictor, groups: Sequence[str] = ()) -> None:
        self.predictor = predictor
        self.groups = groups
        self.dataset, num_query = build_test_set(predictor.cfg, predictor.cfg.DATASETS.TESTS[0])
        self.queries, self.items = self.dataset.img_items[:num_query], self.dataset.img_items[num_query:]
        self.pids, self.camids = (torch.tensor([item[k] for item in self.items]) for k in (1, 2))
        self.outfits = None
        if groups and self.dataset.outfit_of:
            self.outfits = torch.tensor([self.dataset.outfit_of(path) for path, *_ in self.items])
        self.query_embeddings = predictor.embed([path for path, _, _ in self.queries])
        self.embeddings = predictor.embed([path for path, _, _ in self.items])
        self.labels = None
        if predictor.reader is not None and self.dataset.labels is not None:
            self.labels = torch.stack([self._labels_of(path, pid) for path, pid, _ in self.items])

    def query_row(self, index: int, top: int) -> Row:
        """A query, the attributes read off it (green where right), and its nearest images from other cameras.

        Where groups are left out, from other outfits as well.
        """
        path, pid, camid = self.queries[index]
        scores = self.predictor.picture_scores(self.query_embeddings[index:index + 1], self.embeddings, self.groups)[0]
        order = scores.masked_fill(self._ignored(index), float("-inf")).sort(descending=True, stable=True).indices[:top]
        found = [(self.items[i][0], RIGHT if self.items[i][1] == pid else WRONG, f"{scores[i]:.2f}")
                 for i in order.tolist()]
        words = self._words(index, self._labels_of(path, pid)) if self.labels is not None else []
        return Row(path, f"identity {pid}, camera {camid + 1}", words, found)

    def search_row(self, labels: torch.Tensor, top: int) -> Row:
        """A described person, labels int64 (A,), and the images that fit best (green: the same full description)."""
        scores = self.predictor.reader.search(labels[None], self.embeddings)[0]
        order = scores.sort(descending=True, stable=True).indices[:top]
        found = [(self.items[i][0], RIGHT if torch.equal(self.labels[i], labels) else WRONG, f"{scores[i]:.2f}")
                 for i in order.tolist()]
        description = self.predictor.reader.schema.describe(labels)
        return Row(None, "search by attributes", [(f"{k}: {v}", "black") for k, v in description.items()], found)

    def spread_queries(self, count: int) -> list[int]:
        """Queries of different identities that have something to find, evenly over the list."""
        first = {}
        for index, (_, pid, _) in enumerate(self.queries):
            if pid not in first and ((self.pids == pid) & ~self._ignored(index)).any():
                first[pid] = index
        chosen = list(first.values())
        step = max(len(chosen) // max(count, 1), 1)
        return chosen[::step][:count]

    def searches(self, count: int) -> list[torch.Tensor]:
        """Descriptions that several gallery images fit, evenly over the difficulty of finding them."""
        labelled = self.labels[(self.labels != MISSING).all(dim=1)]
        distinct = labelled.unique(dim=0)
        relevant = (distinct[:, None] == self.labels[None]).all(dim=2)
        ranked = rank_matches(-self.predictor.reader.search(distinct, self.embeddings), relevant)
        order = ranked.ap.sort(descending=True).indices
        positions = torch.linspace(0, len(order) - 1, count + 2)[1:-1].long()
        return [distinct[i] for i in order[positions]]

    def _ignored(self, index: int) -> torch.Tensor:
        """Images of the query's person that are too easy to find: bool (N,)."""
        path, pid, camid = self.queries[index]
        alike = self.camids == camid
        if self.outfits is not None:
            alike |= self.outfits == self.dataset.outfit_of(path)
        return (self.pids == pid) & alike

    def _labels_of(self, path: str, pid: int) -> torch.Tensor:
        return self.dataset.known_of(path, pid)["attributes"]

    def _words(self, index: int, labels: torch.Tensor) -> list[tuple[str, str]]:
        schema = self.predictor.reader.schema
        answers = self.predictor.reader.recognise(self.query_embeddings[index:index + 1])[0]
        truth, known = schema.column_truth(labels[None])
        words = []
        for m, (column, k) in enumerate(zip(schema.columns, answers.tolist())):
            right = bool(truth[m][0, k]) if k >= 0 else not truth[m][0].any()
            colour = (RIGHT if right else WRONG) if known[0, m] else NEUTRAL
            words.append((f"{column.name}: {column.classes[k] if k >= 0 else 'none'}", colour))
        return words


def draw(rows: list[Row], path: str | Path, top: int) -> None:
    """Write the picture: a line a row, the question at the left, framed answers from the best to the right."""
    figure, axes = plt.subplots(len(rows), top + 2, figsize=(1.15 * (top + 2.6), 2.5 * len(rows)), squeeze=False,
                                gridspec_kw={"width_ratios": [1, 1.6] + [1] * top})
    for line, row in zip(axes, rows):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
        if row.picture:
            line[0].imshow(Image.open(row.picture))
        else:
            line[0].text(0.5, 0.5, "words", ha="center", va="center", color=NEUTRAL, fontsize=11)
        line[1].set_title(row.title, fontsize=8, loc="left")
        for n, (text, colour) in enumerate(row.words):
            line[1].text(0.02, 0.97 - n / max(len(row.words), 12), textwrap.shorten(text, 34), color=colour, fontsize=7,
                         va="top", transform=line[1].transAxes)
        for rank, (axis, (found, colour, caption)) in enumerate(zip(line[2:], row.found), start=1):
            axis.imshow(Image.open(found))
            axis.set_title(f"{rank}   {caption}", fontsize=7, color=colour)
            for side in axis.spines.values():
                side.set_visible(True)
                side.set_color(colour)
                side.set_linewidth(3)
    figure.tight_layout(pad=0.4)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder")
    parser.add_argument("--queries", type=int, default=5, help="rows of queries by picture")
    parser.add_argument("--searches", type=int, default=2, help="rows of searches by attributes")
    parser.add_argument("--top", type=int, default=10, help="images of each row")
    parser.add_argument("--output", help="file to write; RUN_FOLDER/rank_list.png if not given")
    parser.add_argument("--may-have-changed-clothes", action="store_true",
                        help="compare pictures by the groups of Cerberus that `experiments.groups` has chosen for that")
    args = parser.parse_args(arguments)
    predictor = CerberusPredictor(args.run_folder)
    gallery = Gallery(predictor, predictor.groups_for_changed_clothes if args.may_have_changed_clothes else ())
    rows = [gallery.query_row(index, args.top) for index in gallery.spread_queries(args.queries)]
    if gallery.labels is not None:
        rows += [gallery.search_row(labels, args.top) for labels in gallery.searches(args.searches)]
    path = args.output or str(Path(args.run_folder) / "rank_list.png")
    draw(rows, path, args.top)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
