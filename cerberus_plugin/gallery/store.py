"""What an index holds: embeddings and answers as arrays in parts, what is known of each picture in one SQLite file.

A part is written before the transaction that makes its rows known, so that a kill at any moment leaves an index that
holds whole parts only. A row's id is never given twice, nor to another picture by a copy of the index that goes its own
way, so that a search engine is brought up to date by ids alone: they count up, and end in a mark of the picture.
Shapes: N rows, E values of an embedding, M recognition columns.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import ENDING
from . import files
from .walking import Named, Naming, Picture

ROWS = "rows.sqlite"
MARK_BITS = 32  # of an id
OPEN_PARTS = 64  # maps kept at a time; each holds a file descriptor
TABLES = """
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, size INTEGER, mtime_ns INTEGER,
    identity TEXT, camera TEXT, time TEXT, part INTEGER NOT NULL, place INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, vocabulary TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS unreadable (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS columns (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS words (code INTEGER PRIMARY KEY, word TEXT NOT NULL UNIQUE);
"""


class Row(NamedTuple):
    """What is known of a picture beside its embedding; its path is below the folder of pictures."""

    path: str
    named: Named
    recognised: dict[str, tuple[str, float]]  # by column, the class and its probability


class Store:
    """The rows of one index folder as they were at the last `reload`; safe to read from several threads.

    Reading raises KeyError or FileNotFoundError where rows or their files have gone since; after a `reload` it is right
    again. What this object itself writes is known to others at once, and to itself after `reload`.

    Attributes:
        ids: int64 (N,), those of the rows, part by part.
        columns: the recognition columns, in the order of the arrays of answers; empty where nothing is recognised.
    """

    def __init__(self, folder: Path, dim: int, dtype: str) -> None:
        self.folder, self.dim, self.dtype = folder, dim, np.dtype(dtype)
        self._lock = threading.RLock()
        if not (folder / ROWS).is_file():
            raise FileNotFoundError(f"{folder / ROWS}: not found; give the folder of an index, or build one")
        self._base = sqlite3.connect(folder / ROWS, timeout=60, check_same_thread=False, isolation_level=None)
        self._maps: OrderedDict[Path, np.ndarray] = OrderedDict()
        self.reload()

    @staticmethod
    def create(folder: Path) -> None:
        """No rows; one that was begun already stays."""
        with contextlib.closing(sqlite3.connect(folder / ROWS)) as base:
            base.executescript(f"BEGIN; {TABLES} COMMIT;")

    def close(self) -> None:
        self._base.close()
        self._maps.clear()

    def reload(self) -> None:
        """Take notice of what another process has written."""
        with self._lock:
            self._version = self._base.execute("PRAGMA data_version").fetchone()[0]
            found = self._base.execute("SELECT id, part, place FROM rows ORDER BY part, place")
            table = np.fromiter(found, dtype=[("id", np.int64), ("part", np.int32), ("place", np.int32)])
            self.ids, self._parts, self._places = (np.ascontiguousarray(table[name]) for name in table.dtype.names)
            self._by_id = np.argsort(self.ids)
            self.columns = tuple(name for name, in self._base.execute("SELECT name FROM columns ORDER BY number"))
            self._words = [word for word, in self._base.execute("SELECT word FROM words ORDER BY code")]
            self._maps.clear()
            self._answers: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def changed_meanwhile(self) -> bool:
        """Whether another process has written since `reload`."""
        return self._version != self._base.execute("PRAGMA data_version").fetchone()[0]

    # What is known by path.

    def known(self) -> dict[str, tuple[int, int]]:
        """Size and time of every picture that was looked at, unreadable ones included."""
        rows = self._base.execute("SELECT path, size, mtime_ns FROM rows UNION ALL "
                                  "SELECT path, size, mtime_ns FROM unreadable")
        return {path: (size, mtime_ns) for path, size, mtime_ns in rows}

    def unreadable(self) -> list[tuple[str, str]]:
        """Paths and reasons of the pictures that could not be read, by path."""
        return self._base.execute("SELECT path, reason FROM unreadable ORDER BY path").fetchall()

    def rows(self, ids: Sequence[int]) -> list[Row]:
        """What is known of these rows, in their order."""
        parts, places = self._where(ids)
        rows = []
        with self._lock:
            for i, part, place in zip(ids, parts.tolist(), places.tolist()):
                found = self._base.execute("SELECT path, identity, camera, time FROM rows WHERE id = ?",
                                           (int(i),)).fetchone()
                if found is None:  # since `reload`
                    raise self._gone(i)
                rows.append(Row(found[0], Named(*found[1:]), self._recognised(part, place)))
        return rows

    def path_of(self, row: int) -> str | None:
        """The path of a row, as it is known now."""
        with self._lock:
            found = self._base.execute("SELECT path FROM rows WHERE id = ?", (row,)).fetchone()
        return found and found[0]

    def spread(self, count: int) -> list[int]:
        """Ids from all over those that are given, as they are known now: all, or at most so many."""
        with self._lock:
            first = [i for i, in self._base.execute("SELECT id FROM rows ORDER BY id LIMIT ?", (count + 1,))]
            if len(first) <= count:
                return first
            last = self._base.execute("SELECT MAX(id) FROM rows").fetchone()[0]
            counted = np.linspace(first[0] >> MARK_BITS, last >> MARK_BITS, count).astype(int)
            wanted = (counted << MARK_BITS).tolist()
            near = [self._base.execute("SELECT id FROM rows WHERE id >= ? ORDER BY id LIMIT 1", (i,)).fetchone()
                    for i in wanted]
        return list(dict.fromkeys(i for i, in filter(None, near)))  # None: another process has just deleted them

    def _recognised(self, part: int, place: int) -> dict[str, tuple[str, float]]:
        if not self.columns:
            return {}
        answers = self._map(part, "answers")[place]
        return {name: (self._words[code], float(probability)) for name, code, probability
                in zip(self.columns, answers["word"].tolist(), answers["probability"].tolist())}

    # Arrays.

    def embeddings(self, ids: Sequence[int]) -> np.ndarray:
        """Embeddings of these rows, float32 (n, E), in their order."""
        parts, places = self._where(ids)
        out = np.empty((len(parts), self.dim), dtype=np.float32)
        for part in np.unique(parts):
            own = parts == part
            out[own] = self._map(part, "embeddings")[places[own]]
        return out

    def pieces(self, ids: np.ndarray | None = None, most: int = 8192) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and embeddings, float32 (n, E), of the rows or some of them, as they lie in the files."""
        chosen = np.arange(len(self)) if ids is None else np.flatnonzero(np.isin(self.ids, ids))
        for own in self._by_part(chosen):
            stored = self._map(self._parts[own[0]], "embeddings")
            for first in range(0, len(own), most):
                rows = own[first:first + most]
                yield self.ids[rows], stored[self._places[rows]].astype(np.float32)

    def answers(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes of words, int16 (N,), and probabilities, float32 (N,), of one column, in the order of `ids`."""
        with self._lock:
            if column not in self._answers:
                m = self.columns.index(column)
                codes, probabilities = np.empty(len(self), np.int16), np.empty(len(self), np.float32)
                for own in self._by_part(np.arange(len(self))):
                    answers, places = self._map(self._parts[own[0]], "answers"), self._places[own]
                    codes[own], probabilities[own] = answers["word"][places, m], answers["probability"][places, m]
                self._answers[column] = codes, probabilities
            return self._answers[column]

    def codes(self, words: Sequence[str]) -> list[int]:
        """Codes of those words that some picture was recognised as."""
        return [self._words.index(word) for word in words if word in self._words]

    def _by_part(self, positions: np.ndarray) -> list[np.ndarray]:
        """Rising positions in `ids`, cut where another part begins."""
        return np.split(positions, np.flatnonzero(np.diff(self._parts[positions])) + 1) if len(positions) else []

    def _where(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Part and place of each id, int64 (n,) each."""
        wanted = np.asarray(ids, dtype=np.int64)
        at = np.searchsorted(self.ids, wanted, sorter=self._by_id)
        rows = self._by_id[np.minimum(at, len(self) - 1)] if len(self) else np.zeros(len(wanted), dtype=np.int64)
        if len(wanted) and not (len(self) and (self.ids[rows] == wanted).all()):
            raise self._gone(wanted[0])
        return self._parts[rows], self._places[rows]

    def _gone(self, row: int) -> KeyError:
        return KeyError(f"{self.folder}: row {row} or one asked for with it is gone, the index was changed meanwhile; "
                        "search again")

    def _path(self, part: int, what: str) -> Path:
        return self.folder / "parts" / f"{part:06d}.{what}.npy"

    def _map(self, part: int, what: str) -> np.ndarray:
        path = self._path(int(part), what)
        with self._lock:
            if path not in self._maps:
                if not path.is_file():
                    raise FileNotFoundError(f"{path}: not found; the index was changed meanwhile, open it again, or "
                                            "build it anew where a file was lost")
                self._maps[path] = np.load(path, mmap_mode="r", allow_pickle=False)
                if len(self._maps) > OPEN_PARTS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(path)
            return self._maps[path]

    # Writing; the caller holds `files.only_writer`, and calls `reload` at the end.

    def append(self, pictures: Sequence[Picture], naming: Naming, embeddings: np.ndarray,
               answers: Sequence[Mapping[str, tuple[str, float]]], unreadable: Sequence[tuple[Picture, str]],
               vocabulary: str) -> None:
        """Add a part in one step; rows of the same paths are replaced.

        Args:
            embeddings: (n, E), a row a picture.   answers: the same length, or empty where nothing is recognised.
            unreadable: pictures with the reason, see `Picture`.   vocabulary: a mark of what has given the answers.
        """
        with self._transaction():
            number = self._base.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM parts").fetchone()[0]
            if pictures:
                files.write_array(self._path(number, "embeddings"), embeddings.astype(self.dtype, copy=False))
                if answers:
                    files.write_array(self._path(number, "answers"), self._coded(answers))
                self._base.execute("INSERT INTO parts VALUES (?, ?)", (number, vocabulary))
            self._forget([picture.path for picture in pictures])
            self._forget([picture.path for picture, _ in unreadable])
            self._base.executemany(
                "INSERT INTO rows (id, path, size, mtime_ns, identity, camera, time, part, place) "
                "VALUES (?,?,?,?,?,?,?,?,?)",
                [(i, *picture, *naming.read(picture.path), number, place)
                 for place, (i, picture) in enumerate(zip(self._new_ids(pictures), pictures))])
            self._refuse(unreadable)

    def _new_ids(self, pictures: Sequence[Picture]) -> list[int]:
        """Rising ids; sqlite_sequence knows the last one even where its row is deleted."""
        last = self._base.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rows'").fetchone()
        first = (last[0] >> MARK_BITS) + 1 if last else 1
        return [i << MARK_BITS | zlib.crc32("\0".join(map(str, picture)).encode())
                for i, picture in enumerate(pictures, first)]

    def forget(self, paths: Sequence[str]) -> None:
        with self._transaction():
            self._forget(paths)

    def _forget(self, paths: Sequence[str]) -> None:
        for table in ("rows", "unreadable"):
            self._base.executemany(f"DELETE FROM {table} WHERE path = ?", [(path,) for path in paths])

    def refuse(self, unreadable: Sequence[tuple[Picture, str]]) -> None:
        """List pictures with the reason; their rows, where there are any, stay."""
        with self._transaction():
            self._refuse(unreadable)

    def _refuse(self, unreadable: Sequence[tuple[Picture, str]]) -> None:
        self._base.executemany("INSERT OR REPLACE INTO unreadable VALUES (?, ?, ?, ?)",
                               [(*picture, reason) for picture, reason in unreadable])

    def forget_passing(self) -> None:
        """Forget those unreadable pictures of which size and time say nothing, so that they are tried again."""
        with self._transaction():
            self._base.execute("DELETE FROM unreadable WHERE size IS NULL")

    def name_again(self, naming: Naming) -> None:
        """Read identity, camera and time from the names once more."""
        with self._transaction():
            paths = [path for path, in self._base.execute("SELECT path FROM rows")]
            self._base.executemany("UPDATE rows SET identity = ?, camera = ?, time = ? WHERE path = ?",
                                   [(*naming.read(path), path) for path in paths])

    def recognise_again(self, recognise: Callable[[np.ndarray], Sequence[Mapping]], vocabulary: str) -> int:
        """Answers of all parts that another vocabulary has given, from their embeddings; the number of such parts."""
        stale = self._base.execute("SELECT number FROM parts WHERE vocabulary != ?", (vocabulary,)).fetchall()
        for number, in stale:
            stored = self._map(number, "embeddings")
            pieces = [self._coded(recognise(stored[first:first + 8192].astype(np.float32)))
                      for first in range(0, len(stored), 8192)]
            files.write_array(self._path(number, "answers"), np.concatenate(pieces))
            with self._transaction():
                self._base.execute("UPDATE parts SET vocabulary = ? WHERE number = ?", (vocabulary, number))
        return len(stale)

    def compact(self, part_rows: int) -> None:
        """Lay the rows into full parts, without the deleted ones; their ids stay, and the files until `sweep`."""
        marks = dict(self._base.execute("SELECT number, vocabulary FROM parts"))
        mark = marks.popitem()[1] if len(set(marks.values())) == 1 else ""  # "": to be recognised again
        first_new = self._base.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM parts").fetchone()[0]
        moved = []
        for i, first in enumerate(range(0, len(self), part_rows)):
            ids = self.ids[first:first + part_rows]
            parts, places = self._where(ids)
            for what in ("embeddings", "answers") if self.columns else ("embeddings",):
                rows = [self._map(part, what)[places[parts == part]] for part in np.unique(parts)]
                files.write_array(self._path(first_new + i, what), np.concatenate(rows))
            moved.append((first_new + i, ids.tolist()))
        with self._transaction():
            self._base.execute("DELETE FROM parts")
            for number, ids in moved:
                self._base.execute("INSERT INTO parts VALUES (?, ?)", (number, mark))
                self._base.executemany("UPDATE rows SET part = ?, place = ? WHERE id = ?",
                                       [(number, place, i) for place, i in enumerate(ids)])

    def sweep(self) -> None:
        """Remove files that no row needs: of a part that a kill has cut off, or whose pictures are all gone."""
        with self._transaction():
            self._base.execute("DELETE FROM parts WHERE number NOT IN (SELECT part FROM rows)")
        needed = {f"{number:06d}" for number, in self._base.execute("SELECT number FROM parts")}
        for path in (self.folder / "parts").glob("[0-9]*.npy*"):
            if path.name.split(".")[0] not in needed or path.suffix == ENDING:
                path.unlink()

    def _coded(self, answers: Sequence[Mapping[str, tuple[str, float]]]) -> np.ndarray:
        """Answers in words as an array of (word, probability) a column, (n, M) inside."""
        columns = tuple(answers[0])
        with self._lock:  # a `reload` between would count words from another number
            if not self.columns:
                self._base.executemany("INSERT OR IGNORE INTO columns VALUES (?, ?)", list(enumerate(columns)))
                self.columns = columns
            if columns != self.columns:
                raise ValueError(f"{self.folder}: its attributes are {', '.join(self.columns)}, but the model answers "
                                 f"{', '.join(columns)}; build a new index")
            code = {word: i for i, word in enumerate(self._words)}
            fresh = {own[0]: None for row in answers for own in row.values() if own[0] not in code}
            for word in fresh:
                code[word] = len(self._words)
                self._words.append(word)
                self._base.execute("INSERT OR IGNORE INTO words VALUES (?, ?)", (code[word], word))
        coded = np.empty(len(answers), dtype=[("word", "<i2", (len(columns),)),
                                              ("probability", "<f4", (len(columns),))])
        coded["word"] = [[code[row[name][0]] for name in columns] for row in answers]
        coded["probability"] = [[row[name][1] for name in columns] for row in answers]
        return coded

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All statements inside, or none."""
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                self.reload()
                raise
            self._base.execute("COMMIT")
