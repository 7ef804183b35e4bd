"""Figure 9: are people with the same semantic ID distinguishable by the representation of this group?

The margin allows people with the same attributes to have different representations. The figure shows the representation
of the group whose semantic ID they share, since the other four also depend on other attributes.
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
FEWEST = 4  # minimum number of images for t-SNE
# Colour-blind safe (Okabe and Ito). 7 colours and 10 markers have no common factor: 70 people get different pairs.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")
MARKERS = "osD^vPX*<>"


class Shared(NamedTuple):
    """A semantic ID, its attributes as text, and the images of the people who have it, as indices by identity."""

    group: str
    sid: int
    words: str
    images: dict[int, list[int]]


class Purity(NamedTuple):
    """Shares of images whose nearest neighbour from another camera shows the same person, in percent."""

    group: float  # by the representation of the group
    whole: float  # by all groups
    chance: float  # for a random neighbour
    images: int  # number of images


def shared_sid(run: TestedModel, group: str | None = None, sid: int | None = None) -> Shared:
    """Find the people who share a semantic ID.

    Args:
        run: with labels.
        group: name of the group; None for any.
        sid: number of the semantic ID; None for the one with the most people.

    Raises:
        ValueError: If fewer than two people have the semantic ID.
    """
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
        raise ValueError(f"{run.dataset}: {len(images)} people have semantic ID {sid} of {group}, expected at least 2; "
                         f"set another --sid, 0 to {reader.table.sizes[reader.groups.index(group)] - 1}, or none.")
    labels = run.labels[next(iter(images.values()))[0]]
    return Shared(group, sid, _in_words(reader.schema, group, labels), images)


def _in_words(schema: AttributeSchema, group: str, labels: Tensor) -> str:
    words = schema.describe(labels)
    return ", ".join(f"{column.name} {words[column.name]}"
                     for column, own in zip(schema.columns, schema.column_groups) if own == group)


def most_seen(images: dict[int, list[int]], count: int) -> list[int]:
    """Return the identities with the most images, smaller identities first if they have the same number.

    Args:
        images: indices by identity.
        count: maximum number of identities.

    Examples:
        >>> most_seen({7: [0], 9: [1, 2], 3: [4]}, 2)
        [9, 3]
    """
    return sorted(images, key=lambda pid: (-len(images[pid]), pid))[:count]


def nearest_is_same(embeddings: Tensor, pids: Tensor, camids: Tensor) -> tuple[float, float, int]:
    """Compute the share of images whose nearest neighbour from another camera (by cosine) shows the same person.

    Only images of people who have images from another camera count.

    Args:
        embeddings: float (N, D).
        pids: int64 (N,), identities.
        camids: int64 (N,), cameras.

    Returns:
        Share in percent, expected share for a random neighbour in percent, number of images that count.

    Examples:
        >>> embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> nearest_is_same(embeddings, torch.tensor([1, 1, 2, 2]), torch.tensor([0, 1, 0, 1]))
        (100.0, 50.0, 4)
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
    """Compute `nearest_is_same` by the representation of the group, and by all groups.

    Args:
        run: of the model.
        shared: the semantic ID.
        embeddings: float (N, G * D), all groups.
        indices: of the N images.
    """
    pids, camids = (torch.tensor([run.items[index][k] for index in indices]) for k in (1, 2))
    groups = run.predictor.groups
    group, chance, images = nearest_is_same(of_groups(embeddings, (shared.group,), groups), pids, camids)
    whole, *_ = nearest_is_same(of_groups(embeddings, groups, groups), pids, camids)
    return Purity(group, whole, chance, images)


def embedded(embeddings: Tensor) -> Tensor:
    """Compute t-SNE with a fixed seed: float (N, D) -> (N, 2)."""
    # The usual 30, or a third of the number of points, the recommended maximum.
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    plane = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=SEED, n_jobs=1)
    return torch.from_numpy(plane.fit_transform(embeddings.numpy()))


