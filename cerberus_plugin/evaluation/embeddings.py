"""Embeddings and labels of a test set, the input of all evaluation tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ENTRIES = 2**26  # values of the embeddings that a task processes at a time: 256 MiB


@dataclass(frozen=True)
class Gathered:
    """Embeddings and labels of a test set: rows [0, num_query) are the query images, the others the gallery.

    Args:
        embeddings: float (n, E).
        pids: int64 (n,).
        camids: int64 (n,).
        attributes: int64 (n, A); None without labels.
        num_query: number of query images.
        device: where tasks compute; None for the device of the embeddings.
        outfits: int64 (n,); None if the dataset has no outfits.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    attributes: Tensor | None
    num_query: int
    device: torch.device | str | None = None
    outfits: Tensor | None = None

    def rows(self, index) -> Gathered:
        """Select a subset of the rows.

        Args:
            index: any index of a tensor of length n, such as a slice, bool (n,) or int64 (k,).

        Returns:
            the subset, a view if the rows are consecutive; its `num_query` counts the query images among them.
        """
        numbers = torch.arange(len(self.pids))[index]
        run = len(numbers) > 0 and bool((numbers.diff() == 1).all())
        index = slice(int(numbers[0]), int(numbers[-1]) + 1) if run else numbers
        attributes = None if self.attributes is None else self.attributes[index]
        outfits = None if self.outfits is None else self.outfits[index]
        return Gathered(self.embeddings[index], self.pids[index], self.camids[index], attributes,
                        int((numbers < self.num_query).sum()), self.device, outfits)

    def chunks(self, index: Tensor) -> Iterator[Tensor]:
        """Iterate over the embeddings of some rows, at most `CHUNK_ENTRIES` values at a time.

        Args:
            index: int64 (K,), row numbers.

        Yields:
            float (k, E) in the order of `index`, on the device of the tasks.
        """
        size = max(1, CHUNK_ENTRIES // max(1, self.embeddings.shape[1]))
        for some in index.split(size):
            yield self.embeddings[some].to(self.device or self.embeddings.device)

    @property
    def query(self) -> Gathered:
        """The query images."""
        return self.rows(slice(None, self.num_query))

    @property
    def gallery(self) -> Gathered:
        """The gallery images."""
        return self.rows(slice(self.num_query, None))
