"""`labels_overlay.csv`: corrections of labels, kept beside the tables that they correct, which stay as they are.

    file_name,person,outfit,attribute,value,was
    a/0001.jpg,,,hat,yes,no        one picture
    ,p7,,gender,female,male        all pictures of a person whose label is "male"
    ,p7,winter,coat,,red           those of one outfit; an empty value is unknown
    a/0002.jpg,,,person,p9,p7      the picture shows another person
    ,p8,,person,p7,p8              two people are one

Pictures are moved first: other rows of a person are of the pictures that then show this person. `was` is the label that
a row replaces, without the overlay, once the picture has been moved, or as a row further up makes it: a row whose label
has changed since is refused. A row of a picture beats one of an outfit, and this one that of a person.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .schema_file import FILE_NAME, JOIN, folded
from .tables import EMPTY, Table, Words, read_table

if TYPE_CHECKING:
    from .people import OwnData

OVERLAY = "labels_overlay.csv"
COLUMNS = ("file_name", "person", "outfit", "attribute", "value", "was")
PERSON = "person"  # the attribute that moves pictures to another person
TRAIN, VAL, TEST = "train", "val", "test"


@dataclass(frozen=True)
class Row:
    """A correction: of the picture `file_name`, or else of `person` (in `outfit`); `number` is its place."""

    number: int
    file_name: str
    person: str
    outfit: str
    attribute: str
    value: str
    was: str

    @property
    def target(self) -> tuple[str, str, str]:
        return self.file_name, self.person, self.outfit

    @property
    def level(self) -> int:
        """0 for a person, 1 for an outfit, 2 for a picture, which beats the others."""
        return 2 if self.file_name else 1 if self.outfit else 0


@dataclass(frozen=True)
class Overlay:
    """The rows of an overlay, those of people first and those of pictures last, as they are applied."""

    table: Table = field(repr=False)
    rows: list[Row] = field(repr=False)

    def refuse(self, row: Row, what: str) -> NoReturn:
        raise ValueError(f"{self.table.where(row.number)}: {what}")

    def refuse_stale(self, row: Row, now: str) -> NoReturn:
        self.refuse(row, f"'{row.attribute}' was '{row.was}' and is '{now}' now, so the row is out of date. Look at it "
                    "again: correct was, or delete the row.")

    def find(self, attribute: str, value: str) -> str:
        """The place of the first row that gives a value; "" where none does."""
        return next((self.table.where(row.number) for row in self.rows
                     if folded(row.attribute) == folded(attribute) and folded(row.value) == folded(value)), "")


def read_overlay(path: str | Path) -> Overlay:
    """Read an overlay, without looking at what it corrects.

    Raises:
        ValueError: with the line, if a row names no picture or person, or both, or repeats or contradicts another.
    """
    table = read_table(path, COLUMNS[3:])
    empty = [""] * len(table)
    columns = [table.columns[name].to_list() if name in table.columns else empty for name in COLUMNS]
    rows = [Row(number, *cells) for number, cells in enumerate(zip(*columns))]
    overlay = Overlay(table, sorted(rows, key=lambda row: row.level))
    seen: dict[tuple, Row] = {}
    for row in rows:
        if bool(row.file_name) == bool(row.person) or row.outfit and not row.person:
            overlay.refuse(row, f"names {'a picture and a person' if row.file_name else 'no picture and no person'}, "
                           "expected a file_name, or a person, or a person and an outfit. Fill in one of them.")
        if not row.attribute:
            overlay.refuse(row, "has no attribute. Name the column that the row corrects, or delete the row.")
        # People are told apart letter by letter, words of attributes are not.
        value, was = (row.value, row.was) if row.attribute == PERSON else (folded(row.value), folded(row.was))
        if value == was:
            overlay.refuse(row, f"value and was are both '{row.value}', so it changes nothing. Delete the row.")
        other = seen.setdefault((*row.target, folded(row.attribute), was), row)
        if other is not row:
            how = "repeats" if folded(other.value) == folded(row.value) else "contradicts"
            overlay.refuse(row, f"{how} {table.where(other.number)}. Delete one.")
    return overlay


def moves(overlay: Overlay, files: Sequence[str], person: Words, outfit: Words | None) -> dict[int, str]:
    """The new person of each picture that an overlay gives to another one, by the picture's row.

    Args:
        files, person, outfit: of `OwnData`, without the overlay.

    Raises:
        ValueError: with the line of a row that is of nobody, or stale.
    """
    chosen = _chooser(overlay, files, person, outfit)
    people: dict[int, str] = {}
    for row in (row for row in overlay.rows if row.attribute == PERSON):
        rows = chosen(row)
        if not row.value:
            overlay.refuse(row, "moves pictures to nobody. Give the person in value, or delete the row.")
        now = person[rows[0]]
        if row.was not in (now, people.get(rows[0])):
            overlay.refuse_stale(row, now)
        people |= dict.fromkeys(rows, row.value)
    return {row: name for row, name in sorted(people.items()) if person[row] != name}


def new_words(overlay: Overlay, folder: Path, before: OwnData, after: OwnData) -> dict[str, dict[int, str]]:
    """Words that an overlay gives to pictures: by attribute, then by the picture's row.

    Rows of a person are of the pictures that show this person once pictures have been moved.

    Args:
        folder: of the data; where it has a schema, new values are checked against that later.
        before: the data without the overlay.   after: with its pictures moved.

    Raises:
        ValueError: with the line of a row that is of nobody, of an unknown attribute or value, or stale.
    """
    chosen = [_chooser(overlay, own.files, own.person, own.outfit) for own in (after, before)]
    gone = set(before.person.words) - set(after.person.words)  # all of their pictures show others
    columns = {folded(name): name for name in after.attributes}
    # People whose pictures have all been moved may have taken words with them.
    spelling = {name: {folded(word): word for own in (before, after) for word in own.attributes[name].words}
                for name in after.attributes}
    checked_later = (folder / FILE_NAME).is_file()
    words: dict[str, dict[int, str]] = defaultdict(dict)
    for row in (row for row in overlay.rows if row.attribute != PERSON):
        rows = chosen[row.person in gone](row)
        name = columns.get(folded(row.attribute))
        if name is None:
            near = get_close_matches(folded(row.attribute), columns, n=1)
            overlay.refuse(row, f"attribute '{row.attribute}' is no column; expected one of "
                           f"{', '.join((*after.attributes, PERSON))}"
                           + (f"; did you mean '{columns[near[0]]}'?" if near else ". Correct or delete the row."))
        known = spelling[name]
        # The label now; or that before its picture was moved, or what an earlier row has made of it.
        labels = [after.attributes[name], *([before.attributes[name]] if row.file_name or row.person in gone else [])]
        rows_of = [place for place in rows if any(folded(own[place]) == folded(row.was) for own in labels)
                   ] or [place for place in rows if place in words[name]
                         and folded(words[name][place]) == folded(row.was)]
        if not rows_of:
            overlay.refuse_stale(row, labels[0][rows[0]])
        parts = [folded(part) for part in row.value.split(JOIN)]
        if row.value and not checked_later and folded(row.value) not in known and not set(parts) <= set(known):
            overlay.refuse(row, f"'{name}' is '{row.value}', which it is nowhere in the tables; values are "
                           f"{', '.join(after.attributes[name].words)}. Correct the value, or list it in {FILE_NAME}.")
        if row.person not in gone:
            words[name] |= dict.fromkeys(rows_of, known.get(folded(row.value), row.value))
    return words


def told(overlay: Overlay, moved: Mapping[int, str], words: Mapping[str, Mapping[int, str]], person: Words) -> str:
    """How many rows were applied, and to what.

    Args:
        moved, words: of `moves` and `new_words`.   person: without the overlay.
    """
    new = sorted(set(moved.values()) - set(person.words))
    return (f"{OVERLAY}: {len(overlay.rows)} rows applied: {sum(map(len, words.values()))} labels of pictures changed, "
            f"{len(moved)} pictures moved to another person"
            + (f"; {len(new)} people are new: {', '.join(new[:5])}{', ...' if len(new) > 5 else ''}" if new else ""))


def replaced(column: Words, words: Mapping[int, str]) -> Words:
    """A column with other words in some rows; "" is an empty cell."""
    if not words:
        return column
    names = tuple(dict.fromkeys((*column.words, *filter(None, words.values()))))
    number = {word: code for code, word in enumerate(names)} | {"": EMPTY}
    codes = column.codes.copy()
    codes[list(words)] = [number[word] for word in words.values()]
    return Words(codes, names).in_use()


def _chooser(overlay: Overlay, files: Sequence[str], person: Words,
             outfit: Words | None) -> Callable[[Row], list[int]]:
    """Rows of the pictures that a row of the overlay names."""
    of_file = {name: row for row, name in enumerate(files)}
    code_of = {word: code for code, word in enumerate(person.words)}
    order = np.argsort(person.codes, kind="stable")
    ends = np.cumsum(person.counts())

    def chosen(row: Row) -> list[int]:
        if row.file_name:
            place = of_file.get(row.file_name)
            if place is None:
                overlay.refuse(row, f"there is no picture '{row.file_name}'. Correct the name, or delete the row.")
            return [place]
        code = code_of.get(row.person)
        if code is None:
            overlay.refuse(row, f"there is no person '{row.person}'. Correct the name, or delete the row.")
        own = order[ends[code - 1] if code else 0:ends[code]].tolist()
        if row.outfit:
            own = [place for place in own if outfit is not None and outfit[place] == row.outfit]
            if not own:
                overlay.refuse(row, f"person '{row.person}' has no outfit '{row.outfit}'. Correct the name, or delete "
                               "the row.")
        return own

    return chosen


def follow_people(split: Words, person: Words, moved: np.ndarray, files: Sequence[str],
                  folder: Path) -> tuple[Words, str]:
    """A split in which pictures that an overlay has moved are in the part of their new person.

    Nobody is then in training and in the test because of a move. In the test such a picture is searched, not asked for.

    Returns:
        the split, and what is to be said of it, "" for nothing.

    Raises:
        ValueError: if pictures of a new person come from training and from the test.
    """
    side = np.array([word if word in (TRAIN, VAL) else TEST for word in split.words])[split.codes]
    kept = np.ones(len(split), bool)
    kept[moved] = False
    new = {}
    for row in moved.tolist():
        same = np.flatnonzero(person.codes == person.codes[row])
        own = same[kept[same]]
        sides = set(side[own].tolist()) or set(side[same].tolist())
        if len(sides) > 1 and not len(own):
            other = next(place for place in same.tolist() if side[place] != side[row])
            raise ValueError(f"{folder / OVERLAY}: moves '{files[row]}' ({split[row]}) and '{files[other]}' "
                             f"({split[other]}) to the new person '{person[row]}', who would be in both. Give them two "
                             "names, or put both pictures into one part of the split.")
        if len(sides) == 1 and side[row] not in sides:
            goal = sides.pop()
            new[row] = "gallery" if goal == TEST and TEST not in split.words else goal
    note = f"{OVERLAY}: {len(new)} moved pictures change between training and test with their person" if new else ""
    return replaced(split, new), note
