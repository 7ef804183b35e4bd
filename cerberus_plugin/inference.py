"""The three modes of inference: image to images (reID), image to attributes (PAR), attributes to images (APS).

An embedding is five L2-normalised representations side by side, (5 * D,), so the mean cosine over the groups
is the cosine of two embeddings.
Shapes: N images, Q queries, A label fields, M recognition columns, K semantic IDs of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .attributes import GROUPS, MISSING, AttributeSchema, SIDTable

PARTIAL = ("mean", "max")
CHUNK_ENTRIES = 2**26  # values of embeddings that are brought to unit length at a time: 256 MiB


class AttributeReader(Protocol):
    """What recognition and search ask of a model, by its embeddings; any model of a user's own may offer it.

    An answer and a score are of one image, whichever others come with it: large galleries are handed over in parts.
    One that also has `train_labels`, int64 (C, A), of the identities it was trained on, is scored beside the majority
    answer and on seen and unseen categories apart.
    """

    schema: AttributeSchema

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Attributes of images: (N, E) -> int64 (N, M), a class of each column, -1 for none."""

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Scores of images for described persons: labels int64 (Q, A), -1 where open -> (Q, N), higher is nearer."""


def blocks(embeddings: Tensor) -> Tensor:
    """(N, 5 * D) -> (N, 5, D), each block of unit length (averaging over flips shortens it)."""
    return F.normalize(embeddings.unflatten(1, (len(GROUPS), -1)), dim=2)


def image_scores(queries: Tensor, gallery: Tensor) -> Tensor:
    """Cosine between embeddings of any model: (Q, E), (N, E) -> (Q, N); for Cerberus the mean over its groups."""
    queries = F.normalize(queries, dim=1)
    return torch.cat([queries @ F.normalize(chunk, dim=1).T for chunk in chunks(gallery)], dim=1)


def chunks(embeddings: Tensor) -> tuple[Tensor, ...]:
    """(N, E) -> some rows at a time, views of `CHUNK_ENTRIES` values at most; one chunk where there are no rows."""
    return embeddings.split(max(1, CHUNK_ENTRIES // max(1, embeddings.shape[1])))


class PrototypeReader:
    """Recognition and search with the prototypes of semantic IDs.

    Args:
        table: the semantic IDs, in the order of the prototypes.
        prototypes: per group float (K, D).
        synthesise: (group, bits uint8 (n, L)) -> float (n, D), prototypes of combinations outside the table.
        train_labels: int64 (C, A), see `AttributeReader`.
        force_colour: recognise the best semantic ID that names a colour, in place of "no listed colour".
        partial: how a half-described group scores: "mean" or "max" over the semantic IDs that agree with it.
    """

    def __init__(self, table: SIDTable, prototypes: Sequence[Tensor],
                 synthesise: Callable[[str, Tensor], Tensor] | None = None, *, train_labels: Tensor | None = None,
                 force_colour: bool = False, partial: str = "mean") -> None:
        if partial not in PARTIAL:
            raise ValueError(f"partial is '{partial}', expected one of {', '.join(PARTIAL)}")
        self.table = table
        self.schema = table.schema
        self.train_labels = train_labels
        self.prototypes = [F.normalize(p.float(), dim=1, eps=1e-12) for p in prototypes]
        self.synthesise = synthesise
        self.force_colour = force_colour
        self.partial = partial

    def cosines(self, embeddings: Tensor) -> list[Tensor]:
        """Per group the cosine of each image with each prototype: (N, K)."""
        return [block @ p.to(block).T for block, p in zip(blocks(embeddings).unbind(1), self.prototypes)]

    def sids(self, embeddings: Tensor) -> Tensor:
        """Nearest semantic ID of each group, ties to the lowest number: int64 (N, 5)."""
        allowed = self._allowed()
        return torch.cat([self._nearest(chunk, allowed) for chunk in chunks(embeddings)])

    def _nearest(self, embeddings: Tensor, allowed: list[Tensor]) -> Tensor:
        """`sids` of one chunk, among the rows that are allowed."""
        nearest = []
        for cosine, rows in zip(self.cosines(embeddings), allowed):
            best = cosine.masked_fill(~rows.to(cosine.device), float("-inf"))
            # argmax promises no order among equals; the first of them is the first that reaches the maximum.
            nearest.append((best == best.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1))
        return torch.stack(nearest, dim=1)

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Attributes of images: (N, 5 * D) -> int64 (N, M)."""
        return self.schema.column_answers(self.table.decode(self.sids(embeddings)))

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Scores of images for described persons: mean cosine over the described groups.

        Args:
            labels: int64 (Q, A), -1 where the description is open. A group with nothing described is left out,
                a half-described one averages (or maximises) over the semantic IDs that agree with it.
        """
        given = torch.stack([(labels[:, list(self.schema.group_fields(group))] != MISSING).any(dim=1)
                             for group in GROUPS])  # (5, Q)
        described = given.sum(dim=0)
        if (described == 0).any():
            raise ValueError(f"search: query {int((described == 0).nonzero()[0])} describes nothing; give at least one "
                             "attribute.")
        scores = torch.cat([self._total(labels, given, chunk) for chunk in chunks(embeddings)], dim=1)
        return scores.div_(described[:, None].to(scores))

    def _total(self, labels: Tensor, given: Tensor, embeddings: Tensor) -> Tensor:
        """Sums over the described groups, `given` bool (5, Q), for one chunk: (Q, n)."""
        total = torch.zeros(len(labels), len(embeddings), device=embeddings.device)
        for g, (some, block) in enumerate(zip(given, blocks(embeddings).unbind(1))):
            if some.any():
                total[some] += self._group_scores(g, labels[some], block)
        return total

    def _group_scores(self, g: int, labels: Tensor, block: Tensor) -> Tensor:
        """Scores by one group: labels (q, A), block (N, D) -> (q, N)."""
        group = GROUPS[g]
        agree = self.table.consistent(labels, group).to(block.device)  # (q, K)
        cosine = block @ self.prototypes[g].to(block).T  # (N, K)
        if self.partial == "mean":
            weights = agree.to(cosine) / agree.sum(dim=1, keepdim=True).clamp(min=1)
            scores = weights @ cosine.T
        else:
            scores = torch.stack([cosine.masked_fill(~row, float("-inf")).amax(dim=1) for row in agree])
        outside = ~agree.any(dim=1)
        if outside.any():
            scores[outside] = self._synthesised(group, labels[outside.to(labels.device)]).to(block) @ block.T
        return scores

    def _synthesised(self, group: str, labels: Tensor) -> Tensor:
        """Unit prototypes of combinations the table does not hold; what is left open counts as no."""
        if self.synthesise is None:
            raise ValueError(f"search: {self.schema.describe(labels[0])} is not among the semantic IDs of '{group}', "
                             "and this reader cannot synthesise a prototype")
        filled = labels.clone()
        fields = list(self.schema.group_fields(group))
        filled[:, fields] = filled[:, fields].clamp(min=0)
        return F.normalize(self.synthesise(group, self.schema.bits(filled, group)).float(), dim=1, eps=1e-12)

    def _allowed(self) -> list[Tensor]:
        """Per group bool (K,): rows that may be recognised."""
        colours = [i for column in self.schema.columns if column.is_colour for i in column.fields]
        allowed = []
        for group, rows in zip(GROUPS, self.table.labels):
            own = [i for i in colours if i in self.schema.group_fields(group)]
            named = (rows[:, own] == 1).any(dim=1) if own and self.force_colour else torch.ones(len(rows)).bool()
            allowed.append(named)
        return allowed
