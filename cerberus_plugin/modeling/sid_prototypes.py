"""Prototypes of semantic IDs, free or composed of vectors of their bits, with margins and label tables.

Shapes: G groups, K semantic IDs of a group, L bits of a group, D dimensions, B images, M columns, C classes (training
identities, or their outfits if outfits are labelled).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..attributes import GROUPS, MISSING, AttributeSchema, SIDTable
from .checkpoint_tables import leave, refuse_other_tables
from .losses import adaptive_margins, prototype_regularisation, prototype_softmax_loss, semantic_guidance_loss

INITIALISERS = {
    "he_normal": nn.init.kaiming_normal_,
    "he_uniform": nn.init.kaiming_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "normal_0.01": lambda w: nn.init.normal_(w, std=0.01),
    "normal_0.1": lambda w: nn.init.normal_(w, std=0.1),
    "normal_1": lambda w: nn.init.normal_(w, std=1.0),
    "normal_10": lambda w: nn.init.normal_(w, std=10.0),
}


class SIDPrototypes(nn.Module):
    """Free prototypes, one per semantic ID, and residual vectors, one per bit, for each group; with label tables.

    The tables are buffers, so that recognition and search only need the checkpoint.

    Args:
        sizes: K of each group.
        bits: L of each group.
        num_classes: C.
        dim: D.
        init: initialiser of prototypes and residual vectors, a key of `INITIALISERS` (Table 7 of the paper).
        learned_scale: initial value of a learnable cosine scale per group; None for no learnable scales.
        groups: names of the groups.

    Attributes:
        learned_log_scales: float (G,), a parameter: natural logarithms of the learned cosine scales, which convert
            cosines to logits; None without learnable scales.
        log_scales: float (M,), a buffer: logarithms of the scales measured for the M columns of the schema after
            training, see `set_scales`. In inference they replace the learned scales. None before the measurement.

    Raises:
        ValueError: if `init` is unknown, or `sizes` does not have one positive number per group.
    """

    def __init__(self, sizes: tuple[int, ...], bits: tuple[int, ...], num_classes: int, dim: int = 512,
                 init: str = "he_normal", learned_scale: float | None = None,
                 groups: Sequence[str] = GROUPS) -> None:
        super().__init__()
        self.groups = tuple(groups)
        if init not in INITIALISERS:
            raise ValueError(f"MODEL.CERBERUS.INIT is '{init}', expected one of {', '.join(INITIALISERS)}")
        if len(sizes) != len(self.groups) or min(sizes) < 1:
            raise ValueError(f"MODEL.CERBERUS.NUM_SIDS is {tuple(sizes)}, expected {len(self.groups)} numbers of at "
                             "least 1. The trainer sets it from the dataset, or from the checkpoint of a trained "
                             "model; do not set it by hand.")
        # Vectors are rows, so that the fan-in of the initialisers is D.
        for table in self._make_tables(sizes, bits, dim):
            INITIALISERS[init](table)
        self.register_buffer("log_scales", None)  # not in the checkpoint until it is measured
        self.learned_log_scales = None
        if learned_scale is not None:
            self.learned_log_scales = nn.Parameter(torch.full((len(self.groups),), math.log(learned_scale)))
        for group, k, n in zip(self.groups, sizes, bits):
            self.register_buffer(f"bits_{group}", torch.zeros(k, n, dtype=torch.uint8))
            self.register_buffer(f"counts_{group}", torch.zeros(k, dtype=torch.int64))
            self.register_buffer(f"margins_{group}", torch.zeros(k))
        self.register_buffer("sid_of_class", torch.full((num_classes, len(self.groups)), MISSING, dtype=torch.int64))
        self.register_buffer("schema", torch.zeros((), dtype=torch.int64))
        # For the concatenated tables of all groups: the first row of each group, and the membership of rows.
        self.register_buffer("first_row", torch.tensor([0, *sizes[:-1]]).cumsum(dim=0), persistent=False)
        self.register_buffer("membership", torch.block_diag(*(torch.ones(1, k) for k in sizes)), persistent=False)

    def _make_tables(self, sizes: tuple[int, ...], bits: tuple[int, ...], dim: int) -> list[Tensor]:
        """Create the learnable vectors, each (rows, D), without initialisation."""
        self.rows = nn.ParameterDict({g: nn.Parameter(torch.empty(k, dim)) for g, k in zip(self.groups, sizes)})
        self.residuals = nn.ParameterDict({g: nn.Parameter(torch.empty(n, dim)) for g, n in zip(self.groups, bits)})
        return [*self.rows.values(), *self.residuals.values()]

    @torch.no_grad()
    def fill(self, table: SIDTable, sid_of_class: Tensor, margins: tuple[Tensor, ...]) -> None:
        """Write the tables of a dataset into the buffers.

        Args:
            table: the semantic IDs.
            sid_of_class: int64 (C, G), by FastReID's class index, or by outfit; -1 where missing.
            margins: per group float (K,).
        """
        for group, bits, counts, margin in zip(self.groups, table.bits(), table.counts, margins):
            getattr(self, f"bits_{group}").copy_(bits)
            getattr(self, f"counts_{group}").copy_(counts)
            getattr(self, f"margins_{group}").copy_(margin)
        self.sid_of_class.copy_(sid_of_class)
        self.schema.fill_(table.schema.fingerprint)

    def bits(self, group: str) -> Tensor:
        """Bit vectors of the semantic IDs of a group, uint8 (K, L)."""
        return getattr(self, f"bits_{group}")

    def counts(self, group: str) -> Tensor:
        """Number of training identities with each semantic ID of a group, int64 (K,)."""
        return getattr(self, f"counts_{group}")

    def margins(self, group: str) -> Tensor:
        """Margins of the semantic IDs of a group, float (K,)."""
        return getattr(self, f"margins_{group}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """K of each group."""
        return tuple(len(self.bits(group)) for group in self.groups)

    def prototypes(self, group: str) -> Tensor:
        """Prototypes of a group, float (K, D); not normalised."""
        return self.rows[group]

    def guidance(self, representations: Tensor, sids: Tensor) -> Tensor:
        """`semantic_guidance_loss` of all groups for representations (G, B, D) and semantic IDs int64 (B, G)."""
        margins = torch.cat([self.margins(group) for group in self.groups])
        return semantic_guidance_loss(representations, self._all(), self._rows_of(sids), margins)

    def softmax(self, representations: Tensor, sids: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
        """`prototype_softmax_loss` of all groups, with the semantic IDs of the training identities as classes.

        Semantic IDs without training identities are not classes: without images to attract them, their prototypes would
        be pushed away from all representations and never be predicted in a test. They are determined by their
        attributes only.

        Args:
            representations: float (G, B, D).
            sids: int64 (B, G), -1 where missing.
            scale: factor of the cosines, if there is no learned scale. Learned scales are combined with the prior of
                the training identities.
            weights: float (G, B), of the images; None for equal weights.
        """
        counts = torch.cat([self.counts(group) for group in self.groups])  # (K,)
        log_prior = None
        if self.learned_log_scales is not None:
            scale = self.learned_log_scales.exp()
            shares = [own / own.sum().clamp(min=1) for own in counts.split(self.sizes)]
            log_prior = torch.cat(shares).clamp(min=1e-12).log()
        return prototype_softmax_loss(representations, self._all(), self._rows_of(sids), scale,
                                      self.membership * (counts > 0), log_prior, weights)

    def _rows_of(self, sids: Tensor) -> Tensor:
        """Rows in the concatenated tables of all groups: int64 (B, G) -> int64 (G, B), -1 where missing."""
        return torch.where(sids >= 0, sids + self.first_row, MISSING).T

    def regularisation(self) -> Tensor | None:
        """`prototype_regularisation` of all groups, which does not depend on a batch; None for composed prototypes."""
        bits = torch.block_diag(*(self.bits(group) for group in self.groups))
        residuals = torch.cat([self.residuals[group] for group in self.groups])
        return prototype_regularisation(self._all(), residuals, bits, self.membership)

    def _all(self) -> Tensor:
        return torch.cat([self.prototypes(group) for group in self.groups])

    @torch.no_grad()
    def synthesise(self, group: str, bits: Tensor) -> Tensor:
        """Return prototypes of arbitrary bit vectors, uint8 (N, L) -> float (N, D).

        p_u = p + (A_u - A)^T V, with V, p and A from `synthesis`.
        """
        vectors, row, known = self.synthesis(group)
        return row + (bits.float() - known) @ vectors

    @torch.no_grad()
    def synthesis(self, group: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return V (L, D), p (D,) and A (L,), the parameters of `synthesise`.

        With all other vectors fixed, p_u = mean(p) + V^T (A_u - mean(A)) minimises the regulariser for an unseen
        semantic ID. The means are over the semantic IDs with training identities, or over all if there are none.
        """
        seen = self.counts(group) > 0
        seen = seen | ~seen.any()
        bits = self.bits(group)[seen].float()
        return self.residuals[group].detach(), self.prototypes(group)[seen].mean(dim=0), bits.mean(dim=0)

    @torch.no_grad()
    def with_synthesised(self, group: str) -> Tensor:
        """Prototypes of a group, float (K, D); those without training identities are synthesised."""
        seen = self.counts(group) > 0
        return torch.where(seen[:, None], self.prototypes(group), self.synthesise(group, self.bits(group)))

    def column_scales(self, schema: AttributeSchema) -> dict[str, float] | None:
        """Return the cosine scale of each column by name: the measured one, otherwise the learned one of its group.

        None if there are neither. Older checkpoints have measured scales of groups.
        """
        measured = self.log_scales is not None
        scales = self.log_scales if measured else self.learned_log_scales
        if scales is None:
            return None
        scales = scales.detach().exp().tolist()
        if not measured or len(scales) != len(schema.columns):
            scales = [scales[self.groups.index(group)] for group in schema.column_groups]
        return {column.name: scale for column, scale in zip(schema.columns, scales)}

    @torch.no_grad()
    def set_scales(self, scales: Sequence[float]) -> None:
        """Store measured cosine scales, one per column of the schema, in the checkpoint. Training does not use them."""
        self.log_scales = self.sid_of_class.new_tensor(scales, dtype=torch.float32).log()

    beginning = False  # see `checkpoint_tables.begin_from_other_weights`

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.beginning:  # the scales were measured with other weights and data
            leave(state_dict, prefix, ["log_scales"])
        self.log_scales = None
        if f"{prefix}log_scales" in state_dict:
            self.set_scales([1.0] * len(state_dict[f"{prefix}log_scales"]))  # placeholder of the right size
        tables = ["schema", *(f"bits_{group}" for group in self.groups), "sid_of_class"]
        if self.beginning:
            leave(state_dict, prefix, self._without_meaning_here(state_dict, prefix))
        else:
            refuse_other_tables(self, state_dict, prefix, tables,
                                "MODEL.CERBERUS.SID_SPACE, PROTOTYPES or SOFTMAX_PRIOR, or MODEL.HEADS.EMBEDDING_DIM")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _without_meaning_here(self, state, prefix: str) -> list[str]:
        """Names of the tensors that must not be loaded from weights of another training set.

        These are the tables and the parameters that depend on them: vectors of bits, base vectors and learned scales
        are valid for all datasets with the same schema; free prototypes only if the group has the same semantic IDs.
        """
        def same(name: str) -> bool:
            found = state.get(prefix + name)
            return found is not None and torch.equal(found.cpu(), getattr(self, name).cpu())

        left = [name for name, _ in self.named_buffers()]
        for name, _ in self.named_parameters():
            table, _, group = name.partition(".")
            if not same("schema") or table == "rows" and not same(f"bits_{group}"):
                left.append(name)
        return left


