"""Read own data into one record: its images, their identities, and their attributes as text.

Shapes: N images, A label fields.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..attributes.matching import Matching, Readings, by_name, express, source_of_words, sources_of
from ..attributes.schema import AttributeSchema, Column
from ..utils.files import file_sha256
from ..utils.folders import walk
from ..utils.images import SUFFIXES
from ..utils.text import counted
from . import schema_file
from .left_over import OUTFITS, PEOPLE, other_files, other_tables, refuse_misnamed
from .overlay import OVERLAY, PERSON, follow_people, moves, new_words, read_overlay, replaced, told
from .schema_file import FILE_NAME, NoAttributes, Wording, folded, infer_schema, read_schema
from .split import PARTS, SPLIT_FILE, TEST, divide_test, draw_pictures, draw_split, read_split
from .tables import EMPTY, KEYS, Table, Words, joined, read_table
from .tables import SUFFIXES as TABLE_SUFFIXES

logger = logging.getLogger("fastreid.cerberus")

NAME_GROUPS = ("person", "camera", "time", "outfit")
MOST_SPELLINGS = 3  # of an attribute, listed in a note


@dataclass(frozen=True)
class OwnData:
    """Own data: N images of people.

    Attributes:
        folder: folder that contains the images.
        source: the table that was read, or the folder.
        files: N file names relative to `folder`, with "/" between folders.
        person, camera, outfit, time: N values; None if unknown for all images.
        split: N parts of the split; None until the split is read or drawn.
        attributes: N values by name of the attribute: the value of the image, otherwise of its outfit, otherwise of its
            person.
        notes: messages about how the data was read.
        moved: int64 (n,), rows of the images that `labels_overlay.csv` moves to another person.
        overlay: SHA-256 of that file, "" without one.
        where: returns file and line of the image of a row, for messages.
        find: returns file and line of an attribute's value, for messages.
        identified: whether identities are known. If not, each image has its own `person`.
    """

    folder: Path
    source: Path
    files: list[str] = field(repr=False)
    person: Words = field(repr=False)
    camera: Words | None = field(default=None, repr=False)
    outfit: Words | None = field(default=None, repr=False)
    time: Words | None = field(default=None, repr=False)
    split: Words | None = field(default=None, repr=False)
    attributes: Mapping[str, Words] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    moved: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64), repr=False)
    overlay: str = ""
    where: Callable[[int], str] = field(default=lambda row: "", repr=False)
    find: Callable[[str, str], str] = field(default=lambda name, word: "", repr=False)
    identified: bool = True

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name or "own"

    def path(self, row: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.folder, *self.files[row].split("/"))

    def is_in(self, part: str) -> np.ndarray:
        """Return which images are in a part of the split: bool (N,)."""
        assert self.split is not None
        return self.split.codes == (self.split.words.index(part) if part in self.split.words else EMPTY)


def read_people(data: str | Path, name_pattern: str = "") -> OwnData:
    """Read own data and apply `labels_overlay.csv`. `split_people` adds the split if the table has none.

    Args:
        data: a table (`metadata.csv`, `.jsonl`, `.parquet`); a folder with such a table, or with one in each of
            `train`, `query` and `gallery`; or a folder with a folder of images per person, also below `train`, `query`
            and `gallery`. In a table without a column `person`, identities are unknown and only attributes are learned.
        name_pattern: regular expression that is searched in the path of each image below the folder, instead of reading
            a table. It has the group `person` and optionally `camera`, `time` and `outfit`.

    Returns:
        the data.

    Raises:
        FileNotFoundError: if the folder, the table or an image does not exist.
        ValueError: if a table or a name is wrong, with the file, the line, the expected contents, and a remedy.
    """
    data = Path(data)
    folder = data.parent if data.is_file() else data
    if folder.is_dir():
        refuse_misnamed(folder)
    if name_pattern:
        return _with_words(_by_names(data, name_pattern), data, None)
    sources = _tables_of(data)
    if not sources:
        return _with_words(_folders(data), data, None)
    tables = {part: read_table(path, ("file_name",)) for part, path in sources.items()}
    table = tables[""] if "" in tables else joined(folder, tables)
    return _with_words(_listed(table, folder), folder, table)


def read_wording(own: OwnData) -> Wording | None:
    """Return the schema: `schema.yaml` of the folder if it exists, otherwise inferred from the values.

    Returns:
        the schema, None if no column can be used as an attribute.

    Raises:
        ValueError: if `schema.yaml` is wrong.
    """
    path = own.folder / FILE_NAME
    if path.is_file():
        return read_schema(path)
    if not own.attributes:
        return None
    try:
        return infer_schema(own.name, own.attributes, own.person.codes if own.identified else None)
    except NoAttributes as error:
        logger.warning(f"{own.source}: {error}")
        return None


def infer_together(parts: Sequence[OwnData]) -> list[AttributeSchema]:
    """Infer schemas of several datasets, with values and groups from the values of all of them.

    Values are spelt as in the first dataset that contains them.

    Args:
        parts: the datasets.

    Returns:
        one schema for each dataset that has attributes.

    Raises:
        NoAttributes: if no column can be used as an attribute.
    """
    spelt: dict[str, str] = {}  # the first spelling of names and values
    columns: dict[str, list[str]] = {}
    size = sum(map(len, parts))
    start = 0
    for own in parts:
        for name, column in own.attributes.items():
            cells = columns.setdefault(spelt.setdefault(f"{folded(name)}:", name), [""] * size)
            known = [spelt.setdefault(f"{folded(name)}: {folded(word)}", word) for word in column.words] + [""]
            cells[start:start + len(own)] = [known[code] for code in column.codes.tolist()]  # EMPTY is the last
        start += len(own)
    people = None
    if all(own.identified for own in parts):
        people = np.unique([f"{k}:{person}" for k, own in enumerate(parts) for person in own.person.to_list()],
                           return_inverse=True)[1].ravel()
    whole = infer_schema("all", {name: Words.of(cells) for name, cells in columns.items()}, people).schema
    found = []
    for own in parts:
        has = {folded(name) for name in own.attributes}
        kept = [column.name for column in whole.columns if folded(column.name) in has]
        found += [whole.restricted(kept, own.name)] if kept else []
    return found


def labels_of(own: OwnData, wording: Wording) -> np.ndarray:
    """Return the labels of all images under a schema.

    Args:
        own: N images.
        wording: the schema, with A label fields.

    Returns:
        int16 (N, A), -1 for unknown labels.

    Raises:
        ValueError: if a cell is not a value of its attribute, with its place; or if an attribute has no column.
    """
    def refuse(name: str, word: str, reason: str):
        raise ValueError(f"{own.find(name, word)}: {reason} Correct the cell, or add the value to "
                         f"{wording.path or FILE_NAME}.")

    missing = [column.name for column in wording.schema.columns if column.name not in own.attributes]
    if missing:
        raise ValueError(f"{wording.path}: has the attribute '{missing[0]}', but {own.source.name}, {PEOPLE} and "
                         f"{OUTFITS} have no column of this name; columns are {', '.join(own.attributes) or 'none'}. "
                         "Rename the attribute or the column, or delete the attribute.")
    return schema_file.encode(wording, own.attributes, refuse)


def labels_under(own: OwnData, schema: AttributeSchema,
                 read: Callable[[Sequence[Column]], Readings] | None = None) -> tuple[np.ndarray, Matching]:
    """Return the labels of all images under the schema of another dataset.

    The values of all columns are matched, also of columns with a single value. A `schema.yaml` in the folder adds
    display names and texts for none of the values.

    Args:
        own: N images.
        schema: the other schema, with A label fields.
        read: returns the readings of the columns, such as those of an ontology; by default, names and values are
            matched.

    Returns:
        int16 (N, A), -1 for unknown labels; and a report of the attributes and values that have no counterpart.

    Raises:
        ValueError: if the folder's `schema.yaml` is wrong, or a cell is not one of its values.
    """
    wording = read_wording(own) if (own.folder / FILE_NAME).is_file() else None
    columns = list(wording.schema.columns) if wording else []
    listed = {column.name for column in columns}
    columns += [Column(name, words.words, (), "") for name, words in own.attributes.items() if name not in listed]
    readings = by_name(columns, schema) if read is None else read(columns)
    sources = [source_of_words(name, own.attributes[name].codes, own.attributes[name].words, readings[name])
               for name in own.attributes if name in readings and name not in listed]
    if wording:
        sources += sources_of(labels_of(own, wording), wording.schema, readings)
    labels, report = express(sources, schema, own.name, [column.name for column in columns], len(own))
    return labels.astype(np.int16), report


def split_people(own: OwnData, seed: int = 0, write: bool = True, split_file: str | Path = "") -> OwnData:
    """Return the data with its split: from the table or folders, otherwise from `split.csv`, otherwise drawn.

    If identities are unknown, all test images are gallery images, since there are no queries.

    Args:
        own: the data.
        seed: seed of a drawn split.
        write: write a drawn split to `split.csv`.
        split_file: a file in the format of `split.csv`, which is read instead of all others.

    Raises:
        ValueError: if a split file is wrong, or the overlay moves images of training and test to one new person.
    """
    split: Words | None = None if split_file else own.split
    notes: list[str] = []
    path = Path(split_file) if split_file else own.folder / SPLIT_FILE
    if split is None and (split_file or path.is_file()):
        split, notes = read_split(path, own.files)
    elif split is None:
        drawn = path if write else None
        split, notes = (draw_split(drawn, own.files, own.person, own.camera, seed) if own.identified
                        else draw_pictures(drawn, own.files, seed))
    if not own.identified:
        split = split.renamed({TEST: "gallery", "query": "gallery"})
    if len(own.moved):
        split, note = follow_people(split, own.person, own.moved, own.files, own.folder)
        notes += [note] if note else []
    if TEST in split.words:
        split = divide_test(split, own.files, own.person, own.camera)
        notes.append(f"split: of the images in '{TEST}', one per person"
                     + (" and camera" if own.camera is not None else "") + " is a query, the others are the gallery")
    return replace(own, split=split, notes=(*own.notes, *notes))


def _tables_of(data: Path) -> dict[str, Path]:
    """The table of images with key "", or the tables in folders named after parts; empty if there are none."""
    if data.name in (PEOPLE, OUTFITS):
        raise ValueError(f"{data}: is read in addition to a table of images. Give the folder, {data.parent}.")
    if data.is_file():
        return {"": data}
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder or table. Give a folder of images, or a table such as "
                                "metadata.csv.")
    found = {}
    for part in ("", *PARTS, TEST):
        there = [path for suffix in TABLE_SUFFIXES if (path := data / part / f"metadata{suffix}").is_file()]
        if len(there) > 1:
            raise ValueError(f"{data / part}: contains {' and '.join(path.name for path in there)}. Delete all but one"
                             + (", or give the path of the table." if not part else "."))
        if there:
            found[part] = there[0]
    if "" in found and len(found) > 1:
        other = next(path for part, path in found.items() if part)
        raise ValueError(f"{found['']} and {other}: expected either one table, or one in each of the folders of the "
                         "split. Delete one of the two.")
    return found


def _listed(table: Table, folder: Path) -> OwnData:
    """Check the table of images and return its record."""
    notes = []
    columns = table.columns
    person = _known(columns, "person")
    for name in ("file_name", "person")[:1 if person is None else 2]:
        if not columns[name].complete:
            row = int(np.flatnonzero(columns[name].codes == EMPTY)[0])
            raise ValueError(f"{table.where(row)}: has no {name}. Fill the cell, or delete the line.")
    names = columns["file_name"]
    tidied: dict[str, str] = {}
    backslashes = 0
    for code, name in enumerate(names.words):
        if _PLAIN_NAME(name) and "./" not in name and "//" not in name:
            continue
        reason = refused_name(name)
        if reason:
            row = int(np.flatnonzero(names.codes == code)[0])
            raise ValueError(f"{table.where(row)}: file_name is '{name}', {reason}")
        backslashes += "\\" in name
        if (tidy := posixpath.normpath(name.replace("\\", "/"))) != name:
            tidied[name] = tidy
    if backslashes:
        notes.append(f"{table.path.name}: {backslashes} names have a backslash, read as '/'")
    names = names.renamed(tidied) if tidied else names
    if len(names.words) < len(names):
        code = int(np.flatnonzero(names.counts() > 1)[0])
        first, second = np.flatnonzero(names.codes == code)[:2].tolist()
        raise ValueError(f"{table.where(second)}: '{names.words[code]}' is also in {table.where(first)}. "
                         "An image has one line, with one person; delete the other lines.")
    files = names.to_list()
    notes += _check_files(table, folder, files)
    split = _known(columns, "split")
    if split is not None:
        split = split.renamed({word: folded(word) for word in split.words})
        wrong = next((word for word in split.words if word not in (*PARTS, TEST)), None)
        if wrong is not None or not split.complete:
            code = EMPTY if wrong is None else split.words.index(wrong)
            row = int(np.flatnonzero(split.codes == code)[0])
            raise ValueError(f"{table.where(row)}: split is '{wrong or ''}', expected one of "
                             f"{', '.join((*PARTS, TEST))}. Correct the cell, or delete the column to draw a split.")
    outfit = _known(columns, "outfit")
    notes += other_tables(folder, [part.path for part in table.parts or (table,)])
    if person is None:
        for name in columns:
            if re.sub(r"[\W_]", "", name.casefold()) in _LIKE_PERSON:
                raise ValueError(f"{table.path}: has no column 'person', but a column '{name}'. Rename it to 'person' "
                                 "if it contains identities, otherwise delete it.")
        if not set(columns) - set(KEYS):
            raise ValueError(f"{table.path}: has neither a column 'person' nor attributes; its columns are "
                             f"{', '.join(columns)}. Add a column 'person' or columns of attributes, or rename the "
                             "columns that contain them.")
        notes.append("there is no column 'person', so identities are unknown and only attributes are learned and tested"
                     + ("; 'outfit' is not read, since outfits belong to a person" if outfit is not None else ""))
        outfit = None
    return OwnData(folder, table.path, files, Words.of(files) if person is None else person,
                   _known(columns, "camera"), outfit, _known(columns, "time"), split, notes=tuple(notes),
                   where=table.where, identified=person is not None)


_LIKE_PERSON = ("personid", "personname", "persons", "people", "pid", "id", "identity", "identityid", "name")


def _known(columns: Mapping[str, Words], name: str) -> Words | None:
    """A column, None if it does not exist or is empty."""
    own = columns.get(name)
    return own if own is not None and own.words else None


# A fast check for most names: relative, without backslashes and control characters. Tables may have a million names.
_PLAIN_NAME = re.compile(rf"(?!/|.:)[^\\\0-\x1f]+(?i:{'|'.join(map(re.escape, SUFFIXES))})").fullmatch


def refused_name(name: str) -> str:
    """Check the file name of an image.

    Args:
        name: relative to the folder of the table.

    Returns:
        the reason why it is rejected, with a remedy; "" if it is accepted.

    Examples:
        >>> refused_name("gate/0001.jpg"), refused_name("../0001.jpg").startswith("which is outside the folder")
        ('', True)
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "an absolute path, expected a path relative to the folder of the table. Remove the path of the folder."
    if ".." in parts:
        return "which is outside the folder of the table, expected a path below it. Move the image into the folder."
    if not name.lower().endswith(SUFFIXES):
        return f"expected an image ({', '.join(SUFFIXES)}). Convert it, or delete the line."
    if not name.isprintable() and any(ord(letter) < 32 for letter in name):
        return "which contains a line break or another control character. Rename the image."
    return ""


