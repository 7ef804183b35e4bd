"""Concurrent use of an index: open readers, several writers, copies, shared engines, and searches during changes."""

import contextlib
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cerberus_plugin.search.gallery import GalleryIndex, Query
from cerberus_plugin.search.gallery.engines import FaissEngine
from cerberus_plugin.search.gallery.store import ROWS, Store
from cerberus_plugin.search.portable import AttributeModel, Verification
from cerberus_plugin.utils.folders import Picture

import numpy as np
import pytest
from PIL import Image
from support.galleries import BLUE, GREEN, QUIET, RED, BandEncoder, Words, build, draw, draw_many, read

RED_HEAD = Query(words={"head colour": "red"})
FITTED = Verification(slope=20.0, intercept=-16.0, prior=0.5, metric="cosine", groups=(), thresholds={0.1: 0.9})


class Calibrated(BandEncoder):
    lasting_groups, verification = ("head",), FITTED

    def __init__(self, scale=2.0):
        super().__init__()
        self.vocabulary = Words(scale)


@pytest.fixture
def crops(tmp_path):
    return draw_many(tmp_path / "crops", 20)


# Open readers.


def test_an_open_reader_notices_new_attribute_tables_and_calibration(tmp_path, crops, monkeypatch):
    monkeypatch.setattr(AttributeModel, "from_dict", Words.from_dict)
    writer = build(tmp_path, BandEncoder())
    reader = GalleryIndex.open(tmp_path / "index")
    assert (reader.search(RED_HEAD)[0].same_person, reader.vocabulary.scale) == (None, 16.0)
    writer.update(Calibrated(), pace=QUIET, read=read)
    picture = Query(reader.store.embeddings(reader.store.ids[:1])[0])
    assert reader.search(picture)[0] == writer.search(picture)[0] and writer.search(picture)[0].same_person is not None
    assert (reader.lasting_groups, reader.verification, reader.vocabulary.scale) == (("head",), FITTED, 2.0)


def test_a_change_of_only_index_json_is_noticed(tmp_path, crops):
    writer = build(tmp_path, BandEncoder())
    reader = GalleryIndex.open(tmp_path / "index", Words())
    reader.search(RED_HEAD)
    writer.update(Calibrated(scale=16.0), pace=QUIET, read=read)
    assert not reader.store.changed_meanwhile()
    reader.search(RED_HEAD)
    assert reader.verification == FITTED


def test_a_given_vocabulary_is_used_until_the_next_update(tmp_path, crops):
    writer, given = build(tmp_path, BandEncoder()), Words(scale=5.0)
    reader = GalleryIndex.open(tmp_path / "index", given)
    writer.update(Calibrated(), pace=QUIET, read=read)
    reader.search(RED_HEAD)
    assert reader.vocabulary is given
    encoder = Calibrated(scale=3.0)
    reader.update(encoder, pace=QUIET, read=read)
    assert reader.vocabulary is encoder.vocabulary


def test_a_replaced_index_is_reported(tmp_path, crops):
    build(tmp_path, BandEncoder()).close()
    reader = GalleryIndex.open(tmp_path / "index", Words())
    (tmp_path / "index").rename(tmp_path / "before")
    build(tmp_path, BandEncoder())
    with pytest.raises(ValueError, match="index: was replaced by a new index; open it again"):
        reader.search(RED_HEAD)


# Several writers.


def test_a_second_concurrent_first_build_is_rejected_without_damage(tmp_path, crops, monkeypatch):
    pytest.importorskip("fcntl")
    refused = []

    def begun_by_another(folder):
        with pytest.raises(RuntimeError, match="another process is writing this index; wait until it ends"):
            build(tmp_path, BandEncoder())
        refused.append(folder)
        create(folder)

    create = Store.create
    monkeypatch.setattr(Store, "create", begun_by_another)
    assert len(build(tmp_path, BandEncoder())) == 20 and len(refused) == 1


def test_a_build_continues_an_index_that_was_created_at_the_same_time(tmp_path, crops, monkeypatch):
    first, mkdir = [], Path.mkdir

    def late(folder, *args, **options):
        if not first:
            first.append(folder)
            first.append(build(tmp_path, BandEncoder()))
        mkdir(folder, *args, **options)

    monkeypatch.setattr(Path, "mkdir", late)
    encoder = BandEncoder()
    index = build(tmp_path, encoder)
    assert index.summary == (0, 0, 0, 0, 20) and encoder.count == 0


# Copies.


def take_in(folder, name, *bands):
    draw(folder / "crops" / name, *bands)
    return build(folder, BandEncoder())


def test_independent_copies_never_use_one_id_for_different_images(tmp_path):
    pytest.importorskip("milvus_lite")
    indexes, new = [], ((RED, "red.png"), (BLUE, "blue.png"))
    take_in(tmp_path, "green.png", GREEN).close()
    for colour, name in new:
        shutil.copytree(tmp_path / "index", tmp_path / name / "index")
        draw(tmp_path / "crops" / name, colour)
        indexes.append(GalleryIndex.open(tmp_path / name / "index", Words()))
        indexes[-1].update(BandEncoder(), pace=QUIET, read=read)
        (tmp_path / "crops" / name).unlink()
    assert len({int(i) for index in indexes for i in index.store.ids}) == 3
    for index, (colour, name) in zip(indexes, new):
        picture = Query(index.embed(BandEncoder(), Image.new("RGB", (8, 20), colour)))
        engine = index.milvus(str(tmp_path / "gallery.db"))
        assert Path(index.search(picture, top=1)[0].path).name == name
        engine.close()


