"""Convert labels from one schema to another: match attributes and values by name, and set all others to unknown.

A label of the source schema is converted to statements about the attributes of the target schema, such as "the upper
colour is red" and "the upper colour is not blue". Labels of the target schema are derived from these statements. A
value that the source schema does not have implies nothing, with one exception that holds in the whole plugin: an
identity with one listed colour of a garment does not have the other colours, unless they are labelled as well.

Shapes: N rows of labels, F fields of the source, A fields of the target.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from .schema import MISSING, NONE, AttributeSchema, Column, Field, Group, of_labels

NO, YES = ("no", "false", "0", "n"), ("yes", "true", "1", "y")
NONE_WORDS = (NONE, "nothing", "-")
JOIN = " and "  # between several values of one label


def folded(word: str) -> str:
    """Normalise the case, spaces and Unicode form of a text.

    Examples:
        >>> folded("  Light   BLUE ")
        'light blue'
    """
    return " ".join(unicodedata.normalize("NFC", word).casefold().split())


def plain(word: str) -> str:
    """Normalise a text with `folded`, and all spellings of yes and of no to "yes" and "no".

    Examples:
        >>> plain("TRUE"), plain("0"), plain("Red")
        ('yes', 'no', 'red')
    """
    word = folded(word)
    return NO[0] if word in NO else YES[0] if word in YES else word


class Statement(NamedTuple):
    """A statement about a column of the target schema.

    Attributes:
        column: name of the column.
        value: one of its values; None for a value that the target schema does not have.
        holds: whether the column has the value; False means that it does not.
        whole: False for a "no" that is valid only if all source fields of the column say no. For example, "no handbag"
            alone does not imply "no bag".
    """

    column: str
    value: str | None
    holds: bool = True
    whole: bool = True


class Reading(NamedTuple):
    """The mapping from a source attribute to a column of the target schema.

    Attributes:
        target: the column.
        values: maps source values, normalised by `plain`, to a value of the target and to `Statement.whole`. Values
            that are absent imply nothing. None: map values of equal text to each other.
    """

    target: Column
    values: Mapping[str, tuple[str, bool]] | None = None


Readings = Mapping[str, Sequence[Reading]]  # by name of the source column


class Source(NamedTuple):
    """A source field with the statements that its values imply.

    Attributes:
        name: name of the attribute, for the report.
        values: int (N,), -1 where unknown.
        words: the values as text, for the report.
        says: statements about the target schema, for each value.
    """

    name: str
    values: np.ndarray
    words: Sequence[str]
    says: Sequence[Sequence[Statement]]


@dataclass(frozen=True)
class Matching:
    """Report of a conversion of labels: the matched attributes, and the omitted attributes and values.

    Attributes:
        data: name of the dataset.
        schema: name of the target schema.
        columns: maps each matched attribute of the schema to the names of the corresponding attributes of the dataset.
        only_data: attributes of the dataset that the schema does not have.
        only_schema: attributes of the schema that the dataset does not have.
        lost: by attribute of the dataset, the values that the schema does not have, with the number of their labels,
            which become unknown.
        absent: by attribute of the schema, the values that the dataset does not have.
    """

    data: str
    schema: str
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    only_data: tuple[str, ...] = ()
    only_schema: tuple[str, ...] = ()
    lost: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether no attribute and no value was omitted."""
        return not (self.only_data or self.only_schema or self.lost or self.absent)

    def lines(self) -> list[str]:
        """Format the report as lines of text."""
        total = len(self.columns) + len(self.only_schema)
        lines = [f"{len(self.columns)} of {total} attributes of {self.schema} are in {self.data}"]
        if self.only_schema:
            lines.append(f"unknown, because {self.data} does not have them: {', '.join(self.only_schema)}")
        if self.only_data:
            lines.append(f"ignored, because {self.schema} does not have them: {', '.join(self.only_data)}")
        lines += [f"'{name}': {', '.join(f'{word} ({count} labels)' for word, count in values.items())} not in "
                  f"{self.schema}; these labels are ignored" for name, values in self.lost.items()]
        lines += [f"'{name}': {self.data} has no {', '.join(values)}" for name, values in self.absent.items()]
        return lines


