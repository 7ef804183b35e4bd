"""An index of a gallery: its pictures are embedded once and searched often.

An index is a folder:

* index.json: the model's fingerprint, vocabulary and calibration, the folder of pictures, what embeddings are made of;
* rows.sqlite: path, size, time of change, identity, camera and time of each picture, where its embedding lies, and
  sizes and checksums of the files of parts;
* parts/NNNNNN.embeddings.npy, NNNNNN.answers.npy: embeddings (n, E), with log-probabilities of attributes behind them
  (n, E + V) for a model that reads these by probability, and (word, probability) of each column; answers that were
  recognised again have a number behind their name;
* unreadable.tsv: pictures that were skipped, and folders ending in "/", with the reason;
* engines/: compressed forms of a search engine; can be deleted, they are built again;
* lock: held by the process that writes.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...utils.files import ENDING
from ...utils.folders import Picture, walk
from ..portable.encoder import clothing_groups
from ..portable.verification import Verification
from . import files, record
from .build import Pace, fill, mark_of, picture_reader
from .engines import Engine, Faiss, FaissEngine, MakeEngine, Milvus, MilvusEngine, Space, recall, synchronise
from .folder import Naming, compare
from .parts import Damaged
from .query import CompiledQuery, Hit, Prefilter, Query, SearchedModel, compile_query
from .record import RECORD, Record
from .store import ROWS, Row, Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...attributes.attribute_model import Answer, AttributeModel
    from ..portable.encoder import Encoder

UNREADABLE = "unreadable.tsv"
BEGUN = ("lock", ROWS, f"{ROWS}-journal")  # left by a process killed before RECORD was written
DTYPES = ("float16", "float32")
LOOK_AGAIN = 8  # candidates per hit from an engine that is not exact; they are scored again by the stored rows


class Summary(NamedTuple):
    """Numbers of pictures in an update; `rows` is the size of the index after it."""

    new: int
    changed: int
    deleted: int
    unreadable: int
    rows: int


class GalleryIndex:
    """An index folder, ready to search; `build` or `open` gives one.

    Many processes may search while one writes; a second writer is refused. Each search first reads what was written
    since the last one: rows, attributes and calibration of the model. If rows are deleted during a search, it starts
    again once, and raises KeyError or Damaged if that happens a second time. Threads may share an object, also while
    one of them updates or compacts it. Processes may share an engine, and so may copies of the index one after the
    other: `use` adds the rows that it lacks and removes others.

    All data that is read is compared with checksums: a search raises `Damaged`, with the name of the file, where one is
    missing, cut short or altered. `build` and `update` read all files and embed lost pictures again.

    Attributes:
        summary: of the last `build` or `update` of this object.
        lost: files that it found damaged and has written again; `Summary` does not count their pictures.
        passed_over: files and folders that it skipped, counted by kind, see `walk`.

    >>> index = GalleryIndex.build("gallery/", "crops/", encoder)                     # doctest: +SKIP
    >>> hits = index.search(Query(words={"upper colour": "red"}), top=5)              # doctest: +SKIP
    >>> hits = index.search(Query(index.embed(encoder, picture), leave_out=["upper", "lower"]))  # doctest: +SKIP
    >>> index = GalleryIndex.open("gallery/", engine=Faiss("int8"))                   # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, vocabulary: AttributeModel | None = None,
                 images: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self._state = record.state(self.folder)  # before it is read, so that what is written meanwhile is read again
        self._record = Record.read(self.folder)
        self.images = Path(images or self._record.images)
        self.shape = self._record.shape
        self.store = Store(self.folder, self.shape.width, self._record.dtype)
        self._vocabulary, self._given = vocabulary, vocabulary is not None
        self._engine: Engine | None = None
        self._behind = False  # whether the last time to take notice of changes was cut off
        self.summary: Summary | None = None
        self.lost: list[Damaged] = []
        self.passed_over: Counter[str] = Counter()
        self._lock = threading.RLock()  # engines cannot be searched while rows are added

    @classmethod
    def open(cls, folder: str | Path, vocabulary: AttributeModel | None = None, images: str | Path | None = None,
             engine: Engine | MakeEngine | None = None) -> GalleryIndex:
        """An existing index.

        Args:
            vocabulary: in place of the one that index.json holds, until an `update`.
            images: the folder of pictures, where it has moved.
            engine: what searches it, see `use`; exact search in memory if None.

        Raises:
            Damaged: where a file is missing or has another size than it should; checksums are compared when rows are
                read.
        """
        index = cls(folder, vocabulary, images)
        try:
            index.store.check_sizes()
        except (LookupError, Damaged):  # unless another process has just put other files in their place
            index.store.reload()
            index.store.check_sizes()
        if engine is not None:
            index.use(engine)
        return index

    @classmethod
    def build(cls, folder: str | Path, images: str | Path, encoder: Encoder, *, dtype: str | None = None,
              pattern: str | None = None, follow_links: bool | None = None, pace: Pace | None = None,
              read: Callable[[Path], Image] | None = None) -> GalleryIndex:
        """Index the pictures of a folder and its subfolders, or continue an existing or interrupted index.

        Args:
            encoder: embeds the pictures, see `portable.encoder`.
            dtype: of stored embeddings; "float16" takes half the space. If None, that of the index, and for a new one
                float16, or float32 for a model whose embeddings have no unit length.
            pattern: a regular expression for names, see `Naming`; "" for those of known data sets. If None, that of the
                index, and "" for a new one.
            follow_links: whether links to folders are followed. If None, as the index has done, and False for a new
                one.
            read: opens a picture, `utils.images.read_image` if None. What cannot be read is listed: after a
                ValueError until the file changes, after an OSError or MemoryError until the next update tries it again.
        """
        folder, images = Path(folder), Path(images).absolute()
        naming = Naming(pattern or "")
        if dtype not in (None, *DTYPES):
            raise ValueError(f"index: embeddings cannot be kept as '{dtype}', expected one of {', '.join(DTYPES)}")
        others = [name for name in (os.listdir(folder) if folder.is_dir() else ())
                  if not (name in BEGUN or name.startswith(f"{RECORD}.") and name.endswith(ENDING))]
        if not (folder / RECORD).is_file():  # looked for last: another process may be beginning it
            if others:
                raise ValueError(f"{folder}: holds files, but no index; give a new or an empty folder")
            if not images.is_dir():
                raise FileNotFoundError(f"{images}: no such folder of pictures")
        folder.mkdir(parents=True, exist_ok=True)
        with files.only_writer(folder):
            if not (folder / RECORD).is_file():
                Store.create(folder)
                Record.new(encoder, images, naming.pattern, dtype).write(folder)
            index = cls(folder)
            index.check(encoder)
            index._check_record(images=str(images), dtype=dtype or index._record.dtype)
            if follow_links is not None and follow_links != index._record.follow_links:
                index._write_record(replace(index._record, follow_links=follow_links))
            if pattern is not None and pattern != index._record.name_pattern:
                index.store.name_again(naming)
                index._write_record(replace(index._record, name_pattern=pattern))
            index._update(encoder, pace, read)
        return index

    def _check_record(self, **wanted: str) -> None:
        for name, value in wanted.items():
            there = getattr(self._record, name)
            if there != value:
                raise ValueError(f"{self.folder}: is an index with {name} {there}, not {value}; give another folder "
                                 "for a new index, or delete this one")

    def _write_record(self, changed: Record) -> None:
        changed.write(self.folder)
        with self._lock:
            self._record, self._state = changed, record.state(self.folder)

    def close(self) -> None:
        self.store.close()

    def __len__(self) -> int:
        return len(self.store)

    @property
    def fingerprint(self) -> str:
        """That of the model which has embedded the pictures."""
        return self._record.fingerprint

    @property
    def vocabulary(self) -> AttributeModel | None:
        """What the model knows of attributes; None where it knows none."""
        if self._vocabulary is None and self._record.vocabulary is not None:
            from ...attributes.attribute_model import AttributeModel

            self._vocabulary = AttributeModel.from_dict(self._record.vocabulary)
        return self._vocabulary

    @property
    def prior(self) -> float:
        """The prior probability that a picture shows the person: 1 / (N + 1), each of N pictures or none of them."""
        return 1 / (len(self) + 1)

    @property
    def lasting_groups(self) -> tuple[str, ...]:
        """Groups that are compared where clothes may have been changed; () for a model of one block."""
        return tuple(self._record.lasting_groups)

    @property
    def clothing_groups(self) -> list[str]:
        """The other groups."""
        return clothing_groups(self.shape.groups, self.lasting_groups)

    @property
    def verification(self) -> Verification | None:
        """The calibration of scores to probabilities of the same person; None where the run is not calibrated."""
        known = self._record.verification
        return Verification.from_dict(known) if known else None

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Pictures that were skipped, by path below the folder, with the reason."""
        return self.store.unreadable()

    def check(self, encoder: Encoder) -> None:
        """Refuse a model whose embeddings cannot be compared with those of this index."""
        if encoder.fingerprint != self.fingerprint:
            raise ValueError(f"{self.folder}: was made with the model {self.fingerprint[:12]}, but this is the model "
                             f"{encoder.fingerprint[:12]}; their embeddings cannot be compared. Use the model of the "
                             "index, or build a new index with this one.")

    def embed(self, encoder: Encoder, picture: Image | str | Path,
              read: Callable[[Path], Image] | None = None) -> np.ndarray:
        """The embedding of a picture to search for, float32 (E,); the picture itself or its path."""
        self.check(encoder)
        if isinstance(picture, str | Path):
            picture = (read or picture_reader())(Path(picture))
        return np.asarray(encoder.encode([picture]), dtype=np.float32)[0]

    def update(self, encoder: Encoder, *, pace: Pace | None = None,
               read: Callable[[Path], Image] | None = None) -> Summary:
        """Embed new and changed pictures and remove deleted ones."""
        self.check(encoder)
        with files.only_writer(self.folder):
            return self._update(encoder, pace, read)

    def _update(self, encoder: Encoder, pace: Pace | None, read: Callable[[Path], Image] | None) -> Summary:
        with self._lock:  # the engine follows at the end: until then it might ask for rows that are lost
            self._behind = True
            self._read_record()
            self.store.reload()
        self.store.sweep()
        lost, unanswered = self.store.verify()
        self.lost = [*lost.values(), *unanswered]
        self._take_knowledge(encoder, lost)
        self.store.forget_passing()
        again = dict.fromkeys(self.store.paths_of_parts(lost), (None, None))  # no picture has such size and time
        known, refused = self.store.known() | again, {}
        self.passed_over = Counter()
        found = walk(self.images, refused.__setitem__, self._record.follow_links, self.passed_over)
        changes = compare(found, known, refused)
        if known and len(changes.deleted) == len(known) and not changes.new:
            raise ValueError(f"{self.images}: holds none of the {len(known)} pictures of {self.folder}; see that "
                             "its disk is there. If they are deleted indeed, delete the index.")
        self.store.forget([*changes.deleted, *again])
        self.store.refuse([(Picture(path, None, None), reason) for path, reason in refused.items()])
        try:
            unreadable = fill(self.store, self.images, changes.new + changes.changed, encoder,
                              Naming(self._record.name_pattern), pace or Pace(), read or picture_reader())
        finally:
            self._reload()
            files.write_table(self.folder / UNREADABLE, self.unreadable)
        changed = sum(picture.path not in again for picture in changes.changed)
        self.summary = Summary(len(changes.new), changed, len(changes.deleted), unreadable + len(refused), len(self))
        return self.summary

    def _take_knowledge(self, encoder: Encoder, lost: Collection[int]) -> None:
        """What the model knows now; where it was calibrated meanwhile, attributes are recognised again."""
        if encoder.vocabulary is not None:
            def recognise(rows: np.ndarray) -> list[dict]:
                return encoder.vocabulary.recognise(rows[:, :self.shape.dim])

            if self.store.recognise_again(recognise, mark_of(encoder.vocabulary), lost):
                self.store.reload()
                self.store.sweep()
        known = self._record.knowing(encoder)
        if known != self._record:
            self._write_record(known)
        with self._lock:
            self._vocabulary, self._given = encoder.vocabulary, False

    def compact(self, part_rows: int = Pace.part_rows) -> None:
        """Join small parts and remove the rows of deleted pictures; useful after many updates."""
        with files.only_writer(self.folder):
            self._reload()
            self.store.compact(part_rows)
            with self._lock:  # no search in this process is under way in the files that go
                self._reload()
                self.store.sweep()

    # Search.

    def use(self, engine: Engine | MakeEngine) -> Engine:
        """Search by this engine, brought up to date.

        Args:
            engine: an `Engine`, or what makes one for this index, such as `engines.Faiss("int8")`.
        """
        if callable(engine):
            engine = engine(Space(self._record.id, self.folder, self.shape.width, self.shape.metric))
        with self._lock:
            self._read(engine)
            self._engine = engine
        return engine

    def _reload(self) -> None:
        """Read what was written, and update the engine."""
        with self._lock:
            self._read(self._engine)

    def _read(self, engine: Engine | None) -> None:
        self._behind = True
        held = None if engine is None else engine.ids()  # before the rows, see `synchronise`
        self._read_record()
        self.store.reload()
        if engine is not None:
            synchronise(engine, self.store, held)
        self._behind = False

    def _read_record(self) -> None:
        """Attributes and calibration of the model may have changed."""
        now = record.state(self.folder)
        if now == self._state:
            return
        known = Record.read(self.folder)
        if known.id != self._record.id:
            raise ValueError(f"{self.folder}: holds another index than it did, it was built anew; open it again")
        if known.vocabulary != self._record.vocabulary and not self._given:
            self._vocabulary = None
        self._record, self._state = known, now

    def _catch_up_rows(self) -> None:
        if self._behind or self.store.changed_meanwhile() or self._state != record.state(self.folder):
            self._reload()

    def _catch_up(self) -> Engine:
        """The engine, after reading what other processes have written."""
        self._catch_up_rows()
        return self.faiss() if self._engine is None else self._engine

    def faiss(self, form: str = "exact") -> FaissEngine:
        """Search in memory, see `Faiss`."""
        return self.use(Faiss(form))

    def milvus(self, address: str, **options) -> MilvusEngine:
        """Search by Milvus in a file or on a cluster, see `Milvus`."""
        return self.use(Milvus(address, **options))

    def recall(self, engine: Engine, k: int = 10, queries: int = 200) -> float:
        """Share of the nearest k pictures that an engine finds by itself, for pictures of the gallery as queries.

        NaN for fewer than two pictures.
        """
        exact = FaissEngine(self.shape.width, "exact", self.shape.metric)
        synchronise(exact, self.store)
        ids = self.store.ids[np.random.default_rng(0).permutation(len(self))[:queries]]
        queries = self.store.embeddings(ids)
        queries[:, self.shape.dim:] = 0  # those of pictures
        return recall(engine, exact, queries, k, own=ids)

    def search(self, query: Query, top: int = 10, prefilter: Prefilter | None = None) -> list[Hit]:
        """The best matches, best first; fewer than `top` where the index or the filter leaves fewer."""
        return self.search_many([query], top, prefilter)[0]

    def search_many(self, queries: Sequence[Query], top: int = 10,
                    prefilter: Prefilter | None = None) -> list[list[Hit]]:
        """`search` for many queries, in one pass over the gallery where there is no filter.

        Scores are computed from the stored embeddings; a compressed engine only chooses the candidates. Threads that
        share an index wait for each other.
        """
        with self._lock:
            try:
                return self._search(queries, top, prefilter)
            except (LookupError, Damaged):  # perhaps another process has changed the index since it was looked at
                self._reload()
                return self._search(queries, top, prefilter)

    def _search(self, queries: Sequence[Query], top: int, prefilter: Prefilter | None) -> list[list[Hit]]:
        if top < 1:
            raise ValueError(f"search: {top} hits are asked for, expected at least 1")
        engine = self._catch_up()
        model = SearchedModel(self.shape, self.vocabulary, self.verification, self.lasting_groups)
        compiled = [compile_query(query, model, prefilter) for query in queries]
        if not compiled or not len(self):
            return [[] for _ in compiled]
        most = top if engine.exact else max(top, min(LOOK_AGAIN * top, engine.most_hits))
        count = min(len(self), most)
        vectors = np.stack([each.vector for each in compiled])
        if prefilter is None:
            found = engine.search(vectors, count)[1]
        else:
            found = [engine.search(vector[None], count, each.candidates(self.store))[1][0]
                     for each, vector in zip(compiled, vectors)]
        return [self._hits(each, ids[ids >= 0], top) for each, ids in zip(compiled, found)]

    # Rows, by the id of a hit. Calls that need the store only do not wait for a search.

    def path(self, row: int) -> Path:
        """Where a picture of the gallery lies."""
        found = self.store.path_of(row)
        if found is None:
            raise LookupError(f"{self.folder}: holds no row {row}; its picture was deleted or has changed, search "
                              "again")
        return self.images / found

    def embedding(self, row: int) -> np.ndarray:
        """The embedding of a picture of the gallery, float32 (E,): to search for similar ones without the model."""
        self.path(row)
        with self._lock:
            self._catch_up_rows()
            return self.store.embeddings([row])[0, :self.shape.dim]

    def sample(self, count: int) -> list[int]:
        """Ids of at most so many rows, from all over the gallery."""
        return self.store.spread(count)

    def _hits(self, query: CompiledQuery, ids: np.ndarray, top: int) -> list[Hit]:
        best = query.best(self.store.embeddings(ids), ids, top)
        rows = self.store.rows(ids[[i for i, *_ in best]])
        return [Hit(str(self.images / row.path), score, similarities, self._answers(row), int(ids[i]), *row.named,
                    same_person=query.same_person(score, self.prior))
                for (i, score, similarities), row in zip(best, rows)]

    def _answers(self, row: Row) -> dict[str, Answer]:
        """The recognised attributes, with abstentions."""
        return {name: self.vocabulary.answer(name, *own) for name, own in row.recognised.items()}
