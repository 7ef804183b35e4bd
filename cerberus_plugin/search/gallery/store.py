"""The data of an index: embeddings and predicted attributes in part files, and the table of images in SQLite.

The SQLite file also records sizes and checksums of the part files, see `parts`. A part is written before the
transaction that adds its rows, so that the index only contains complete parts if the process is killed at any time.
The id of a row is never reused, and a copy of the index that changes independently does not use it for another image.
Therefore search engines can be synchronised by comparing ids. An id consists of a counter and a checksum of the file.
Shapes: N rows, n requested rows, E values of a row (embedding and log-probabilities), M attributes.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...utils.files import ENDING
from ...utils.folders import Picture
from .folder import Named, Naming
from .parts import BUILD_AGAIN, Damaged, PartFile, Recorded, write_rows

ROWS = "rows.sqlite"
MARK_BITS = 32  # lower bits of an id, a checksum of path, size and modification time
OPEN_PARTS = 64  # maximum number of open files
TABLES = """
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, size INTEGER, mtime_ns INTEGER,
    identity TEXT, camera TEXT, time TEXT, part INTEGER NOT NULL, place INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, vocabulary TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    part INTEGER, what TEXT, name TEXT NOT NULL, size INTEGER NOT NULL, checksums BLOB NOT NULL,
    PRIMARY KEY (part, what));
