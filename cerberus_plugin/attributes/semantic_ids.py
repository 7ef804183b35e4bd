"""Semantic IDs: numbers for the distinct bit vectors of each group, with conversions from and to labels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from .schema import MISSING, MOST_COMBINATIONS, AttributeSchema, agreeing

SID_SPACES = ("observed", "union", "product")


@dataclass(frozen=True)
class SIDTable:
    """The semantic IDs of a dataset, by group.

    Shapes: K semantic IDs of a group, A fields, L bits of a group, N identities, G groups.

    Attributes:
        schema: schema of the attributes.
        labels: per group int64 (K, A), with the values of the fields of the group and -1 in all other fields. The rows
            are sorted, so that the numbers do not depend on the order of the annotation file.
        counts: per group int64 (K,), training identities with each semantic ID; 0 if it is not seen in training.

    Examples:
        >>> from cerberus_plugin.attributes import AttributeSchema, Field, Group
        >>> schema = AttributeSchema("example", (Field("hat", "head", ("no", "yes")),), groups=(Group("head", 0),))
        >>> table = SIDTable.build(schema, torch.tensor([[1], [1]]))
        >>> table.sizes, table.counts[0].tolist(), table.lookup(torch.tensor([[1], [-1]])).tolist()
        ((2,), [0, 2], [[1], [-1]])
    """

    schema: AttributeSchema
    labels: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]

    @classmethod
    def build(
        cls, schema: AttributeSchema, train: Tensor, test: Tensor | None = None, space: str = "product"
    ) -> SIDTable:
        """Number the semantic IDs of a dataset.

        Args:
            schema: schema of the labels.
            train: int64 (N, A), one row per training identity.
            test: int64 (N', A), only used by the space "union".
            space: "observed": combinations of the training identities; "union": combinations of training and test
                identities, as counted in the paper; "product": all possible combinations, so that changing one
                attribute of a semantic ID gives another semantic ID.

        Raises:
            ValueError: if `space` is unknown, "union" is used without `test`, or "product" has more than
                `MOST_COMBINATIONS` combinations in a group.
        """
        if space not in SID_SPACES:
            raise ValueError(f"MODEL.CERBERUS.SID_SPACE is '{space}', expected one of {', '.join(SID_SPACES)}")
        if space == "union" and test is None:
            raise ValueError("MODEL.CERBERUS.SID_SPACE 'union' needs the labels of the test identities")
        others = test if space == "union" and test is not None else train[:0]
        labels, counts = [], []
        for group in schema.group_names:
            rows = [_group_rows(schema, train, group), _group_rows(schema, others, group)]
            if space == "product":
                if schema.num_combinations(group) > MOST_COMBINATIONS:
                    raise ValueError(f"schema '{schema.name}': the values of group '{group}' have "
                                     f"{schema.num_combinations(group)} combinations, more than {MOST_COMBINATIONS}. "
                                     "Split its fields into several groups, or set MODEL.CERBERUS.SID_SPACE observed")
                rows.append(_product_rows(schema, group))
            distinct, number = torch.unique(torch.cat(rows), dim=0, return_inverse=True)  # sorted rows, (K, A)
            labels.append(distinct)
            counts.append(number[:len(rows[0])].bincount(minlength=len(distinct)))
        return cls(schema, tuple(labels), tuple(counts))

    @classmethod
    def from_bits(cls, schema: AttributeSchema, bits: tuple[Tensor, ...], counts: tuple[Tensor, ...]) -> SIDTable:
        """Create a table from the bit vectors of a checkpoint.

        Args:
            bits: per group uint8 (K, L).
            counts: per group int64 (K,).

        Raises:
            ValueError: if bits do not correspond to labels of the schema, or a count is negative.
        """
        groups = schema.group_names
        table = cls(schema, tuple(schema.labels_from_bits(b, g) for b, g in zip(bits, groups)), tuple(counts))
        for group, given, own, count in zip(groups, bits, table.bits(), counts):
            if not torch.equal(given.to(own.dtype), own) or (count < 0).any():
                raise ValueError(f"semantic IDs of group '{group}' are not valid for {schema.name}; the checkpoint is "
                                 "damaged, use another one")
        return table

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of semantic IDs of each group."""
        return tuple(len(rows) for rows in self.labels)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __repr__(self) -> str:
        seen = sum(int((count > 0).sum()) for count in self.counts)
        return f"SIDTable({self.schema.name}: {self.sizes} = {len(self)} semantic IDs, {seen} seen in training)"

    def bits(self) -> tuple[Tensor, ...]:
        """Bit vectors of the semantic IDs, per group uint8 (K, L): A^G of the paper."""
        return tuple(self.schema.bits(rows, group) for rows, group in zip(self.labels, self.schema.group_names))

    def lookup(self, labels: Tensor) -> Tensor:
        """Convert labels to semantic IDs, int64 (N, A) -> int64 (N, G).

        -1 where a label of the group is missing or the combination is not in the table.
        """
        labels = torch.as_tensor(labels)
        columns = []
        for group, rows in zip(self.schema.group_names, self.labels):
            fields = list(self.schema.group_fields(group))
            # Equal rows of the table and of the labels get the same number.
            _, number = torch.unique(torch.cat([rows[:, fields], labels[:, fields]]), dim=0, return_inverse=True)
            row_of = torch.full((len(number),), MISSING, dtype=torch.int64, device=labels.device)
            row_of[number[:len(rows)]] = torch.arange(len(rows), device=labels.device)
            columns.append(row_of[number[len(rows):]])
        return torch.stack(columns, dim=1)

    def consistent(self, labels: Tensor, group: str) -> Tensor:
        """Return which semantic IDs of a group agree with the known labels: int64 (N, A) -> bool (N, K)."""
        labels = torch.as_tensor(labels)
        fields = list(self.schema.group_fields(group))
        own = self.labels[self.schema.group_names.index(group)]
        return agreeing(own[:, fields].to(labels.device), labels[:, fields])

    def decode(self, sids: Tensor) -> Tensor:
        """Convert semantic IDs to labels, int64 (N, G) -> int64 (N, A); -1 in the fields of a group with -1."""
        decoded = torch.full((len(sids), len(self.schema.fields)), MISSING, dtype=torch.int64, device=sids.device)
        for g, group in enumerate(self.schema.group_names):
            fields = list(self.schema.group_fields(group))
            rows = self.labels[g].to(sids.device)[sids[:, g].clamp(min=0)][:, fields]  # (N, fields of the group)
            decoded[:, fields] = torch.where(sids[:, g, None] == MISSING, MISSING, rows)
        return decoded

    def to_json(self) -> dict:
        """Return a dict that can be written as JSON next to a checkpoint."""
        return {
            "schema": self.schema.name,
            "fields": list(self.schema.field_names),
            "groups": {
                group: {"labels": rows[:, list(self.schema.group_fields(group))].tolist(), "counts": count.tolist()}
                for group, rows, count in zip(self.schema.group_names, self.labels, self.counts)
            },
        }


def _group_rows(schema: AttributeSchema, labels: Tensor, group: str) -> Tensor:
    """Labels (N', A) of the rows in which all labels of the group are known; -1 in the fields of other groups."""
    complete = labels[schema.is_complete(labels, group)]
    rows = torch.full_like(complete, MISSING)
    fields = list(schema.group_fields(group))
    rows[:, fields] = complete[:, fields]
    return rows


def _product_rows(schema: AttributeSchema, group: str) -> Tensor:
    """All possible combinations of a group, (K, A). At most one colour of a garment and one exclusive field is yes."""
    exclusive = [tuple(c.fields) for c in schema.columns if c.is_colour and c.group == group]
    exclusive += [tuple(map(schema.index, names)) for names in schema.exclusive
                  if schema.fields[schema.index(names[0])].group == group]
    taken = {field for fields in exclusive for field in fields}
    choices = [[{field: 0 for field in fields} | ({yes: 1} if yes is not None else {}) for yes in (None, *fields)]
               for fields in exclusive]
    choices += [[{field: value} for value in range(len(schema.fields[field].values))]
                for field in schema.group_fields(group) if field not in taken]
    rows = []
    for combination in itertools.product(*choices):
        row = [MISSING] * len(schema.fields)
        for part in combination:
            for field, value in part.items():
                row[field] = value
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)
