"""Labels of one dataset in the words of another: attributes are matched by name and by value, the rest is unknown.

What a label says becomes statements about the attributes of the other schema, "the upper colour is red", "it is not
blue", and these become labels again. Nothing is concluded from a value that a dataset does not know, with one
exception, as everywhere in the plugin: who has one listed colour has no other one unless it is said.

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
    """What words that differ in case or in spaces have in common."""
    return " ".join(unicodedata.normalize("NFC", word).casefold().split())


def plain(word: str) -> str:
    """A folded word, one for all that mean yes, and one for all that mean no."""
    word = folded(word)
    return NO[0] if word in NO else YES[0] if word in YES else word


class Statement(NamedTuple):
    """That a column of the target has a value, or that it has not; value None: it has one that the target lacks.

    `whole` is false of "no" that holds only if all fields which can say so do: no handbag is not yet no bag.
    """

    column: str
    value: str | None
    holds: bool = True
    whole: bool = True


class Reading(NamedTuple):
    """How an attribute is read: which column of the target it tells of, and which value stands for which.

    `values` maps `plain` words to values of the target and to whether they hold by themselves, see `Statement`; a value
    that it does not have says nothing. Values of the same words where None.
    """

    target: Column
    values: Mapping[str, tuple[str, bool]] | None = None


Readings = Mapping[str, Sequence[Reading]]  # by name of the source's column


class Source(NamedTuple):
    """A field of labels: values int (N,), -1 where not known, and what each of them says of the target.

    `name` and `words`, of the attribute and of its values, are for the report.
    """

    name: str
    values: np.ndarray
    words: Sequence[str]
    says: Sequence[Sequence[Statement]]


@dataclass(frozen=True)
class Matching:
    """What of a dataset's labels a schema takes, and what is left out on either side.

    Attributes:
        data, schema: names of the two.
        columns: attributes of the schema, each with the data's own names for it.
        only_data: attributes of the data that the schema lacks.
        only_schema: attributes of the schema that the data lacks.
        lost: values that the schema lacks by attribute of the data, with the number of labels, which are unknown.
        absent: values that the data lacks by attribute of the schema.
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
        """Whether nothing is left out."""
        return not (self.only_data or self.only_schema or self.lost or self.absent)

    def lines(self) -> list[str]:
        """What is left out, in words."""
        total = len(self.columns) + len(self.only_schema)
        lines = [f"{len(self.columns)} of {total} attributes of {self.schema} are in {self.data}"]
        if self.only_schema:
            lines.append(f"unknown, as {self.data} lacks them: {', '.join(self.only_schema)}")
        if self.only_data:
            lines.append(f"not read, as {self.schema} lacks them: {', '.join(self.only_data)}")
        lines += [f"'{name}': {', '.join(f'{word} ({count} labels)' for word, count in values.items())} unknown to "
                  f"{self.schema}, so these labels are left out" for name, values in self.lost.items()]
        lines += [f"'{name}': {self.data} has no {', '.join(values)}" for name, values in self.absent.items()]
        return lines


