"""An ontology: common attributes, and what the words of several data sets say of them, in YAML that people can extend.

    extends: common           # optional: the attributes and sets of another file; "common" is the one of this package
    schema:                   # the common attributes, in the form of schema.yaml; not beside extends
      groups: ...
    sets:
      site:                   # name of a schema, or of the folder where nobody has written one
        helmet: {hat: same}                                     # the same words
        sleeves: {short sleeves: {short: yes, long: no}}        # value: common value; others say nothing
        handbag: {bag: {yes: yes, no: no if all}}               # no bag only where all attributes with this rule say so
        tool: not mapped

A value may stand for a wider one, never for a narrower one: "no backpack" is not "no bag". Attributes that contradict
each other leave the common one unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from ..attributes.matching import Reading, Readings, folded, nothing_of, plain
from ..attributes.schema import AttributeSchema, Column
from .schema_file import SchemaReader, TextLoader, read_yaml

COMMON = "common"  # the ontology of this package
PATH = Path(__file__).parent / "ontology.yaml"
SAME, NOT_MAPPED = "same", "not mapped"
IF_ALL = " if all"  # after "no"


class _Marked(str):
    """A text that knows its line."""

    line = 0


class _MarkedLoader(TextLoader):
    """Texts know their lines."""


def _marked(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Marked:
    text = _Marked(loader.construct_scalar(node))
    text.line = node.start_mark.line + 1
    return text


_MarkedLoader.add_constructor("tag:yaml.org,2002:str", _marked)


@dataclass(frozen=True)
class Ontology:
    """Common attributes, and how each data set's are read.

    Attributes:
        path: of the file.
        schema: the common attributes.
        sets: by name of a data set and name of its attribute: the readings, none where it is not mapped; and the file
            that says so.
    """

    path: str
    schema: AttributeSchema
    sets: Mapping[str, tuple[Mapping[str, Sequence[Reading]], str]]

    def has(self, name: str) -> bool:
        return name in self.sets

    def readings(self, name: str, columns: Sequence[Column]) -> Readings:
        """How the columns of a data set are read.

        Args:
            columns: of the data; the values of those without fields are not checked, since nobody has listed them.

        Raises:
            ValueError: with the line of an attribute or a value that the data does not have.
        """
        own, path = self.sets[name]
        known = {folded(column.name): column for column in columns}
        found = {}
        for attribute, readings in own.items():
            column = known.get(folded(attribute))
            if column is None:
                _refuse(path, attribute, f"data set '{name}' has no attribute '{attribute}'", known)
            values = {plain(value) for value in column.answers}
            for value in (value for reading in readings for value in reading.values or ()):
                if plain(value) not in values and column.fields:
                    _refuse(path, value, f"attribute '{attribute}' of data set '{name}' has no value '{value}'",
                            column.answers)
            if readings:
                found[column.name] = [reading if reading.values is None else reading._replace(
                    values={plain(value): told for value, told in reading.values.items()}) for reading in readings]
        return found

    def check_set(self, name: str) -> None:
        """Refuse a data set that the ontology does not have.

        Raises:
            ValueError: with the names that it has.
        """
        if name not in self.sets:
            near = get_close_matches(name, self.sets, n=1)
            line = f", line {next(key for key in self.sets if key == near[0]).line}" if near else ""
            raise ValueError(f"{self.path}: has no data set '{name}'; its sets are {', '.join(self.sets)}"
                             + (f"; did you mean '{near[0]}'{line}?" if near else ".")
                             + f" Add '{name}' under sets, in a file with `extends: {COMMON}` and DATASETS.ONTOLOGY "
                             "its path.")


def read_ontology(path: str | Path = COMMON) -> Ontology:
    """Read an ontology.

    Args:
        path: of the file; "common" for the one of this package.

    Raises:
        FileNotFoundError, ValueError: with the file, the line, what is expected there, and a remedy.
    """
    return _read(PATH if str(path) == COMMON else Path(path), ())


def _read(path: Path, before: tuple[Path, ...]) -> Ontology:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ontology. Name a YAML file, or '{COMMON}' for the one of this "
                                "package.")
    if path.resolve() in before:
        raise ValueError(f"{path}: extends itself. Delete 'extends'.")
    record = read_yaml(path, _MarkedLoader)
    reader = SchemaReader(path)
    if isinstance(record, dict) and "extends" in record:
        record = reader.mapping(record, "the file", ("extends", "sets"), ())
        name = reader.word(record["extends"], "extends")
        base = _read(PATH if name == COMMON else path.parent / name, (*before, path.resolve()))
        schema, sets = base.schema, dict(base.sets)
    else:
        record = reader.mapping(record, "the file", ("schema", "sets"), ())
        schema, sets = reader.wording(record["schema"]).schema, {}
    own = record["sets"]
    if not isinstance(own, dict) or not own:
        reader.refuse("sets: expected data sets by name, each with its attributes")
    for name, attributes in own.items():
        if not isinstance(attributes, dict) or not attributes:
            _refuse(path, name, f"data set '{name}' has no attributes", ())
        sets[name] = {attribute: _readings(path, schema, attribute, rule) for attribute, rule in attributes.items()
                      }, str(path)
    return Ontology(str(path), schema, sets)


def _readings(path: Path, schema: AttributeSchema, attribute: _Marked, rule) -> list[Reading]:
    if isinstance(rule, str) and folded(rule) == NOT_MAPPED:
        return []
    if not isinstance(rule, dict) or not rule:
        _refuse(path, attribute, f"'{attribute}' is {rule!r:.60}, expected '{NOT_MAPPED}' or common attributes with "
                f"'{SAME}' or their values", ())
    columns = {folded(word): column for column in schema.columns for word in (column.name, column.display)}
    found = []
    for target, values in rule.items():
        column = columns.get(folded(target))
        if column is None:
            _refuse(path, target, f"there is no common attribute '{target}'", [c.name for c in schema.columns])
        if isinstance(values, str) and folded(values) == SAME:
            found.append(Reading(column))
            continue
        if not isinstance(values, dict) or not values:
            _refuse(path, target, f"'{target}' is {values!r:.60}, expected '{SAME}', or values", ())
        found.append(Reading(column, {value: _told(path, column, meant) for value, meant in values.items()}))
    return found


def _told(path: Path, column: Column, meant) -> tuple[str, bool]:
    if not isinstance(meant, str):
        raise ValueError(f"{path}: a value of '{column.name}' is {meant!r:.60}, expected one of "
                         f"{', '.join(column.classes)}")
    word = folded(meant).removesuffix(IF_ALL)
    value = next((value for value in column.classes if plain(value) == plain(word)), None)
    if value is None or word != folded(meant) and value != nothing_of(column):
        nothing = nothing_of(column)
        _refuse(path, meant, f"'{column.name}' cannot be '{meant}'",
                (*column.classes, *([nothing + IF_ALL] if nothing else [])))
    return value, word == folded(meant)


def _refuse(path: str | Path, at: str, what: str, allowed) -> None:
    """Raise ValueError with the line of a text."""
    near = get_close_matches(str(at), list(allowed), n=1)
    raise ValueError(f"{path}, line {getattr(at, 'line', '?')}: {what}"
                     + (f"; did you mean '{near[0]}'?" if near else ".")
                     + (f" Allowed: {', '.join(allowed)}." if allowed else " Correct or delete it."))