def relabel(labels, source: AttributeSchema, target: AttributeSchema, readings: Readings | None = None):
    """Convert labels from one schema to another.

    Values that the target schema does not have become unknown. The label "none of the listed colours" means "no" for
    the colours of the source schema; other colours of the target schema become unknown.

    Args:
        labels: int (N, F), array or tensor, of `source`.
        readings: mappings by name of the source column; None maps columns and values of equal names.

    Returns:
        labels int (N, A) of `target`, -1 where unknown, of the type of `labels`; and the report, a `Matching`.

    Examples:
        >>> near = AttributeSchema("near", (Field("hat", "head", ("no", "yes")),), groups=(Group("head", 0),))
        >>> far = AttributeSchema("far", (Field("hat", "head", ("yes", "no")),), groups=(Group("head", 0),))
        >>> relabel(np.array([[0], [1], [-1]]), near, far)[0].tolist()
        [[1], [0], [-1]]
    """
    report = None
    readings = by_name(source.columns, target) if readings is None else readings

    @of_labels
    def relabelled(schema: AttributeSchema, own):
        nonlocal report
        found, report = express(sources_of(own, source, readings), schema, source.name,
                                [column.name for column in source.columns], len(own))
        return found.astype(own.dtype)

    return relabelled(target, labels), report


def by_name(source: Iterable[Column], target: AttributeSchema) -> dict[str, list[Reading]]:
    """Create mappings for the source columns that the target schema has under the same names, see `matched`."""
    return {column.name: [Reading(target.column(name))] for name, column in matched(source, target.columns).items()}


def sources_of(labels: np.ndarray, source: AttributeSchema, readings: Readings) -> list[Source]:
    """Create a `Source` for each field with a mapping.

    Args:
        labels: int (N, F), of the schema `source`.
        readings: mappings by name of the source column.
    """
    found = []
    for column in source.columns:
        own = readings.get(column.name, ())
        if not own:
            continue
        if not column.is_colour:
            words = column.classes
            found.append(Source(column.name, labels[:, column.fields[0]], words,
                                [[say for reading in own for say in _cell(reading, [word], words)] for word in words]))
            continue
        for i, word in zip(column.fields, column.classes):
            found.append(Source(column.name, labels[:, i], (f"not {word}", word), (
                [say for reading in own for say in _absence(reading, [word])],
                [say for reading in own for say in _presence(reading, word)])))
    return found


def source_of_words(name: str, codes: np.ndarray, words: Sequence[str], readings: Sequence[Reading]) -> Source:
    """Create a `Source` from a table column of text values.

    Args:
        name: name of the attribute.
        codes: int (N,), for each row an index into `words`; -1 for an empty cell.
        words: the distinct cells. Several values in one cell are joined by " and ".
        readings: the mappings of the column.
    """
    known = {plain(word) for reading in readings for word in reading.values or reading.target.answers}
    several = any(reading.target.is_colour or reading.values for reading in readings)
    cells = [word.split(JOIN) if several and plain(word) not in known else [word] for word in words]
    values = list(dict.fromkeys(value for cell in cells for value in cell))
    return Source(name, codes, words, [[say for reading in readings for say in _cell(reading, cell, values)]
                                       for cell in cells])


def _cell(reading: Reading, held: Sequence[str], values: Sequence[str]) -> list[Statement]:
    """Statements implied by a cell that contains `held`, given all `values` of the dataset."""
    if not reading.target.is_colour:
        return [say for value in held for say in _presence(reading, value)]
    found = [value for value in held if folded(value) not in NONE_WORDS]
    return ([say for value in found for say in _presence(reading, value)]
            + _absence(reading, [value for value in values if value not in found]))


def _presence(reading: Reading, word: str) -> list[Statement]:
    value, whole = _value_of(reading, word)
    silent = reading.values is not None and (not reading.target.is_colour or plain(word) == NO[0])
    return [] if value is None and silent else [Statement(reading.target.name, value, whole=whole)]


