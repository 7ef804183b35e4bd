"""Write what a converter has read: a table, a schema, people, links to pictures, and a record of where it is from.

    OUT/metadata.csv   file_name, split, person and camera where there are identities, attributes in words
    OUT/people.csv     attributes of people, where the set labels people
    OUT/schema.yaml    groups and values
    OUT/source.json    the set, its licence, counts, the rule of evaluation, which published label is which word
    OUT/images/...     links to the pictures, or copies
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..own_data.people import PEOPLE, refused_name
from ..own_data.schema_file import FILE_NAME, Wording, schema_text
from ..own_data.split import TEST
from ..utils.files import write_text
from .registry import Converter, find_converter

TABLE, SOURCE, IMAGES = "metadata.csv", "source.json", "images"
UNFINISHED = ".unfinished"  # ending of the folder that is being written


@dataclass(frozen=True)
class Converted:
    """A data set as its converter has read it, of N pictures.

    Attributes:
        pictures: the folder that names of pictures are below.
        files: N names, with "/" between folders.
        columns: N words each: split (train, val, test, query, gallery; "" for pictures that are left out), person and
            camera where there are identities, and attributes of pictures; "" where unknown.
        wording: the schema.
        annotation: the file that was read, for messages.
        people: columns of `people.csv`, with person.
        binaries: published yes/no labels in the order of the schema: name, column, and the word for yes.
        published: counts that the set is said to have; keys as in `counts`, or in `found`.
        found: further counts of what was read.
        about, notes: what else is to be recorded, or said.
    """

    pictures: Path
    files: Sequence[str]
    columns: Mapping[str, Sequence[str]]
    wording: Wording
    annotation: Path
    people: Mapping[str, Sequence[str]] = field(default_factory=dict)
    binaries: Sequence[tuple[str, str, str]] = ()
    published: Mapping[str, int] = field(default_factory=dict)
    found: Mapping[str, int] = field(default_factory=dict)
    about: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Pictures of each part, people in training and in the test, and attributes."""
        split = self.columns["split"]
        counts = {f"{part} pictures": count for part, count in Counter(split).items() if part}
        if "person" in self.columns:
            for name, parts in (("train", ("train",)), ("test", ("query", "gallery", TEST))):
                own = {person for person, part in zip(self.columns["person"], split) if part in parts}
                counts[f"{name} people"] = len(own - set(self.wording.nobody))
        return counts | {"attributes": len(self.wording.schema.columns), "yes/no labels": len(self.binaries),
                         **self.found}

    def rows(self, keep: Sequence[int]) -> Converted:
        """The data set with these pictures alone."""
        return replace(self, files=[self.files[row] for row in keep],
                       columns={name: [words[row] for row in keep] for name, words in self.columns.items()})


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        counts: name, found, published or "".   notes: what is to be said.   fresh: whether anything was written.
    """

    out: Path
    counts: list[tuple[str, int, int | str]]
    notes: tuple[str, ...]
    fresh: bool


def convert(name: str, source: str | Path, out: str | Path, *, copy: bool = False, allow_subset: bool = False,
            progress: bool = False, **options) -> Conversion:
    """Read a published set and write it in the form of one's own data.

    The folder appears when it is complete: a conversion that was stopped is begun anew. One that is there already and
    is the same is left as it is.

    Args:
        name: of the set.   source: its folder.   out: the folder to make.
        copy: copy pictures in place of linking to them.
        allow_subset: accept fewer pictures and people than published, and leave out pictures that are not there.
        progress: report on stderr.
        options: of the converter.

    Raises:
        FileNotFoundError, ValueError: with the file, what is there, what is expected, and a remedy.
    """
    converter = find_converter(name)
    source, out = Path(source), Path(os.path.abspath(out))
    data = converter(source, **options)
    notes = [*data.notes]
    used = [row for row, part in enumerate(data.columns["split"]) if part]
    if len(used) < len(data.files):
        notes.append(f"{len(data.files) - len(used)} pictures are in no part of the split and are left out")
    _check_names(data)
    there = _there(data, used, allow_subset)
    if len(there) < len(used):
        notes.append(f"{len(used) - len(there)} pictures are missing and are left out")
    data = data.rows(there)
    counts = _counted(data, allow_subset)
    texts = _texts(converter, data, source, copy, counts)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not _same(out, texts):
            raise ValueError(f"{out}: is there already, with other contents. Delete it, or give another folder by "
                             "--out.")
        return Conversion(out, counts, (*notes, "it is there already, the same; nothing was written"), False)
    _write(out, data, texts, copy, progress)
    return Conversion(out, counts, tuple(notes), True)


def _check_names(data: Converted) -> None:
    """Refuse names that are there twice, and such as would lead out of the folder."""
    first: dict[str, int] = {}
    for row, name in enumerate(data.files):
        reason = refused_name(name)
        if first.setdefault(name, row) != row:
            reason = f"as picture {first[name] + 1} is, expected a name of its own."
        if reason:
            raise ValueError(f"{data.annotation}: picture {row + 1} is called '{name}', {reason} Use the file as "
                             "published.")


def _there(data: Converted, rows: Sequence[int], allow_subset: bool) -> list[int]:
    """Those whose pictures are there; each folder is listed once."""
    listed: dict[str, set[str]] = {}
    missing: list[int] = []
    there: list[int] = []
    for row in rows:
        folder, _, base = data.files[row].rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(data.pictures / folder))
            except (FileNotFoundError, NotADirectoryError):
                listed[folder] = set()
        (there if base in listed[folder] else missing).append(row)
    if missing and not (allow_subset and there):
        raise FileNotFoundError(f"{data.pictures / data.files[missing[0]]}: not found, picture {missing[0] + 1} of "
                                f"{data.annotation} ({len(missing)} of {len(rows)} are missing). Complete the "
                                "pictures, or give --allow-subset to leave missing ones out.")
    return there


def _counted(data: Converted, allow_subset: bool) -> list[tuple[str, int, int | str]]:
    found = data.counts
    wrong = [(what, found.get(what, 0), count) for what, count in data.published.items() if found.get(what, 0) != count]
    if wrong and not allow_subset:
        raise ValueError(f"{data.annotation}: " + "; ".join(f"{own} {what}, published are {count}"
                                                            for what, own, count in wrong)
                         + ". Complete the data set, or give --allow-subset if it is a part, or another version, on "
                         "purpose.")
    return [(what, found.get(what, 0), data.published.get(what, "")) for what in {**found, **data.published}]


def _texts(converter: Converter, data: Converted, source: Path, copy: bool, counts) -> dict[str, str]:
    """The text of each file to write."""
    table = {"file_name": [f"{IMAGES}/{name}" for name in data.files], **data.columns}
    record = {
        "set": converter.name, "title": converter.title, "licence": converter.licence, "evaluation": converter.rule,
        "source": str(source.resolve()), "pictures": "copied" if copy else "linked", **data.about,
        "counts": {what: {"found": found, "published": published or None} for what, found, published in counts},
        "labels": [list(own) for own in data.binaries]}
    texts = {TABLE: _csv(table), FILE_NAME: schema_text(data.wording), SOURCE: json.dumps(record, indent=1)}
    return texts | ({PEOPLE: _csv(data.people)} if data.people else {})


def _csv(columns: Mapping[str, Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values()))
    return text.getvalue()


def _same(folder: Path, texts: Mapping[str, str]) -> bool:
    """Whether a folder holds this data set; its schema may have been corrected since."""
    try:
        return all((folder / name).read_text(encoding="utf-8") == text for name, text in texts.items()
                   if name != FILE_NAME)
    except (OSError, UnicodeDecodeError):
        return False


def _write(out: Path, data: Converted, texts: Mapping[str, str], copy: bool, progress: bool) -> None:
    from tqdm import tqdm

    folder = out.with_name(out.name + UNFINISHED)
    if folder.exists():  # of a conversion that was stopped; the record is the first file of one
        if not (folder / SOURCE).is_file() and not all(own.name.startswith(SOURCE) for own in folder.iterdir()):
            raise ValueError(f"{folder}: is in the way, and not of a conversion that was stopped. Delete it.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_text(str(folder / SOURCE), texts[SOURCE])
    real = Path(os.path.realpath(data.pictures))  # links lead from one real folder to another
    made: dict[str, tuple[Path, str]] = {}
    for name in tqdm(data.files, desc="copying" if copy else "linking", unit=" pictures", disable=not progress):
        below, _, base = name.rpartition("/")
        if below not in made:
            own = folder / IMAGES / below
            own.mkdir(parents=True, exist_ok=True)
            made[below] = own, str(real / below) if copy else _relative(real / below, own)
        own, target = made[below]
        if copy:
            shutil.copyfile(os.path.join(target, base), own / base)
        else:
            _link(os.path.join(target, base), own / base)
    for file, text in texts.items():
        write_text(str(folder / file), text)
    os.replace(folder, out)


def _relative(target: Path, folder: Path) -> str:
    try:
        return os.path.relpath(target, os.path.realpath(folder))
    except ValueError as error:  # on another drive of Windows
        raise ValueError(f"{folder}: cannot link to {target} ({error}). Give --copy.") from error


def _link(target: str, path: Path) -> None:
    try:
        os.symlink(target, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot be made as a link ({error.strerror}); give --copy", str(path)) from error
