"""Semantic IDs that training is not to see: whoever carries one of them leaves the training set (Fig. 7b).

Shapes: N training persons, or outfits where the labels are those of outfits; M those of the test; A label fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..attributes import GROUPS, MISSING, AttributeSchema, SIDTable


@dataclass(frozen=True)
class LeftOut:
    """Semantic IDs in words, "upper: up short sleeve, ...", and who carries one of them: bool (N,)."""

    names: tuple[str, ...]
    carried: Tensor


def leave_out(schema: AttributeSchema, train: Tensor, test: Tensor, count: int, seed: int) -> LeftOut:
    """Draw `count` semantic IDs that both training and test persons carry.

    Those of a smaller count are the first of a larger one's, so that figures against the count are over growing sets.

    Args:
        train: int64 (N, A).   test: int64 (M, A).
    """
    if count < 0:
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {count}, expected a number of semantic IDs, 0 for none")
    table = SIDTable.build(schema, train, space="observed")
    own, asked = table.lookup(train), table.lookup(test)  # (N, 5), (M, 5)
    both = [(g, sid) for g in range(len(GROUPS)) for sid in asked[:, g].unique().tolist() if sid != MISSING]
    if count > len(both):
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {count}, but training and test share {len(both)} semantic IDs; "
                         "ask for fewer")
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    carried = torch.zeros(len(train), dtype=torch.bool)
    names = []
    for g, sid in (both[place] for place in order):
        carried |= own[:, g] == sid
        said = ", ".join(f"{name} {value}" for name, value in schema.describe(table.labels[g][sid]).items())
        names.append(f"{GROUPS[g]}: {said}")
    return LeftOut(tuple(names), carried)