def _absence(reading: Reading, words: Iterable[str]) -> list[Statement]:
    """Statements implied by the absence of these values."""
    target = reading.target
    if target.is_colour:
        values = [_value_of(reading, word)[0] for word in words]
        return [Statement(target.name, value, False) for value in dict.fromkeys(values) if value is not None]
    nothing = nothing_of(target)
    return [] if nothing is None or reading.values is not None else [Statement(target.name, nothing, whole=False)]


def _value_of(reading: Reading, word: str) -> tuple[str | None, bool]:
    """The target value that a source value is mapped to, and `Statement.whole`."""
    if reading.values is not None:
        return reading.values.get(plain(word), (None, True))
    target = reading.target
    if folded(word) in NONE_WORDS and not target.is_colour:
        return nothing_of(target), True
    return {plain(value): value for value in target.classes}.get(plain(word)), True


def nothing_of(column: Column) -> str | None:
    """Return the value of a column that denies the attribute, such as "no"; None if there is no such value.

    Examples:
        >>> nothing_of(Column("hat", ("none", "cap"), (0,), "head"))
        'none'
    """
    return next((value for value in column.classes if not column.is_colour
                 and (plain(value) == NO[0] or folded(value) in NONE_WORDS)), None)


def matched(source: Iterable[Column], target: Iterable[Column]) -> dict[str, Column]:
    """Match source columns to target columns by name, then by name or display name.

    Returns:
        from the name of each matched target column to its source column.

    Examples:
        >>> up = Column("up", ("long", "short"), (0,), "upper", display="sleeve length")
        >>> matched([Column("Sleeve  Length", ("short", "long"), (4,), "top")], [up])["up"].name
        'Sleeve  Length'
    """
    left, open_ = list(source), list(target)
    found: dict[str, Column] = {}
    for names in (lambda column: {folded(column.name)},
                  lambda column: {folded(column.name), folded(column.display or column.name)}):
        for own in list(open_):
            same = next((other for other in left if names(other) & names(own)), None)
            if same is not None:
                found[own.name] = same
                left.remove(same)
                open_.remove(own)
    return found


def express(sources: Sequence[Source], target: AttributeSchema, data: str, names: Sequence[str],
            size: int) -> tuple[np.ndarray, Matching]:
    """Derive labels of the target schema from source fields.

    If several source fields concern one value, the value is denied only if all of them deny it. Contradictory fields
    make the label unknown.

    Args:
        sources: fields with N values each.
        data: name of the dataset.
        names: names of all attributes of the dataset.
        size: N.

    Returns:
        labels int64 (N, A), -1 where unknown; and the report, a `Matching`.
    """
    labels = np.full((size, len(target.fields)), MISSING, np.int64)
    columns: dict[str, tuple[str, ...]] = {}
    absent: dict[str, tuple[str, ...]] = {}
    for column in target.columns:
        own = [source for source in sources if any(say.column == column.name for says in source.says for say in says)]
        if not own:
            continue
        columns[column.name] = tuple(dict.fromkeys(source.name for source in own))
        told = Counter(value for source in own for value in
                       {say.value for says in source.says for say in says if say.column == column.name})
        shared = sum(any(say.column == column.name and not say.whole for says in source.says for say in says)
                     for source in own)
        unsaid = tuple(value for value in column.classes if not told[value] and value != nothing_of(column))
        if unsaid:
            absent[column.name] = unsaid
        kinds, inverse = np.unique(np.stack([source.values for source in own], axis=1), axis=0, return_inverse=True)
        rows = [_labels(column, [say for source, value in zip(own, kind) if value != MISSING
                                 for say in source.says[value] if say.column == column.name], told, shared)
                for kind in kinds.tolist()]
        if rows:
            labels[:, list(column.fields)] = np.array(rows)[inverse.ravel()]
    return labels, Matching(
        data, target.name, columns,
        tuple(name for name in names if name not in {source.name for source in sources}),
        tuple(column.name for column in target.columns if column.name not in columns), _lost(sources), absent)


