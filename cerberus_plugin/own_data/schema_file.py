"""`schema.yaml`: the groups and attributes of a dataset, written by the user or inferred from the values in its tables.

    name: site
    groups:
      - name: head
        region: 0           # strip of the image, counted from the top: 0, 1, ...; or whole
        lasting: no         # whether it stays the same when a person changes clothes
        attributes:
          - name: helmet
            values: [no, yes]
          - name: vest colour
            display: colour of the vest     # optional
            values: [red, orange]
            none: [none]    # optional: texts that mean none of the values; allows several in a cell, "red and orange"
      - ...
    exclusive:              # optional: attributes of which at most one is yes
      - [backpack, bag]
    nobody: ["0000"]        # optional: persons in the gallery that are distractors, such as detections of background
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import yaml

from ..attributes.matching import JOIN, NO, NONE_WORDS, YES
from ..attributes.matching import folded as folded
from ..attributes.schema import MISSING, NONE, AttributeSchema, Field, Group
from ..utils.files import decode_text
from ..utils.text import counted
from .tables import EMPTY, Words, text_of

FILE_NAME = "schema.yaml"
MOST_VALUES = 50  # largest number of values of an inferred attribute
FEW_VALUES = 10  # number of values up to which all people may have different ones
FEW_COMBINATIONS = 1000  # largest number of combinations of values of an inferred group with several attributes
MOST_LETTERS = 40  # mean length of values above which a column is free text
MOST_BYTES = 2**20
WHOLE = "whole"
# Words in column names that determine the group of an inferred attribute: group, strip, lasting, words.
PLACES = (("head", 0, False, "hat helmet cap hood hair head glasses mask face beard scarf"),
          ("upper", 1, False, "top upper shirt jacket coat vest sleeve sweater blouse"),
          ("lower", 2, False, "bottom lower trouser trousers pants jeans skirt shorts leg legs shoe shoes boots"),
          ("person", None, True, "gender sex age height build body"))
OTHER = "other"  # group of the attributes without such a word


@dataclass(frozen=True)
class Wording:
    """A schema, and the texts of tables that its attributes do not contain.

    Attributes:
        schema: the schema as models use it.
        none: by column, the texts that mean none of the values.
        path: path of the file, "" for an inferred schema.
        left_out: by column, the reason why it is not used as an attribute, with a remedy.
        nobody: persons that are distractors.
    """

    schema: AttributeSchema
    none: Mapping[str, tuple[str, ...]]
    path: str = ""
    left_out: Mapping[str, str] | None = None
    nobody: tuple[str, ...] = ()

    def labels_of(self, name: str, word: str) -> np.ndarray:
        """Return the labels of a cell.

        Args:
            name: the column.
            word: text of the cell; several values joined by `JOIN` in a column that allows them.

        Returns:
            int64 (A,), -1 for the fields of other columns.

        Raises:
            ValueError: if the column has no such value.
        """
        column = self.schema.column(name)
        answers = {folded(answer): answer for answer in column.answers} if column.is_colour else {
            folded(answer): answer for answer in column.classes}
        answers |= {folded(none): NONE for none in self.none.get(name, ())}
        words = [folded(part) for part in word.split(JOIN)] if column.is_colour and folded(word) not in answers else [
            folded(word)]
        unknown = [part for part in words if part not in answers]
        if unknown:
            near = get_close_matches(unknown[0], answers, n=1)
            raise ValueError(f"'{name}' is '{word}', expected one of {', '.join(dict.fromkeys(answers.values()))}"
                             + (f"; did you mean '{answers[near[0]]}'?" if near else "."))
        return self.schema.parse({name: JOIN.join(dict.fromkeys(answers[part] for part in words))})


class NoAttributes(ValueError):
    """No column can be used as an attribute."""


class TextLoader(yaml.SafeLoader):
    """YAML in which all scalars are text, so that `no` is not a boolean; aliases and repeated keys are rejected."""

    yaml_implicit_resolvers: dict = {}

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # nested aliases can expand to more than fits into memory
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported",
                                              self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, (key, (place, _)) in enumerate(zip(keys, node.value)):
            if not isinstance(key, str) or key in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is repeated or is not text",
                                                        place.start_mark)
        return super().construct_mapping(node, deep)


def read_schema(path: str | Path) -> Wording:
    """Read `schema.yaml`.

    Args:
        path: path of the file.

    Raises:
        ValueError: if it is wrong, with the place in the file, the expected contents, and a remedy.
    """
    path = Path(path)
    return SchemaReader(path).wording(read_yaml(path))


def read_yaml(path: Path, loader: type[yaml.SafeLoader] | None = None):
    """Read a YAML file of texts, lists and mappings.

    Args:
        path: path of the file.
        loader: `TextLoader` or a class derived from it.

    Returns:
        the contents.

    Raises:
        ValueError: if the file is too large or not valid, with the line and a remedy.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: is larger than {MOST_BYTES} bytes. Is this the right file?")
    try:
        return yaml.load(decode_text(path, path.read_bytes()), loader or TextLoader)  # noqa: S506  a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise ValueError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error}). Correct it, or delete "
                         "the file: `cerberus check` writes a new one from the values in the tables.") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not valid YAML (too deeply nested). Correct it.") from error