def relabel(labels, source: AttributeSchema, target: AttributeSchema, readings: Readings | None = None):
    """Labels of one schema in another.

    A value that the target lacks is unknown. "None of the listed colours" is no to the colours that the source lists,
    and leaves others unknown.

    Args:
        labels: int (N, A'), array or tensor, of `source`.
        readings: of columns of the source; by name where None.

    Returns:
        labels int (N, A) of `target`, -1 where unknown, of the kind and type given; and what is left out, `Matching`.
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
    """Readings of the columns that the target has under the same names."""
    return {column.name: [Reading(target.column(name))] for name, column in matched(source, target.columns).items()}


def sources_of(labels: np.ndarray, source: AttributeSchema, readings: Readings) -> list[Source]:
    """The fields of labels, int (N, A'), whose columns are read."""
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
    """A column of words: their numbers int (N,), -1 for an empty cell. Several values in one cell are joined by "and".
    """
    known = {plain(word) for reading in readings for word in reading.values or reading.target.answers}
    several = any(reading.target.is_colour or reading.values for reading in readings)
    cells = [word.split(JOIN) if several and plain(word) not in known else [word] for word in words]
    values = list(dict.fromkeys(value for cell in cells for value in cell))
    return Source(name, codes, words, [[say for reading in readings for say in _cell(reading, cell, values)]
                                       for cell in cells])


def _cell(reading: Reading, held: Sequence[str], values: Sequence[str]) -> list[Statement]:
    """What a cell with one or more of the values that the data knows says of a column."""
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
    """That none of these values is there."""
    target = reading.target
    if target.is_colour:
        values = [_value_of(reading, word)[0] for word in words]
        return [Statement(target.name, value, False) for value in dict.fromkeys(values) if value is not None]
    nothing = nothing_of(target)
    return [] if nothing is None or reading.values is not None else [Statement(target.name, nothing, whole=False)]


def _value_of(reading: Reading, word: str) -> tuple[str | None, bool]:
    """The value of the target that a word stands for, and whether it holds by itself."""
    if reading.values is not None:
        return reading.values.get(plain(word), (None, True))
    target = reading.target
    if folded(word) in NONE_WORDS and not target.is_colour:
        return nothing_of(target), True
    return {plain(value): value for value in target.classes}.get(plain(word)), True


def nothing_of(column: Column) -> str | None:
    """The value of a column that says that there is nothing of its kind, such as "no"; None where it has none."""
    return next((value for value in column.classes if not column.is_colour
                 and (plain(value) == NO[0] or folded(value) in NONE_WORDS)), None)


def matched(source: Iterable[Column], target: Iterable[Column]) -> dict[str, Column]:
    """Columns of the source by name of the target's; names count before display names."""
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
    """Labels int64 (N, A) from what fields say. Of several fields that tell of one value, all must deny it; fields that
    contradict each other leave the label unknown.

    Args:
        sources: of N values each.   data: its name.   names: of all of its attributes.   size: N.
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
    """Labels of a column's fields.

    Args:
        says: about it.   told: how many fields of the source tell of each value.
        shared: how many of them say no together alone.
    """
    has = {say.value for say in says if say.holds}
    if column.is_colour:
        if has == {None}:  # a colour, but one that the schema lacks
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
    """A column of a merged schema while it is put together."""

    def __init__(self, column: Column, group: str, owner: int) -> None:
        self.name, self.display, self.group, self.owner = column.name, column.display, group, owner
        self.values: dict[str, str] = {}  # by `plain`
        self.fields: dict[str, str] = {}  # names by value, of a column of which several values can be true
        self.is_colour = column.is_colour
        self.sources: set[int] = set()

    @property
    def names(self) -> set[str]:
        return {folded(self.name), folded(self.display or self.name)}

    @property
    def yes_no(self) -> bool:
        return not self.is_colour and set(self.values) == {NO[0], YES[0]}

    def add(self, schema: AttributeSchema, column: Column, source: int, taken: set[str]) -> None:
        """Add the values of a column of the same name; those that are there keep their words."""
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
    """One schema with the attributes and the values of several, matched as `relabel` does.

    An attribute is in the group of the first schema that has it. A group whose attributes not all of the same schemas
    have is split by who has them: semantic IDs are of groups that are known in full, and a set without one attribute
    would otherwise teach nothing about the others.

    Args:
        adaptable: places of schemas whose groups nobody has chosen: regions are those of the others.

    Raises:
        ValueError: if two groups of one name read different regions, or an attribute is yes or no in one schema and has
            other values in another one.
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
                raise ValueError(f"group '{group.name}' reads {_region(known)} in {schemas[owner].name} and "
                                 f"{_region(group)} in {schema.name}. Write one region in both schema.yaml, or give "
                                 "one of the two groups another name.")
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
                                 "Give one of the two another name, or write the same values in both.")
            part.add(schema, column, k, taken)
    return _assembled(" and ".join(dict.fromkeys(schema.name for schema in schemas)), schemas, groups, parts)


def _is_yes_no(column: Column) -> bool:
    return not column.is_colour and {plain(value) for value in column.classes} == {NO[0], YES[0]}


def _region(group: Group) -> str:
    return "the whole image" if group.strip is None else f"strip {group.strip}"


def _assembled(name: str, schemas: Sequence[AttributeSchema], groups: Mapping[str, tuple[Group, int]],
               parts: Sequence[_Part]) -> AttributeSchema:
    """The merged schema of its columns, group by group, those of the same sources together."""
    made: list[Group] = []
    fields: list[Field] = []
    for group, _ in groups.values():
        own = [part for part in parts if part.group == group.name]
        # The one that most schemas know first, which keeps the name.
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
    """Sets of attributes of one group of which at most one is yes, as far as every schema that has two of them says so.
    """
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
