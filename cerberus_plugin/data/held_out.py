"""Identities of a training set that are held out of training, to choose on them what must not be chosen on the test."""

from __future__ import annotations

from collections import defaultdict

import torch

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


def query_and_gallery(items: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """As Market-1501 is made: an identity's first image under each camera asks, and all others are searched.

    Where a camera has one image of an identity, it is searched, so that there is something to find; an identity without
    any other is asked for by its first image.
    """
    places, people = defaultdict(list), defaultdict(list)
    for item in sorted(items):
        places[item[1:]].append(item)
        people[item[1]].append(item)
    asking = {own[0] for own in places.values() if len(own) > 1}
    asking |= {own[0] for own in people.values() if not asking.intersection(own)}
    return [item for item in sorted(items) if item in asking], [item for item in sorted(items) if item not in asking]
