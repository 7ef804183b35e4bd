"""Recognition and search by the prototypes of semantic IDs, the way of Cerberus.

An embedding is the L2-normalised representations of the groups side by side, (G * D,), so the mean cosine over the
groups is the cosine of two embeddings.
Shapes: G groups, N images, Q queries, A label fields, M recognition columns, K semantic IDs of a group.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attributes import GROUPS, MISSING, SIDTable
from ..attributes.attribute_model import AttributeModel, GroupTables
from ..attributes.marginals import (
    LOWEST,
    READINGS,
    Marginals,
    balanced_answers,
    check_temperatures,
    nameable,
    wanted_classes,
)
from .probabilities import WithTemperatures, summing_to_one
from .reader import chunks, mean_over_described

PARTIAL = ("mean", "max")


def blocks(embeddings: Tensor, groups: int = len(GROUPS)) -> Tensor:
    """(N, G * D) -> (N, G, D), each block of unit length (averaging over flips shortens it)."""
    return F.normalize(embeddings.unflatten(1, (groups, -1)), dim=2)


def of_groups(embeddings: Tensor, chosen: Sequence[str], groups: Sequence[str] = GROUPS) -> Tensor:
    """The blocks of some groups, so that a cosine is the mean over these: (N, G * D) -> (N, len(chosen) * D).

    Args:
        groups: all of the model, in the order of the blocks.
    """
    unknown = [group for group in chosen if group not in groups]
    if unknown or not chosen:
        raise ValueError(f"groups are {', '.join(chosen) or 'none'}, expected one or more of {', '.join(groups)}")
    if embeddings.shape[1] % len(groups):
        raise ValueError(f"embeddings of {embeddings.shape[1]} values are not {len(groups)} blocks, one a group; only "
                         "Cerberus gives such")
    return blocks(embeddings, len(groups))[:, [list(groups).index(group) for group in chosen]].flatten(1)


class PrototypeReader(WithTemperatures):
    """Recognition and search with the prototypes of semantic IDs.

    Two ways of reading. "nearest", as in the paper: the labels of the nearest prototype of each group, and mean cosines
    over the described groups. "probability": the most probable value of each column, and the sum of the log
    probabilities of the described values, see `attributes.marginals`. Confidences are probabilities either way.

    Args:
        table: the semantic IDs, in the order of the prototypes, and how many training identities carry each.
        prototypes: per group float (K, D).
        synthesise: (group, bits uint8 (n, L)) -> float (n, D), prototypes of combinations outside the table.
        train_labels: int64 (C, A), see `AttributeReader`.
        reading: one of `READINGS`.
        force_colour: recognise the best semantic ID, or value, that names a colour, in place of "no listed colour".
        partial: how a half-described group scores where the nearest are read: "mean" or "max" over the semantic IDs
            that agree with it.
        cosine_scale: s_m, one number, or one a column by its name.
        tau: power of the prior; 0 leaves it out.
        unseen_prior: identities that a semantic ID counts as which no training identity carries.
        temperatures: by a column's name, what its logits are divided by in `confidences`. 1 where not given.
    """

    def __init__(self, table: SIDTable, prototypes: Sequence[Tensor],
                 synthesise: Callable[[str, Tensor], Tensor] | None = None, *, train_labels: Tensor | None = None,
                 reading: str = "nearest", force_colour: bool = False, partial: str = "mean",
                 cosine_scale: float | Mapping[str, float] = 16.0, tau: float = 1.0, unseen_prior: float = 0.5,
                 temperatures: Mapping[str, float] | None = None) -> None:
        if partial not in PARTIAL:
            raise ValueError(f"partial is '{partial}', expected one of {', '.join(PARTIAL)}")
        if reading not in READINGS:
            raise ValueError(f"TEST.READING is '{reading}', expected one of {', '.join(READINGS)}")
        self.table = table
        self.schema = table.schema
        self.groups = table.schema.group_names
        self.train_labels = train_labels
        self.prototypes = [F.normalize(p.float(), dim=1, eps=1e-12) for p in prototypes]
        self.synthesise = synthesise
        self.reading = reading
        self.force_colour = force_colour
        self.partial = partial
        names = [column.name for column in self.schema.columns]
        scales = cosine_scale if isinstance(cosine_scale, Mapping) else dict.fromkeys(names, cosine_scale)
        self.scales = {name: float(scales[name]) for name in names}
        if not all(0 < scale < math.inf for scale in self.scales.values()):
            raise ValueError(f"cosine scales are {self.scales}, expected numbers above 0. They are those of the "
                             "checkpoint (prototypes.log_scales), which is damaged then, or TEST.PAR.COSINE_SCALE")
        self.tau = tau
        self.unseen_prior = unseen_prior
        self.temperatures = dict(temperatures or {})
        check_temperatures(self.schema, self.temperatures)
        counts = [count.cpu().numpy() for count in self.table.counts]
        self.marginals = Marginals.build(self.schema, self._labels(), counts, self.scales, tau, unseen_prior)
        self._tables: dict[torch.device, Marginals] = {}  # see `_on`

    def _labels(self) -> list[np.ndarray]:
        """Per group int64 (K, F), the labels of its own fields."""
        return [rows[:, list(self.schema.group_fields(group))].cpu().numpy()
                for group, rows in zip(self.groups, self.table.labels)]

    def read_by(self, reading: str) -> PrototypeReader:
        """The same reader with another reading."""
        if reading not in READINGS:
            raise ValueError(f"TEST.READING is '{reading}', expected one of {', '.join(READINGS)}")
        reader = copy.copy(self)
        reader.reading = reading
        return reader

    def attribute_model(self, synthesis: Callable[[str], tuple[Tensor, Tensor, Tensor]]) -> AttributeModel:
        """The same without torch, as galleries and exported models use it.

        It describes people by the mean over semantic IDs whatever `partial` says: a maximum is no inner product.

        Args:
            synthesis: of a group's name V (L, D), p (D,) and A (L,), see `SIDPrototypes.synthesis`.
        """
        groups = []
        for group, labels, counts, rows in zip(self.groups, self._labels(), self.table.counts, self.prototypes):
            own, residuals, mean, bits = (array.float().cpu().numpy() for array in (rows, *synthesis(group)))
            groups.append(GroupTables(group, labels, own, residuals, mean, bits, counts.cpu().numpy()))
        return AttributeModel(self.schema, tuple(groups), self.scales, self.reading, float(self.tau),
                              float(self.unseen_prior), bool(self.force_colour))

    def _blocks(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """Unit blocks of each group, (N, D), in float32 at least: a scale multiplies what half precision rounds."""
        exact = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return blocks(exact, len(self.groups)).unbind(1)

    def cosines(self, embeddings: Tensor) -> list[Tensor]:
        """Per group the cosine of each image with each prototype: (N, K)."""
        return [block @ p.to(block).T for block, p in zip(self._blocks(embeddings), self.prototypes)]

    def sids(self, embeddings: Tensor) -> Tensor:
        """Nearest semantic ID of each group, ties to the lowest number: int64 (N, G)."""
        return torch.cat([self._nearest(self.cosines(chunk)) for chunk in chunks(embeddings)])

    def _nearest(self, cosines: Sequence[Tensor]) -> Tensor:
        """`sids` of one chunk, among the rows that are allowed."""
        nearest = []
        for cosine, rows in zip(cosines, self._allowed()):
            best = cosine.masked_fill(~rows.to(cosine.device), float("-inf"))
            # argmax promises no order among equals; the first of them is the first that reaches the maximum.
            nearest.append((best == best.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1))
        return torch.stack(nearest, dim=1)

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Attributes of images: (N, G * D) -> int64 (N, M), -1 for no listed colour."""
        return torch.cat([self.decide(self.answer_scores(chunk)) for chunk in chunks(embeddings)])

    def recognise_balanced(self, embeddings: Tensor) -> Tensor:
        """The answers that balanced accuracy expects, see `balanced_answers`: (N, G * D) -> int64 (N, M) on the CPU.

        As `recognise` where the nearest are read.
        """
        return torch.cat([self.decide(self.answer_scores(chunk, True), True) for chunk in chunks(embeddings)])

    def answer_scores(self, embeddings: Tensor, balanced: bool = False) -> Tensor:
        """See `PersonReader`. Nearest: cosines with all prototypes; probability: log-probabilities of all columns."""
        if self.reading == "nearest":
            return torch.cat(self.cosines(embeddings), dim=1)
        logits = self._logits(embeddings) if balanced else self._scores(embeddings, self._allowed())
        found = self._log_probabilities(logits, None if balanced else self.temperatures)
        return torch.cat(found, dim=1)

    def decide(self, scores: Tensor, balanced: bool = False) -> Tensor:
        """See `PersonReader`."""
        if self.reading == "nearest":
            sids = self._nearest(scores.split(self.table.sizes, dim=1))
            return self.schema.column_answers(self.table.decode(sids))
        colours = torch.tensor(self.marginals.colours, dtype=torch.int64)
        log_p = scores.split([held.shape[1] for held in self.marginals.held], dim=1)
        if not balanced:
            return torch.stack([own.max(dim=1).indices for own in log_p], dim=1) - colours.to(scores.device)
        found = [balanced_answers(summing_to_one(own), prior, colour, self.force_colour)
                 for own, prior, colour in zip(log_p, self.marginals.priors, self.marginals.colours)]
        return torch.from_numpy(np.stack(found, axis=1)) - colours

    def confidences(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Most probable class of each column and its probability: (N, G * D) -> int64 (N, M), float (N, M).

        A class has the probabilities of all semantic IDs that hold it, "no listed colour" (-1) included.
        """
        allowed = self._allowed()
        best = []
        for chunk in chunks(embeddings):
            logits = self._scores(chunk, allowed)
            best.append([log_p.max(dim=1) for log_p in self._log_probabilities(logits, self.temperatures)])
        colours = torch.tensor(self.marginals.colours, dtype=torch.int64, device=embeddings.device)
        classes = torch.cat([torch.stack([own.indices for own in part], dim=1) for part in best])
        return classes - colours, torch.cat([torch.stack([own.values.exp() for own in part], dim=1) for part in best])

    def log_probabilities(self, embeddings: Tensor) -> list[Tensor]:
        """Per column the log-probability of each class, "none" of colours first: float (N, C).

        Those that search adds up: temperatures and `force_colour` do not touch them.
        """
        parts = [self._searched(chunk) for chunk in chunks(embeddings)]
        return [torch.cat(column) for column in zip(*parts)]

    def _searched(self, embeddings: Tensor) -> list[Tensor]:
        """`log_probabilities` of one chunk."""
        return [log_p.clamp(min=LOWEST) for log_p in self._log_probabilities(self._logits(embeddings))]

    def _on(self, device: torch.device) -> Marginals:
        """The tables of probabilities as tensors, made once for each device."""
        if device not in self._tables:
            log_priors, held = ([torch.from_numpy(own).to(device) for own in tables]
                                for tables in (self.marginals.log_priors, self.marginals.held))
            self._tables[device] = self.marginals.computed_by("torch", log_priors, held)
        return self._tables[device]

    def _logits(self, embeddings: Tensor) -> list[Tensor]:
        """Per column s_m cos + tau log pi: float64 (N, K)."""
        cosines, marginals = self.cosines(embeddings), self._on(embeddings.device)
        return [marginals.logits(m, cosines[g]) for m, g in enumerate(marginals.column_groups)]

    def _log_probabilities(self, logits: Sequence[Tensor],
                           temperatures: Mapping[str, float] | None = None) -> list[Tensor]:
        """Per column the log-probability of each class, from its logits: float (N, C)."""
        marginals = self._on(logits[0].device)
        return [marginals.log_probabilities(m, own / (temperatures or {}).get(column.name, 1.0)).float()
                for m, (column, own) in enumerate(zip(self.schema.columns, logits))]

    def column_scores(self, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What temperatures are fitted on: logits, float (N, K), minus infinity where a semantic ID may not be
        recognised, and the answer that each gives, int64 (K,)."""
        allowed = self._allowed()
        parts = [self._scores(chunk, allowed) for chunk in chunks(embeddings)]
        scores = [torch.cat(column).float() for column in zip(*parts)]
        own = {group: self.schema.column_answers(rows) for group, rows in zip(self.groups, self.table.labels)}
        return [(scores[m], own[group][:, m]) for m, group in enumerate(self.schema.column_groups)]

    def _scores(self, embeddings: Tensor, allowed: list[Tensor]) -> list[Tensor]:
        """`_logits`, minus infinity where not allowed."""
        return [logits.masked_fill(~allowed[g].to(logits.device), float("-inf"))
                for logits, g in zip(self._logits(embeddings), self.marginals.column_groups)]

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Scores of images for described persons, higher is nearer: (Q, N).

        Nearest: the mean cosine over the described groups. A group with nothing described is left out, a half-described
        one averages (or maximises) over the semantic IDs that agree with it.
        Probability: the sum of the log-probabilities of the described values, see `wanted_classes`.

        Args:
            labels: int64 (Q, A), -1 where the description is open; a tensor, or an array as `schema.parse` gives.
        """
        labels = torch.as_tensor(labels)
        if self.reading == "probability":
            wanted = torch.from_numpy(wanted_classes(self.schema, labels.cpu().numpy()))
            if not wanted.any(dim=1).all():
                raise ValueError(f"search: query {int((~wanted.any(dim=1)).nonzero()[0])} describes nothing; give at "
                                 "least one attribute.")
            return torch.cat([wanted.to(chunk.device) @ torch.cat(self._searched(chunk), dim=1).T
                              for chunk in chunks(embeddings)], dim=1)
        given = torch.stack([(labels[:, list(self.schema.group_fields(group))] != MISSING).any(dim=1)
                             for group in self.groups])  # (G, Q)
        return mean_over_described(given, embeddings, lambda chunk: self._total(labels, given, chunk))

    def _total(self, labels: Tensor, given: Tensor, embeddings: Tensor) -> Tensor:
        """Sums over the described groups, `given` bool (G, Q), for one chunk: (Q, n)."""
        total = torch.zeros(len(labels), len(embeddings), device=embeddings.device)
        for g, (some, block) in enumerate(zip(given, self._blocks(embeddings))):
            if some.any():
                total[some] += self._group_scores(g, labels[some], block)
        return total

    def _group_scores(self, g: int, labels: Tensor, block: Tensor) -> Tensor:
        """Scores by one group: labels (q, A), block (N, D) -> (q, N)."""
        group = self.groups[g]
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
        return [torch.from_numpy(nameable(self.schema, group, labels, self.force_colour))
                for group, labels in zip(self.groups, self._labels())]
