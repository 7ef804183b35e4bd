"""The attributes of a dataset: groups, fields, their values, and the bits and recognition columns they give.

Three views of one label are used throughout, each with a fixed order:

* *fields*, as the annotation file names them (Market-1501 27, DukeMTMC 23): one small integer each, here
  always "code in the file minus 1", so 0, 1, ...; -1 where the label is missing;
* *bits*, what a semantic ID is made of (Market-1501 30, DukeMTMC 23): one a two-valued field, one-hot for age;
* *columns*, what recognition is scored by (Market-1501 12, DukeMTMC 10): the colour fields of a garment
  become one column with a class per colour.

This module needs numpy only. Methods that take labels accept arrays, and tensors as well: these are computed on the
CPU, and the result is a tensor on the device of the argument.
"""

from __future__ import annotations

import functools
import hashlib
import json
import keyword
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property

import numpy as np

MISSING = -1
MOST_COMBINATIONS = 10_000  # of the values of a group; each would have a prototype, and all are held in memory
NONE = "none"  # the answer of a garment that has no listed colour


@dataclass(frozen=True)
class Group:
    """A group of attributes, which has one representation, one block of an embedding, and semantic IDs of its own.

    Attributes:
        name: a Python identifier; checkpoints and indexes use it.
        strip: the horizontal strip of the local branch that the group reads, 0 at the top; None for the whole image,
            which the global branch gives. The local map is cut into as many equal strips as the schema numbers.
        lasting: whether the attributes stay when a person changes clothes.
    """

    name: str
    strip: int | None = None
    lasting: bool = False


# The five groups of the paper, which Market-1501 and DukeMTMC share.
PERSON_GROUPS = (Group("head", 0, lasting=True), Group("upper", 1), Group("lower", 2),
                 Group("identity", lasting=True), Group("carrying"))
GROUPS = tuple(group.name for group in PERSON_GROUPS)


@dataclass(frozen=True)
class Field:
    """One label field of an annotation file.

    `values` are the words for 0, 1, ...; the file stores 1, 2, ... for them. A field with `column` set is one
    class of that column (a colour of a garment), `word` is the class it stands for and its values are no and yes.
    `display` is a name for people ("sleeve length" for "up"); queries accept both names.
    """

    name: str
    group: str
    values: tuple[str, ...]
    column: str = ""
    word: str = ""
    display: str = field(default="", compare=False)

    @property
    def num_bits(self) -> int:
        """A two-valued field is one bit; one with more values is one-hot (age: 4)."""
        return 1 if len(self.values) == 2 else len(self.values)


