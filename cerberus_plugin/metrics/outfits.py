"""Rules of cloth-changing re-identification: which matches count when people are known by their outfits as well.

Letters: Q queries, N gallery images, M pairs, I identities of the gallery.

Every setting ignores, as the Market-1501 protocol does, a query's own identity under its own camera; ignored images are
taken out of the ranking. A query that is left without a match is skipped, so that one pass serves PRCC: queries B wear
what the gallery A shows and have no match under "cloth-changing", queries C have none under "same-clothes".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .counting import Pairs

# What is ignored of the query's own identity, beside its own camera.
SETTINGS = {
    "standard": "nothing else",
    "cloth-changing": "the same outfit",
    "same-clothes": "every other outfit",
}

CHANGES = ("cloth-changing", "same-clothes")  # those that tell who has changed from who has not


class Outfits(NamedTuple):
    """Outfits of queries int64 (Q,) and gallery int64 (N,), by one numbering, and the setting to rank under."""

    query: Tensor
    gallery: Tensor
    setting: str

    def check(self, num_query: int, num_gallery: int) -> None:
        if self.setting not in SETTINGS:
            raise ValueError(f"ranking: the setting is '{self.setting}', expected one of {', '.join(SETTINGS)}")
        if (len(self.query), len(self.gallery)) != (num_query, num_gallery):
            raise ValueError(f"ranking: there are {num_query} queries and {num_gallery} gallery images, but outfits of "
                             f"{len(self.query)} and {len(self.gallery)}; give one outfit an image")

    def restrict(self, pairs: Pairs, rows: slice) -> Pairs:
        """Pairs of some rows of queries, those that the setting ignores no match any more."""
        if self.setting == "standard":
            return pairs
        same = self.query.cpu()[rows][pairs.query] == self.gallery.cpu()[pairs.column]  # (M,)
        return pairs._replace(match=pairs.match & (same if self.setting == "same-clothes" else ~same))


def draw_single_shot(pids: Tensor, draws: int = 10, seed: int = 0) -> Tensor:
    """One random image of each identity, `draws` times: pids int64 (N,) -> rows of the gallery int64 (draws, I).

    Rows ascend within a draw, so that equal distances keep the order that they have in the whole gallery.
    """
    generator = torch.Generator().manual_seed(seed)
    pids = pids.cpu()
    drawn = []
    for _ in range(draws):
        order = torch.randperm(len(pids), generator=generator)
        order = order[pids[order].sort(stable=True).indices]
        first = torch.ones(len(pids), dtype=torch.bool)  # of each identity's run
        first[1:] = pids[order].diff() != 0
        drawn.append(order[first].sort().values)
    return torch.stack(drawn)
