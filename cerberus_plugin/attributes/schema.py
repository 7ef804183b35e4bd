"""Attribute schemas: the groups, fields and values of a dataset, and the bits and columns derived from them.

The plugin uses three representations of a label, each with a fixed order:

* *fields*, as named in the annotation file (27 for Market-1501, 23 for DukeMTMC): one integer each, "code in the file
  minus 1", so 0, 1, ...; -1 where the label is missing;
* *bits*, the components of semantic IDs (30 for Market-1501, 23 for DukeMTMC): one bit per field with two values,
  one-hot for fields with more values (age);
* *columns*, the attributes that are predicted and scored (12 for Market-1501, 10 for DukeMTMC): the colour fields of a
  garment form one column with one class per colour.

This module only needs numpy. Methods that take labels accept arrays and tensors. Tensors are processed on the CPU, and
the result is a tensor on the device of the argument.
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
MOST_COMBINATIONS = 10_000  # combinations of the values of a group; each has a prototype in memory
NONE = "none"  # the class of a garment without a listed colour


@dataclass(frozen=True)
class Group:
    """A group of attributes with one representation, one block of the embedding and separate semantic IDs.

    Attributes:
        name: a Python identifier; used in checkpoints and indexes.
        strip: the horizontal strip of the local branch from which the representation is computed, 0 at the top; None
            for the whole image (global branch). The number of equal strips of the local map is the largest `strip` of
            the schema plus 1.
        lasting: whether the attributes stay the same when a person changes clothes.
    """

    name: str
    strip: int | None = None
    lasting: bool = False


# The five groups of the paper, for Market-1501 and DukeMTMC.
PERSON_GROUPS = (Group("head", 0, lasting=True), Group("upper", 1), Group("lower", 2),
                 Group("identity", lasting=True), Group("carrying"))
GROUPS = tuple(group.name for group in PERSON_GROUPS)


@dataclass(frozen=True)
class Field:
    """One label field of an annotation file.

    Attributes:
        name: name in the annotation file.
        group: name of the group.
        values: text of the values 0, 1, ..., which the file stores as 1, 2, ...
        column: name of a colour column, if the field is one of its classes (a colour of a garment); the values are
            then no and yes.
        word: the class of the column, such as "red".
        display: display name, such as "sleeve length" for "up"; queries accept both names.
    """

    name: str
    group: str
    values: tuple[str, ...]
    column: str = ""
    word: str = ""
    display: str = field(default="", compare=False)

    @property
    def num_bits(self) -> int:
        """Number of bits: 1 for a field with two values, otherwise one per value (age: 4)."""
        return 1 if len(self.values) == 2 else len(self.values)


@dataclass(frozen=True)
class Column:
    """One predicted attribute, a column of a table of recognition results.

    Attributes:
        name: name of the column; that of its field, unless the column has several fields.
        classes: the values; for a colour column the listed colours.
        fields: indices of the fields with the labels.
        group: name of the group.
        is_colour: whether each class is a separate yes/no field, so that zero or several classes can be true.
        display: display name.
    """

    name: str
    classes: tuple[str, ...]
    fields: tuple[int, ...]
    group: str
    is_colour: bool = False
    display: str = field(default="", compare=False)

    @property
    def answers(self) -> tuple[str, ...]:
        """The values that can be predicted: the classes, for a colour column preceded by "none"."""
        return (NONE, *self.classes) if self.is_colour else self.classes


def of_labels(method):
    """Decorate a method of arrays, so that its first argument can also be a tensor."""

    @functools.wraps(method)
    def call(self, labels, *args):
        if isinstance(labels, np.ndarray):
            return method(self, labels, *args)
        torch = sys.modules["torch"]  # already imported, because `labels` is a tensor

        def as_given(found):
            if isinstance(found, np.ndarray):
                return torch.from_numpy(found).to(labels.device)
            return type(found)(map(as_given, found)) if isinstance(found, list | tuple) else found

        return as_given(method(self, labels.detach().cpu().numpy(), *args))

    return call


class AttributeSchema:
    """Names, values and groups of the attributes of a dataset, with conversions between fields, bits and text.

    Shapes: N identities or images, A fields, L bits of a group, M columns.

    Two schemas are equal if labels, semantic IDs and columns have the same meaning in both; display names are ignored.

    Args:
        name: used in checkpoints and messages.
        fields: sorted by group in the order of `groups`; bits have the same order.
        exclusive: sets of yes/no fields of which at most one can be yes (carrying), used to enumerate the possible
            combinations of labels. The colours of one garment are always exclusive in this enumeration.
        column_order: names of the columns in the order of published tables.
        junk_pids: pids of distractors and junk images, which have no labels.
        groups: groups in the order of the blocks of an embedding; default: the five groups of the paper.

    Raises:
        ValueError: if the arguments contradict each other.

    Examples:
        >>> fields = (Field("hat", "head", ("no", "yes")), Field("age", "person", ("child", "adult", "old")))
        >>> schema = AttributeSchema("example", fields, groups=(Group("head", 0), Group("person")))
        >>> schema.parse({"age": "adult"}).tolist(), schema.describe(np.array([1, 2]))
        ([-1, 1], {'hat': 'yes', 'age': 'old'})
        >>> schema.group_bits, schema.bits(np.array([[1, 2]]), "person").tolist()
        ((1, 3), [[0, 0, 1]])
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
        def fail(reason: str):
            raise ValueError(f"schema {self.name!r}: {reason}")

        names = self.group_names
        if not isinstance(self.name, str) or not self.name:
            fail("expected a name")
        for what, words in (("group", names), ("field", self.field_names)):
            repeated = [word for word, count in Counter(words).items() if count > 1]
            if repeated:
                fail(f"{what} '{repeated[0]}' is defined twice")
        for group in self.groups:
            if not group.name.isidentifier() or keyword.iskeyword(group.name) or hasattr(dict, group.name):
                fail(f"group {group.name!r} is not a valid name; expected letters, digits and underscores, such as "
                     "'left_hand', and not a Python keyword or the name of a method of dict")
            if group.strip is not None and not (isinstance(group.strip, int) and group.strip >= 0):
                fail(f"group '{group.name}' has strip {group.strip!r}, expected 0 (the uppermost), 1, ..., or None "
                     "for the whole image")
        for own in self.fields:
            if own.group not in names:
                fail(f"field '{own.name}' has group '{own.group}', expected one of {', '.join(names)}")
            if len(own.values) < 2 or len(set(own.values)) < len(own.values):
                fail(f"field '{own.name}' has the values {own.values}, expected two or more, all different")
            if own.column and (len(own.values) != 2 or not own.word):
                fail(f"field '{own.name}' is a class of column '{own.column}', so it needs a word and two values")
        empty = [name for name in names if not self.group_fields(name)]
        if empty or not names:
            fail(f"group '{empty[0]}' has no fields" if empty else "has no groups")
        places = [names.index(own.group) for own in self.fields]
        if places != sorted(places):
            fail(f"fields must be sorted by group, in the order {names}")
        for column in self._merged.values():
            if len({self.fields[i].group for i in column.fields}) > 1:
                fail(f"the fields of column '{column.name}' belong to several groups")
        if self._column_order and sorted(self._column_order) != sorted(self._merged):
            fail(f"column_order is {', '.join(self._column_order)}, expected each of {', '.join(self._merged)} once")
        for name in (name for names in self.exclusive for name in names):
            if name not in self.field_names:
                fail(f"exclusive contains '{name}', expected names of fields")
        self._by_name  # noqa: B018 - raises if two columns share a name

    @property
    def group_names(self) -> tuple[str, ...]:
        """Names of the groups, in the order of the blocks of an embedding."""
        return tuple(group.name for group in self.groups)

    @property
    def lasting_groups(self) -> tuple[str, ...]:
        """Names of the groups that are compared if a person may have changed clothes."""
        return tuple(group.name for group in self.groups if group.lasting)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the A fields."""
        return tuple(own.name for own in self.fields)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {own.name: i for i, own in enumerate(self.fields)}

    def index(self, field_name: str) -> int:
        """Index of a field by name."""
        return self._index[field_name]

    def group_fields(self, group: str) -> tuple[int, ...]:
        """Indices of the fields of one group."""
        return tuple(i for i, own in enumerate(self.fields) if own.group == group)

    def places(self, column: Column) -> list[int]:
        """Positions of the fields of a column among the fields of its group."""
        own = self.group_fields(column.group)
        return [own.index(i) for i in column.fields]

    @property
    def num_bits(self) -> int:
        """Number of bits of all groups."""
        return sum(own.num_bits for own in self.fields)

    @property
    def group_bits(self) -> tuple[int, ...]:
        """Number of bits of each group, in the order of `groups`: L^G of the paper."""
        return tuple(sum(self.fields[i].num_bits for i in self.group_fields(g)) for g in self.group_names)

    @cached_property
    def _merged(self) -> dict[str, Column]:
        merged: dict[str, Column] = {}
        for i, own in enumerate(self.fields):
            if not own.column:
                if own.name in merged:
                    raise ValueError(f"schema {self.name!r}: '{own.name}' is a field and a column of other fields")
                merged[own.name] = Column(own.name, own.values, (i,), own.group, display=own.display or own.name)
                continue
            so_far = merged.get(own.column, Column(own.column, (), (), own.group, True, own.display or own.column))
            if not so_far.is_colour or own.word in so_far.answers:
                raise ValueError(f"schema {self.name!r}: field '{own.name}' cannot be the class '{own.word}' of column "
                                 f"'{own.column}', which is another field or already has this class")
            merged[own.column] = Column(own.column, (*so_far.classes, own.word), (*so_far.fields, i), own.group, True,
                                        so_far.display)
        return merged

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The predicted attributes, in the order of `column_order` if it is given, else of the fields."""
        return tuple(self._merged[name] for name in self._column_order or self._merged)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        """Columns by their name and by their display name."""
        found = {column.name: column for column in self.columns}
        for column in self.columns:
            if found.setdefault(column.display, column) is not column:
                raise ValueError(f"schema {self.name!r}: two columns have the name '{column.display}'")
        return found

    def column(self, name: str) -> Column:
        """Return the column with a name or display name.

        Raises:
            ValueError: if there is no such column; with the nearest name and all allowed names.
        """
        if name not in self._by_name:
            allowed = [column.name if column.display == column.name else f"{column.name} ({column.display})"
                       for column in self.columns]
            raise ValueError(f"search: unknown attribute '{name}' of {self.name}"
                             f"{_nearest(name, self._by_name, allowed)}")
        return self._by_name[name]

    @cached_property
    def column_groups(self) -> tuple[str, ...]:
        """For each column, the name of its group."""
        return tuple(column.group for column in self.columns)

    @cached_property
    def column_sizes(self) -> tuple[int, ...]:
        """For each column, the number of classes C_m; in APR each column has one classifier."""
        return tuple(len(column.classes) for column in self.columns)

    @cached_property
    def fingerprint(self) -> int:
        """A hash of the schema, as an integer that fits in an int64 tensor of a checkpoint."""
        if self.groups == PERSON_GROUPS:
            return _fingerprint(self.field_names)
        return _fingerprint([json.dumps(self.to_dict() | {"display": None}, sort_keys=True)])

    @cached_property
    def column_fingerprint(self) -> int:
        """A hash of the columns and classes in their order, which is the order of attribute classifiers."""
        return _fingerprint([word for column in self.columns for word in (column.name, *column.classes)])

    def num_combinations(self, group: str) -> int:
        """Number of possible combinations of the values of a group: its semantic IDs in the space "product"."""
        sets = [column.fields for column in self.columns if column.is_colour and column.group == group]
        sets += [tuple(map(self.index, names)) for names in self.exclusive
                 if self.fields[self.index(names[0])].group == group]
        single = set(self.group_fields(group)) - {field for fields in sets for field in fields}
        return math.prod([len(fields) + 1 for fields in sets] + [len(self.fields[i].values) for i in single])

    @of_labels
    def bits(self, labels, group: str):
        """Convert labels to the bits of one group.

        Args:
            labels: int64 (N, A).
            group: name of the group.

        Returns:
            uint8 (N, L); zeros in rows with a missing label of the group.
        """
        parts = []
        for i in self.group_fields(group):
            value, size = labels[:, i, None], len(self.fields[i].values)
            parts.append(value == 1 if size == 2 else value == np.arange(size))
        bits = np.concatenate(parts, axis=1) & self.is_complete(labels, group)[:, None]  # (N, L)
        return bits.astype(np.uint8)

    @of_labels
    def labels_from_bits(self, bits, group: str):
        """Convert bits of one group to labels, uint8 (N, L) -> int64 (N, A); -1 in the fields of other groups."""
        labels = np.full((len(bits), len(self.fields)), MISSING, dtype=np.int64)
        own = self.group_fields(group)
        ends = np.cumsum([self.fields[i].num_bits for i in own])
        for i, part in zip(own, np.split(bits, ends[:-1], axis=1)):
            labels[:, i] = part[:, 0] if part.shape[1] == 1 else part.argmax(axis=1)
        return labels

    @of_labels
    def is_complete(self, labels, group: str):
        """Return whether all labels of a group are known, int64 (N, A) -> bool (N,)."""
        return (labels[:, list(self.group_fields(group))] != MISSING).all(axis=1)

    @of_labels
    def column_truth(self, labels):
        """Convert labels to the ground truth of attribute recognition.

        Args:
            labels: int64 (N, A).

        Returns:
            the ground truth, per column bool (N, C), one-hot, or for a colour column True for each colour that is yes;
            and bool (N, M), False where a label of the column is missing.
        """
        truth, known = [], []
        for column in self.columns:
            values = labels[:, list(column.fields)]  # (N, fields of the column)
            truth.append(values == (1 if column.is_colour else np.arange(len(column.classes))))  # (N, classes)
            known.append((values != MISSING).all(axis=1))
        return truth, np.stack(known, axis=1)

    @of_labels
    def column_answers(self, labels):
        """Return the class of each column, int64 (N, A) -> int64 (N, M).

        -1 for a garment without a listed colour; the first colour for a garment with several.
        """
        truth, _ = self.column_truth(labels)
        return np.stack([np.where(own.any(axis=1), own.argmax(axis=1), -1) for own in truth], axis=1)

    def describe(self, labels) -> dict[str, str]:
        """Convert one row of labels, int64 (A,), to text: {column: value}; unknown labels are omitted."""
        truth, known = self.column_truth(np.asarray(labels.tolist(), dtype=np.int64)[None])
        words = {}
        for m, column in enumerate(self.columns):
            if known[0, m]:
                yes = [word for word, flag in zip(column.classes, truth[m][0].tolist()) if flag]
                words[column.name] = " and ".join(yes) or NONE
        return words

    def parse(self, query: Mapping[str, str]) -> np.ndarray:
        """Convert a description to labels.

        Args:
            query: maps columns, by name or display name, to one of their values. A colour column also accepts "none",
                and several colours joined by " and "; colours that are not listed are labelled "no".

        Returns:
            int64 (A,), -1 for fields that are not described.

        Raises:
            ValueError: if a column or a value is unknown, or a column is given twice; with the allowed values.
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
        """Return a schema with a subset of the columns, and with the groups of these columns.

        Args:
            columns: names of the columns.
            name: name of the new schema; "" keeps the name.
        """
        fields = tuple(own for own in self.fields if (own.column or own.name) in columns)
        groups, names = {own.group for own in fields}, {own.name for own in fields}
        exclusive = (tuple(each for each in own if each in names) for own in self.exclusive)
        return AttributeSchema(name or self.name, fields, tuple(own for own in exclusive if len(own) > 1),
                               tuple(each for each in self._column_order if each in columns), self.junk_pids,
                               tuple(group for group in self.groups if group.name in groups))

    def to_dict(self) -> dict:
        """Return a dict that can be written as JSON, from which `from_dict` creates an equal schema."""
        fields = [asdict(own) for own in self.fields]
        display = {own["name"]: shown for own in fields if (shown := own.pop("display"))}
        return {"schema": self.name, "fields": fields, "columns": [column.name for column in self.columns],
                "layout": {"groups": [asdict(group) for group in self.groups],
                           "exclusive": [list(names) for names in self.exclusive],
                           "junk_pids": list(self.junk_pids), "display": display}}

    @classmethod
    def from_dict(cls, record: Mapping) -> AttributeSchema:
        """Create a schema from the result of `to_dict`.

        Records of earlier versions have no "layout"; their groups are those of the paper.
        """
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
    """Return which rows of labels agree with which descriptions.

    Args:
        rows: int (K, F), array or tensor.
        wanted: int (Q, F), -1 for a field that is not described.

    Returns:
        bool (Q, K).

    Examples:
        >>> agreeing(np.array([[0, 1], [1, 1]]), np.array([[-1, 1], [0, -1]])).tolist()
        [[True, True], [True, False]]
    """
    return ((wanted[:, None] == rows[None]) | (wanted[:, None] == MISSING)).all(2)


def _fingerprint(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:7], "big")


def _nearest(word: str, known: Iterable[str], allowed: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known name and all allowed names."""
    folded = {each.casefold(): each for each in known}
    near = [folded[each] for each in get_close_matches(str(word).casefold(), list(folded), n=1)]
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
    """Register a schema by its name, for use in configurations and datasets.

    Returns:
        the schema.

    Raises:
        ValueError: if a different schema with the same name is registered.
    """
    if SCHEMAS.setdefault(schema.name, schema) != schema:
        raise ValueError(f"schema '{schema.name}': a different schema with this name is registered; registered: "
                         f"{', '.join(SCHEMAS)}")
    return schema


def find_schema(name: str, key: str = "schema") -> AttributeSchema:
    """Return a registered schema by name, or create it from JSON text.

    Args:
        name: name of a registered schema, or the JSON of `AttributeSchema.to_dict`.
        key: name of the value in the error message, such as MODEL.CERBERUS.SCHEMA.

    Raises:
        ValueError: if no schema of this name is registered.

    Examples:
        >>> find_schema("market1501")
        AttributeSchema(market1501: 27 fields, 30 bits)
    """
    if name.startswith("{"):
        return AttributeSchema.from_dict(json.loads(name))
    if name not in SCHEMAS:
        raise ValueError(f"{key} is '{name}', expected one of {', '.join(SCHEMAS)}. The trainer sets it from the "
                         "dataset, or from the checkpoint of a trained model; register another schema with "
                         "cerberus_plugin.attributes.register_schema.")
    return SCHEMAS[name]