def _check_files(table: Table, root: Path, files: Sequence[str]) -> list[str]:
    """Check that all images exist; return a note about images in the same folders that have no line.

    Each folder is listed once, which is a hundred times faster than testing a million files one by one.
    """
    there: dict[str, set[str]] = {}
    missing = []
    for row, name in enumerate(files):
        folder, _, base = name.rpartition("/")
        if folder not in there:
            try:
                there[folder] = set(os.listdir(root / folder))
            except (FileNotFoundError, NotADirectoryError):
                there[folder] = set()
        if base in there[folder]:
            there[folder].discard(base)
        else:
            missing.append(row)
    if missing:
        name = files[missing[0]]
        folder, _, base = name.rpartition("/")
        listed = sorted(os.listdir(root / folder)) if (root / folder).is_dir() else []
        near = next((other for other in listed if folded(other) == folded(base)), None)
        raise FileNotFoundError(
            f"{table.where(missing[0])}: '{name}' is not found in '{root}' ({len(missing)} of "
            f"{len(files)} images are missing)" + (f"; there is '{near}'" if near else "")
            + ". Names are relative to the folder of the table; copy the images there, or delete the lines.")
    others = [f"{folder}/{base}".lstrip("/") for folder, bases in there.items() for base in bases
              if base.lower().endswith(SUFFIXES) and not base.startswith(".")]
    return [f"{table.path.name}: {counted(len(others), 'image')} in the same folders not listed, such as {min(others)}"
            ] if others else []