CREATE TABLE IF NOT EXISTS unreadable (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS columns (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS words (code INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
"""


class Row(NamedTuple):
    """An image of the index.

    Attributes:
        path: relative to the image folder.
        named: person, camera and time of the file name.
        recognised: predicted value and probability, by attribute.
    """

    path: str
    named: Named
    recognised: dict[str, tuple[str, float]]


class Store:
    """The rows of an index folder, as of the last `reload`; safe to read from several threads.

    Reading raises KeyError or Damaged if rows or their files were removed since then; call `reload` and read again. If
    it then still raises Damaged, a file is damaged. Changes written by this object are visible to other processes at
    once, and to this object after `reload`.

    Args:
        folder: of the index.
        dim: E.
        dtype: of the stored rows.

    Attributes:
        ids: int64 (N,), in the order of the parts.
        columns: names of the attributes, in the order of the arrays; empty if no attributes are predicted.

    Raises:
        Damaged: if rows.sqlite is missing or damaged.
    """

    def __init__(self, folder: Path, dim: int, dtype: str) -> None:
        self.folder, self.dim, self.dtype = folder, dim, np.dtype(dtype)
        self._lock = threading.RLock()
        if not (folder / ROWS).is_file():
            raise Damaged(folder / ROWS, "is missing", BUILD_AGAIN)
        self._files: OrderedDict[tuple[int, str], PartFile] = OrderedDict()
        with self._named():
            self._base = sqlite3.connect(folder / ROWS, timeout=60, check_same_thread=False, isolation_level=None)
        self.reload()

    @staticmethod
    def create(folder: Path) -> None:
        """Create an empty store; an existing one is not changed."""
        with _named(folder / ROWS), contextlib.closing(sqlite3.connect(folder / ROWS)) as base:
            base.executescript(f"BEGIN; {TABLES} COMMIT;")

    def close(self) -> None:
        """Close all files."""
        self._base.close()
        self._files.clear()

    def reload(self) -> None:
        """Read the rows again, with changes by other processes."""
        with self._lock, self._named():
            self._version = self._base.execute("PRAGMA data_version").fetchone()[0]
            found = self._base.execute("SELECT id, part, place FROM rows ORDER BY part, place")
            try:
                table = np.fromiter(found, dtype=[("id", np.int64), ("part", np.int32), ("place", np.int32)])
            except (TypeError, ValueError, OverflowError) as error:
                raise Damaged(self.folder / ROWS, f"contains invalid values ({error})", BUILD_AGAIN) from error
            self.ids, self._parts, self._places = (np.ascontiguousarray(table[name]) for name in table.dtype.names)
            self._by_id = np.argsort(self.ids)
            self.columns = tuple(str(name) for name, in self._ask("SELECT name FROM columns ORDER BY number"))
            self._words = [str(word) for word, in self._ask("SELECT word FROM words ORDER BY code")]
            self._recorded = {}  # names of part files, by part and kind
            if self._ask("SELECT name FROM sqlite_master WHERE name = 'files'"):  # missing in format 2
                self._recorded = {(part, what): str(name)
                                  for part, what, name in self._ask("SELECT part, what, name FROM files")}
            self._files.clear()
            self._answers: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def _ask(self, statement: str, values: Sequence = ()) -> list[tuple]:
        with self._named():
            return self._base.execute(statement, values).fetchall()

    def _named(self) -> contextlib.AbstractContextManager[None]:
        return _named(self.folder / ROWS)

    def __len__(self) -> int:
        return len(self.ids)

    def changed_meanwhile(self) -> bool:
        """Return whether another process has written since `reload`."""
        return self._version != self._ask("PRAGMA data_version")[0][0]

    # Files.

    def known(self) -> dict[str, tuple[int, int]]:
        """Return size and modification time of all files, also unreadable ones, by path."""
        rows = self._ask("SELECT path, size, mtime_ns FROM rows UNION ALL SELECT path, size, mtime_ns FROM unreadable")
        return {path: (size, mtime_ns) for path, size, mtime_ns in rows}

    def unreadable(self) -> list[tuple[str, str]]:
        """Return the paths of unreadable images with the reasons, sorted by path."""
        return self._ask("SELECT path, reason FROM unreadable ORDER BY path")

    def rows(self, ids: Sequence[int]) -> list[Row]:
        """Return rows in the order of these ids.

        Raises:
            KeyError: if a row was removed.
        """
        parts, places = self._where(ids)
        rows = []
        with self._lock:
            for i, part, place in zip(ids, parts.tolist(), places.tolist()):
                found = self._ask("SELECT path, identity, camera, time FROM rows WHERE id = ?", (int(i),))
                if not found:  # removed since `reload`
                    raise self._gone(i)
                path, *named = found[0]
                rows.append(Row(self._text(path), Named(*named), self._recognised(part, place)))
        return rows

    def path_of(self, row: int) -> str | None:
        """Return the current path of a row; None if the row was removed."""
        with self._lock:
            found = self._ask("SELECT path FROM rows WHERE id = ?", (row,))
        return self._text(found[0][0]) if found else None

    def _text(self, path) -> str:
        if not isinstance(path, str):
            raise Damaged(self.folder / ROWS, f"contains invalid values (the path {path!r})", BUILD_AGAIN)
        return path

    def spread(self, count: int) -> list[int]:
        """Return up to `count` current ids, at equal distances."""
        with self._lock:
            first = [i for i, in self._ask("SELECT id FROM rows ORDER BY id LIMIT ?", (count + 1,))]
            if len(first) <= count:
                return first
            last = self._ask("SELECT MAX(id) FROM rows")[0][0]
            counted = np.linspace(first[0] >> MARK_BITS, last >> MARK_BITS, count).astype(int)
            wanted = (counted << MARK_BITS).tolist()
            near = [found for i in wanted
                    for found in self._ask("SELECT id FROM rows WHERE id >= ? ORDER BY id LIMIT 1", (i,))]
        return list(dict.fromkeys(i for i, in near))  # fewer if another process has just deleted some

    def _recognised(self, part: int, place: int) -> dict[str, tuple[str, float]]:
        if not self.columns:
            return {}
        answers = self._open(part, "answers")
        own = answers.read([place])[0]
        try:
            return {name: (self._words[code], float(probability)) for name, code, probability
                    in zip(self.columns, own["word"].tolist(), own["probability"].tolist())}
        except IndexError as error:
            raise Damaged(answers.path, "contains value codes that are not recorded") from error

    # Arrays.

    def embeddings(self, ids: Sequence[int]) -> np.ndarray:
        """Return the embeddings of these rows, float32 (n, E), in the order of the ids.

        Raises:
            KeyError: if a row was removed.
            Damaged: if a part file is damaged.
        """
        parts, places = self._where(ids)
        out = np.empty((len(parts), self.dim), dtype=np.float32)
        for part in np.unique(parts):
            own = parts == part
            out[own] = self._open(part, "embeddings").read(places[own])
        return out

    def pieces(self, ids: np.ndarray | None = None, most: int = 8192) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and embeddings, float32 (n, E), in the order of the files.

        Args:
            ids: of the rows; all rows if None.
            most: maximum of n.
        """
        chosen = np.arange(len(self)) if ids is None else np.flatnonzero(np.isin(self.ids, ids))
        for own in self._by_part(chosen):
            stored = self._open(self._parts[own[0]], "embeddings")
            for first in range(0, len(own), most):
                rows = own[first:first + most]
                yield self.ids[rows], stored.read(self._places[rows]).astype(np.float32)

    def answers(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the value codes, int16 (N,), and probabilities, float32 (N,), of one attribute, in the order of `ids`.
        """
        with self._lock:
            if column not in self._answers:
                m = self.columns.index(column)
                codes, probabilities = np.empty(len(self), np.int16), np.empty(len(self), np.float32)
                for own in self._by_part(np.arange(len(self))):
                    answers = self._open(self._parts[own[0]], "answers").read(self._places[own])
                    codes[own], probabilities[own] = answers["word"][:, m], answers["probability"][:, m]
                self._answers[column] = codes, probabilities
            return self._answers[column]

    def codes(self, words: Sequence[str]) -> list[int]:
        """Return the codes of values; values that were never predicted have none and are omitted."""
        return [self._words.index(word) for word in words if word in self._words]

    def _by_part(self, positions: np.ndarray) -> list[np.ndarray]:
        """Split ascending positions in `ids` by part."""
        return np.split(positions, np.flatnonzero(np.diff(self._parts[positions])) + 1) if len(positions) else []

    def _where(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return part and place of each id, int64 (n,) each."""
        wanted = np.asarray(ids, dtype=np.int64)
        at = np.searchsorted(self.ids, wanted, sorter=self._by_id)
        rows = self._by_id[np.minimum(at, len(self) - 1)] if len(self) else np.zeros(len(wanted), dtype=np.int64)
        if len(wanted) and not (len(self) and (self.ids[rows] == wanted).all()):
            raise self._gone(wanted[0])
        return self._parts[rows], self._places[rows]

    def _gone(self, row: int) -> KeyError:
        return KeyError(f"{self.folder}: row {row} or another requested row was removed, since the index has changed; "
                        "search again")

    def _path(self, part: int, what: str) -> Path:
        """Return the recorded path of a part file, or its default path in an index of format 2."""
        return self.folder / "parts" / self._recorded.get((part, what), _name(part, what))

    def _open(self, part: int, what: str) -> PartFile:
        key = int(part), what
        with self._lock:
            if key not in self._files:
                recorded = None
                if key in self._recorded:
                    found = self._ask("SELECT size, checksums FROM files WHERE part = ? AND what = ?", key)
                    if not found:
                        raise KeyError(f"{self._path(*key)}: was removed, since the index has changed; search again")
                    recorded = Recorded(*found[0])
                self._files[key] = PartFile(self._path(*key), *self._form(what), recorded)
                if len(self._files) > OPEN_PARTS:
                    self._files.popitem(last=False)
            self._files.move_to_end(key)
            return self._files[key]

    def _form(self, what: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Return type and shape of a row."""
        return (self.dtype, (self.dim,)) if what == "embeddings" else (_answer_type(len(self.columns)), ())

    def _files_of(self, part: int) -> list[tuple[int, str]]:
        return [(part, what) for what in (("embeddings", "answers") if self.columns else ("embeddings",))]

    def check_sizes(self) -> None:
        """Check that all part files exist with the expected size and header.

        Raises:
            Damaged: if one does not.
        """
        for part in np.unique(self._parts).tolist():
            for key in self._files_of(part):
                self._open(*key)

    # Writing. The caller holds `files.only_writer`, and calls `reload` at the end.

    def append(self, pictures: Sequence[Picture], naming: Naming, embeddings: np.ndarray,
               answers: Sequence[Mapping[str, tuple[str, float]]], unreadable: Sequence[tuple[Picture, str]],
               vocabulary: str) -> None:
        """Add a part in one transaction; existing rows with the same paths are replaced.

        Args:
            pictures: n files.
            naming: reads person, camera and time from file names.
            embeddings: (n, E).
            answers: n predictions, value and probability by attribute; empty if no attributes are predicted.
            unreadable: files with the reason.
            vocabulary: checksum of the attribute tables, see `build.mark_of`.
        """
        with self._transaction():
            number = self._base.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM parts").fetchone()[0]
            if pictures:
                self._base.execute("INSERT INTO parts VALUES (?, ?)", (number, vocabulary))
                self._record(self._write(number, "embeddings", embeddings.astype(self.dtype, copy=False)))
                if answers:
                    self._record(self._write(number, "answers", self._coded(answers)))
            self.forget([picture.path for picture in (*pictures, *(picture for picture, _ in unreadable))])
            self._base.executemany(
                "INSERT INTO rows (id, path, size, mtime_ns, identity, camera, time, part, place) "
                "VALUES (?,?,?,?,?,?,?,?,?)",
                [(i, *picture, *naming.read(picture.path), number, place)
                 for place, (i, picture) in enumerate(zip(self._new_ids(pictures), pictures))])
            self.refuse(unreadable)

    def _create_tables(self) -> None:
        """Create the tables that do not exist yet."""
        for statement in TABLES.split(";"):
            self._base.execute(statement)

    def _write(self, part: int, what: str, rows: np.ndarray, version: int = 0) -> tuple:
        """Write a part file; returns the arguments of `_record`."""
        name = _name(part, what, version)
        return (part, what, name, *write_rows(self.folder / "parts" / name, rows))

    def _record(self, *files: tuple) -> None:
        self._base.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", files)

    def _new_ids(self, pictures: Sequence[Picture]) -> list[int]:
        """Create ascending ids; sqlite_sequence contains the last one even if its row was deleted."""
        last = self._base.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rows'").fetchone()
        first = (last[0] >> MARK_BITS) + 1 if last else 1
        return [i << MARK_BITS | zlib.crc32("\0".join(map(str, picture)).encode())
                for i, picture in enumerate(pictures, first)]

    def forget(self, paths: Sequence[str]) -> None:
        """Remove files from the index."""
        with self._transaction():
            for table in ("rows", "unreadable"):
                self._base.executemany(f"DELETE FROM {table} WHERE path = ?", [(path,) for path in paths])

    def refuse(self, unreadable: Sequence[tuple[Picture, str]]) -> None:
        """Record files as unreadable, with the reason; their rows, if any, stay."""
        with self._transaction():
            self._base.executemany("INSERT OR REPLACE INTO unreadable VALUES (?, ?, ?, ?)",
                                   [(*picture, reason) for picture, reason in unreadable])

    def forget_passing(self) -> None:
        """Remove unreadable files whose reason may be temporary, so that they are read again."""
        with self._transaction():
            self._base.execute("DELETE FROM unreadable WHERE size IS NULL")

    def name_again(self, naming: Naming) -> None:
        """Read person, camera and time from all file names again."""
        with self._transaction():
            paths = [path for path, in self._ask("SELECT path FROM rows")]
            self._base.executemany("UPDATE rows SET identity = ?, camera = ?, time = ? WHERE path = ?",
                                   [(*naming.read(path), path) for path in paths])

    def verify(self) -> tuple[dict[int, Damaged], list[Damaged]]:
        """Check all files with their checksums, and record checksums that are missing.

        Returns:
            the errors of parts whose embeddings are lost, by part number, and the errors of predictions, which the next
            `recognise_again` repairs.

        Raises:
            Damaged: if rows.sqlite is damaged.
        """
        for report, in self._ask("PRAGMA quick_check(1)"):
            if report != "ok":
                raise Damaged(self.folder / ROWS, f"is damaged ({' '.join(str(report).split())})", BUILD_AGAIN)
        lost, unanswered = {}, []
        with self._transaction():
            self._create_tables()
        for part in np.unique(self._parts).tolist():
            for key in self._files_of(part):
                try:
                    recorded = self._open(*key).check()
                    if key not in self._recorded and key[1] == "embeddings":
                        self._check_values(part)
                except Damaged as error:
                    if key[1] == "embeddings":
                        lost[part] = error
                    else:
                        unanswered.append(error)
                        with self._transaction():
                            self._base.execute("UPDATE parts SET vocabulary = '' WHERE number = ?", (part,))
                    continue
                if key not in self._recorded:
                    with self._transaction():
                        self._record((*key, self._path(*key).name, *recorded))
        self.reload()
        return lost, unanswered

    def _check_values(self, part: int) -> None:
        """Raise Damaged if embeddings without checksums have rows of zeros, NaN or infinity."""
        stored = self._open(part, "embeddings")
        for first in range(0, len(stored), 8192):
            rows = stored.read(np.arange(first, min(first + 8192, len(stored))))
            if not (np.isfinite(rows).all() and rows.any(axis=1).all()):
                raise Damaged(stored.path, "contains rows of zeros, NaN or infinity")

    def paths_of_parts(self, parts: Collection[int]) -> list[str]:
        """Return the paths of the images in these parts."""
        return [path for part in parts for path, in self._ask("SELECT path FROM rows WHERE part = ?", (part,))]

    def recognise_again(self, recognise: Callable[[np.ndarray], Sequence[Mapping]], vocabulary: str,
                        lost: Collection[int] = ()) -> int:
        """Predict the attributes of all parts with other attribute tables again, from their embeddings.

        The predictions are written to new files, so that concurrent searches can read the old ones until the new ones
        are recorded.

        Args:
            recognise: predicts attributes from float32 (n, E).
            vocabulary: checksum of the current attribute tables, see `build.mark_of`.
            lost: parts to skip, whose embeddings cannot be read.

        Returns:
            the number of these parts.
        """
        stale = [part for part, in self._ask("SELECT number FROM parts WHERE vocabulary != ?", (vocabulary,))
                 if part not in lost]
        for part in stale:
            stored = self._open(part, "embeddings")
            pieces = [self._coded(recognise(stored.read(np.arange(first, min(first + 8192, len(stored))))
                                            .astype(np.float32))) for first in range(0, len(stored), 8192)]
            before = self._path(part, "answers").name.split(".")[1].partition("-")[2]
            written = self._write(part, "answers", np.concatenate(pieces), int(before or 0) + 1)
            with self._transaction():
                self._record(written)
                self._base.execute("UPDATE parts SET vocabulary = ? WHERE number = ?", (vocabulary, part))
        return len(stale)

    def compact(self, part_rows: int) -> None:
        """Copy the rows to full parts without deleted rows. Ids do not change; old files remain until `sweep`."""
        marks = dict(self._ask("SELECT number, vocabulary FROM parts"))
        mark = marks.popitem()[1] if len(set(marks.values())) == 1 else ""  # "": predict attributes again
        first_new = self._ask("SELECT COALESCE(MAX(number) + 1, 0) FROM parts")[0][0]
        moved, written = [], []
        for number, first in enumerate(range(0, len(self), part_rows), first_new):
            ids = self.ids[first:first + part_rows]
            parts, places = self._where(ids)
            for _, what in self._files_of(number):
                rows = [self._open(part, what).read(places[parts == part]) for part in np.unique(parts)]
                written.append(self._write(number, what, np.concatenate(rows)))
            moved.append((number, ids.tolist()))
        with self._transaction():
            self._create_tables()
            self._base.execute("DELETE FROM parts")
            self._base.execute("DELETE FROM files")
            self._record(*written)
            for number, ids in moved:
                self._base.execute("INSERT INTO parts VALUES (?, ?)", (number, mark))
                self._base.executemany("UPDATE rows SET part = ?, place = ? WHERE id = ?",
                                       [(number, place, i) for place, i in enumerate(ids)])

    def sweep(self) -> None:
        """Remove unused files: of parts that were interrupted, or whose images were all deleted."""
        with self._transaction():
            self._base.execute("DELETE FROM parts WHERE number NOT IN (SELECT part FROM rows)")
            if self._recorded:
                self._base.execute("DELETE FROM files WHERE part NOT IN (SELECT part FROM rows)")
        numbers = [number for number, in self._ask("SELECT number FROM parts")]
        needed = {self._path(number, what).name for number in numbers for what in ("embeddings", "answers")}
        for path in (self.folder / "parts").glob("[0-9]*.npy*"):
            if path.name not in needed:
                path.unlink()
        for path in self.folder.glob(f"*{ENDING}"):
            path.unlink()

    def _coded(self, answers: Sequence[Mapping[str, tuple[str, float]]]) -> np.ndarray:
        """Encode predictions as an array with (value code, probability) of each attribute, (n,) with M entries each."""
        columns = tuple(answers[0])
        with self._lock:  # a concurrent `reload` would change the next code
            if not self.columns:
                self._base.executemany("INSERT OR IGNORE INTO columns VALUES (?, ?)", list(enumerate(columns)))
                self.columns = columns
            if columns != self.columns:
                raise ValueError(f"{self.folder}: its attributes are {', '.join(self.columns)}, but the model predicts "
                                 f"{', '.join(columns)}; build a new index")
            code = {word: i for i, word in enumerate(self._words)}
            fresh = {own[0]: None for row in answers for own in row.values() if own[0] not in code}
            for word in fresh:
                code[word] = len(self._words)
                self._words.append(word)
                self._base.execute("INSERT OR IGNORE INTO words VALUES (?, ?)", (code[word], word))
        coded = np.empty(len(answers), dtype=_answer_type(len(columns)))
        coded["word"] = [[code[row[name][0]] for name in columns] for row in answers]
        coded["probability"] = [[row[name][1] for name in columns] for row in answers]
        return coded

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Run all statements inside, or none of them; nested transactions are joined."""
        with self._lock, self._named():
            if self._base.in_transaction:
                yield
                return
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:  # SQLite itself rolls back if the disk is full
                    self._base.execute("ROLLBACK")
                self.reload()
                raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise SQLite errors again with the name of the file and what to do."""
    try:
        yield
    except sqlite3.Error as error:
        passing = ("locked", "readonly", "unable to open", "disk is full", "disk I/O")
        if isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in passing):
            raise RuntimeError(f"{path}: {error}; check that the disk has free space, that the file is readable and "
                               "writable, and that no other process locks it, then try again") from error
        raise Damaged(path, f"is damaged ({error})", BUILD_AGAIN) from error


def _name(part: int, what: str, version: int = 0) -> str:
    return f"{part:06d}.{what}{f'-{version}' if version else ''}.npy"


def _answer_type(columns: int) -> np.dtype:
    """Return the type of a row of predictions: value code and probability of each attribute."""
    return np.dtype([("word", "<i2", (columns,)), ("probability", "<f4", (columns,))])
