"""Training identities that are not trained on: held out for validation, or excluded by semantic ID (Fig. 7b).

Shapes: N training identities (or outfits, if the labels belong to outfits), M test identities, A label fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attributes import MISSING, AttributeSchema, SIDTable

HELD_OUT = "held-out"  # name of the held-out identities in DATASETS.TESTS


def split_identities(items: list[tuple], count: int, seed: int) -> tuple[list[tuple], list[tuple]]:
    """Split the training items into those that are trained on and those of held-out identities.

    Args:
        items: (path, pid, camid).
        count: number of held-out identities.
        seed: seed of the random choice.

    Returns:
        the items to train on, and those of the held-out identities.

    Raises:
        ValueError: if `count` is negative, or no identity would remain.

    Examples:
        >>> train, held = split_identities([("a.jpg", 1, 0), ("b.jpg", 1, 1), ("c.jpg", 2, 0)], 1, seed=0)
        >>> len({pid for _, pid, _ in train}), len({pid for _, pid, _ in held})
        (1, 1)
    """
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
    """Excluded semantic IDs.

    Attributes:
        names: their values as text, such as "upper: up short sleeve, ...".
        carried: bool (N,), whether a training identity has one of them.
    """

    names: tuple[str, ...]
    carried: Tensor


def leave_out(schema: AttributeSchema, train: Tensor, test: Tensor, count: int, seed: int,
              share: float = 1.0) -> LeftOut:
    """Choose `count` semantic IDs at random that occur both in training and in the test.

    The choice for a smaller `count` is part of that for a larger one, so that results can be compared over `count`.

    Args:
        schema: attribute schema of the labels.
        train: int64 (N, A), labels.
        test: int64 (M, A), labels.
        count: number of semantic IDs.
        seed: seed of the random choice.
        share: maximum share of the training identities that have a chosen semantic ID; without a limit, one common
            semantic ID could exclude half of them.

    Raises:
        ValueError: if `count` or `share` is out of range, or there are fewer such semantic IDs.
    """
    if count < 0:
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {count}, expected a number of semantic IDs, 0 for none")
    if not 0 < share <= 1:
        raise ValueError(f"DATASETS.LEAVE_OUT_SHARE is {share}, expected a share of the training identities above 0 "
                         "and at most 1")
    table = SIDTable.build(schema, train, space="observed")
    own, asked = table.lookup(train), table.lookup(test)  # (N, G), (M, G)
    both = [(g, sid) for g in range(len(table.sizes)) for sid in asked[:, g].unique().tolist()
            if sid != MISSING and (own[:, g] == sid).sum() <= share * len(own)]
    if count > len(both):
        raise ValueError(f"DATASETS.LEAVE_OUT_SIDS is {count}, but training and test share {len(both)} semantic IDs "
                         f"that at most {share:.0%} of the training identities have (DATASETS.LEAVE_OUT_SHARE); set "
                         "a smaller number")
    order = torch.randperm(len(both), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    carried = torch.zeros(len(train), dtype=torch.bool)
    names = []
    for g, sid in (both[place] for place in order):
        carried |= own[:, g] == sid
        said = ", ".join(f"{name} {value}" for name, value in schema.describe(table.labels[g][sid]).items())
        names.append(f"{schema.group_names[g]}: {said}")
    return LeftOut(tuple(names), carried)


def at_random(people: Sequence, count: int, seed: int) -> set:
    """Choose identities at random, as a control for `leave_out`: the same number of identities is removed.

    Args:
        people: identities to choose from.
        count: number of identities.
        seed: seed of the random choice.

    Examples:
        >>> len(at_random(["a", "b", "c"], 2, seed=0))
        2
    """
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(seed))[:count]
    return {people[place] for place in order.tolist()}