def _labels(column: Column, says: Sequence[Statement], told: Mapping[str | None, int], shared: int) -> list[int]:
    """Labels of the fields of a column.

    Args:
        says: statements about the column.
        told: number of source fields that concern each value.
        shared: number of source fields with statements that are not `whole`.
    """
    has = {say.value for say in says if say.holds}
    if column.is_colour:
        if has == {None}:  # a colour that the schema does not have
            return [MISSING] * len(column.classes)
        denied = Counter(say.value for say in says if not say.holds)
        return [1 if word in has else 0 if (denied[word] == told[word] if told[word] else has) else MISSING
                for word in column.classes]
    nothing = nothing_of(column)
    held = has - {nothing}
    denials = [say.whole for say in says if say.value == nothing and nothing is not None]
    if held:
        clear = len(held) == 1 and None not in held and not any(denials)
        return [column.classes.index(held.pop()) if clear else MISSING]
    if denials and (any(denials) or len(denials) == shared):
        return [column.classes.index(nothing)]
    return [MISSING]


def _lost(sources: Sequence[Source]) -> dict[str, dict[str, int]]:
    lost: dict[str, dict[str, int]] = {}
    for source in sources:
        for value, says in enumerate(source.says):
            count = int((source.values == value).sum())
            if count and any(say.value is None for say in says):
                lost.setdefault(source.name, {})[source.words[value]] = count
    return lost


class _Part:
    """A column of a merged schema under construction."""

    def __init__(self, column: Column, group: str, owner: int) -> None:
        self.name, self.display, self.group, self.owner = column.name, column.display, group, owner
        self.values: dict[str, str] = {}  # by `plain`
        self.fields: dict[str, str] = {}  # for a colour column: field names by value
        self.is_colour = column.is_colour
        self.sources: set[int] = set()

    @property
    def names(self) -> set[str]:
        return {folded(self.name), folded(self.display or self.name)}

    @property
    def yes_no(self) -> bool:
        return not self.is_colour and set(self.values) == {NO[0], YES[0]}

    def add(self, schema: AttributeSchema, column: Column, source: int, taken: set[str]) -> None:
        """Add the values of a column of the same name; existing values keep their spelling."""
        self.sources.add(source)
        if column.is_colour and not self.is_colour:
            self.is_colour = True
            self.values = {key: value for key, value in self.values.items() if key not in (*NO, *NONE_WORDS)}
            self.fields = {value: f"{self.name} {value}" for value in self.values.values()}
        for i, value in zip(column.fields if column.is_colour else column.fields * len(column.classes), column.classes):
            if plain(value) in self.values or self.is_colour and not column.is_colour and (
                    plain(value) == NO[0] or folded(value) in NONE_WORDS):
                continue
            self.values[plain(value)] = value
            name = schema.fields[i].name if column.is_colour else f"{self.name} {value}"
            if self.is_colour:
                self.fields[value] = f"{self.name} {value}" if name in taken else name
                taken.add(self.fields[value])


