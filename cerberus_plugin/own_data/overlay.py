"""`labels_overlay.csv`: corrections of labels, stored in a separate file so that the tables do not change.

    file_name,person,outfit,attribute,value,was
    a/0001.jpg,,,hat,yes,no        one image
    ,p7,,gender,female,male        all images of a person that have the label "male"
    ,p7,winter,coat,,red           images of one outfit; an empty value means unknown
    a/0002.jpg,,,person,p9,p7      the image shows another person
    ,p8,,person,p7,p8              two people are one

Rows with the attribute `person` are applied first: they move images to another person. Other rows with a person then
apply to the images of this person after the moves. `was` is the label that a row replaces: the label in the tables, the
label after the move, or the label that an earlier row has set. A row with any other `was` is out of date and raises an
error. A row for an image takes precedence over one for an outfit, which takes precedence over one for a person.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ..utils.text import counted
from .schema_file import FILE_NAME, JOIN, folded
from .tables import EMPTY, Table, Words, read_table

if TYPE_CHECKING:
    from .people import OwnData

OVERLAY = "labels_overlay.csv"
COLUMNS = ("file_name", "person", "outfit", "attribute", "value", "was")
PERSON = "person"  # the attribute that moves images to another person
TRAIN, VAL, TEST = "train", "val", "test"


@dataclass(frozen=True)
class Row:
    """A correction of the image `file_name`, or otherwise of `person` (in `outfit`).

    Attributes:
        number: place of the row in the table, from 0.
        file_name, person, outfit, attribute, value, was: cells of the row, "" for empty ones.
    """

    number: int
    file_name: str
    person: str
    outfit: str
    attribute: str
    value: str
    was: str

    @property
    def target(self) -> tuple[str, str, str]:
        """The cells that select images."""
        return self.file_name, self.person, self.outfit

    @property
    def level(self) -> int:
        """0 for a person, 1 for an outfit, 2 for an image; higher levels take precedence."""
        return 2 if self.file_name else 1 if self.outfit else 0


@dataclass(frozen=True)
class Overlay:
    """An overlay.

    Attributes:
        table: the file.
        rows: in the order in which they are applied: people, outfits, images.
    """

    table: Table = field(repr=False)
    rows: list[Row] = field(repr=False)

    def refuse(self, row: Row, what: str) -> NoReturn:
        """Raise ValueError with the line of a row."""
        raise ValueError(f"{self.table.where(row.number)}: {what}")

    def refuse_stale(self, row: Row, now: str) -> NoReturn:
        """Raise ValueError for a row whose label `was` has changed to `now`."""
        self.refuse(row, f"the row is out of date: it replaces '{row.attribute}' '{row.was}', but the label is now "
                    f"'{now}'. Check the images, then correct the column 'was' or delete the row.")

    def find(self, attribute: str, value: str) -> str:
        """Return the place of the first row that sets an attribute to a value, for a message; "" if there is none."""
        return next((self.table.where(row.number) for row in self.rows
                     if folded(row.attribute) == folded(attribute) and folded(row.value) == folded(value)), "")


def read_overlay(path: str | Path) -> Overlay:
    """Read an overlay, without comparing it with the data.

    Args:
        path: path of `labels_overlay.csv`.

    Raises:
        ValueError: if a row names neither an image nor a person, or both, or repeats or contradicts another row; with
            its line.
    """
    table = read_table(path, COLUMNS[3:])
    empty = [""] * len(table)
    columns = [table.columns[name].to_list() if name in table.columns else empty for name in COLUMNS]
    rows = [Row(number, *cells) for number, cells in enumerate(zip(*columns))]
    overlay = Overlay(table, sorted(rows, key=lambda row: row.level))
    seen: dict[tuple, Row] = {}
    for row in rows:
        if bool(row.file_name) == bool(row.person) or row.outfit and not row.person:
            overlay.refuse(row, f"names {'both an image and a person' if row.file_name else 'no image and no person'}, "
                           "expected a file_name, or a person, or a person and an outfit. Fill in one of these.")
        if not row.attribute:
            overlay.refuse(row, "has no attribute. Enter the column that the row corrects, or delete the row.")
        # Names of people are case-sensitive, values of attributes are not.
        value, was = (row.value, row.was) if row.attribute == PERSON else (folded(row.value), folded(row.was))
        if value == was:
            overlay.refuse(row, f"'value' and 'was' are both '{row.value}', so the row has no effect. Delete it.")
        other = seen.setdefault((*row.target, folded(row.attribute), was), row)
        if other is not row:
            how = "repeats" if folded(other.value) == folded(row.value) else "contradicts"
            overlay.refuse(row, f"{how} {table.where(other.number)}. Delete one of the two.")
    return overlay


def moves(overlay: Overlay, files: Sequence[str], person: Words, outfit: Words | None) -> dict[int, str]:
    """Return the new person of each image that an overlay moves.

    Args:
        overlay: the corrections.
        files: N file names.
        person: N people, before the overlay.
        outfit: N outfits, None if unknown.

    Returns:
        the new person by row of the image.

    Raises:
        ValueError: if a row selects no image or is out of date, with its line.
    """
    chosen = _chooser(overlay, files, person, outfit)
    people: dict[int, str] = {}
    for row in (row for row in overlay.rows if row.attribute == PERSON):
        rows = chosen(row)
        if not row.value:
            overlay.refuse(row, "has no new person. Enter the person in the column 'value', or delete the row.")
        now = person[rows[0]]
        if row.was not in (now, people.get(rows[0])):
            overlay.refuse_stale(row, now)
        people |= dict.fromkeys(rows, row.value)
    return {row: name for row, name in sorted(people.items()) if person[row] != name}


def new_words(overlay: Overlay, folder: Path, before: OwnData, after: OwnData) -> dict[str, dict[int, str]]:
    """Return the values that an overlay sets.

    Rows with a person apply to the images of this person after the moves.

    Args:
        overlay: the corrections.
        folder: folder of the data; if it has a schema, values are checked against it later.
        before: the data before the moves.
        after: the data after the moves.

    Returns:
        values by attribute and by row of the image.

    Raises:
        ValueError: if a row selects no image, names an unknown attribute or value, or is out of date; with its line.
    """
    chosen = [_chooser(overlay, own.files, own.person, own.outfit) for own in (after, before)]
    gone = set(before.person.words) - set(after.person.words)  # people without images after the moves
    columns = {folded(name): name for name in after.attributes}
    # A value may occur only at people who have no images after the moves.
    spelling = {name: {folded(word): word for own in (before, after) for word in own.attributes[name].words}
                for name in after.attributes}
    checked_later = (folder / FILE_NAME).is_file()
    words: dict[str, dict[int, str]] = defaultdict(dict)
    for row in (row for row in overlay.rows if row.attribute != PERSON):
        rows = chosen[row.person in gone](row)
        name = columns.get(folded(row.attribute))
        if name is None:
            near = get_close_matches(folded(row.attribute), columns, n=1)
            overlay.refuse(row, f"'{row.attribute}' is not an attribute; expected one of "
                           f"{', '.join((*after.attributes, PERSON))}"
                           + (f"; did you mean '{columns[near[0]]}'?" if near else ". Correct or delete the row."))
        known = spelling[name]
        # `was` may be the present label, the label before the move, or a value that an earlier row has set.
        labels = [after.attributes[name], *([before.attributes[name]] if row.file_name or row.person in gone else [])]
        rows_of = [place for place in rows if any(folded(own[place]) == folded(row.was) for own in labels)
                   ] or [place for place in rows if place in words[name]
                         and folded(words[name][place]) == folded(row.was)]
        if not rows_of:
            overlay.refuse_stale(row, labels[0][rows[0]])
        parts = [folded(part) for part in row.value.split(JOIN)]
        if row.value and not checked_later and folded(row.value) not in known and not set(parts) <= set(known):
            overlay.refuse(row, f"sets '{name}' to '{row.value}', which does not occur in the tables; values are "
                           f"{', '.join(after.attributes[name].words)}. Correct the value, or list it in {FILE_NAME}.")
        if row.person not in gone:
            words[name] |= dict.fromkeys(rows_of, known.get(folded(row.value), row.value))
    return words


def told(overlay: Overlay, moved: Mapping[int, str], words: Mapping[str, Mapping[int, str]], person: Words) -> str:
    """Summarise the effect of an overlay in one sentence.

    Args:
        overlay: the corrections.
        moved: of `moves`.
        words: of `new_words`.
        person: N people, before the overlay.
    """
    new = sorted(set(moved.values()) - set(person.words))
    return (f"{OVERLAY}: {counted(len(overlay.rows), 'row')} applied: "
            f"{counted(sum(map(len, words.values())), 'label')} of images changed, "
            f"{counted(len(moved), 'image')} moved to another person"
            + (f"; {counted(len(new), 'new person', 'new people')}: {', '.join(new[:5])}"
               f"{', ...' if len(new) > 5 else ''}" if new else ""))


def replaced(column: Words, words: Mapping[int, str]) -> Words:
    """Return a column with new values in some rows.

    Args:
        column: of N rows.
        words: new values by row; "" for an empty cell.

    Examples:
        >>> replaced(Words.of(["red", "blue", "blue"]), {0: "green", 2: ""}).to_list()
        ['green', 'blue', '']
    """
    if not words:
        return column
    names = tuple(dict.fromkeys((*column.words, *filter(None, words.values()))))
    number = {word: code for code, word in enumerate(names)} | {"": EMPTY}
    codes = column.codes.copy()
    codes[list(words)] = [number[word] for word in words.values()]
    return Words(codes, names).in_use()


def _chooser(overlay: Overlay, files: Sequence[str], person: Words,
             outfit: Words | None) -> Callable[[Row], list[int]]:
    """Return a function that selects the images of an overlay's row, as row numbers."""
    of_file = {name: row for row, name in enumerate(files)}
    code_of = {word: code for code, word in enumerate(person.words)}
    order = np.argsort(person.codes, kind="stable")
    ends = np.cumsum(person.counts())

    def chosen(row: Row) -> list[int]:
        if row.file_name:
            place = of_file.get(row.file_name)
            if place is None:
                overlay.refuse(row, f"there is no image '{row.file_name}'. Correct the name, or delete the row.")
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
    """Move images between training and test, so that images that an overlay has moved are with their new person.

    A move therefore never puts a person into both training and test. In the test, such an image is a gallery image.

    Args:
        split: N parts of the split.
        person: N people, after the moves.
        moved: int64 (n,), rows of the moved images.
        files: N file names.
        folder: folder of the data, for messages.

    Returns:
        the new split, and a note, "" if nothing has changed.

    Raises:
        ValueError: if the images of a new person come from both training and test.
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
                             f"({split[other]}) to the new person '{person[row]}', who would be in both training and "
                             "test. Use two names, or put both images into the same part of the split.")
        if len(sides) == 1 and side[row] not in sides:
            goal = sides.pop()
            new[row] = "gallery" if goal == TEST and TEST not in split.words else goal
    if not new:
        return split, ""
    images = counted(len(new), "moved image changes", "moved images change")
    return replaced(split, new), f"{OVERLAY}: {images} between training and test, to be with the new person"
