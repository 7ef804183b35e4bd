"""The attributes of a data set: fields, their values, the five groups they belong to, and the bits they give.

Three views of one label are used throughout, each with a fixed order:

* *fields*, as the annotation file names them (Market-1501 27, DukeMTMC 23): one small integer each, here
  always "code in the file minus 1", so 0, 1, ...; -1 where the label is missing;
* *bits*, what a semantic ID is made of (Market-1501 30, DukeMTMC 23): one a two-valued field, one-hot for age;
* *columns*, what recognition is scored by (Market-1501 12, DukeMTMC 10): the colour fields of a garment
  become one column with a class per colour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

GROUPS = ("head", "upper", "lower", "identity", "carrying")
MISSING = -1


@dataclass(frozen=True)
class Field:
    """One label field of an annotation file.

    `values` are the words for 0, 1, ...; the file stores 1, 2, ... for them. A field with `column` set is one
    class of that column (a colour of a garment), `word` is the class it stands for and its values are no and yes.
    """

    name: str
    group: str
    values: tuple[str, ...]
    column: str = ""
    word: str = ""

    @property
    def num_bits(self) -> int:
        """A two-valued field is one bit; one with more values is one-hot (age: 4)."""
        return 1 if len(self.values) == 2 else len(self.values)


@dataclass(frozen=True)
class Column:
    """One column of a recognition table: `classes` are its answers, `fields` the fields that hold the truth."""

    name: str
    classes: tuple[str, ...]
    fields: tuple[int, ...]

    @property
    def is_colour(self) -> bool:
        """Whether each class is a yes/no field of its own, so that none or several can be true."""
        return len(self.fields) > 1


class AttributeSchema:
    """Names, values and groups of a data set's attributes, and the conversions between fields, bits and words.

    Shapes: N persons or images, A fields, L bits of a group, M columns.

    Args:
        name: how checkpoints and messages call it.
        fields: the fields, group by group in the order of `GROUPS`; this order is the order of the bits.
        exclusive: groups of yes/no fields of which at most one can be yes (carrying), for enumerating
            the label combinations that can occur. Colours of one garment are always exclusive there.
        column_order: names of the columns in the order of published tables.
        junk_pids: identities that stand for no person (distractors): they have no labels.
    """

    def __init__(
        self,
        name: str,
        fields: tuple[Field, ...],
        exclusive: tuple[tuple[str, ...], ...] = (),
        column_order: tuple[str, ...] = (),
        junk_pids: tuple[int, ...] = (),
    ) -> None:
        groups = [GROUPS.index(field.group) for field in fields]
        if groups != sorted(groups):
            raise ValueError(f"schema {name}: fields must come group by group in the order {GROUPS}")
        self.name = name
        self.fields = fields
        self.exclusive = exclusive
        self.junk_pids = junk_pids
        self._column_order = column_order

    def __repr__(self) -> str:
        return f"AttributeSchema({self.name}: {len(self.fields)} fields, {self.num_bits} bits)"

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {field.name: i for i, field in enumerate(self.fields)}

    def index(self, field_name: str) -> int:
        return self._index[field_name]

    def group_fields(self, group: str) -> tuple[int, ...]:
        """Indices of the fields of one group."""
        return tuple(i for i, field in enumerate(self.fields) if field.group == group)

    @property
    def num_bits(self) -> int:
        return sum(field.num_bits for field in self.fields)

    @property
    def group_bits(self) -> tuple[int, ...]:
        """Bits of each group, in the order of `GROUPS`: L^G of the paper."""
        return tuple(sum(self.fields[i].num_bits for i in self.group_fields(g)) for g in GROUPS)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a recognition table, in the order of the papers where the schema names one."""
        merged: dict[str, Column] = {}
        for i, field in enumerate(self.fields):
            if not field.column:
                merged[field.name] = Column(field.name, field.values, (i,))
                continue
            so_far = merged.get(field.column, Column(field.column, (), ()))
            merged[field.column] = Column(field.column, (*so_far.classes, field.word), (*so_far.fields, i))
        order = self._column_order or tuple(merged)
        return tuple(merged[name] for name in order)

    @cached_property
    def column_groups(self) -> tuple[str, ...]:
        """The group that each column belongs to."""
        return tuple(self.fields[column.fields[0]].group for column in self.columns)

    @cached_property
    def column_sizes(self) -> tuple[int, ...]:
        """Classes of each column, C_m: one classifier each in APR."""
        return tuple(len(column.classes) for column in self.columns)

    @cached_property
    def fingerprint(self) -> int:
        """A number that tells one attribute set from another, small enough to ride in a checkpoint."""
        return _fingerprint(self.field_names)

    @cached_property
    def column_fingerprint(self) -> int:
        """The same for the columns with their classes, whose order is that of attribute classifiers."""
        return _fingerprint([word for column in self.columns for word in (column.name, *column.classes)])

    def bits(self, labels: Tensor, group: str) -> Tensor:
        """Bits of one group: labels int64 (N, A) -> uint8 (N, L); rows with a missing label come out as zeros."""
        parts = []
        for i in self.group_fields(group):
            value = labels[:, i].clamp(min=0)
            size = len(self.fields[i].values)
            parts.append(value[:, None] if size == 2 else torch.nn.functional.one_hot(value, size))
        bits = torch.cat(parts, dim=1).to(torch.uint8)  # (N, L)
        return bits * self.is_complete(labels, group)[:, None].to(torch.uint8)

    def labels_from_bits(self, bits: Tensor, group: str) -> Tensor:
        """The inverse of `bits`: uint8 (N, L) -> int64 (N, A), fields of other groups -1."""
        labels = torch.full((len(bits), len(self.fields)), MISSING, dtype=torch.int64, device=bits.device)
        sizes = [self.fields[i].num_bits for i in self.group_fields(group)]
        for i, part in zip(self.group_fields(group), bits.split(sizes, dim=1)):
            labels[:, i] = part[:, 0] if part.shape[1] == 1 else part.argmax(dim=1)
        return labels

    def is_complete(self, labels: Tensor, group: str) -> Tensor:
        """Whether every label of a group is known: int64 (N, A) -> bool (N,)."""
        return (labels[:, list(self.group_fields(group))] != MISSING).all(dim=1)

    def column_truth(self, labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """What recognition is scored against.

        Returns:
            truth: per column a bool (N, classes); one-hot, or for colours every colour that is yes (none to several).
            known: bool (N, M), False where a label of the column is missing.
        """
        truth, known = [], []
        for column in self.columns:
            values = labels[:, list(column.fields)]  # (N, fields of the column)
            if column.is_colour:
                truth.append(values == 1)
            else:
                classes = torch.arange(len(column.classes), device=labels.device)
                truth.append(values == classes)  # (N, classes)
            known.append((values != MISSING).all(dim=1))
        return truth, torch.stack(known, dim=1)

    def column_answers(self, labels: Tensor) -> Tensor:
        """The one answer a column each label gives: int64 (N, A) -> int64 (N, M), -1 for no listed colour.

        A garment with two listed colours answers with the first of them.
        """
        truth, _ = self.column_truth(labels)
        answers = [torch.where(t.any(dim=1), t.to(torch.uint8).argmax(dim=1), -1) for t in truth]
        return torch.stack(answers, dim=1)

    def describe(self, labels: Tensor) -> dict[str, str]:
        """One person's labels, int64 (A,), in words: {column: value}; unknown labels are left out."""
        truth, known = self.column_truth(labels[None])
        words = {}
        for m, column in enumerate(self.columns):
            if known[0, m]:
                yes = [word for word, flag in zip(column.classes, truth[m][0].tolist()) if flag]
                words[column.name] = " and ".join(yes) or "none"
        return words

    def parse(self, query: dict[str, str]) -> Tensor:
        """A description in words to labels, int64 (A,); what the description leaves open is -1.

        Columns and values are those of `columns`; a colour column also takes "none". Naming one colour
        says no to the other colours of that garment; two colours are joined by " and ".
        """
        by_name = {column.name: column for column in self.columns}
        labels = torch.full((len(self.fields),), MISSING, dtype=torch.int64)
        for name, value in query.items():
            column = by_name.get(name)
            if column is None:
                raise ValueError(f"search: unknown attribute '{name}' of {self.name}{_nearest(name, by_name)}")
            words = [] if column.is_colour and value == "none" else str(value).split(" and ")
            for word in words:
                if word not in column.classes or (len(words) > 1 and not column.is_colour):
                    allowed = column.classes + (("none",) if column.is_colour else ())
                    raise ValueError(f"search: '{name}' cannot be '{value}'{_nearest(word, allowed)}")
            if column.is_colour:
                for field, word in zip(column.fields, column.classes):
                    labels[field] = int(word in words)
            else:
                labels[column.fields[0]] = column.classes.index(words[0])
        return labels


def _fingerprint(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:7], "big")