def merge(schemas: Sequence[AttributeSchema], adaptable: Collection[int] = ()) -> AttributeSchema:
    """Merge several schemas into one with all attributes and values, matched as in `relabel`.

    An attribute is placed in the group of the first schema that has it. A group is split by the sets of schemas that
    have its attributes, because a semantic ID requires the labels of all attributes of a group: without the split, a
    dataset that lacks one attribute of the group would provide no training signal for the others.

    Args:
        adaptable: indices of schemas with default groups; the regions of the other schemas take precedence.

    Raises:
        ValueError: if two groups of the same name have different regions, or an attribute has the values yes and no
            in one schema and other values in another.

    Examples:
        >>> def schema(name, *values):
        ...     return AttributeSchema(name, (Field("hat", "head", values),), groups=(Group("head", 0),))
        >>> merge([schema("a", "none", "cap"), schema("b", "none", "helmet")]).column("hat").classes
        ('none', 'cap', 'helmet')
    """
    schemas = list(schemas)
    order = sorted(range(len(schemas)), key=lambda k: (k in adaptable, k))
    first = schemas[order[0]]
    if all(schema == first for schema in schemas):
        return first
    groups: dict[str, tuple[Group, int]] = {}
    parts: list[_Part] = []
    taken = {own.name for schema in schemas for own in schema.fields if not own.column}
    for k in order:
        schema = schemas[k]
        for group in schema.groups:
            known, owner = groups.setdefault(group.name, (group, k))
            if known.strip != group.strip and k not in adaptable:
                raise ValueError(f"group '{group.name}' uses {_region(known)} in {schemas[owner].name} and "
                                 f"{_region(group)} in {schema.name}. Use the same region in both schema.yaml files, "
                                 "or rename one of the two groups.")
        found = matched(schema.columns, [Column(part.name, (), (), part.group, display=part.display)
                                         for part in parts])
        part_of = {column.name: part for part in parts for column in [found.get(part.name)] if column is not None}
        for column in schema.columns:
            part = part_of.get(column.name)
            if part is None:
                part = _Part(column, column.group, k)
                parts.append(part)
            elif part.yes_no != _is_yes_no(column):
                raise ValueError(f"'{part.name}' is one of {', '.join(part.values.values())} in "
                                 f"{schemas[part.owner].name} and one of {', '.join(column.classes)} in {schema.name}. "
                                 "Rename one of the two, or use the same values in both.")
            part.add(schema, column, k, taken)
    return _assembled(" and ".join(dict.fromkeys(schema.name for schema in schemas)), schemas, groups, parts)


def _is_yes_no(column: Column) -> bool:
    return not column.is_colour and {plain(value) for value in column.classes} == {NO[0], YES[0]}


def _region(group: Group) -> str:
    return "the whole image" if group.strip is None else f"strip {group.strip}"


def _assembled(name: str, schemas: Sequence[AttributeSchema], groups: Mapping[str, tuple[Group, int]],
               parts: Sequence[_Part]) -> AttributeSchema:
    """The merged schema of its columns, ordered by group and within a group by the set of source schemas."""
    made: list[Group] = []
    fields: list[Field] = []
    for group, _ in groups.values():
        own = [part for part in parts if part.group == group.name]
        # The part with the most source schemas comes first and keeps the name of the group.
        kinds = sorted(dict.fromkeys(frozenset(part.sources) for part in own), key=lambda kind: -len(kind))
        for number, kind in enumerate(kinds, start=1):
            named = group.name if number == 1 else f"{group.name}_{number}"
            while number > 1 and named in groups:
                named += "_"
            made.append(replace(group, name=named))
            for part in (part for part in own if part.sources == kind):
                if part.is_colour:
                    fields += [Field(part.fields[value], named, ("no", "yes"), part.name, value, part.display)
                               for value in part.values.values()]
                else:
                    fields.append(Field(part.name, named, tuple(part.values.values()), display=part.display))
    return AttributeSchema(name, tuple(fields), _exclusive(schemas, parts, {own.name: own.group for own in fields}),
                           groups=tuple(made))


def _exclusive(schemas: Sequence[AttributeSchema], parts: Sequence[_Part],
               group_of: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Sets of attributes of one group of which at most one is yes, if all schemas with two of them agree."""
    names = {folded(name): part.name for part in parts for name in part.names}
    said = [[{names[folded(name)] for name in own if folded(name) in names} for own in schema.exclusive]
            for schema in schemas]
    found: list[tuple[str, ...]] = []
    for own in (own for sets in said for own in sets):
        for group in dict.fromkeys(map(group_of.get, own)):
            inside = {name for name in own if group_of.get(name) == group}
            agreed = all(any(inside & has <= other for other in sets) for has, sets in (
                ({part.name for part in parts if k in part.sources}, said[k]) for k in range(len(schemas)))
                if len(inside & has) > 1)
            kept = tuple(name for name in group_of if name in inside)
            if group is not None and len(kept) > 1 and agreed and kept not in found:
                found.append(kept)
    return tuple(found)
