"""Training identities that training does not see: held out to choose on, or carriers of semantic IDs (Fig. 7b).

Shapes: N training persons, or outfits where the labels are those of outfits; M those of the test; A label fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attributes import MISSING, AttributeSchema, SIDTable

HELD_OUT = "held-out"  # their name among DATASETS.TESTS


def split_identities(items: list[tuple], count: int, seed: int) -> tuple[list[tuple], list[tuple]]:
    """Training items (path, pid, camid) without, and those of, `count` identities drawn by `seed`."""
    pids = sorted({pid for _, pid, _ in items})
    if count < 0:
        raise ValueError(f"DATASETS.HOLD_OUT is {count}, expected a number of identities, 0 for none")
    if count and count >= len(pids):
        raise ValueError(f"DATASETS.HOLD_OUT is {count}, but there are {len(pids)} training identities; at least one "
                         "must remain")
    drawn = torch.randperm(len(pids), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    held = {pids[i] for i in drawn}
    return [item for item in items if item[1] not in held], [item for item in items if item[1] in held]


@dataclass(frozen=True)
class LeftOut:
    """Semantic IDs in words, "upper: up short sleeve, ...", and who carries one of them: bool (N,)."""

    names: tuple[str, ...]
    carried: Tensor


def leave_out(schema: AttributeSchema, train: Tensor, test: Tensor, count: int, seed: int,
              share: float = 1.0) -> LeftOut:
    """Draw `count` semantic IDs that both training and test persons carry.

    Those of a smaller count are the first of a larger one's, so that figures against the count are over growing sets.

    Args:
        train: int64 (N, A).   test: int64 (M, A).
        share: of the training persons that may carry one, at most; a common one would take half of them with it.
    """
    if count < 0:
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {count}, expected a number of semantic IDs, 0 for none")
    if not 0 < share <= 1:
        raise ValueError(f"DATASETS.LEAVE_OUT_SHARE is {share}, expected a share of the training people: above 0, at "
                         "most 1")
    table = SIDTable.build(schema, train, space="observed")
    own, asked = table.lookup(train), table.lookup(test)  # (N, G), (M, G)
    both = [(g, sid) for g in range(len(table.sizes)) for sid in asked[:, g].unique().tolist()
            if sid != MISSING and (own[:, g] == sid).sum() <= share * len(own)]
    if count > len(both):
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {count}, but training and test share {len(both)} semantic IDs "
                         f"that at most {share:.0%} of the training people carry (DATASETS.LEAVE_OUT_SHARE); ask for "
                         "fewer")
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    carried = torch.zeros(len(train), dtype=torch.bool)
    names = []
    for g, sid in (both[place] for place in order):
        carried |= own[:, g] == sid
        said = ", ".join(f"{name} {value}" for name, value in schema.describe(table.labels[g][sid]).items())
        names.append(f"{schema.group_names[g]}: {said}")
    return LeftOut(tuple(names), carried)


def at_random(people: Sequence, count: int, seed: int) -> set:
    """As many people whoever they are: what fewer people do by themselves."""
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))[:count]
    return {people[place] for place in order.tolist()}
