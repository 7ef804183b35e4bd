"""Recognition and search with the prototypes of semantic IDs, as in Cerberus.

An embedding is the concatenation of the L2-normalised representations of the groups, (G * D,). The cosine of two
embeddings is therefore the mean cosine over the groups.
Shapes: G groups, D dimensions of a block, N images, Q queries, A label fields, M columns, C classes of a column, K
semantic IDs of a group, L bits of a group.
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
    """Split embeddings into blocks of unit length, (N, G * D) -> (N, G, D).

    The blocks are normalised again, because averaging over flipped images makes them shorter.

    Examples:
        >>> blocks(torch.tensor([[5.0, 0.0, 0.0, 2.0]]), groups=2).tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    return F.normalize(embeddings.unflatten(1, (groups, -1)), dim=2)


def of_groups(embeddings: Tensor, chosen: Sequence[str], groups: Sequence[str] = GROUPS) -> Tensor:
    """Select the blocks of some groups, so that cosines are means over these groups.

    Args:
        embeddings: float (N, G * D).
        chosen: names of the groups.
        groups: names of all groups of the model, in the order of the blocks.

    Returns:
        float (N, len(chosen) * D).

    Raises:
        ValueError: if a group is unknown, none is chosen, or embeddings do not consist of G blocks.

    Examples:
        >>> of_groups(torch.tensor([[1.0, 0.0, 0.0, 2.0]]), ["lower"], groups=["upper", "lower"]).tolist()
        [[0.0, 1.0]]
    """
    unknown = [group for group in chosen if group not in groups]
    if unknown or not chosen:
        raise ValueError(f"groups are {', '.join(chosen) or 'none'}, expected one or more of {', '.join(groups)}")
    if embeddings.shape[1] % len(groups):
        raise ValueError(f"embeddings of {embeddings.shape[1]} values cannot be split into {len(groups)} blocks, one "
                         "per group; only embeddings of Cerberus have such blocks")
    return blocks(embeddings, len(groups))[:, [list(groups).index(group) for group in chosen]].flatten(1)


