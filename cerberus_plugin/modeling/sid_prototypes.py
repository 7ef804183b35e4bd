"""Prototypes of semantic IDs, free or composed of the vectors of their values, with margins and who carries what.

Shapes: G groups, K semantic IDs of a group, L bits of a group, D dimensions, C classes: training identities, or their
outfits where the labels are those of outfits.
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
    """A free prototype a semantic ID and a residual vector a bit, per group, with the tables that give them meaning.

    The tables are buffers, so a checkpoint alone is enough for recognition and search.

    Args:
        sizes: K of each group.   bits: L of each group.   num_classes: C.   dim: D.
        init: initialiser of prototypes and residual vectors, a key of `INITIALISERS` (Table 7 of the paper).
        learned_scale: initial value of a learnable cosine scale for each group; None for none.
        groups: names of the groups.

    Attributes:
        learned_log_scales: float (G,), a parameter: natural logarithms of the cosine scales that training learns, by
            which cosines become probabilities; None where none are learned.
        log_scales: float (M,), a buffer: logarithms of the scales that were measured for the M columns of the schema
            with the weights as they are, see `set_scales`. They are read with in place of the learned ones; None until
            then.
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
                             "least 1. The trainer fills it from the dataset, or from the checkpoint under "
                             "--eval-only.")
        # Fan-in is D, so vectors are stored as rows; a transposed table would start at another scale.
        for table in self._make_tables(sizes, bits, dim):
            INITIALISERS[init](table)
        self.register_buffer("log_scales", None)  # not in the checkpoint until it is known
        self.learned_log_scales = None
        if learned_scale is not None:
            self.learned_log_scales = nn.Parameter(torch.full((len(self.groups),), math.log(learned_scale)))
        for group, k, n in zip(self.groups, sizes, bits):
            self.register_buffer(f"bits_{group}", torch.zeros(k, n, dtype=torch.uint8))
            self.register_buffer(f"counts_{group}", torch.zeros(k, dtype=torch.int64))
            self.register_buffer(f"margins_{group}", torch.zeros(k))
        self.register_buffer("sid_of_class", torch.full((num_classes, len(self.groups)), MISSING, dtype=torch.int64))
        self.register_buffer("schema", torch.zeros((), dtype=torch.int64))
        # The groups' tables one after the other: where each starts, and which rows are whose.
        self.register_buffer("first_row", torch.tensor([0, *sizes[:-1]]).cumsum(dim=0), persistent=False)
        self.register_buffer("membership", torch.block_diag(*(torch.ones(1, k) for k in sizes)), persistent=False)

    def _make_tables(self, sizes: tuple[int, ...], bits: tuple[int, ...], dim: int) -> list[Tensor]:
        """Create the learnable vectors, to be initialised: each (rows, D)."""
        self.rows = nn.ParameterDict({g: nn.Parameter(torch.empty(k, dim)) for g, k in zip(self.groups, sizes)})
        self.residuals = nn.ParameterDict({g: nn.Parameter(torch.empty(n, dim)) for g, n in zip(self.groups, bits)})
        return [*self.rows.values(), *self.residuals.values()]

    @torch.no_grad()
    def fill(self, table: SIDTable, sid_of_class: Tensor, margins: tuple[Tensor, ...]) -> None:
        """Write the tables of a dataset into the buffers.

        Args:
            sid_of_class: int64 (C, G), by class index as FastReID numbers identities, or by outfit; -1 where missing.
            margins: per group float (K,).
        """
        for group, bits, counts, margin in zip(self.groups, table.bits(), table.counts, margins):
            getattr(self, f"bits_{group}").copy_(bits)
            getattr(self, f"counts_{group}").copy_(counts)
            getattr(self, f"margins_{group}").copy_(margin)
        self.sid_of_class.copy_(sid_of_class)
        self.schema.fill_(table.schema.fingerprint)

    def bits(self, group: str) -> Tensor:
        return getattr(self, f"bits_{group}")

    def counts(self, group: str) -> Tensor:
        return getattr(self, f"counts_{group}")

    def margins(self, group: str) -> Tensor:
        return getattr(self, f"margins_{group}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """K of each group."""
        return tuple(len(self.bits(group)) for group in self.groups)

    def prototypes(self, group: str) -> Tensor:
        """Prototypes of a group, not normalised: float (K, D)."""
        return self.rows[group]

    def guidance(self, representations: Tensor, sids: Tensor) -> Tensor:
        """`semantic_guidance_loss` of all groups: representations (G, B, D), semantic IDs int64 (B, G)."""
        margins = torch.cat([self.margins(group) for group in self.groups])
        return semantic_guidance_loss(representations, self._all(), self._rows_of(sids), margins)

    def softmax(self, representations: Tensor, sids: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
        """`prototype_softmax_loss` of all groups, among the semantic IDs that training carries.

        The others have no image to be pulled by: as competitors they would be pushed away from everyone, and never be
        found in a test. Their attributes alone place them.

        Args:
            representations: float (G, B, D).   sids: int64 (B, G), -1 where missing.
            scale: of the cosines, where none is learned. A learned scale goes with the prior of training identities.
            weights: float (G, B), of the images; None for all alike.
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
        """Rows of all groups' tables one after the other: int64 (B, G) -> int64 (G, B), -1 where missing."""
        return torch.where(sids >= 0, sids + self.first_row, MISSING).T

    def regularisation(self) -> Tensor | None:
        """`prototype_regularisation` of all groups, which needs no batch; None where it holds by construction."""
        bits = torch.block_diag(*(self.bits(group) for group in self.groups))
        residuals = torch.cat([self.residuals[group] for group in self.groups])
        return prototype_regularisation(self._all(), residuals, bits, self.membership)

    def _all(self) -> Tensor:
        return torch.cat([self.prototypes(group) for group in self.groups])

    @torch.no_grad()
    def synthesise(self, group: str, bits: Tensor) -> Tensor:
        """Prototypes of any bit vectors, in the table or not: (N, L) -> float (N, D).

        p_u = p + (A_u - A)^T V, with V, p and A as `synthesis` gives them.
        """
        vectors, row, known = self.synthesis(group)
        return row + (bits.float() - known) @ vectors

    @torch.no_grad()
    def synthesis(self, group: str) -> tuple[Tensor, Tensor, Tensor]:
        """V (L, D), p (D,) and A (L,), from which `synthesise` makes prototypes.

        With everything else fixed, p_u = mean(p) + V^T (A_u - mean(A)) minimises the regulariser for an unseen row; the
        means are over the rows that training identities carry, or over all rows where none of them is carried.
        """
        seen = self.counts(group) > 0
        seen = seen | ~seen.any()
        bits = self.bits(group)[seen].float()
        return self.residuals[group].detach(), self.prototypes(group)[seen].mean(dim=0), bits.mean(dim=0)

    @torch.no_grad()
    def with_synthesised(self, group: str) -> Tensor:
        """The group's prototypes, those that no training identity carries synthesised: float (K, D)."""
        seen = self.counts(group) > 0
        return torch.where(seen[:, None], self.prototypes(group), self.synthesise(group, self.bits(group)))

    def column_scales(self, schema: AttributeSchema) -> dict[str, float] | None:
        """The cosine scale to read each column with, by its name: measured, or else learned by its group.

        None where neither. Older checkpoints have measured scales of groups.
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
        """Keep measured cosine scales, one a column of the schema, in the checkpoint. Training does not use them."""
        self.log_scales = self.sid_of_class.new_tensor(scales, dtype=torch.float32).log()

    beginning = False  # see `checkpoint_tables.begin_from_other_weights`

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if self.beginning:  # measured with other weights and data
            leave(state_dict, prefix, ["log_scales"])
        self.log_scales = None
        if f"{prefix}log_scales" in state_dict:
            self.set_scales([1.0] * len(state_dict[f"{prefix}log_scales"]))  # of the right size, to be loaded into
        tables = ["schema", *(f"bits_{group}" for group in self.groups), "sid_of_class"]
        if self.beginning:
            leave(state_dict, prefix, self._without_meaning_here(state_dict, prefix))
        else:
            refuse_other_tables(self, state_dict, prefix, tables,
                                "MODEL.CERBERUS.SID_SPACE, PROTOTYPES or SOFTMAX_PRIOR, or MODEL.HEADS.EMBEDDING_DIM")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _without_meaning_here(self, state, prefix: str) -> list[str]:
        """Names of the tensors that weights of another training set cannot give: tables and what hangs on others.

        Vectors of bits, what they are added to, and learned scales mean the same in every dataset of a schema, a free
        prototype only where its group has the same semantic IDs.
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
    """Prototypes that are sums of vectors: p_k = b + V^T A_k, b a vector of the group and V one vector a bit.

    Eq. 7 asks p_m - p_n to be V^T (A_m - A_n), which the regulariser approaches and this fulfils, for all semantic IDs
    whether training carries them or not. There is nothing left to regularise, and to synthesise is to compose.
    """

    def _make_tables(self, sizes: tuple[int, ...], bits: tuple[int, ...], dim: int) -> list[Tensor]:
        self.base = nn.ParameterDict({g: nn.Parameter(torch.empty(1, dim)) for g in self.groups})
        self.values = nn.ParameterDict({g: nn.Parameter(torch.empty(n, dim)) for g, n in zip(self.groups, bits)})
        return [*self.base.values(), *self.values.values()]

    def prototypes(self, group: str) -> Tensor:
        values = self.values[group]
        with torch.autocast(values.device.type, enabled=False):  # as the losses are
            return self.base[group] + self.bits(group).to(values.dtype) @ values

    def regularisation(self) -> None:
        return None

    @torch.no_grad()
    def synthesis(self, group: str) -> tuple[Tensor, Tensor, Tensor]:
        values, base = self.values[group].detach(), self.base[group].detach()[0]
        return values, base, torch.zeros_like(values[:, 0])


PROTOTYPES = {"free": SIDPrototypes, "composed": ComposedPrototypes}


def has_prototypes(options) -> bool:
    """Whether a model of these options, MODEL.CERBERUS, has prototypes: some loss must train them."""
    return bool(options.LAMBDA_SEM or options.SOFTMAX or (options.LAMBDA_REG and options.PROTOTYPES == "free"))


def margins_from_counts(counts: tuple[Tensor, ...], alpha: float, beta: float,
                        constant: float | None = None) -> tuple[Tensor, ...]:
    """Margins of each group: adaptive (Eq. 4), or one constant for all (Table 8 of the paper).

    Identities whose label is missing in a group do not count in it.
    """
    if constant is not None:
        return tuple(torch.full((len(count),), constant) for count in counts)
    return tuple(adaptive_margins(count, int(count.sum()), alpha, beta) for count in counts)