class ComposedPrototypes(SIDPrototypes):
    """Prototypes as sums of vectors: p_k = b + V^T A_k, with a base vector b per group and a vector per bit, V.

    Eq. 7 requires p_m - p_n = V^T (A_m - A_n). The regulariser approximates this condition; composed prototypes fulfil
    it exactly, including semantic IDs without training identities. No regularisation is needed, and unseen prototypes
    are composed in the same way. Not in the paper.
    """

    def _make_tables(self, sizes: tuple[int, ...], bits: tuple[int, ...], dim: int) -> list[Tensor]:
        self.base = nn.ParameterDict({g: nn.Parameter(torch.empty(1, dim)) for g in self.groups})
        self.values = nn.ParameterDict({g: nn.Parameter(torch.empty(n, dim)) for g, n in zip(self.groups, bits)})
        return [*self.base.values(), *self.values.values()]

    def prototypes(self, group: str) -> Tensor:
        """See `SIDPrototypes.prototypes`."""
        values = self.values[group]
        with torch.autocast(values.device.type, enabled=False):  # float32, as in the losses
            return self.base[group] + self.bits(group).to(values.dtype) @ values

    def regularisation(self) -> None:
        """None: the regulariser of composed prototypes is 0."""
        return None

    @torch.no_grad()
    def synthesis(self, group: str) -> tuple[Tensor, Tensor, Tensor]:
        """See `SIDPrototypes.synthesis`: V and the base vector of the group, with A = 0."""
        values, base = self.values[group].detach(), self.base[group].detach()[0]
        return values, base, torch.zeros_like(values[:, 0])


