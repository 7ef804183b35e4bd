"""Read an ontology: common attributes, and how the attributes of several datasets map to them, as extensible YAML.

    extends: common           # optional: include another file; "common" is the ontology of this package
    schema:                   # the common attributes, in the format of schema.yaml; not together with extends
      groups: ...
    sets:
      site:                   # name of a schema; without schema.yaml, the name of the folder
        helmet: {hat: same}                                     # the same values
        sleeves: {short sleeves: {short: yes, long: no}}        # value: common value; other values become unknown
        handbag: {bag: {yes: yes, no: no if all}}               # "no bag" only if all attributes with this rule agree
        tool: not mapped

A value may map to a more general value, but not to a more specific one: "no backpack" does not mean "no bag". If two
attributes of an image contradict each other, the common attribute is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import yaml

from ..attributes.matching import Reading, Readings, folded, nothing_of, plain
from ..attributes.schema import AttributeSchema, Column
from .schema_file import SchemaReader, TextLoader, read_yaml

COMMON = "common"  # the ontology of this package
PATH = Path(__file__).parent / "ontology.yaml"
SAME, NOT_MAPPED = "same", "not mapped"
IF_ALL = " if all"  # after "no"


class _Marked(str):
    """A text with the number of its line."""

    line = 0


class _MarkedLoader(TextLoader):
    """Loads texts as `_Marked`."""


def _marked(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Marked:
    text = _Marked(loader.construct_scalar(node))
    text.line = node.start_mark.line + 1
    return text


_MarkedLoader.add_constructor("tag:yaml.org,2002:str", _marked)


@dataclass(frozen=True)
class Ontology:
    """Common attributes, and the mapping of each dataset to them.

    Attributes:
        path: path of the file.
        schema: the common attributes.
        sets: for each dataset, by name: its mapping and the file that contains it. The mapping gives the readings of
            each attribute by name; they are empty for an attribute that is not mapped.
    """

    path: str
    schema: AttributeSchema
    sets: Mapping[str, tuple[Mapping[str, Sequence[Reading]], str]]

    def has(self, name: str) -> bool:
        """Return whether the ontology contains a dataset of this name."""
        return name in self.sets

    def readings(self, name: str, columns: Sequence[Column]) -> Readings:
        """Return the readings of a dataset's columns.

        Args:
            name: name of the dataset.
            columns: columns of the dataset; for columns without fields, values are not checked, since no schema lists
                them.

        Returns:
            readings by name of the column; columns that are not mapped are omitted.

        Raises:
            ValueError: if the ontology names an attribute or value that the dataset does not have, with its line.
        """
        own, path = self.sets[name]
        known = {folded(column.name): column for column in columns}
        found = {}
        for attribute, readings in own.items():
            column = known.get(folded(attribute))
            if column is None:
                _refuse(path, attribute, f"dataset '{name}' has no attribute '{attribute}'", known)
            values = {plain(value) for value in column.answers}
            for value in (value for reading in readings for value in reading.values or ()):
                if plain(value) not in values and column.fields:
                    _refuse(path, value, f"attribute '{attribute}' of dataset '{name}' has no value '{value}'",
                            column.answers)
            if readings:
                found[column.name] = [reading if reading.values is None else reading._replace(
                    values={plain(value): common for value, common in reading.values.items()}) for reading in readings]
        return found

    def check_set(self, name: str) -> None:
        """Check that the ontology contains a dataset.

        Raises:
            ValueError: if it does not, with the names of its datasets.
        """
        if name not in self.sets:
            near = get_close_matches(name, self.sets, n=1)
            lines = [getattr(key, "line", "?") for key in self.sets if key in near]
            raise ValueError(f"{self.path}: has no dataset '{name}'; it has {', '.join(self.sets)}"
                             + (f"; did you mean '{near[0]}', line {lines[0]}?" if near else ".")
                             + f" To add '{name}', write a file with `extends: {COMMON}` and '{name}' under sets, and "
                             "set DATASETS.ONTOLOGY to its path.")


def read_ontology(path: str | Path = COMMON) -> Ontology:
    """Read an ontology.

    Args:
        path: path of a YAML file, or "common" for the ontology of this package.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if its contents are wrong, with the line, the expected contents, and a remedy.
    """
    return _read(path_of(path), ())


def path_of(name: str | Path) -> Path:
    """Return the path of an ontology file; "common" is the file of this package."""
    return PATH if str(name) == COMMON else Path(name)


def _read(path: Path, before: tuple[Path, ...]) -> Ontology:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ontology. Give a YAML file, or '{COMMON}' for the ontology of the "
                                "package.")
    if path.resolve() in before:
        raise ValueError(f"{path}: extends itself, directly or through another file. Delete 'extends'.")
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
        reader.refuse("sets: expected datasets by name, each with its attributes")
    for name, attributes in own.items():
        if not isinstance(attributes, dict) or not attributes:
            _refuse(path, name, f"dataset '{name}' has no attributes", ())
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
        found.append(Reading(column, {value: _parse_value(path, column, meant) for value, meant in values.items()}))
    return found


def _parse_value(path: Path, column: Column, meant) -> tuple[str, bool]:
    """Return a common value, and whether it holds without "if all"."""
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


def _refuse(path: str | Path, at: str, what: str, allowed: Iterable[str]) -> NoReturn:
    """Raise ValueError with the line of the text `at` and the most similar allowed text."""
    near = get_close_matches(str(at), list(allowed), n=1)
    raise ValueError(f"{path}, line {getattr(at, 'line', '?')}: {what}"
                     + (f"; did you mean '{near[0]}'?" if near else ".")
                     + (f" Allowed: {', '.join(allowed)}." if allowed else " Correct or delete it."))
