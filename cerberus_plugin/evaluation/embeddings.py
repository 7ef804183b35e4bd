"""What one pass over a test set gives: the record that every task reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ENTRIES = 2**26  # values of the embeddings that tasks take at a time: 256 MiB


@dataclass(frozen=True)
class Gathered:
    """What one pass gave: rows [0, num_query) are the query images, the rest the gallery.

    embeddings float (n, E), pids and camids int64 (n,), attributes int64 (n, A) or None without labels, outfits int64
    (n,) or None where the data set knows none. `device` is where tasks compute; None for where the embeddings are.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    attributes: Tensor | None
    num_query: int
    device: torch.device | str | None = None
    outfits: Tensor | None = None

    def rows(self, index) -> Gathered:
        """A subset, without a copy where it is one run of rows; its `num_query` counts the query rows among them."""
        numbers = torch.arange(len(self.pids))[index]
        run = len(numbers) > 0 and bool((numbers.diff() == 1).all())
        index = slice(int(numbers[0]), int(numbers[-1]) + 1) if run else numbers
        attributes = None if self.attributes is None else self.attributes[index]
        outfits = None if self.outfits is None else self.outfits[index]
        return Gathered(self.embeddings[index], self.pids[index], self.camids[index], attributes,
                        int((numbers < self.num_query).sum()), self.device, outfits)

    def chunks(self, index: Tensor) -> Iterator[Tensor]:
        """Embeddings of rows int64 (K,), in this order, on the device of the tasks: (k, E) at a time."""
        size = max(1, CHUNK_ENTRIES // max(1, self.embeddings.shape[1]))
        for some in index.split(size):
            yield self.embeddings[some].to(self.device or self.embeddings.device)

    @property
    def query(self) -> Gathered:
        return self.rows(slice(None, self.num_query))

    @property
    def gallery(self) -> Gathered:
        return self.rows(slice(self.num_query, None))