@dataclass(frozen=True)
class Column:
    """One column of a recognition table.

    Attributes:
        classes: its answers; of colours those that have a name.
        fields: indices of the fields that hold the truth.
        group: the group it belongs to.
        is_colour: whether each class is a yes/no field of its own, so that none or several can be true.
        display: its name for people.
    """

    name: str
    classes: tuple[str, ...]
    fields: tuple[int, ...]
    group: str
    is_colour: bool = False
    display: str = field(default="", compare=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """The classes; of colours "none" first, the answer where no listed colour is there."""
        return (NONE, *self.classes) if self.is_colour else self.classes


def of_labels(method):
    """Let a method of arrays take a tensor as its first argument as well."""

    @functools.wraps(method)
    def call(self, labels, *args):
        if isinstance(labels, np.ndarray):
            return method(self, labels, *args)
        torch = sys.modules["torch"]  # loaded, as `labels` is a tensor

        def as_given(found):
            if isinstance(found, np.ndarray):
                return torch.from_numpy(found).to(labels.device)
            return type(found)(map(as_given, found)) if isinstance(found, list | tuple) else found

        return as_given(method(self, labels.detach().cpu().numpy(), *args))

    return call


class AttributeSchema:
    """Names, values and groups of a dataset's attributes, and the conversions between fields, bits and words.

    Shapes: N persons or images, A fields, L bits of a group, M columns.

    Two schemas are equal if labels, semantic IDs and columns mean the same in both; display names do not count.

    Args:
        name: how checkpoints and messages call it.
        fields: the fields, group by group in the order of `groups`; this order is the order of the bits.
        exclusive: groups of yes/no fields of which at most one can be yes (carrying), for enumerating
            the label combinations that can occur. Colours of one garment are always exclusive there.
        column_order: names of the columns in the order of published tables.
        junk_pids: identities that stand for no person (distractors): they have no labels.
        groups: in the order of an embedding's blocks; those of the paper unless given.

    Raises:
        ValueError: if the parts contradict one another.
    """

    def __init__(
        self,
        name: str,
        fields: tuple[Field, ...],
        exclusive: tuple[tuple[str, ...], ...] = (),
        column_order: tuple[str, ...] = (),
        junk_pids: tuple[int, ...] = (),
        groups: tuple[Group, ...] = PERSON_GROUPS,
    ) -> None:
        self.name = name
        self.groups = tuple(groups)
        self.fields = tuple(fields)
        self.exclusive = tuple(map(tuple, exclusive))
        self.junk_pids = tuple(junk_pids)
        self._column_order = tuple(column_order)
        self._check()

    def __repr__(self) -> str:
        return f"AttributeSchema({self.name}: {len(self.fields)} fields, {self.num_bits} bits)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttributeSchema) and self._meaning == other._meaning

    def __hash__(self) -> int:
        return hash((self.name, self.fields))

    @property
    def _meaning(self) -> tuple:
        return self.name, self.groups, self.fields, self.exclusive, self.columns

    def _check(self) -> None:
        def refuse(what: str):
            raise ValueError(f"schema {self.name!r}: {what}")

        names = self.group_names
        if not isinstance(self.name, str) or not self.name:
            refuse("expected a name")
        for what, words in (("group", names), ("field", self.field_names)):
            repeated = [word for word, count in Counter(words).items() if count > 1]
            if repeated:
                refuse(f"{what} '{repeated[0]}' is there twice")
        for group in self.groups:
            if not group.name.isidentifier() or keyword.iskeyword(group.name) or hasattr(dict, group.name):
                refuse(f"group {group.name!r} is no name that a module can have; expected letters, digits and "
                       "underscores, such as 'left_hand', and no word of Python")
            if group.strip is not None and not (isinstance(group.strip, int) and group.strip >= 0):
                refuse(f"group '{group.name}' reads strip {group.strip!r}, expected 0 (the uppermost), 1, ..., or None "
                       "for the whole image")
        for own in self.fields:
            if own.group not in names:
                refuse(f"field '{own.name}' is of group '{own.group}', expected one of {', '.join(names)}")
            if len(own.values) < 2 or len(set(own.values)) < len(own.values):
                refuse(f"field '{own.name}' has the values {own.values}, expected two or more, all different")
            if own.column and (len(own.values) != 2 or not own.word):
                refuse(f"field '{own.name}' is a class of column '{own.column}', so it needs a word and two values")
        empty = [name for name in names if not self.group_fields(name)]
        if empty or not names:
            refuse(f"group '{empty[0]}' has no fields" if empty else "has no groups")
        places = [names.index(own.group) for own in self.fields]
        if places != sorted(places):
            refuse(f"fields must come group by group in the order {names}")
        for column in self._merged.values():
            if len({self.fields[i].group for i in column.fields}) > 1:
                refuse(f"the fields of column '{column.name}' are of several groups")
        if self._column_order and sorted(self._column_order) != sorted(self._merged):
            refuse(f"column_order is {', '.join(self._column_order)}, expected each of {', '.join(self._merged)} once")
        for name in (name for names in self.exclusive for name in names):
            if name not in self.field_names:
                refuse(f"exclusive holds '{name}', expected names of fields")
        self._by_name  # noqa: B018 - raises where two columns share a name

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    @property
    def lasting_groups(self) -> tuple[str, ...]:
        """Names of the groups that count where somebody may have changed clothes."""
        return tuple(group.name for group in self.groups if group.lasting)

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(own.name for own in self.fields)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {own.name: i for i, own in enumerate(self.fields)}

    def index(self, field_name: str) -> int:
        return self._index[field_name]

    def group_fields(self, group: str) -> tuple[int, ...]:
        """Indices of the fields of one group."""
        return tuple(i for i, own in enumerate(self.fields) if own.group == group)

    def places(self, column: Column) -> list[int]:
        """Where the fields of a column are among those of its group."""
        own = self.group_fields(column.group)
        return [own.index(i) for i in column.fields]

    @property
    def num_bits(self) -> int:
        return sum(own.num_bits for own in self.fields)

    @property
    def group_bits(self) -> tuple[int, ...]:
        """Bits of each group, in the order of `groups`: L^G of the paper."""
        return tuple(sum(self.fields[i].num_bits for i in self.group_fields(g)) for g in self.group_names)

    @cached_property
    def _merged(self) -> dict[str, Column]:
        merged: dict[str, Column] = {}
        for i, own in enumerate(self.fields):
            if not own.column:
                if own.name in merged:
                    raise ValueError(f"schema {self.name!r}: '{own.name}' is a field and a column of others")
                merged[own.name] = Column(own.name, own.values, (i,), own.group, display=own.display or own.name)
                continue
            so_far = merged.get(own.column, Column(own.column, (), (), own.group, True, own.display or own.column))
            if not so_far.is_colour or own.word in so_far.answers:
                raise ValueError(f"schema {self.name!r}: field '{own.name}' cannot be the class '{own.word}' of column "
                                 f"'{own.column}', which is another field, or has this class already")
            merged[own.column] = Column(own.column, (*so_far.classes, own.word), (*so_far.fields, i), own.group, True,
                                        so_far.display)
        return merged

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a recognition table, in the order of the papers where the schema names one."""
        return tuple(self._merged[name] for name in self._column_order or self._merged)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        """Columns by their name and by their display name."""
        found = {column.name: column for column in self.columns}
        for column in self.columns:
            if found.setdefault(column.display, column) is not column:
                raise ValueError(f"schema {self.name!r}: two columns are called '{column.display}'")
        return found

    def column(self, name: str) -> Column:
        """The column of this name or display name."""
        if name not in self._by_name:
            allowed = [column.name if column.display == column.name else f"{column.name} ({column.display})"
                       for column in self.columns]
            raise ValueError(f"search: unknown attribute '{name}' of {self.name}"
                             f"{_nearest(name, self._by_name, allowed)}")
        return self._by_name[name]

    @cached_property
    def column_groups(self) -> tuple[str, ...]:
        """The group that each column belongs to."""
        return tuple(column.group for column in self.columns)

    @cached_property
    def column_sizes(self) -> tuple[int, ...]:
        """Classes of each column, C_m: one classifier each in APR."""
        return tuple(len(column.classes) for column in self.columns)

    @cached_property
    def fingerprint(self) -> int:
        """A number that tells one attribute set from another, small enough to ride in a checkpoint."""
        if self.groups == PERSON_GROUPS:
            return _fingerprint(self.field_names)
        return _fingerprint([json.dumps(self.to_dict() | {"display": None}, sort_keys=True)])

    @cached_property
    def column_fingerprint(self) -> int:
        """The same for the columns with their classes, whose order is that of attribute classifiers."""
        return _fingerprint([word for column in self.columns for word in (column.name, *column.classes)])

    def num_combinations(self, group: str) -> int:
        """Combinations of values of a group that can occur: semantic IDs of the space "product"."""
        sets = [column.fields for column in self.columns if column.is_colour and column.group == group]
        sets += [tuple(map(self.index, names)) for names in self.exclusive
                 if self.fields[self.index(names[0])].group == group]
        single = set(self.group_fields(group)) - {field for fields in sets for field in fields}
        return math.prod([len(fields) + 1 for fields in sets] + [len(self.fields[i].values) for i in single])

    @of_labels
    def bits(self, labels, group: str):
        """Bits of one group: labels int64 (N, A) -> uint8 (N, L); rows with a missing label come out as zeros."""
        parts = []
        for i in self.group_fields(group):
            value, size = labels[:, i, None], len(self.fields[i].values)
            parts.append(value == 1 if size == 2 else value == np.arange(size))
        bits = np.concatenate(parts, axis=1) & self.is_complete(labels, group)[:, None]  # (N, L)
        return bits.astype(np.uint8)

    @of_labels
    def labels_from_bits(self, bits, group: str):
        """The inverse of `bits`: uint8 (N, L) -> int64 (N, A), fields of other groups -1."""
        labels = np.full((len(bits), len(self.fields)), MISSING, dtype=np.int64)
        own = self.group_fields(group)
        ends = np.cumsum([self.fields[i].num_bits for i in own])
        for i, part in zip(own, np.split(bits, ends[:-1], axis=1)):
            labels[:, i] = part[:, 0] if part.shape[1] == 1 else part.argmax(axis=1)
        return labels

    @of_labels
    def is_complete(self, labels, group: str):
        """Whether every label of a group is known: int64 (N, A) -> bool (N,)."""
        return (labels[:, list(self.group_fields(group))] != MISSING).all(axis=1)

    @of_labels
    def column_truth(self, labels):
        """What recognition is scored against.

        Returns:
            truth: per column a bool (N, classes); one-hot, or for colours every colour that is yes (none to several).
            known: bool (N, M), False where a label of the column is missing.
        """
        truth, known = [], []
        for column in self.columns:
            values = labels[:, list(column.fields)]  # (N, fields of the column)
            truth.append(values == (1 if column.is_colour else np.arange(len(column.classes))))  # (N, classes)
            known.append((values != MISSING).all(axis=1))
        return truth, np.stack(known, axis=1)

    @of_labels
    def column_answers(self, labels):
        """The one answer a column each label gives: int64 (N, A) -> int64 (N, M), -1 for no listed colour.

        A garment with two listed colours answers with the first of them.
        """
        truth, _ = self.column_truth(labels)
        return np.stack([np.where(own.any(axis=1), own.argmax(axis=1), -1) for own in truth], axis=1)

    def describe(self, labels) -> dict[str, str]:
        """One person's labels, int64 (A,), in words: {column: value}; unknown labels are left out."""
        truth, known = self.column_truth(np.asarray(labels.tolist(), dtype=np.int64)[None])
        words = {}
        for m, column in enumerate(self.columns):
            if known[0, m]:
                yes = [word for word, flag in zip(column.classes, truth[m][0].tolist()) if flag]
                words[column.name] = " and ".join(yes) or NONE
        return words

    def parse(self, query: Mapping[str, str]) -> np.ndarray:
        """A description in words to labels, int64 (A,); what the description leaves open is -1.

        Columns, by name or display name, and values are those of `columns`; a colour column also takes "none". Naming
        one colour says no to the other colours of that garment; two colours are joined by " and ".
        """
        labels = np.full(len(self.fields), MISSING, dtype=np.int64)
        for name, value in query.items():
            column = self.column(name)
            if column.name != name and column.name in query:
                raise ValueError(f"search: '{name}' and '{column.name}' are one attribute; give one of them")
            words = str(value).split(" and ") if column.is_colour else [value]
            for word in words:
                if word not in column.answers or (len(words) > 1 and word == NONE):
                    raise ValueError(f"search: '{name}' cannot be '{value}'"
                                     f"{_nearest(word, column.answers, column.answers)}")
            if column.is_colour:
                labels[list(column.fields)] = [word in words for word in column.classes]
            else:
                labels[column.fields[0]] = column.classes.index(value)
        return labels

    def restricted(self, columns: Collection[str], name: str = "") -> AttributeSchema:
        """The schema with some of its columns alone, by their names, and the groups of these.

        Args:
            name: of the new schema; the same where "".
        """
        fields = tuple(own for own in self.fields if (own.column or own.name) in columns)
        groups, names = {own.group for own in fields}, {own.name for own in fields}
        exclusive = (tuple(each for each in own if each in names) for own in self.exclusive)
        return AttributeSchema(name or self.name, fields, tuple(own for own in exclusive if len(own) > 1),
                               tuple(each for each in self._column_order if each in columns), self.junk_pids,
                               tuple(group for group in self.groups if group.name in groups))

    def to_dict(self) -> dict:
        """A record of plain values, for JSON, from which `from_dict` makes an equal schema."""
        fields = [asdict(own) for own in self.fields]
        display = {own["name"]: shown for own in fields if (shown := own.pop("display"))}
        return {"schema": self.name, "fields": fields, "columns": [column.name for column in self.columns],
                "layout": {"groups": [asdict(group) for group in self.groups],
                           "exclusive": [list(names) for names in self.exclusive],
                           "junk_pids": list(self.junk_pids), "display": display}}

    @classmethod
    def from_dict(cls, record: Mapping) -> AttributeSchema:
        """The inverse of `to_dict`. Records of earlier versions have no "layout": their groups are the paper's."""
        layout = record.get("layout", {})
        display = layout.get("display", {})
        fields = tuple(Field(**(own | {"values": tuple(own["values"]), "display": display.get(own["name"], "")}))
                       for own in record["fields"])
        groups = tuple(Group(**own) for own in layout["groups"]) if layout else PERSON_GROUPS
        schema = cls(record["schema"], fields, layout.get("exclusive", ()), tuple(record["columns"]),
                     layout.get("junk_pids", ()), groups)
        known = SCHEMAS.get(schema.name)
        if known is not None and not layout and (known.fields, known.columns) == (schema.fields, schema.columns):
            return known
        return schema


def agreeing(rows, wanted):
    """Which labels agree with what is known of each wanted person: (K, F) and (Q, F), -1 where open, to bool (Q, K).

    Of arrays or of tensors.
    """
    return ((wanted[:, None] == rows[None]) | (wanted[:, None] == MISSING)).all(2)


def _fingerprint(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:7], "big")