class SchemaReader:
    """Turns the contents of a schema file into a `Wording`; errors name the file and the place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, what: str):
        """Raise ValueError with the path of the file."""
        raise ValueError(f"{self.path}: {what}")

    def wording(self, record) -> Wording:
        """Return the schema of a mapping with the keys of `schema.yaml`."""
        record = self.mapping(record, "the file", ("groups",), ("name", "exclusive", "nobody"))
        groups, fields = [], []
        none: dict[str, tuple[str, ...]] = {}
        for number, own in enumerate(self._list(record["groups"], "groups"), start=1):
            own = self.mapping(own, f"group {number}", ("name", "region", "attributes"), ("lasting",))
            name = self.word(own["name"], f"the name of group {number}")
            groups.append(Group(name, self._strip(own["region"], name), self._flag(own.get("lasting", "no"), name)))
            attributes = self._list(own["attributes"], f"attributes of group '{name}'")
            for place, attribute in enumerate(attributes, start=1):
                fields += self._fields(attribute, f"attribute {place} of group '{name}'", name, none)
        exclusive = tuple(tuple(self.word(name, "exclusive") for name in self._list(names, "a set of exclusive"))
                          for names in self._list(record.get("exclusive", []), "exclusive", empty=True))
        yes_no = {own.name for own in fields if len(own.values) == 2 and not own.column}
        for name in (name for names in exclusive for name in names):
            if name not in yes_no:
                self.refuse(f"exclusive contains '{name}', expected attributes with two values, such as [no, yes]. "
                            "Correct the file.")
        try:
            schema = AttributeSchema(self.word(record.get("name", self.path.resolve().parent.name), "name"),
                                     tuple(fields), exclusive, groups=tuple(groups))
        except ValueError as error:
            self.refuse(f"{error}. Correct the file.")
        nobody = tuple(self.word(name, "nobody")
                       for name in self._list(record.get("nobody", []), "nobody", empty=True))
        return Wording(schema, none, str(self.path), nobody=nobody)

    def _fields(self, attribute, where: str, group: str, none: dict) -> list[Field]:
        attribute = self.mapping(attribute, where, ("name", "values"), ("display", "none"))
        name = self.word(attribute["name"], f"the name of {where}")
        values = [self.word(value, f"values of '{name}'") for value in
                  self._list(attribute["values"], f"values of '{name}'")]
        display = self.word(attribute["display"], f"display of '{name}'") if "display" in attribute else ""
        nothing = attribute.get("none", [])
        nothing = [self.word(word, f"none of '{name}'") for word in
                   (nothing if isinstance(nothing, list) else [nothing])]
        seen: set[str] = set()
        for value in (*values, *nothing):
            if folded(value) in seen:
                self.refuse(f"'{name}' has the value '{value}' twice, ignoring case. Delete one of the two.")
            seen.add(folded(value))
        if "none" not in attribute:
            return [Field(name, group, tuple(values), display=display)]
        none[name] = tuple(nothing)
        return [Field(f"{name} {value}", group, ("no", "yes"), name, value, display) for value in values]

    def _strip(self, region, group: str) -> int | None:
        if region == WHOLE:
            return None
        if not isinstance(region, str) or not re.fullmatch(r"\d{1,2}", region):
            self.refuse(f"region of group '{group}' is {text_of(region)}, expected 0 (the uppermost strip), 1, ..., or "
                        f"{WHOLE}. Correct the file.")
        return int(region)

    def _flag(self, value, group: str) -> bool:
        if not isinstance(value, str) or value.casefold() not in ("no", "yes", "false", "true"):
            self.refuse(f"lasting of group '{group}' is {text_of(value)}, expected yes or no. Correct the file.")
        return value.casefold() in ("yes", "true")

    def mapping(self, value, what: str, required: Sequence[str], optional: Sequence[str]) -> dict:
        """Return a mapping after checking its keys; `what` names it in errors."""
        if not isinstance(value, dict):
            self.refuse(f"{what} is {text_of(value)}, expected a mapping with {', '.join(required)}. Correct the "
                        "file.")
        for name in (name for name in required if name not in value):
            self.refuse(f"{what} has no '{name}', expected {', '.join((*required, *optional))}. Add it.")
        for name in (name for name in value if name not in (*required, *optional)):
            self.refuse(f"{what} has the unknown key '{name}', expected {', '.join((*required, *optional))}. Correct "
                        "or delete it.")
        return value

    def _list(self, value, what: str, empty: bool = False) -> list:
        if not isinstance(value, list) or not (value or empty):
            self.refuse(f"{what}: is {text_of(value)}, expected a list with at least one entry. Correct the file.")
        return value

    def word(self, value, what: str) -> str:
        """Return a text with single spaces after checking that it is not empty; `what` names it in errors."""
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"{what}: is {text_of(value)}, expected text. Correct the file.")
        return " ".join(value.split())


def infer_schema(name: str, columns: Mapping[str, Words], people: np.ndarray | None = None) -> Wording:
    """Infer a schema from the values of columns.

    The group of an attribute follows from words in its name, such as "hat" or "trousers".

    Args:
        name: name of the schema.
        columns: columns of N rows, by name.
        people: int (N,), the person of each row; None if identities are unknown.

    Returns:
        the schema; its `left_out` contains the columns that are not used as attributes.

    Raises:
        NoAttributes: if no column can be used as an attribute.
    """
    left_out, kept = {}, {}
    for column, words in columns.items():
        reason = _no_attribute(words) or _of_one_each(words, people)
        if reason:
            left_out[column] = reason
        else:
            kept[column] = words
    if not kept:
        raise NoAttributes("no column can be used as an attribute"
                           + "".join(f"; '{column}' {reason}" for column, reason in left_out.items()))
    fields: list[Field] = []
    none = {}
    groups = _groups({column: len(words.words) + 1 for column, words in kept.items()})
    for group, own in groups.items():
        for column in own:
            values = _ordered(kept[column].words)
            nothing = [value for value in values if folded(value) in NONE_WORDS]
            several = any(JOIN in value and all(folded(part) in map(folded, values) for part in value.split(JOIN))
                          for value in values)
            if several or (nothing and len(values) > 2):
                none[column] = tuple(nothing)
                fields += [Field(f"{column} {value}", group.name, ("no", "yes"), column, value) for value in values
                           if value not in nothing and JOIN not in value]
            else:
                fields.append(Field(column, group.name, tuple(values)))
    return Wording(AttributeSchema(name, tuple(fields), groups=tuple(groups)), none, left_out=left_out)


def _no_attribute(column: Words) -> str:
    """The reason why a column is not used as an attribute, with a remedy; "" if it is."""
    words = column.words
    listed = f"list its values in {FILE_NAME} if it is an attribute"
    if len(words) < 2:
        return (f"contains only the value '{words[0]}'" if words else "is empty") + (
            "; empty cells mean unknown, so write 'no' where the attribute is absent")
    if all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", word) for word in words) and not set(words) <= {"0", "1"}:
        return f"contains numbers, such as {words[0]}; write ranges as text, such as 'young' and 'old', or {listed}"
    if all(re.search(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|\d{1,2}:\d{2}", word) for word in words):
        return f"contains dates or times, such as {words[0]}; rename it to 'time' if it is the time of the image"
    if np.mean([len(word) for word in words]) > MOST_LETTERS:
        return f"contains free text, such as '{words[0][:MOST_LETTERS]}...'; write a column for each fact in it"
    if len(words) > MOST_VALUES:
        return f"has {len(words)} different values, more than {MOST_VALUES}; merge them into fewer values, or {listed}"
    return ""


def _of_one_each(column: Words, people: np.ndarray | None) -> str:
    """The reason why a column is probably a name or a remark, with a remedy; "" if it is not."""
    if len(column.words) <= FEW_VALUES:
        return ""
    filled = column.codes != EMPTY
    count = int(filled.sum()) if people is None else len(np.unique(people[filled]))
    if len(column.words) <= count / 2:
        return ""
    units = counted(count, "image") if people is None else counted(count, "person", "people")
    return (f"has {len(column.words)} different values for {units}, like a name or a remark; merge them into fewer "
            f"values, or list its values in {FILE_NAME} if it is an attribute")


def _ordered(words: Sequence[str]) -> list[str]:
    """Values sorted, with no before yes."""
    return sorted(words, key=lambda word: (folded(word) not in NO, folded(word) in YES, folded(word), word))


def _groups(columns: Mapping[str, int]) -> dict[Group, list[str]]:
    """Attributes by group; for Cerberus, at least one group is of a strip and one of the whole image, if possible.

    Args:
        columns: number of values of each column, including "none".
    """
    places: dict[str, list[str]] = {name: [] for name, *_ in (*PLACES, (OTHER,))}
    for column in columns:
        parts = set(re.findall(r"[^\W\d_]+", column.casefold()))
        places[next((name for name, _, _, words in PLACES if parts & set(words.split())), OTHER)].append(column)
    places = {name: own for name, own in places.items() if own}
    known = {name: (strip is None, lasting) for name, strip, lasting, _ in PLACES} | {OTHER: (True, False)}
    whole = {name: known[name][0] for name in places}
    if len(places) == 1 and len(columns) > 1:
        (name, own), = places.items()
        places = {name: own[:-1], "more": own[-1:]}
        whole["more"] = whole[name]
    if len(set(whole.values())) == 1 and len(places) > 1:
        last = list(places)[-1]
        whole[last] = not whole[last]
    strips = [name for name in places if not whole[name]]
    return {Group(f"{name}_{part}" if part > 1 else name, None if whole[name] else strips.index(name),
                  known.get(name, (True, False))[1]): own
            for name, all_own in places.items() for part, own in enumerate(_small_parts(all_own, columns), start=1)}


def _small_parts(names: Sequence[str], answers: Mapping[str, int]) -> list[list[str]]:
    """Divide names into parts whose values have at most `FEW_COMBINATIONS` combinations, or of one name."""
    parts: list[list[str]] = []
    combinations = FEW_COMBINATIONS
    for name in names:
        combinations *= answers[name]
        if combinations > FEW_COMBINATIONS:
            parts.append([])
            combinations = answers[name]
        parts[-1].append(name)
    return parts


def schema_text(wording: Wording) -> str:
    """Format a schema as the text of `schema.yaml`, with comments."""
    schema = wording.schema
    groups = []
    for group in schema.groups:
        attributes = []
        for column in schema.columns:
            if column.group == group.name:
                own = {"name": column.name, "values": list(column.classes)}
                if column.display != column.name:
                    own["display"] = column.display
                if column.is_colour:
                    own["none"] = list(wording.none.get(column.name, ()))
                attributes.append(own)
        groups.append({"name": group.name, "region": WHOLE if group.strip is None else group.strip,
                       "lasting": "yes" if group.lasting else "no", "attributes": attributes})
    record: dict = {"name": schema.name, "groups": groups}
    if schema.exclusive:
        record["exclusive"] = [list(names) for names in schema.exclusive]
    if wording.nobody:
        record["nobody"] = list(wording.nobody)
    text = yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    left_out = "".join(f"# '{_one_line(name)}' is omitted: it {_one_line(reason)}\n" for name, reason in
                       (wording.left_out or {}).items())
    return ("# Attributes of this dataset; check and correct them. region: 0 is the uppermost of equal strips of the\n"
            "# image; whole: the whole image. lasting: stays the same when a person changes clothes.\n"
            + left_out + text)


class _Dumper(yaml.SafeDumper):
    """Writes lists of texts on one line."""

    def represent_sequence(self, tag, sequence, flow_style=None):
        return super().represent_sequence(tag, sequence, flow_style=all(isinstance(each, str) for each in sequence))


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def encode(wording: Wording, columns: Mapping[str, Words], refuse) -> np.ndarray:
    """Return the labels of rows of text.

    Args:
        wording: the schema, with A label fields.
        columns: columns of N rows, by name; columns that are not in the schema are ignored.
        refuse: called with the column, the text and the reason if a text is not a value of its column; must raise.

    Returns:
        int16 (N, A), -1 for unknown labels.
    """
    size = len(next(iter(columns.values())))
    labels = np.full((size, len(wording.schema.fields)), MISSING, np.int16)
    for column in wording.schema.columns:
        words = columns.get(column.name)
        if words is None:
            continue
        rows = []
        for word in words.words:
            try:
                rows.append(wording.labels_of(column.name, word)[list(column.fields)])
            except ValueError as error:
                refuse(column.name, word, str(error).removeprefix("search: "))
        rows.append(np.full(len(column.fields), MISSING))  # for empty cells, whose code is -1
        labels[:, list(column.fields)] = np.stack(rows).astype(np.int16)[words.codes]
    return labels
