"""Prototypes of semantic IDs: learnable rows, the residual vector of each bit, margins, and who carries what.

Shapes: K semantic IDs of a group, L bits of a group, D dimensions, C classes: training identities, or their outfits
where the labels are those of outfits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attributes import GROUPS, MISSING, SIDTable
from ..losses import adaptive_margins, prototype_regularisation, prototype_softmax_loss, semantic_guidance_loss
from .tables import leave, refuse_other_tables

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
    """One prototype a semantic ID and one residual vector a bit, per group, with the tables that give them meaning.

    The tables are buffers, so a checkpoint alone is enough for recognition and search.

    Args:
        sizes: K of each group.   bits: L of each group.   num_classes: C.   dim: D.
        init: initialiser of prototypes and residual vectors, a key of `INITIALISERS` (Table 7 of the paper).
    """

    def __init__(self, sizes: tuple[int, ...], bits: tuple[int, ...], num_classes: int, dim: int = 512,
                 init: str = "he_normal") -> None:
        super().__init__()
        if init not in INITIALISERS:
            raise ValueError(f"MODEL.CERBERUS.INIT is '{init}', expected one of {', '.join(INITIALISERS)}")
        if len(sizes) != len(GROUPS) or min(sizes) < 1:
            raise ValueError(f"MODEL.CERBERUS.NUM_SIDS is {tuple(sizes)}, expected five numbers of at least 1. The "
                             "trainer fills it from the data set, or from the checkpoint under --eval-only.")
        self.rows = nn.ParameterDict({g: nn.Parameter(torch.empty(k, dim)) for g, k in zip(GROUPS, sizes)})
        self.residuals = nn.ParameterDict({g: nn.Parameter(torch.empty(n, dim)) for g, n in zip(GROUPS, bits)})
        # Fan-in is D, so rows are stored (K, D); a transposed table would start at another scale.
        for table in (*self.rows.values(), *self.residuals.values()):
            INITIALISERS[init](table)
        for group, k, n in zip(GROUPS, sizes, bits):
            self.register_buffer(f"bits_{group}", torch.zeros(k, n, dtype=torch.uint8))
            self.register_buffer(f"counts_{group}", torch.zeros(k, dtype=torch.int64))
            self.register_buffer(f"margins_{group}", torch.zeros(k))
        self.register_buffer("sid_of_class", torch.full((num_classes, len(GROUPS)), MISSING, dtype=torch.int64))
        self.register_buffer("schema", torch.zeros((), dtype=torch.int64))
        # The groups' tables one after the other: where each starts, and which rows are whose.
        self.register_buffer("first_row", torch.tensor([0, *sizes[:-1]]).cumsum(dim=0), persistent=False)
        self.register_buffer("membership", torch.block_diag(*(torch.ones(1, k) for k in sizes)), persistent=False)

    @torch.no_grad()
    def fill(self, table: SIDTable, sid_of_class: Tensor, margins: tuple[Tensor, ...]) -> None:
        """Write the tables of a data set into the buffers.

        Args:
            sid_of_class: int64 (C, 5), by class index as the host numbers identities, or by outfit; -1 where missing.
            margins: per group float (K,).
        """
        for group, bits, counts, margin in zip(GROUPS, table.bits(), table.counts, margins):
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

    def guidance(self, representations: Tensor, targets: Tensor) -> Tensor:
        """`semantic_guidance_loss` of all groups: representations (5, B, D), classes int64 (B,)."""
        margins = torch.cat([self.margins(group) for group in GROUPS])
        return semantic_guidance_loss(representations, self._all(self.rows), self._rows_of(targets), margins)

    def softmax(self, representations: Tensor, targets: Tensor, scale: float) -> Tensor:
        """`prototype_softmax_loss` of all groups, among the semantic IDs that training carries.

        The others have no image to be pulled by: as competitors they would be pushed away from everyone, and never be
        found in a test. The regulariser alone places them.
        """
        carried = torch.cat([self.counts(group) for group in GROUPS]) > 0  # (K,)
        return prototype_softmax_loss(representations, self._all(self.rows), self._rows_of(targets), scale,
                                      self.membership * carried)

    def _rows_of(self, targets: Tensor) -> Tensor:
        """Rows of all groups' tables one after the other: classes int64 (B,) -> int64 (5, B), -1 where missing."""
        sids = self.sid_of_class[targets]  # (B, 5)
        return torch.where(sids >= 0, sids + self.first_row, MISSING).T

    def regularisation(self) -> Tensor:
        """`prototype_regularisation` of all groups; needs no batch."""
        bits = torch.block_diag(*(self.bits(group) for group in GROUPS))
        return prototype_regularisation(self._all(self.rows), self._all(self.residuals), bits, self.membership)

    @staticmethod
    def _all(tables: nn.ParameterDict) -> Tensor:
        return torch.cat([tables[group] for group in GROUPS])

    @torch.no_grad()
    def synthesise(self, group: str, bits: Tensor) -> Tensor:
        """Prototypes of any bit vectors, in the table or not: (N, L) -> float (N, D).

        With everything else fixed, p_u = mean(p) + V^T (A_u - mean(A)) minimises the regulariser for an unseen
        row; the means are those of `seen_means`.
        """
        row, known = self.seen_means(group)
        return row + (bits.float() - known) @ self.residuals[group]

    @torch.no_grad()
    def seen_means(self, group: str) -> tuple[Tensor, Tensor]:
        """Mean prototype (D,) and mean bits (L,) of the group's rows seen in training."""
        seen = self.counts(group) > 0
        return self.rows[group][seen].mean(dim=0), self.bits(group)[seen].float().mean(dim=0)

    @torch.no_grad()
    def with_synthesised(self, group: str) -> Tensor:
        """The group's prototypes, those that no training identity carries synthesised: float (K, D)."""
        seen = self.counts(group) > 0
        return torch.where(seen[:, None], self.rows[group], self.synthesise(group, self.bits(group)))

    beginning = False  # see `tables.begin_from_other_weights`

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        tables = ["schema", *(f"bits_{group}" for group in GROUPS), "sid_of_class"]
        if self.beginning:
            leave(state_dict, prefix, self._without_meaning_here(state_dict, prefix))
        else:
            refuse_other_tables(self, state_dict, prefix, tables,
                                "MODEL.CERBERUS.SID_SPACE or MODEL.HEADS.EMBEDDING_DIM")
        super()._load_from_state_dict(state_dict, prefix, *args)


    def _without_meaning_here(self, state, prefix: str) -> list[str]:
        """Names of the tensors that weights of another training set cannot give: tables and what hangs on others.

        A residual vector means the same in every data set of a schema, a prototype where its semantic ID is the same.
        """
        def same(name: str) -> bool:
            found = state.get(prefix + name)
            return found is not None and torch.equal(found.cpu(), getattr(self, name).cpu())

        left = [name for name, _ in self.named_buffers()]
        left += [f"rows.{group}" for group in GROUPS if not (same("schema") and same(f"bits_{group}"))]
        return left + ([] if same("schema") else [f"residuals.{group}" for group in GROUPS])


def margins_from_counts(counts: tuple[Tensor, ...], num_identities: int, alpha: float, beta: float,
                        constant: float | None = None) -> tuple[Tensor, ...]:
    """Margins of each group: adaptive (Eq. 4), or one constant for all (Table 8 of the paper)."""
    if constant is not None:
        return tuple(torch.full((len(count),), constant) for count in counts)
    return tuple(adaptive_margins(count, num_identities, alpha, beta) for count in counts)
