"""Evaluation settings of cloth-changing re-identification, which exclude matches by outfit.

Shapes: Q queries, N gallery images, M pairs, I identities of the gallery.

As in the Market-1501 protocol, all settings ignore gallery images of the identity and camera of the query. Ignored
images are removed from the ranking. A query without a remaining match is skipped, so that one query set serves both
settings of PRCC: the queries of camera B wear the clothes of the gallery (camera A) and have no match in the setting
"cloth-changing"; the queries of camera C have no match in the setting "same-clothes".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .counting import Pairs

# Images of the identity of the query that are ignored in addition to those of its camera.
SETTINGS = {
    "standard": "nothing else",
    "cloth-changing": "the same outfit",
    "same-clothes": "every other outfit",
}

CHANGES = ("cloth-changing", "same-clothes")  # settings that depend on whether the clothes have changed


class Outfits(NamedTuple):
    """Outfits and the evaluation setting.

    Attributes:
        query: int64 (Q,).
        gallery: int64 (N,), with the same numbering.
        setting: one of `SETTINGS`.
    """

    query: Tensor
    gallery: Tensor
    setting: str

    def check(self, num_query: int, num_gallery: int) -> None:
        """Raise ValueError if the setting is unknown or the numbers of outfits and images differ."""
        if self.setting not in SETTINGS:
            raise ValueError(f"ranking: the setting is '{self.setting}', expected one of {', '.join(SETTINGS)}")
        if (len(self.query), len(self.gallery)) != (num_query, num_gallery):
            raise ValueError(f"ranking: there are {num_query} queries and {num_gallery} gallery images, but outfits of "
                             f"{len(self.query)} and {len(self.gallery)}; pass one outfit per image")

    def restrict(self, pairs: Pairs, rows: slice) -> Pairs:
        """Change matches that the setting ignores to ignored pairs; `rows` are the queries of the pairs."""
        if self.setting == "standard":
            return pairs
        same = self.query.cpu()[rows][pairs.query] == self.gallery.cpu()[pairs.column]  # (M,)
        return pairs._replace(match=pairs.match & (same if self.setting == "same-clothes" else ~same))


def draw_single_shot(pids: Tensor, draws: int = 10, seed: int = 0) -> Tensor:
    """Sample single-shot galleries: one random image per identity.

    Args:
        pids: int64 (N,), of the gallery.
        draws: number of galleries.
        seed: seed of the random generator.

    Returns:
        int64 (draws, I), rows of the gallery. They are sorted, so that ties are broken as in the whole gallery.

    Examples:
        >>> rows = draw_single_shot(torch.tensor([5, 5, 9]), draws=2)
        >>> rows.shape, torch.tensor([5, 5, 9])[rows].tolist()
        (torch.Size([2, 2]), [[5, 9], [5, 9]])
    """
    generator = torch.Generator().manual_seed(seed)
    pids = pids.cpu()
    drawn = []
    for _ in range(draws):
        order = torch.randperm(len(pids), generator=generator)
        order = order[pids[order].sort(stable=True).indices]
        first = torch.ones(len(pids), dtype=torch.bool)  # first image of each identity in this order
        first[1:] = pids[order].diff() != 0
        drawn.append(order[first].sort().values)
    return torch.stack(drawn)
