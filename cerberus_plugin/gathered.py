"""What one pass over a test set gives: the record that every task reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEFT_OUT_PID = -1  # stands for an image that could not be read; evaluations leave it out


@dataclass(frozen=True)
class Gathered:
    """What one pass gave: rows [0, num_query) are the query images, the rest the gallery.

    embeddings float (n, E), pids and camids int64 (n,), attributes int64 (n, A) or None without labels.
    """

    embeddings: Tensor
    pids: Tensor
    camids: Tensor
    attributes: Tensor | None
    num_query: int

    def rows(self, index) -> Gathered:
        """A subset; its `num_query` counts the query rows among them."""
        index = torch.arange(len(self.pids))[index]
        attributes = None if self.attributes is None else self.attributes[index]
        return Gathered(self.embeddings[index], self.pids[index], self.camids[index], attributes,
                        int((index < self.num_query).sum()))

    @property
    def query(self) -> Gathered:
        return self.rows(slice(None, self.num_query))

    @property
    def gallery(self) -> Gathered:
        return self.rows(slice(self.num_query, None))