def names_of(runs: Sequence[TestedModel]) -> list[str]:
    """Name runs by their margins, with their folders if the margins are equal."""
    nodes = [run.predictor.cfg.MODEL.CERBERUS for run in runs]
    names = [f"margin {node.MARGIN_CONSTANT:g}" if node.MARGIN == "constant" else
             f"adaptive margin (\u03b1 {node.ALPHA:g}, \u03b2 {node.BETA:g})" for node in nodes]
    if len(set(names)) == len(names):
        return names
    return [f"{run.predictor.run_folder.name}: {name}" for run, name in zip(runs, names)]


def make(*runs: TestedModel, group: str | None = None, sid: int | None = None, people: int = 11) -> Exhibit:
    """Draw the figure for one run, or for two side by side.

    Args:
        runs: of Cerberus, tested on the same dataset.
        group: name of the group; None for that of the chosen semantic ID.
        sid: number of the semantic ID; None for the one with the most people.
        people: maximum number of people to draw.

    Raises:
        ValueError: If a run has no prototypes, the dataset no attributes, or too few people share the semantic ID.
    """
    for run in runs:
        run.require_groups("semantic IDs")
        if run.predictor.reader is None:
            raise ValueError(f"{run.predictor.run_folder}: has no prototypes (MODEL.CERBERUS.LAMBDA_SEM is "
                             f"{run.predictor.cfg.MODEL.CERBERUS.LAMBDA_SEM:g}); name a run with semantic guidance.")
    if runs[0].labels is None:
        raise ValueError(f"{runs[0].dataset}: has no attributes, so shared semantic IDs are unknown; name a dataset "
                         "with attributes by --dataset.")
    if [item[1:] for item in runs[0].items] != [item[1:] for item in runs[-1].items]:
        raise ValueError(f"{runs[-1].predictor.run_folder}: is tested on other images than "
                         f"{runs[0].predictor.run_folder}; name one dataset for both by --dataset.")
    shared = shared_sid(runs[0], group, sid)
    drawn = most_seen(shared.images, people)
    indices = [index for pid in drawn for index in shared.images[pid]]
    if len(indices) < FEWEST:
        raise ValueError(f"{runs[0].dataset}: semantic ID {shared.sid} of {shared.group} has {len(indices)} images of "
                         f"{len(drawn)} people, expected at least {FEWEST} images; set another --sid.")
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
               f"{shared.sid} of {shared.group} ({shared.words}), those with the most images; one colour and marker "
               f"per person. t-SNE of the representation '{shared.group}' (cosine, seed {SEED}) of {len(indices)} "
               "images. Below it: the share of images whose nearest neighbour from another camera, by cosine in the "
               "full space and not in the plot, shows the same person. ")
    measured = [f"{title} {values['all who share it']['group']:.1f} %" for title, values in zip(names, figures)]
    caption += f"For all {len(shared.images)} people, by '{shared.group}' only: {'; '.join(measured)}."
    return Exhibit("Figure 9: people who share one semantic ID",
                   "Are people with the same attributes distinguishable?", caption,
                   [Picture(figure, "t-SNE of people who share one semantic ID")],
                   {"group": shared.group, "sid": shared.sid, "runs": figures})


def draw(panels: Sequence[tuple[str, Tensor, Purity]], pids: Tensor, group: str) -> Figure:
    """Draw one panel per run, with the same people in the same colours.

    Args:
        panels: title, positions float (N, 2) and `Purity` of each run.
        pids: int64 (N,), identities.
        group: name of the group.
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
        axis.set_xlabel(f"nearest neighbour shows the same person:\n{figures.group:.1f} % by {group} only,\n"
                        f"{figures.whole:.1f} % by all groups, {figures.chance:.1f} % by chance", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, title="identity", title_fontsize=9,
                  frameon=False)
    return figure