PROTOTYPES = {"free": SIDPrototypes, "composed": ComposedPrototypes}


def has_prototypes(options) -> bool:
    """Return whether a model with these options (MODEL.CERBERUS) has prototypes, that is, a loss that trains them."""
    return bool(options.LAMBDA_SEM or options.SOFTMAX or (options.LAMBDA_REG and options.PROTOTYPES == "free"))


def margins_from_counts(counts: tuple[Tensor, ...], alpha: float, beta: float,
                        constant: float | None = None) -> tuple[Tensor, ...]:
    """Compute the margins of each group: adaptive (Eq. 4), or one constant (Table 8 of the paper).

    N in Eq. 4 is the number of identities with known labels in the group.

    Args:
        counts: per group int64 (K,), training identities with each semantic ID.
        alpha: factor of Eq. 4.
        beta: constant of Eq. 4.
        constant: the margin of all semantic IDs; None for adaptive margins.

    Returns:
        per group float (K,).

    Examples:
        >>> [margins.tolist() for margins in margins_from_counts((torch.tensor([3, 1]),), 0.4, 1.8, constant=0.5)]
        [[0.5, 0.5]]
    """
    if constant is not None:
        return tuple(torch.full((len(count),), constant) for count in counts)
    return tuple(adaptive_margins(count, int(count.sum()), alpha, beta) for count in counts)
