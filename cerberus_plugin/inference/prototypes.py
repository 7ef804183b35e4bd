"""Recognition and search by the prototypes of semantic IDs, the way of Cerberus.

An embedding is five L2-normalised representations side by side, (5 * D,), so the mean cosine over the groups
is the cosine of two embeddings.
Shapes: N images, Q queries, A label fields, M recognition columns, K semantic IDs of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attributes import GROUPS, MISSING, SIDTable
from .similarity import chunks, mean_over_described
from .temperatures import WithTemperatures, check_temperatures

PARTIAL = ("mean", "max")


def blocks(embeddings: Tensor) -> Tensor:
    """(N, 5 * D) -> (N, 5, D), each block of unit length (averaging over flips shortens it)."""
    return F.normalize(embeddings.unflatten(1, (len(GROUPS), -1)), dim=2)


def of_groups(embeddings: Tensor, groups: Sequence[str]) -> Tensor:
    """The blocks of some groups, so that a cosine is the mean over these: (N, 5 * D) -> (N, G * D)."""
    unknown = [group for group in groups if group not in GROUPS]
    if unknown or not groups:
        raise ValueError(f"groups are {', '.join(groups) or 'none'}, expected one or more of {', '.join(GROUPS)}")
    if embeddings.shape[1] % len(GROUPS):
        raise ValueError(f"embeddings of {embeddings.shape[1]} values are not {len(GROUPS)} blocks, one a group; only "
                         "Cerberus gives such")
    return blocks(embeddings)[:, [GROUPS.index(group) for group in groups]].flatten(1)


class PrototypeReader(WithTemperatures):
    """Recognition and search with the prototypes of semantic IDs.

    Args:
        table: the semantic IDs, in the order of the prototypes.
        prototypes: per group float (K, D).
        synthesise: (group, bits uint8 (n, L)) -> float (n, D), prototypes of combinations outside the table.
        train_labels: int64 (C, A), see `AttributeReader`.
        force_colour: recognise the best semantic ID that names a colour, in place of "no listed colour".
        partial: how a half-described group scores: "mean" or "max" over the semantic IDs that agree with it.
        cosine_scale: of the softmax over a group's semantic IDs that `confidences` makes of cosines.
        temperatures: by a column's name, what its scaled cosines are divided by: its cosine scale is
            cosine_scale / temperature. 1 where not given.
    """

    def __init__(self, table: SIDTable, prototypes: Sequence[Tensor],
                 synthesise: Callable[[str, Tensor], Tensor] | None = None, *, train_labels: Tensor | None = None,
                 force_colour: bool = False, partial: str = "mean", cosine_scale: float = 16.0,
                 temperatures: Mapping[str, float] | None = None) -> None:
        if partial not in PARTIAL:
            raise ValueError(f"partial is '{partial}', expected one of {', '.join(PARTIAL)}")
        self.table = table
        self.schema = table.schema
        self.train_labels = train_labels
        self.prototypes = [F.normalize(p.float(), dim=1, eps=1e-12) for p in prototypes]
        self.synthesise = synthesise
        self.force_colour = force_colour
        self.partial = partial
        self.cosine_scale = cosine_scale
        self.temperatures = check_temperatures(self.schema, temperatures)

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

    def confidences(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Most probable class of each column and its probability: (N, 5 * D) -> int64 (N, M), float (N, M).

        A column's probabilities are the softmax of the scaled cosines of its group, over its temperature; a class has
        those of all semantic IDs that hold it, "no listed colour" (-1) included.
        """
        allowed = self._allowed()
        return tuple(map(torch.cat, zip(*(self._confident(chunk, allowed) for chunk in chunks(embeddings)))))

    def _confident(self, embeddings: Tensor, allowed: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`confidences` of one chunk, among the rows that are allowed."""
        scores = self._scores(embeddings, allowed)
        classes, probabilities = [], []
        for column, group, answers in zip(self.schema.columns, self.schema.column_groups, self._column_answers()):
            held = answers[:, None] == torch.arange(-1, len(column.classes))  # (K, C + 1)
            shares = (scores[group] / self.temperatures.get(column.name, 1.0)).softmax(dim=1)  # (N, K)
            probability, best = (shares @ held.to(shares)).max(dim=1)
            classes.append(best - 1)
            probabilities.append(probability.clamp(max=1))
        return torch.stack(classes, dim=1), torch.stack(probabilities, dim=1)

    def column_scores(self, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What temperatures are fitted on: scaled cosines, float (N, K), minus infinity where a semantic ID may not be
        recognised, and the answer that each gives, int64 (K,)."""
        allowed = self._allowed()
        parts = [self._scores(chunk, allowed) for chunk in chunks(embeddings)]
        scores = {group: torch.cat([part[group] for part in parts]) for group in GROUPS}
        return [(scores[group], answers) for group, answers in zip(self.schema.column_groups, self._column_answers())]

    def _scores(self, embeddings: Tensor, allowed: list[Tensor]) -> dict[str, Tensor]:
        """Scaled cosines of each group, minus infinity where not allowed: float (N, K)."""
        return {group: (self.cosine_scale * cosine).masked_fill(~rows.to(cosine.device), float("-inf"))
                for group, cosine, rows in zip(GROUPS, self.cosines(embeddings), allowed)}

    def _column_answers(self) -> list[Tensor]:
        """Per column int64 (K,): the answer that each semantic ID of its group gives."""
        own = {group: self.schema.column_answers(rows) for group, rows in zip(GROUPS, self.table.labels)}
        return [own[group][:, m] for m, group in enumerate(self.schema.column_groups)]

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Scores of images for described persons: mean cosine over the described groups.

        Args:
            labels: int64 (Q, A), -1 where the description is open. A group with nothing described is left out,
                a half-described one averages (or maximises) over the semantic IDs that agree with it.
        """
        given = torch.stack([(labels[:, list(self.schema.group_fields(group))] != MISSING).any(dim=1)
                             for group in GROUPS])  # (5, Q)
        return mean_over_described(given, embeddings, lambda chunk: self._total(labels, given, chunk))

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