class PrototypeReader(WithTemperatures):
    """Recognition and search with the prototypes of semantic IDs.

    There are two methods. "nearest" is the method of the paper: predict the labels of the nearest prototype of each
    group, and search by the mean cosine over the described groups. "probability": predict the most probable value of
    each column, and search by the sum of the log-probabilities of the described values, see `attributes.marginals`.
    Confidences are probabilities with both methods.

    Args:
        table: the semantic IDs, in the order of the prototypes, with their numbers of training identities.
        prototypes: per group float (K, D).
        synthesise: (group, bits uint8 (n, L)) -> float (n, D), prototypes of combinations that are not in the table.
        train_labels: int64 (C, A), see `AttributeReader`.
        reading: one of `READINGS`.
        force_colour: predict the best semantic ID, or value, with a colour instead of "no listed colour".
        partial: score of a partially described group with "nearest": "mean" or "max" over the semantic IDs that agree
            with the description.
        cosine_scale: s_m, one number, or one number per column name.
        tau: exponent of the prior; 0 disables the prior.
        unseen_prior: number of identities assumed for a semantic ID without training identities.
        temperatures: by column name, the divisor of the logits in `confidences`; default 1.

    Raises:
        ValueError: if an option or a number is invalid.

    Examples:
        >>> from cerberus_plugin.attributes import AttributeSchema, Field, Group
        >>> schema = AttributeSchema("example", (Field("hat", "head", ("no", "yes")),), groups=(Group("head", 0),))
        >>> table = SIDTable.build(schema, torch.tensor([[0], [1]]))
        >>> reader = PrototypeReader(table, [torch.tensor([[1.0, 0.0], [0.0, 1.0]])])
        >>> reader.recognise(torch.tensor([[0.6, 0.8]])).tolist()
        [[1]]
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
            raise ValueError(f"cosine scales are {self.scales}, expected numbers above 0. They come from the "
                             "checkpoint (prototypes.log_scales), which is then damaged, or from TEST.PAR.COSINE_SCALE")
        self.tau = tau
        self.unseen_prior = unseen_prior
        self.temperatures = dict(temperatures or {})
        check_temperatures(self.schema, self.temperatures)
        counts = [count.cpu().numpy() for count in self.table.counts]
        self.marginals = Marginals.build(self.schema, self._labels(), counts, self.scales, tau, unseen_prior)
        self._tables: dict[torch.device, Marginals] = {}  # see `_on`

    def _labels(self) -> list[np.ndarray]:
        """Per group int64 (K, F), the labels of the F fields of the group."""
        return [rows[:, list(self.schema.group_fields(group))].cpu().numpy()
                for group, rows in zip(self.groups, self.table.labels)]

    def read_by(self, reading: str) -> PrototypeReader:
        """Return a copy that uses another method, see `READINGS`."""
        if reading not in READINGS:
            raise ValueError(f"TEST.READING is '{reading}', expected one of {', '.join(READINGS)}")
        reader = copy.copy(self)
        reader.reading = reading
        return reader

    def attribute_model(self, synthesis: Callable[[str], tuple[Tensor, Tensor, Tensor]]) -> AttributeModel:
        """Convert to an `AttributeModel`, which does not need torch and is used by galleries and exported models.

        Its descriptions always use the mean over semantic IDs, regardless of `partial`, because a maximum cannot be
        written as an inner product.

        Args:
            synthesis: function from a group name to V (L, D), p (D,) and A (L,), see `SIDPrototypes.synthesis`.
        """
        groups = []
        for group, labels, counts, rows in zip(self.groups, self._labels(), self.table.counts, self.prototypes):
            own, residuals, mean, bits = (array.float().cpu().numpy() for array in (rows, *synthesis(group)))
            groups.append(GroupTables(group, labels, own, residuals, mean, bits, counts.cpu().numpy()))
        return AttributeModel(self.schema, tuple(groups), self.scales, self.reading, float(self.tau),
                              float(self.unseen_prior), bool(self.force_colour))

    def _blocks(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """Unit blocks of each group, (N, D), at least in float32: scales would amplify rounding errors of float16."""
        exact = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return blocks(exact, len(self.groups)).unbind(1)

    def cosines(self, embeddings: Tensor) -> list[Tensor]:
        """Return for each group the cosines of images and prototypes, (N, G * D) -> float (N, K)."""
        return [block @ p.to(block).T for block, p in zip(self._blocks(embeddings), self.prototypes)]

    def sids(self, embeddings: Tensor) -> Tensor:
        """Return the nearest semantic ID of each group, int64 (N, G); the lowest number in case of a tie."""
        return torch.cat([self._nearest(self.cosines(chunk)) for chunk in chunks(embeddings)])

    def _nearest(self, cosines: Sequence[Tensor]) -> Tensor:
        """`sids` of one chunk, among the semantic IDs that can be predicted."""
        nearest = []
        for cosine, rows in zip(cosines, self._allowed()):
            best = cosine.masked_fill(~rows.to(cosine.device), float("-inf"))
            # argmax of floats does not guarantee the first maximum; argmax of the mask returns the first 1.
            nearest.append((best == best.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1))
        return torch.stack(nearest, dim=1)

    def recognise(self, embeddings: Tensor) -> Tensor:
        """Predict the class of each column, (N, G * D) -> int64 (N, M); -1 for no listed colour."""
        return torch.cat([self.decide(self.answer_scores(chunk)) for chunk in chunks(embeddings)])

    def recognise_balanced(self, embeddings: Tensor) -> Tensor:
        """Predict the classes that maximise the expected balanced accuracy, (N, G * D) -> int64 (N, M) on the CPU.

        See `balanced_answers`. The same as `recognise` with the method "nearest".
        """
        return torch.cat([self.decide(self.answer_scores(chunk, True), True) for chunk in chunks(embeddings)])

    def answer_scores(self, embeddings: Tensor, balanced: bool = False) -> Tensor:
        """See `PersonReader`. Cosines with all prototypes ("nearest"), or log-probabilities ("probability")."""
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
        """Return the most probable class of each column, int64 (N, M), and its probability, float (N, M).

        The probability of a class is the sum over its semantic IDs. "No listed colour" (-1) is one of the classes.
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
        """Return for each column the log-probabilities of its classes, float (N, C), for search.

        The first class of a colour column is "none". The result does not depend on temperatures or `force_colour`.
        """
        parts = [self._searched(chunk) for chunk in chunks(embeddings)]
        return [torch.cat(column) for column in zip(*parts)]

    def _searched(self, embeddings: Tensor) -> list[Tensor]:
        """`log_probabilities` of one chunk."""
        return [log_p.clamp(min=LOWEST) for log_p in self._log_probabilities(self._logits(embeddings))]

    def _on(self, device: torch.device) -> Marginals:
        """`marginals` with tensors on a device, cached."""
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
        """Return for each column the logits to fit a temperature on, and their classes.

        Returns:
            per column logits, float (N, K), -inf for semantic IDs that cannot be predicted; and the class of each
            semantic ID, int64 (K,).
        """
        allowed = self._allowed()
        parts = [self._scores(chunk, allowed) for chunk in chunks(embeddings)]
        scores = [torch.cat(column).float() for column in zip(*parts)]
        own = {group: self.schema.column_answers(rows) for group, rows in zip(self.groups, self.table.labels)}
        return [(scores[m], own[group][:, m]) for m, group in enumerate(self.schema.column_groups)]

    def _scores(self, embeddings: Tensor, allowed: list[Tensor]) -> list[Tensor]:
        """`_logits`, with -inf for semantic IDs that are not allowed."""
        return [logits.masked_fill(~allowed[g].to(logits.device), float("-inf"))
                for logits, g in zip(self._logits(embeddings), self.marginals.column_groups)]

    def search(self, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Score images for descriptions.

        "nearest": the mean cosine over the groups with described attributes. A partially described group uses the mean
        (or maximum, see `partial`) over the semantic IDs that agree with the description.
        "probability": the sum of the log-probabilities of the described values, see `wanted_classes`.

        Args:
            labels: int64 (Q, A), -1 for fields that are not described; a tensor, or an array from `schema.parse`.
            embeddings: float (N, G * D).

        Returns:
            float (Q, N), higher is better.

        Raises:
            ValueError: if a query describes no attribute, or a prototype would have to be synthesised but the reader
                has no `synthesise`.
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
        """Unit prototypes of combinations that are not in the table; fields that are not described count as 0 (no)."""
        if self.synthesise is None:
            raise ValueError(f"search: {self.schema.describe(labels[0])} is not among the semantic IDs of '{group}', "
                             "and this reader cannot synthesise a prototype")
        filled = labels.clone()
        fields = list(self.schema.group_fields(group))
        filled[:, fields] = filled[:, fields].clamp(min=0)
        return F.normalize(self.synthesise(group, self.schema.bits(filled, group)).float(), dim=1, eps=1e-12)

    def _allowed(self) -> list[Tensor]:
        """Per group bool (K,): semantic IDs that can be predicted."""
        return [torch.from_numpy(nameable(self.schema, group, labels, self.force_colour))
                for group, labels in zip(self.groups, self._labels())]