def _nearest(word: str, allowed) -> str:
    """The end of an error about a misspelt word: the nearest allowed ones, then all of them."""
    from difflib import get_close_matches

    near = get_close_matches(str(word), list(allowed), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return f"{hint} Allowed: {', '.join(allowed)}"


def _yes_no(group: str, *names: str) -> tuple[Field, ...]:
    return tuple(Field(name, group, ("no", "yes")) for name in names)


def _colours(prefix: str, group: str, column: str, colours: str) -> tuple[Field, ...]:
    return tuple(Field(prefix + colour, group, ("no", "yes"), column, colour) for colour in colours.split())


_GENDER = Field("gender", "identity", ("male", "female"))
_CARRYING = ("backpack", "bag", "handbag")

MARKET1501 = AttributeSchema(
    "market1501",
    fields=(
        Field("hat", "head", ("no", "yes")),
        Field("hair", "head", ("short", "long")),
        Field("up", "upper", ("long sleeve", "short sleeve")),
        *_colours("up", "upper", "upper colour", "black white red purple yellow gray blue green"),
        Field("down", "lower", ("long", "short")),
        Field("clothes", "lower", ("dress", "pants")),
        *_colours("down", "lower", "lower colour", "black white pink purple yellow gray blue green brown"),
        _GENDER,
        Field("age", "identity", ("young", "teenager", "adult", "old")),
        *_yes_no("carrying", *_CARRYING),
    ),
    exclusive=(_CARRYING,),
    column_order=("gender", "age", "backpack", "handbag", "bag", "hair", "hat", "up", "upper colour", "down",
                  "lower colour", "clothes"),
    junk_pids=(0, -1),
)

DUKEMTMC = AttributeSchema(
    "dukemtmc",
    fields=(
        *_yes_no("head", "hat"),
        Field("top", "upper", ("short", "long")),
        *_colours("up", "upper", "upper colour", "black white red purple gray blue green brown"),
        *_yes_no("lower", "boots"),
        Field("shoes", "lower", ("dark", "light")),
        *_colours("down", "lower", "lower colour", "black white red gray blue green brown"),
        _GENDER,
        *_yes_no("carrying", *_CARRYING),
    ),
    exclusive=(_CARRYING,),
    column_order=("gender", "backpack", "handbag", "bag", "hat", "top", "upper colour", "lower colour", "shoes",
                  "boots"),
)

SCHEMAS = {schema.name: schema for schema in (MARKET1501, DUKEMTMC)}