def _folders(folder: Path) -> OwnData:
    """Read `<folder>/<person>/<image>`, below `train`, `query` and `gallery` if these exist."""
    passed_over: Counter[str] = Counter()
    names = [picture.path for picture in walk(folder, passed_over=passed_over)]
    parts = [part for part in (*PARTS, TEST) if any(name.startswith(f"{part}/") for name in names)]
    if parts and not {"train", "query", "gallery", TEST} & set(parts):
        parts = []
    depth = 3 if parts else 2
    wrong = [name for name in names if name.count("/") != depth - 1 or parts and name.split("/")[0] not in parts]
    if wrong or not names:
        found = f"{len(wrong)} of {len(names)} are in other places, such as '{wrong[0]}'" if wrong else (
            "there are none" + (f", but {other}; convert them" if (other := other_files(passed_over)) else ""))
        pattern = r"(?P<person>\d+)_c(?P<camera>\d+)"
        if wrong and all(name.count("/") == 2 for name in names):
            pattern = r"^(?P<person>[^/]+)/(?P<camera>[^/]+)/"
        raise ValueError(
            f"{folder}: expected images ({', '.join(SUFFIXES)}) in a folder for each person, PERSON/IMAGE"
            + (f", in {', '.join(parts)}" if parts else "") + f"; {found}. Move them, write a metadata.csv with the "
            f"columns file_name and person, or read identities from file names by --name-pattern, such as '{pattern}'.")
    spaced = next((name for name in names if any(part != part.strip() for part in name.split("/"))), None)
    if spaced is not None:
        raise ValueError(f"{folder}: '{spaced}' has a name that begins or ends with a space, which would be lost in a "
                         "table. Rename it.")
    split = Words.of([name.split("/")[0] for name in names]) if parts else None
    return OwnData(folder, folder, names, Words.of([name.split("/")[depth - 2] for name in names]), split=split,
                   notes=_passed_over(folder, passed_over), where=lambda row: os.path.join(folder, names[row]))


