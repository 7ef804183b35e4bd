"""Write a converted dataset: tables, a schema, links to the images, and a record of its source.

    OUT/metadata.csv   file_name, split, person and camera if there are identities, attributes of images
    OUT/people.csv     attributes of people, if the dataset labels people
    OUT/schema.yaml    groups and values
    OUT/source.json    the dataset, its licence, counts, the rule of evaluation, and the value of each published label
    OUT/images/...     links to the images, or copies
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
from ..utils.text import counted
from .registry import Converter, find_converter

TABLE, SOURCE, IMAGES = "metadata.csv", "source.json", "images"
UNFINISHED = ".unfinished"  # suffix of the folder during writing


@dataclass(frozen=True)
class Converted:
    """A dataset of N images, as read by its converter.

    Attributes:
        pictures: the folder that contains the images.
        files: N file names relative to it, with "/" between folders.
        columns: by name, N texts each: split (train, val, test, query, gallery; "" for excluded images), person and
            camera if there are identities, and attributes of images; "" for unknown.
        wording: the schema.
        annotation: the file that was read, for messages.
        people: columns of `people.csv`, with the column person.
        binaries: published yes/no labels in the order of the schema: name, column, and the value for yes.
        published: published counts; keys as in `counts` or in `found`.
        found: additional counts of the files that were read.
        about: additional entries of `source.json`.
        notes: messages for the user.
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
        """Numbers of images in each part ("train pictures"), of people in training and test, and of attributes."""
        split = self.columns["split"]
        counts = {f"{part} pictures": count for part, count in Counter(split).items() if part}
        if "person" in self.columns:
            for name, parts in (("train", ("train",)), ("test", ("query", "gallery", TEST))):
                own = {person for person, part in zip(self.columns["person"], split) if part in parts}
                counts[f"{name} people"] = len(own - set(self.wording.nobody))
        return counts | {"attributes": len(self.wording.schema.columns), "yes/no labels": len(self.binaries),
                         **self.found}

    def rows(self, keep: Sequence[int]) -> Converted:
        """Return the dataset with only some of its images.

        Args:
            keep: rows of these images.
        """
        return replace(self, files=[self.files[row] for row in keep],
                       columns={name: [words[row] for row in keep] for name, words in self.columns.items()})


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`.

    Attributes:
        out: the folder.
        counts: name, number found, and published number or "".
        notes: messages for the user.
        fresh: False if the folder existed with the same contents, so that nothing was written.
    """

    out: Path
    counts: list[tuple[str, int, int | str]]
    notes: tuple[str, ...]
    fresh: bool


def convert(name: str, source: str | Path, out: str | Path, *, copy: bool = False, allow_subset: bool = False,
            progress: bool = False, **options) -> Conversion:
    """Read a published dataset and write it in the format of own data.

    The folder appears when it is complete. An interrupted conversion starts again. A folder with the same contents is
    not changed.

    Args:
        name: name of the dataset.
        source: folder of the dataset.
        out: folder to write.
        copy: copy images instead of linking to them.
        allow_subset: accept counts that differ from the published ones, and skip missing images.
        progress: show a progress bar on stderr.
        options: options of the converter.

    Returns:
        counts and notes.

    Raises:
        FileNotFoundError: if a file, folder or image is missing.
        ValueError: if the dataset is not as published, or `out` has other contents; with the file and a remedy.
    """
    converter = find_converter(name)
    source, out = Path(source), Path(os.path.abspath(out))
    data = converter(source, **options)
    notes = [*data.notes]
    used = [row for row, part in enumerate(data.columns["split"]) if part]
    if len(used) < len(data.files):
        notes.append(f"{counted(len(data.files) - len(used), 'image')} skipped, in no part of the split")
    _check_names(data)
    there = _there(data, used, allow_subset)
    if len(there) < len(used):
        notes.append(f"{counted(len(used) - len(there), 'missing image')} skipped")
    data = data.rows(there)
    counts = _counted(data, allow_subset)
    texts = _texts(converter, data, source, copy, counts)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not _same(out, texts):
            raise ValueError(f"{out}: exists with other contents. Delete it, or give another folder by --out.")
        return Conversion(out, _shown(counts), (*notes, "the folder exists with the same contents; nothing was "
                                                "written"), False)
    _write(out, data, texts, copy, progress)
    return Conversion(out, _shown(counts), tuple(notes), True)


def _check_names(data: Converted) -> None:
    """Check that file names are distinct and inside the folder."""
    first: dict[str, int] = {}
    for row, name in enumerate(data.files):
        reason = refused_name(name)
        if first.setdefault(name, row) != row:
            reason = f"the same as image {first[name] + 1}, expected different names."
        if reason:
            raise ValueError(f"{data.annotation}: the name of image {row + 1} is '{name}', {reason} Use the file as "
                             "published.")


def _there(data: Converted, rows: Sequence[int], allow_subset: bool) -> list[int]:
    """The rows whose images exist; each folder is listed once, which is faster than testing each file."""
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
        raise FileNotFoundError(f"{data.pictures / data.files[missing[0]]}: not found, image {missing[0] + 1} of "
                                f"{data.annotation} ({len(missing)} of {len(rows)} are missing). Add the missing "
                                "images, or give --allow-subset to skip them.")
    return there


def _shown(counts: Sequence[tuple[str, int, int | str]]) -> list[tuple[str, int, int | str]]:
    """Counts for people to read; `source.json` and `Converted.published` have "pictures" in their keys."""
    return [(what.replace("pictures", "images"), found, published) for what, found, published in counts]


def _counted(data: Converted, allow_subset: bool) -> list[tuple[str, int, int | str]]:
    found = data.counts
    wrong = [(what, found.get(what, 0), count) for what, count in data.published.items() if found.get(what, 0) != count]
    if wrong and not allow_subset:
        raise ValueError(f"{data.annotation}: " + "; ".join(f"{own} {what}, published: {count}"
                                                            for what, own, count in _shown(wrong))
                         + ". Complete the dataset, or give --allow-subset to convert a part or another version of it.")
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
    """Whether a folder contains this dataset; the schema may have been corrected, and texts for people may differ."""
    try:
        return _facts((folder / SOURCE).read_text(encoding="utf-8")) == _facts(texts[SOURCE]) and all(
            (folder / name).read_text(encoding="utf-8") == text for name, text in texts.items()
            if name not in (FILE_NAME, SOURCE))
    except (OSError, ValueError, AttributeError):
        return False


def _facts(source: str) -> dict:
    """The contents of source.json without the texts that describe the dataset."""
    return {key: value for key, value in json.loads(source).items() if key not in ("title", "licence", "evaluation")}


def _write(out: Path, data: Converted, texts: Mapping[str, str], copy: bool, progress: bool) -> None:
    from tqdm import tqdm

    folder = out.with_name(out.name + UNFINISHED)
    if folder.exists():  # left by an interrupted conversion, which writes source.json first
        if not (folder / SOURCE).is_file() and not all(own.name.startswith(SOURCE) for own in folder.iterdir()):
            raise ValueError(f"{folder}: exists and was not made by an interrupted conversion. Delete it.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_text(str(folder / SOURCE), texts[SOURCE])
    real = Path(os.path.realpath(data.pictures))  # relative links need real folders on both sides
    made: dict[str, tuple[Path, str]] = {}
    for name in tqdm(data.files, desc="copying" if copy else "linking", unit=" images", disable=not progress):
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
        raise ValueError(f"{folder}: cannot link to {target} ({error}). Copy the images with --copy.") from error


def _link(target: str, path: Path) -> None:
    try:
        os.symlink(target, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot create the link ({error.strerror}); copy the images with --copy",
                      str(path)) from error