def _nearest(word: str, known: Iterable[str], allowed: Iterable[str]) -> str:
    """The end of an error about a misspelt word: the nearest known one, then all that are allowed."""
    near = get_close_matches(str(word), list(known), n=1)
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
        Field("hair", "head", ("short", "long"), display="hair length"),
        Field("up", "upper", ("long sleeve", "short sleeve"), display="sleeve length"),
        *_colours("up", "upper", "upper colour", "black white red purple yellow gray blue green"),
        Field("down", "lower", ("long", "short"), display="length of lower clothes"),
        Field("clothes", "lower", ("dress", "pants"), display="trousers or dress"),
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
        Field("top", "upper", ("short", "long"), display="length of upper clothes"),
        *_colours("up", "upper", "upper colour", "black white red purple gray blue green brown"),
        *_yes_no("lower", "boots"),
        Field("shoes", "lower", ("dark", "light"), display="shoe colour"),
        *_colours("down", "lower", "lower colour", "black white red gray blue green brown"),
        _GENDER,
        *_yes_no("carrying", *_CARRYING),
    ),
    exclusive=(_CARRYING,),
    column_order=("gender", "backpack", "handbag", "bag", "hat", "top", "upper colour", "lower colour", "shoes",
                  "boots"),
)

SCHEMAS: dict[str, AttributeSchema] = {schema.name: schema for schema in (MARKET1501, DUKEMTMC)}


def register_schema(schema: AttributeSchema) -> AttributeSchema:
    """Make a schema known by its name, so that configurations and datasets can name it.

    Returns:
        the schema.

    Raises:
        ValueError: if another schema of this name is registered.
    """
    if SCHEMAS.setdefault(schema.name, schema) != schema:
        raise ValueError(f"schema '{schema.name}': another one of this name is registered; known: {', '.join(SCHEMAS)}")
    return schema


def find_schema(name: str, key: str = "schema") -> AttributeSchema:
    """The registered schema of this name, or the one that a text in JSON describes, see `to_dict`.

    Args:
        key: what the error calls the value, such as MODEL.CERBERUS.SCHEMA.
    """
    if name.startswith("{"):
        return AttributeSchema.from_dict(json.loads(name))
    if name not in SCHEMAS:
        raise ValueError(f"{key} is '{name}', expected one of {', '.join(SCHEMAS)}. The trainer fills it from the data "
                         "set, or from the checkpoint under --eval-only; make a schema of your own known by "
                         "cerberus_plugin.attributes.register_schema.")
    return SCHEMAS[name]
