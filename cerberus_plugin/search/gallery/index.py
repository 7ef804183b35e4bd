"""The index of a gallery: images are embedded once and searched often.

An index is a folder with these files:

* index.json: fingerprint, attribute tables and calibration of the model, the image folder, and the embedding layout;
* rows.sqlite: path, size, modification time, person, camera and time of each image, the position of its embedding, and
  sizes and checksums of the part files;
* parts/NNNNNN.embeddings.npy: embeddings (n, E); (n, E + V) with log-probabilities of attributes if TEST.READING of the
  model is probability;
* parts/NNNNNN.answers.npy: (value code, probability) of each attribute; the name has a version number if attributes
  were predicted again;
* unreadable.tsv: skipped images, and folders with a "/" at the end, with the reason;
* engines/: compressed search engines; can be deleted, since they are rebuilt;
* lock: locked by the writing process.

Shapes: N rows, E values of an embedding, V log-probabilities of a row.
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
BEGUN = ("lock", ROWS, f"{ROWS}-journal")  # left by a process that was killed before it wrote RECORD
DTYPES = ("float16", "float32")
LOOK_AGAIN = 8  # candidates per result from an engine that is not exact; they are scored with the stored rows


class Summary(NamedTuple):
    """Numbers of images in an update.

    Attributes:
        new, changed, deleted: files that differ from the index.
        unreadable: files and folders that could not be read in this update.
        rows: images in the index after the update.
    """

    new: int
    changed: int
    deleted: int
    unreadable: int
    rows: int


class GalleryIndex:
    """A gallery index; created by `build` or `open`.

    Several processes can search while one writes; a second writer raises RuntimeError. Each search first reads changes
    since the last one: rows, and the attribute tables and calibration of the model. If rows are deleted during a
    search, the search starts again once; if this happens a second time, it raises KeyError or Damaged. Threads can
    share an object, also while one of them updates or compacts it. Several processes, or copies of the index one after
    the other, can share a search engine: `use` adds missing rows to it and removes others.

    All data is checked with checksums when it is read. A search raises `Damaged` with the name of the file if a file is
    missing, truncated or modified. `build` and `update` check all files and embed lost images again.

    Args:
        folder: of an existing index.
        vocabulary: attribute tables to use instead of those in index.json, until the next `update`.
        images: image folder, if it has moved.

    Attributes:
        folder: of the index.
        images: the image folder.
        shape: layout of the rows.
        summary: of the last `build` or `update` of this object; None before.
        lost: files that it found damaged and repaired; `Summary` does not count their images.
        passed_over: numbers of skipped files and folders by kind, see `walk`.

    Examples:
        >>> index = GalleryIndex.build("gallery/", "crops/", encoder)                     # doctest: +SKIP
        >>> hits = index.search(Query(words={"upper colour": "red"}), top=5)              # doctest: +SKIP
        >>> hits = index.search(Query(index.embed(encoder, path), leave_out=["upper", "lower"]))  # doctest: +SKIP
        >>> index = GalleryIndex.open("gallery/", engine=Faiss("int8"))                   # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, vocabulary: AttributeModel | None = None,
                 images: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self._state = record.state(self.folder)  # taken before reading, so that later changes are noticed
        self._record = Record.read(self.folder)
        self.images = Path(images or self._record.images)
        self.shape = self._record.shape
        self.store = Store(self.folder, self.shape.width, self._record.dtype)
        self._vocabulary, self._given = vocabulary, vocabulary is not None
        self._engine: Engine | None = None
        self._behind = False  # whether the last reading of changes was interrupted
        self.summary: Summary | None = None
        self.lost: list[Damaged] = []
        self.passed_over: Counter[str] = Counter()
        self._lock = threading.RLock()  # engines cannot be searched while rows are added

    @classmethod
    def open(cls, folder: str | Path, vocabulary: AttributeModel | None = None, images: str | Path | None = None,
             engine: Engine | MakeEngine | None = None) -> GalleryIndex:
        """Open an existing index.

        Args:
            folder: of the index.
            vocabulary: attribute tables to use instead of those in index.json, until the next `update`.
            images: image folder, if it has moved.
            engine: search engine, see `use`; exact search in memory if None.

        Raises:
            FileNotFoundError: if there is no index.
            Damaged: if a file is missing or has the wrong size; checksums are compared when rows are read.
            ValueError: if the index has another format.
        """
        index = cls(folder, vocabulary, images)
        try:
            index.store.check_sizes()
        except (LookupError, Damaged):  # another process may just have replaced files
            index.store.reload()
            index.store.check_sizes()
        if engine is not None:
            index.use(engine)
        return index

    @classmethod
    def build(cls, folder: str | Path, images: str | Path, encoder: Encoder, *, dtype: str | None = None,
              pattern: str | None = None, follow_links: bool | None = None, pace: Pace | None = None,
              read: Callable[[Path], Image] | None = None) -> GalleryIndex:
        """Index the images of a folder and its subfolders, or update an existing or interrupted index.

        Args:
            folder: of the index; must be new, empty or an index.
            images: image folder.
            encoder: computes the embeddings, see `portable.encoder`.
            dtype: of the stored embeddings, "float16" or "float32". If None, that of the index; for a new index
                float16, or float32 for a model with Euclidean distance.
            pattern: regular expression for file names, see `Naming`; "" for the names of Market-1501 and DukeMTMC-reID.
                If None, that of the index; "" for a new index.
            follow_links: whether to follow links to folders. If None, as before; False for a new index.
            pace: batch size, threads and parts; `Pace()` if None.
            read: opens an image; `utils.images.read_image` if None. Unreadable files are listed in unreadable.tsv.
                After a ValueError a file is read again when it changes, after an OSError or MemoryError in the next
                update.

        Returns:
            the updated index.

        Raises:
            FileNotFoundError: if the image folder does not exist.
            RuntimeError: if another process is writing the index.
            ValueError: if the folder contains other files, or the index belongs to another model, image folder or
                dtype.
        """
        folder, images = Path(folder), Path(images).absolute()
        naming = Naming(pattern or "")
        if dtype not in (None, *DTYPES):
            raise ValueError(f"index: dtype '{dtype}' is not supported, expected one of {', '.join(DTYPES)}")
        others = [name for name in (os.listdir(folder) if folder.is_dir() else ())
                  if not (name in BEGUN or name.startswith(f"{RECORD}.") and name.endswith(ENDING))]
        if not (folder / RECORD).is_file():  # checked after listing: another process may be creating the index
            if others:
                raise ValueError(f"{folder}: contains files, but no index; give a new or empty folder")
            if not images.is_dir():
                raise FileNotFoundError(f"{images}: no such folder of images")
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
                                 "for a new index, or delete this index")

    def _write_record(self, changed: Record) -> None:
        changed.write(self.folder)
        with self._lock:
            self._record, self._state = changed, record.state(self.folder)

    def close(self) -> None:
        """Close the files of the index."""
        self.store.close()

    def __len__(self) -> int:
        return len(self.store)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that computed the embeddings."""
        return self._record.fingerprint

    @property
    def vocabulary(self) -> AttributeModel | None:
        """The attribute tables of the model; None for a model without them."""
        if self._vocabulary is None and self._record.vocabulary is not None:
            from ...attributes.attribute_model import AttributeModel

            self._vocabulary = AttributeModel.from_dict(self._record.vocabulary)
        return self._vocabulary

    @property
    def prior(self) -> float:
        """The default prior probability of the same person, 1 / (N + 1): each of N images or none of them."""
        return 1 / (len(self) + 1)

    @property
    def lasting_groups(self) -> tuple[str, ...]:
        """Groups that stay the same when clothes change; () for a model with a single block."""
        return tuple(self._record.lasting_groups)

    @property
    def clothing_groups(self) -> list[str]:
        """Groups that change with clothes, all but `lasting_groups`."""
        return clothing_groups(self.shape.groups, self.lasting_groups)

    @property
    def verification(self) -> Verification | None:
        """The calibration of the probability of the same person; None if the run is not calibrated."""
        known = self._record.verification
        return Verification.from_dict(known) if known else None

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Paths of unreadable images, relative to the image folder, with the reason."""
        return self.store.unreadable()

    def check(self, encoder: Encoder) -> None:
        """Check that a model is the one of this index.

        Raises:
            ValueError: if its embeddings cannot be compared with those of the index.
        """
        if encoder.fingerprint != self.fingerprint:
            raise ValueError(f"{self.folder}: was made with the model {self.fingerprint[:12]}, but this is the model "
                             f"{encoder.fingerprint[:12]}; their embeddings cannot be compared. Use the model of the "
                             "index, or build a new index with this model.")

    def embed(self, encoder: Encoder, picture: Image | str | Path,
              read: Callable[[Path], Image] | None = None) -> np.ndarray:
        """Compute the embedding of a query image.

        Args:
            encoder: model of the index.
            picture: the image, or its path.
            read: opens a path; `utils.images.read_image` if None.

        Returns:
            float32 (E,).

        Raises:
            ValueError: if the model is another one, or the image cannot be read.
        """
        self.check(encoder)
        if isinstance(picture, str | Path):
            picture = (read or picture_reader())(Path(picture))
        return np.asarray(encoder.encode([picture]), dtype=np.float32)[0]

    def update(self, encoder: Encoder, *, pace: Pace | None = None,
               read: Callable[[Path], Image] | None = None) -> Summary:
        """Embed new and changed images, and remove deleted ones.

        Args:
            encoder, pace, read: see `build`.

        Returns:
            the numbers of images.

        Raises:
            RuntimeError: if another process is writing the index.
            ValueError: if the model is another one, or the image folder contains none of the indexed images.
        """
        self.check(encoder)
        with files.only_writer(self.folder):
            return self._update(encoder, pace, read)

    def _update(self, encoder: Encoder, pace: Pace | None, read: Callable[[Path], Image] | None) -> Summary:
        with self._lock:  # the engine is updated at the end, since rows of damaged parts cannot be read before
            self._behind = True
            self._read_record()
            self.store.reload()
        self.store.sweep()
        lost, unanswered = self.store.verify()
        self.lost = [*lost.values(), *unanswered]
        self._take_knowledge(encoder, lost)
        self.store.forget_passing()
        again = dict.fromkeys(self.store.paths_of_parts(lost), (None, None))  # unlike any file's size and time
        known, refused = self.store.known() | again, {}
        self.passed_over = Counter()
        found = walk(self.images, refused.__setitem__, self._record.follow_links, self.passed_over)
        changes = compare(found, known, refused)
        if known and len(changes.deleted) == len(known) and not changes.new:
            raise ValueError(f"{self.images}: contains none of the {len(known)} images of {self.folder}; check that "
                             "its disk is mounted. If the images were deleted intentionally, delete the index")
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
        """Store the attribute tables and calibration of the model; predict attributes again if they have changed."""
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
        """Join small parts and remove rows of deleted images; useful after many updates.

        Args:
            part_rows: rows per part.

        Raises:
            RuntimeError: if another process is writing the index.
        """
        with files.only_writer(self.folder):
            self._reload()
            self.store.compact(part_rows)
            with self._lock:  # no search of this process is reading the old files
                self._reload()
                self.store.sweep()

    # Search.

    def use(self, engine: Engine | MakeEngine) -> Engine:
        """Set the search engine, and synchronise it with the index.

        Args:
            engine: an `Engine`, or a function that creates one for this index, such as `engines.Faiss("int8")`.

        Returns:
            the engine.
        """
        if callable(engine):
            engine = engine(Space(self._record.id, self.folder, self.shape.width, self.shape.metric))
        with self._lock:
            self._read(engine)
            self._engine = engine
        return engine

    def _reload(self) -> None:
        """Read changes of the index, and update the engine."""
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
        """Read index.json again if it has changed."""
        now = record.state(self.folder)
        if now == self._state:
            return
        known = Record.read(self.folder)
        if known.id != self._record.id:
            raise ValueError(f"{self.folder}: was replaced by a new index; open it again")
        if known.vocabulary != self._record.vocabulary and not self._given:
            self._vocabulary = None
        self._record, self._state = known, now

    def _catch_up_rows(self) -> None:
        if self._behind or self.store.changed_meanwhile() or self._state != record.state(self.folder):
            self._reload()

    def _catch_up(self) -> Engine:
        """Return the engine, after reading changes by other processes."""
        self._catch_up_rows()
        return self.faiss() if self._engine is None else self._engine

    def faiss(self, form: str = "exact") -> FaissEngine:
        """Search in memory with FAISS.

        Args:
            form: exact, float16, int8 or pq, see `Faiss`.
        """
        return self.use(Faiss(form))

    def milvus(self, address: str, **options) -> MilvusEngine:
        """Search with Milvus.

        Args:
            address: a file NAME.db, or the address of a server.
            options: other fields of `Milvus`.
        """
        return self.use(Milvus(address, **options))

    def recall(self, engine: Engine, k: int = 10, queries: int = 200) -> float:
        """Measure the recall of an engine, with images of the gallery as queries.

        Args:
            engine: to measure; its candidates are not scored again with the stored rows.
            k: number of nearest images.
            queries: maximum number of queries.

        Returns:
            the share of the k nearest images that the engine finds; NaN for fewer than two images.
        """
        exact = FaissEngine(self.shape.width, "exact", self.shape.metric)
        synchronise(exact, self.store)
        ids = self.store.ids[np.random.default_rng(0).permutation(len(self))[:queries]]
        queries = self.store.embeddings(ids)
        queries[:, self.shape.dim:] = 0  # image queries do not use log-probabilities
        return recall(engine, exact, queries, k, own=ids)

    def search(self, query: Query, top: int = 10, prefilter: Prefilter | None = None) -> list[Hit]:
        """Search the gallery.

        Args:
            query: what to search for.
            top: maximum number of results.
            prefilter: excludes images with contradicting attributes.

        Returns:
            the best matches, best first.

        Raises:
            ValueError: if the query is empty or not supported by the model of the index.
            Damaged: if a file of the index is damaged.
            KeyError: if rows were deleted twice during the search.
        """
        return self.search_many([query], top, prefilter)[0]

    def search_many(self, queries: Sequence[Query], top: int = 10,
                    prefilter: Prefilter | None = None) -> list[list[Hit]]:
        """Search for several queries; without a prefilter in one pass over the gallery.

        Scores are computed from the stored embeddings; a compressed engine only selects the candidates. Threads that
        share an index search one after the other.

        Args:
            queries: what to search for.
            top: maximum number of results per query.
            prefilter: see `search`.

        Returns:
            the best matches of each query, best first.

        Raises:
            ValueError, Damaged, KeyError: as `search`.
        """
        with self._lock:
            try:
                return self._search(queries, top, prefilter)
            except (LookupError, Damaged):  # another process may have changed the index
                self._reload()
                return self._search(queries, top, prefilter)

    def _search(self, queries: Sequence[Query], top: int, prefilter: Prefilter | None) -> list[list[Hit]]:
        if top < 1:
            raise ValueError(f"search: the number of results is {top}, expected at least 1")
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

    # Rows, by the id of a hit. Calls that only need the store do not wait for a search.

    def path(self, row: int) -> Path:
        """Return the path of a gallery image.

        Args:
            row: id of a hit.

        Raises:
            LookupError: if the image was deleted or has changed.
        """
        found = self.store.path_of(row)
        if found is None:
            raise LookupError(f"{self.folder}: contains no row {row}; its image was deleted or has changed, search "
                              "again")
        return self.images / found

    def embedding(self, row: int) -> np.ndarray:
        """Return the embedding of a gallery image, to search for similar images without the model.

        Args:
            row: id of a hit.

        Returns:
            float32 (E,).

        Raises:
            LookupError: if the image was deleted or has changed.
        """
        self.path(row)
        with self._lock:
            self._catch_up_rows()
            return self.store.embeddings([row])[0, :self.shape.dim]

    def sample(self, count: int) -> list[int]:
        """Return ids of rows, at equal distances in the gallery.

        Args:
            count: maximum number.
        """
        return self.store.spread(count)

    def _hits(self, query: CompiledQuery, ids: np.ndarray, top: int) -> list[Hit]:
        best = query.best(self.store.embeddings(ids), ids, top)
        rows = self.store.rows(ids[[i for i, *_ in best]])
        return [Hit(str(self.images / row.path), score, similarities, self._answers(row), int(ids[i]), *row.named,
                    same_person=query.same_person(score, self.prior))
                for (i, score, similarities), row in zip(best, rows)]

    def _answers(self, row: Row) -> dict[str, Answer]:
        """Return the predicted attributes, with abstentions."""
        return {name: self.vocabulary.answer(name, *own) for name, own in row.recognised.items()}