def _passed_over(folder: Path, passed_over: Counter[str]) -> tuple[str, ...]:
    """Notes about files and tables in a folder of images that are not read."""
    other = other_files(passed_over)
    return (*([f"skipped {other}; images end in {', '.join(SUFFIXES)}"] if other else []),
            *other_tables(folder, ()))


def _tables_not_read(folder: Path) -> list[str]:
    return [f"{path.name} is not read, since --name-pattern is given" for path in _tables_of(folder).values()]


def _by_names(folder: Path, pattern: str) -> OwnData:
    """Read images whose identities are in their file names."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"name pattern '{pattern}': not a regular expression ({error})") from error
    groups = set(expression.groupindex)
    if "person" not in groups or not groups <= set(NAME_GROUPS):
        raise ValueError(f"name pattern '{pattern}': has the groups {', '.join(sorted(groups)) or 'none'}, expected "
                         f"person and some of {', '.join(NAME_GROUPS[1:])}, such as (?P<person>\\d+)_c(?P<camera>\\d+)")
    passed_over: Counter[str] = Counter()
    names = [picture.path for picture in walk(folder, passed_over=passed_over)]
    found = [expression.search(name) for name in names]
    bad = [name for name, match in zip(names, found) if match is None or not match["person"]]
    if bad or not names:
        raise ValueError(f"{folder}: " + (f"the name pattern '{pattern}' finds no person in '{bad[0]}' ({len(bad)} of "
                         f"{len(names)} images). Correct it, or move these images to another folder." if bad else
                         f"there are no images ({', '.join(SUFFIXES)})"
                         + (f", but {other}; convert them." if (other := other_files(passed_over)) else ".")))
    columns = {group: Words.of([match[group] or "" for match in found if match]) for group in groups}
    tops = Words.of([name.split("/")[0] for name in names])
    split = tops if "train" in tops.words and set(tops.words) <= {*PARTS, TEST} else None
    notes = (*_tables_not_read(folder), *_passed_over(folder, passed_over))
    return OwnData(folder, folder, names, columns["person"], _known(columns, "camera"), _known(columns, "outfit"),
                   _known(columns, "time"), split, notes=notes,
                   where=lambda row: os.path.join(folder, names[row]))


def _with_words(own: OwnData, folder: Path, table: Table | None) -> OwnData:
    """Add attributes, and apply the overlay if there is one."""
    worded = _worded(own, folder, table)
    path = folder / OVERLAY
    if not path.is_file():
        return worded
    overlay = read_overlay(path)
    if moving := [row for row in overlay.rows if row.attribute == PERSON and not own.identified]:
        overlay.refuse(moving[0], "moves images to another person, but identities are unknown. Delete the row.")
    moved = moves(overlay, own.files, own.person, own.outfit)
    before = worded
    if moved:  # moved images have the labels of their new person
        worded = _worded(replace(own, person=replaced(own.person, moved), moved=np.array([*moved], np.int64)), folder,
                         table)
    words = new_words(overlay, folder, before, worded)
    attributes = {name: replaced(column, words.get(name, {})) for name, column in worded.attributes.items()}
    return replace(worded, attributes=attributes, notes=(*worded.notes, told(overlay, moved, words, own.person)),
                   overlay=file_sha256(str(path)) or "",
                   find=lambda name, word: overlay.find(name, word) or worded.find(name, word))


def _worded(own: OwnData, folder: Path, table: Table | None) -> OwnData:
    """Add the attributes of the table of images, of `outfits.csv` and of `people.csv`."""
    tables = {} if table is None else {"": table}
    levels, notes = [], list(own.notes)
    if table is not None:
        levels.append({name: column for name, column in table.columns.items() if name not in KEYS})
    for file, keys in ((OUTFITS, ("person", "outfit")), (PEOPLE, ("person",))):
        if (folder / file).is_file():
            if not own.identified:
                raise ValueError(f"{folder / file}: exists, but {own.source} has no column 'person' with the person of "
                                 "each image. Add the column, or delete the file.")
            if "outfit" in keys and own.outfit is None:
                raise ValueError(f"{folder / file}: exists, but {own.source} has no column 'outfit' with the outfit of "
                                 "each image. Add the column, or delete the file.")
            tables[file] = other = read_table(folder / file, keys)
            wrong = [name for name in KEYS if name in other.columns and name not in keys]
            if wrong:
                raise ValueError(f"{other.path}: has the column '{wrong[0]}', which belongs to images. Move it to the "
                                 f"table of images; except {' and '.join(keys)}, every column is an attribute.")
            rows, absent = _matched(own, other, keys)
            if absent == len(other) and not len(own.moved):
                raise ValueError(f"{other.where(0)}: {_written(keys, [other.columns[key][0] for key in keys])} has no "
                                 f"image, and neither have all other lines; {own.source.name} has names such as person "
                                 f"'{own.person[0]}'. Use the same names in both.")
            if absent:
                notes.append(f"{file}: {absent} of {counted(len(other), 'line')} skipped, since there is no image of "
                             f"the {keys[-1]}")
            levels.append({name: Words(np.append(column.codes, EMPTY)[rows], column.words)
                           for name, column in other.columns.items() if name not in KEYS})
    names = _names_of(levels, tables)
    attributes = {}
    for name in names:
        attributes[name], merged = _merged([level[name] for level in levels if name in level])
        if merged:
            more = f"; and {len(merged) - MOST_SPELLINGS} more" if len(merged) > MOST_SPELLINGS else ""
            notes.append(f"'{name}': {'; '.join(merged[:MOST_SPELLINGS])}{more}")

    def find(name: str, word: str) -> str:
        """The place of the first cell of a column with this word, ignoring case."""
        for source in tables.values():
            column = source.columns.get(name, Words.of([]))
            for code, other in enumerate(column.words):
                if folded(other) == folded(word):
                    return source.where(int(np.flatnonzero(column.codes == code)[0]))
        return str(own.source)

    return replace(own, attributes=attributes, notes=tuple(notes), find=find)


def _matched(own: OwnData, other: Table, keys: Sequence[str]) -> tuple[np.ndarray, int]:
    """Match images with the rows of another table.

    Returns:
        int64 (N,), the row of each image, the number of rows if there is none; and the number of rows without images.
    """
    columns = [other.columns[key] for key in keys]
    for key, column in zip(keys, columns):
        if not column.complete:
            row = int(np.flatnonzero(column.codes == EMPTY)[0])
            raise ValueError(f"{other.where(row)}: has no {key}. Fill the cell, or delete the line.")
    lines: dict[tuple[str, ...], int] = {}
    for row, names in enumerate(zip(*(column.to_list() for column in columns))):
        if lines.setdefault(names, row) != row:
            raise ValueError(f"{other.where(row)}: {_written(keys, names)} is also in {other.where(lines[names])}. "
                             "Delete one of the two.")
    kinds = [own.person]
    if own.outfit is not None and "outfit" in keys:
        kinds.append(own.outfit)
    codes = np.stack([kind.codes for kind in kinds], axis=1)
    distinct, inverse = np.unique(codes, axis=0, return_inverse=True)
    words = [(*kind.words, "") for kind in kinds]  # EMPTY is the last
    names_of = [tuple(own_words[code] for own_words, code in zip(words, row)) for row in distinct.tolist()]
    found = [lines.get(names, len(other)) for names in names_of]
    without = {_alike(names): names for names, row in zip(names_of, found) if row == len(other)}
    used = set(found)
    absent = {names: row for names, row in lines.items() if row not in used}
    for names, row in absent.items():
        if _alike(names) in without and not len(own.moved):  # names have been compared before images were moved
            raise ValueError(f"{other.where(row)}: {_written(keys, names)} has no image, but "
                             f"'{', '.join(without[_alike(names)])}' has images and no line. Use the same name in both "
                             "tables. Spreadsheets drop leading zeros, unless the column is formatted as text before "
                             "it is filled.")
    return np.array(found)[inverse.ravel()], len(absent)


def _alike(names: Sequence[str]) -> tuple[str, ...]:
    """Names without leading zeros and differences of case, such as those that a spreadsheet drops."""
    return tuple(folded(name).lstrip("0") for name in names)


def _written(keys: Sequence[str], names: Sequence[str]) -> str:
    return " and ".join(f"{key} '{name}'" for key, name in zip(keys, names))


def _names_of(levels: Sequence[Mapping[str, Words]], tables: Mapping[str, Table]) -> list[str]:
    names = list(dict.fromkeys(name for level in levels for name in level))
    spellings: dict[str, str] = {}
    for name in names:
        if spellings.setdefault(folded(name), name) != name:
            files = " and ".join(table.path.name for table in tables.values())
            raise ValueError(f"{files}: the columns '{spellings[folded(name)]}' and '{name}' differ only in case. Use "
                             "one spelling.")
    return names


def _merged(columns: Sequence[Words]) -> tuple[Words, list[str]]:
    """Merge columns: a cell is that of the first column in which it is not empty.

    Values that differ only in case or spaces become one, with a note.
    """
    number: dict[str, int] = {}
    codes = np.full(len(columns[0]), EMPTY, np.int32)
    for column in columns:
        own = np.array([*(number.setdefault(word, len(number)) for word in column.words), EMPTY], np.int32)
        codes = np.where(codes == EMPTY, own[column.codes], codes)
    whole = Words(codes, tuple(number))
    counts = dict(zip(whole.words, whole.counts().tolist()))
    spellings: dict[str, list[str]] = {}
    for word in whole.words:
        spellings.setdefault(folded(word), []).append(word)
    names: dict[str, str] = {}
    notes = []
    for alike in spellings.values():
        # The spelling in lower case if it occurs, otherwise the most frequent one.
        best = max(alike, key=lambda word: (word == folded(word), counts[word], word))
        names |= {word: " ".join(best.split()) for word in alike}
        others = [f"'{word}' ({counts[word]})" for word in alike if word != names[word]]
        if others:
            notes.append(f"{', '.join(others)} read as '{names[best]}' ({counts[best]})")
    return whole.renamed(names).in_use(), notes