def test_an_id_is_not_reused_if_its_image_is_restored(tmp_path):
    index = take_in(tmp_path, "red.png", RED)
    draw(tmp_path / "crops/green.png", GREEN)
    index.update(BandEncoder(), pace=QUIET, read=read)
    before, state = set(index.store.ids.tolist()), (tmp_path / "crops/green.png").stat()
    (tmp_path / "crops/green.png").unlink()
    index.update(BandEncoder(), pace=QUIET, read=read)
    os.utime(draw(tmp_path / "crops/green.png", GREEN), ns=(0, state.st_mtime_ns))
    index.update(BandEncoder(), pace=QUIET, read=read)
    assert len(set(index.store.ids.tolist()) - before) == 1 and index.store.ids.tolist() == sorted(index.store.ids)


# Shared engines.


@pytest.fixture
def shared(tmp_path, crops):
    """A writer and a reader, an engine of the writer, and a function that adds a red image to both."""
    writer, reader = build(tmp_path, BandEncoder()), GalleryIndex.open(tmp_path / "index", Words())
    engine = FaissEngine(20)
    writer.use(engine)

    def add():
        draw(tmp_path / "crops/red.png", RED)
        writer.update(BandEncoder(), pace=QUIET, read=read)

    return writer, reader, engine, add


def test_rows_added_after_another_process_opened_the_index_stay_in_the_engine(shared):
    _, reader, engine, add = shared
    add()
    reader.use(engine)
    assert len(engine) == 21 and reader.search(RED_HEAD, 1)[0].path.endswith("red.png")


def test_rows_added_during_the_synchronisation_by_another_process_stay_in_the_engine(shared):
    _, reader, engine, add = shared
    ids = engine.ids

    def late():
        engine.ids = ids
        add()
        return ids()

    engine.ids = late
    reader.use(engine)
    assert len(engine) == 21 and len(reader) == 21


def test_a_failed_synchronisation_is_repeated_before_the_next_search(shared):
    writer, _, engine, add = shared

    def unreachable(*_):
        raise ConnectionError("no answer")

    engine.add = unreachable
    with pytest.raises(ConnectionError, match="no answer"):
        add()
    del engine.add
    assert writer.search(RED_HEAD, 1)[0].path.endswith("red.png") and len(engine) == 21


# Searches during changes.


@pytest.mark.parametrize("step", ["embeddings", "rows"])
def test_a_search_starts_again_if_a_row_is_deleted_during_it(tmp_path, crops, monkeypatch, step):
    build(tmp_path, BandEncoder()).close()
    reader = GalleryIndex.open(tmp_path / "index", Words())
    best = Path(reader.search(RED_HEAD, 1)[0].path)
    found = getattr(Store, step)

    def late(store, ids):
        if best.exists() and store is reader.store:
            best.unlink()
            writer = build(tmp_path, BandEncoder())
            writer.compact()
            writer.close()
        return found(store, ids)

    monkeypatch.setattr(Store, step, late)
    hits = reader.search(RED_HEAD, 20)
    assert len(hits) == 19 and str(best) not in [hit.path for hit in hits]


def test_rows_added_to_the_engine_by_another_process_are_found(shared):
    _, reader, engine, _ = shared
    reader.use(engine)
    engine.add(np.array([7]), np.tile(np.float32([1, 0, 0, 0]), 5)[None])
    assert len(reader.search(RED_HEAD, 20)) == 20 and len(engine) == 20


def test_old_files_are_removed_after_searches_of_this_process(tmp_path, crops, monkeypatch):
    index = build(tmp_path, BandEncoder())
    index.search(RED_HEAD)
    before, sweep, searches = index.store.embeddings(index.store.ids), Store.sweep, []

    def watched(store):
        searches.append(pool.submit(index.search, RED_HEAD))
        with pytest.raises(TimeoutError):  # it waits for the search
            searches[-1].result(timeout=0.05)
        sweep(store)
        assert np.array_equal(store.embeddings(store.ids), before)

    monkeypatch.setattr(Store, "sweep", watched)
    with ThreadPoolExecutor(1) as pool:
        index.compact(part_rows=50)
        assert [each.result() for each in searches] == [index.search(RED_HEAD)]
    assert len(list((tmp_path / "index/parts").glob("*.embeddings.npy"))) == 1


def test_changes_after_a_failed_commit_are_stored(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    index.store._base.execute("PRAGMA busy_timeout = 1")
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / ROWS, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM rows").fetchone()  # a reader that blocks commits
        with pytest.raises(RuntimeError, match="locked"):
            index.store.refuse([(Picture("0001.jpg", 1, 1), "damaged")])
        other.execute("COMMIT")
        assert index.store.unreadable() == []
        index.store.refuse([(Picture("0002.jpg", 1, 1), "damaged")])
        assert other.execute("SELECT path FROM unreadable").fetchall() == [("0002.jpg",)]
