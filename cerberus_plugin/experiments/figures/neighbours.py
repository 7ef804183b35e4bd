"""Figure 9: people who share one semantic ID, told apart or not by the representation that it guides.

The margin is there so that people who carry the same attributes may still differ. What shows this is the
representation of the group whose semantic ID they share: the other four hide it, because people differ in those.
Shapes: N images, D dimensions of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from ...attributes import AttributeSchema
from ...inference import of_groups
from .exhibit import WIDTH, Exhibit, Picture, TestedModel

SEED = 0
ASPECT = 0.9  # of a panel
FEWEST = 4  # images that t-SNE needs to say anything
# Told apart by eyes of all kinds (Okabe and Ito); seven and ten, so that no pair comes twice among 70 people.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
MARKERS = "osD^vPX*<>"


class Shared(NamedTuple):
    """A semantic ID and the images of the people who carry it, indices of the test set by identity."""

    group: str
    sid: int
    words: str
    images: dict[int, list[int]]


class Purity(NamedTuple):
    """Shares of images whose nearest neighbour from another camera is the same person, percent, and by chance."""

    group: float
    whole: float
    chance: float
    images: int


def shared_sid(run: TestedModel, group: str | None = None, sid: int | None = None) -> Shared:
    """A semantic ID with those who carry it: of the most people where it is not named."""
    reader = run.predictor.reader
    sids = reader.table.lookup(run.labels)  # (N, G)
    people = run.of_people()
    found: dict[tuple[str, int], dict[int, list[int]]] = {}
    for g, name in enumerate(reader.groups):
        if group in (None, name):
            for index in people:
                number = sids[index, g].item()
                if number >= 0 and sid in (None, number):
                    found.setdefault((name, number), {}).setdefault(run.items[index][1], []).append(index)
    (group, sid), images = max(found.items(), key=lambda entry: len(entry[1]), default=((group, sid), {}))
    if len(images) < 2:
        raise ValueError(f"{run.dataset}: {len(images)} people carry semantic ID {sid} of {group}, expected at least 2;"
                         f" name another by --sid, 0 to {reader.table.sizes[reader.groups.index(group)] - 1}, or none.")
    labels = run.labels[next(iter(images.values()))[0]]
    return Shared(group, sid, _in_words(reader.schema, group, labels), images)


def _in_words(schema: AttributeSchema, group: str, labels: Tensor) -> str:
    words = schema.describe(labels)
    return ", ".join(f"{column.name} {words[column.name]}"
                     for column, own in zip(schema.columns, schema.column_groups) if own == group)


def most_seen(images: dict[int, list[int]], count: int) -> list[int]:
    """Identities of the most images, the lower number first among equals."""
    return sorted(images, key=lambda pid: (-len(images[pid]), pid))[:count]


def nearest_is_same(embeddings: Tensor, pids: Tensor, camids: Tensor) -> tuple[float, float, int]:
    """Share of images whose nearest neighbour from another camera, by cosine, is the same person; and by chance.

    Of the images of which another camera has some of the same person.

    Args:
        embeddings: float (N, D).   pids, camids: int64 (N,).

    Returns:
        percent, percent expected of a neighbour drawn at random, number of images counted.
    """
    unit = F.normalize(embeddings, dim=1)
    elsewhere = camids[:, None] != camids[None]
    same = (pids[:, None] == pids[None]) & elsewhere
    counted = same.any(dim=1)
    nearest = (unit @ unit.T).masked_fill(~elsewhere, float("-inf")).argmax(dim=1)
    right = same.gather(1, nearest[:, None])[:, 0][counted].float()
    chance = (same.sum(dim=1) / elsewhere.sum(dim=1).clamp(min=1))[counted]
    return 100 * right.mean().item(), 100 * chance.mean().item(), int(counted.sum())


def purity(run: TestedModel, shared: Shared, embeddings: Tensor, indices: Sequence[int]) -> Purity:
    """`nearest_is_same` of images by the group alone and by all groups."""
    pids, camids = (torch.tensor([run.items[index][k] for index in indices]) for k in (1, 2))
    groups = run.predictor.groups
    group, chance, images = nearest_is_same(of_groups(embeddings, (shared.group,), groups), pids, camids)
    whole, *_ = nearest_is_same(of_groups(embeddings, groups, groups), pids, camids)
    return Purity(group, whole, chance, images)


def embedded(embeddings: Tensor) -> Tensor:
    """Places in the plane: float (N, D) -> (N, 2), the same at every call."""
    # The usual 30 where there are enough points; a third of them is the most that t-SNE is advised for.
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    plane = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=SEED, n_jobs=1)
    return torch.from_numpy(plane.fit_transform(embeddings.numpy()))


def names_of(runs: Sequence[TestedModel]) -> list[str]:
    """Runs by their margins, and by their folders where these are the same."""
    nodes = [run.predictor.cfg.MODEL.CERBERUS for run in runs]
    names = [f"margin {node.MARGIN_CONSTANT:g}" if node.MARGIN == "constant" else
             f"adaptive margin (\u03b1 {node.ALPHA:g}, \u03b2 {node.BETA:g})" for node in nodes]
    if len(set(names)) == len(names):
        return names
    return [f"{run.predictor.run_folder.name}: {name}" for run, name in zip(runs, names)]


def make(*runs: TestedModel, group: str | None = None, sid: int | None = None, people: int = 11) -> Exhibit:
    """Draw the figure of one run, or of two side by side, and say what it shows."""
    for run in runs:
        run.require_groups("semantic IDs")
        if run.predictor.reader is None:
            raise ValueError(f"{run.predictor.run_folder}: has no prototypes (MODEL.CERBERUS.LAMBDA_SEM is "
                             f"{run.predictor.cfg.MODEL.CERBERUS.LAMBDA_SEM:g}), so that no semantic ID guides it; "
                             "name a run with semantic guidance.")
    if runs[0].labels is None:
        raise ValueError(f"{runs[0].dataset}: has no attributes, so that nobody is known to share any; name a data "
                         "set with attributes by --dataset.")
    if [item[1:] for item in runs[0].items] != [item[1:] for item in runs[-1].items]:
        raise ValueError(f"{runs[-1].predictor.run_folder}: is tested on other images than "
                         f"{runs[0].predictor.run_folder}; name one data set for both by --dataset.")
    shared = shared_sid(runs[0], group, sid)
    drawn = most_seen(shared.images, people)
    indices = [index for pid in drawn for index in shared.images[pid]]
    if len(indices) < FEWEST:
        raise ValueError(f"{runs[0].dataset}: semantic ID {shared.sid} of {shared.group} has {len(indices)} images of "
                         f"{len(drawn)} people, expected at least {FEWEST} to draw; name another by --sid.")
    everyone = [index for images in shared.images.values() for index in images]
    panels, figures = [], []
    names = names_of(runs)
    for run, title in zip(runs, names):
        embeddings = run.predictor.embed([run.items[index][0] for index in everyone])
        own = embeddings[[everyone.index(index) for index in indices]]
        of_drawn, of_all = purity(run, shared, own, indices), purity(run, shared, embeddings, everyone)
        panels.append((title, embedded(of_groups(own, (shared.group,), run.predictor.groups)), of_drawn))
        figures.append({"run": str(run.predictor.run_folder), "drawn": of_drawn._asdict(),
                        "all who share it": of_all._asdict()})
    pids = torch.tensor([runs[0].items[index][1] for index in indices])
    figure = draw(panels, pids, shared.group)
    caption = (f"{len(drawn)} of the {len(shared.images)} people of {runs[0].dataset} who share semantic ID "
               f"{shared.sid} of {shared.group} ({shared.words}), those of the most images, a colour and a marker a "
               f"person: t-SNE of the representation '{shared.group}' alone (cosine, seed {SEED}), {len(indices)} "
               "images. The figures under it do not come from t-SNE: the share of images whose nearest neighbour from "
               "another camera, by cosine in the full space, is the same person. ")
    measured = [f"{title} {values['all who share it']['group']:.1f} %" for title, values in zip(names, figures)]
    caption += f"Among all {len(shared.images)} people and by '{shared.group}' alone: {'; '.join(measured)}."
    return Exhibit("Figure 9: people who share one semantic ID",
                   "Are people with the same attributes still told apart?", caption,
                   [Picture(figure, "t-SNE of people who share one semantic ID")],
                   {"group": shared.group, "sid": shared.sid, "runs": figures})


def draw(panels: Sequence[tuple[str, Tensor, Purity]], pids: Tensor, group: str) -> Figure:
    """A panel a run, the same people in the same colours.

    Args:
        panels: title, places float (N, 2) and figures of each run.   pids: int64 (N,).
    """
    side = (WIDTH - 1) / max(len(panels), 1.5)
    figure = Figure((WIDTH, ASPECT * side + 1.1), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, places, figures) in zip(axes[0], panels):
        for n, pid in enumerate(pids.unique().tolist()):
            x, y = places[pids == pid].T.numpy()
            axis.scatter(x, y, s=42, color=COLOURS[n % len(COLOURS)], marker=MARKERS[n % len(MARKERS)],
                         edgecolor="white", linewidth=0.5, label=f"{pid}")
        axis.set_title(title, fontsize=11)
        axis.set(xticks=[], yticks=[], box_aspect=ASPECT)
        axis.set_xlabel(f"nearest neighbour is the same person:\n{figures.group:.1f} % by {group} alone,\n"
                        f"{figures.whole:.1f} % by all groups, {figures.chance:.1f} % by chance", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, title="identity", title_fontsize=9,
                  frameon=False)
    return figure
