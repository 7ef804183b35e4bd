"""Search engines: results equal to brute force, or with a measured recall; FAISS and Milvus have one interface."""

import multiprocessing
import os
import signal

from cerberus_plugin.search.gallery.engines import (
    FORMS,
    FaissEngine,
    MilvusEngine,
    base,
    faiss_engine,
    recall,
    synchronise,
)

import numpy as np
import pytest

DIM = 40


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Rows of five unit blocks in clusters of ten: float32 (N, 40)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count // 10 + 1, 5, 8))
    rows = centres[np.arange(count) // 10] + 0.5 * rng.standard_normal((count, 5, 8))
    return (rows / np.linalg.norm(rows, axis=2, keepdims=True)).reshape(count, DIM).astype(np.float32)


class Memory:
    """A source of rows with the interface of a store."""

    def __init__(self, ids, rows):
        self.ids, self.all = np.asarray(ids), dict(zip(ids, rows))

    def embeddings(self, ids):
        return np.stack([self.all[i] for i in ids])

    def pieces(self, ids=None):
        for some in np.array_split(self.ids if ids is None else ids, 3):
            if len(some):
                yield some, self.embeddings(some)


def brute(rows, ids, queries, k, metric="cosine"):
    if metric == "cosine":
        scores = queries @ rows.T
    else:
        scores = -((queries[:, None] - rows[None]) ** 2).sum(axis=2)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.asarray(ids)[order]


@pytest.fixture(params=["faiss", "milvus"])
def make(request, tmp_path):
    """Creates exact engines of both kinds; connections to Milvus are closed after the test."""
    opened = []

    def engine(metric="cosine"):
        if request.param == "faiss":
            return FaissEngine(DIM, "exact", metric)
        pytest.importorskip("milvus_lite")
        opened.append(MilvusEngine(str(tmp_path / "gallery.db"), f"rows_{metric}", DIM, metric))
        return opened[-1]

    yield engine
    for each in opened:
        each.close()


@pytest.mark.parametrize("metric", base.METRICS)
def test_an_exact_engine_has_the_results_of_brute_force(make, metric):
    engine, rows, ids = make(metric), clustered(300), np.arange(1000, 1300) * 7
    engine.add(ids, rows)
    queries = clustered(5, seed=1)
    scores, found = engine.search(queries, 12)
    expected, nearest = brute(rows, ids, queries, 12, metric)
    assert engine.exact and np.array_equal(found, nearest)
    assert np.allclose(scores, expected, atol=1e-5) and scores.dtype == np.float32 and found.dtype == np.int64


def test_removed_rows_are_not_found(make):
    engine, rows = make(), clustered(60)
    engine.add(np.arange(60), rows)
    engine.remove(np.arange(0, 60, 2))
    assert np.array_equal(np.sort(engine.ids()), np.arange(1, 60, 2)) and len(engine) == 30
    scores, found = engine.search(rows[:3], 5)
    assert np.array_equal(found, brute(rows[1::2], np.arange(1, 60, 2), rows[:3], 5)[1])


def test_a_search_among_some_ids_only_ranks_these(make, monkeypatch):
    monkeypatch.setattr("cerberus_plugin.search.gallery.engines.milvus_engine.NAMED_IDS", 7)
    engine, rows, among = make(), clustered(80), np.arange(3, 80, 4)
    engine.add(np.arange(80), rows)
    scores, found = engine.search(rows[:6], 9, among)
    expected, nearest = brute(rows[among], among, rows[:6], 9)
    assert np.array_equal(found, nearest) and np.allclose(scores, expected, atol=1e-5)


def test_results_are_padded_if_there_are_fewer_rows(make):
    engine, rows = make(), clustered(4)
    empty = engine.search(rows[:2], 3)
    assert (empty[1] == -1).all() and np.isneginf(empty[0]).all() and empty[1].shape == (2, 3)
    engine.add(np.arange(4), rows)
    scores, found = engine.search(rows[:1], 6, np.array([2, 3]))
    assert sorted(found[0, :2]) == [2, 3] and (found[0, 2:] == -1).all() and np.isneginf(scores[0, 2:]).all()
    assert (engine.search(rows[:1], 2, np.array([], dtype=np.int64))[1] == -1).all()


def test_an_engine_is_synchronised_by_ids(make):
    engine, rows = make(), clustered(50)
    assert synchronise(engine, Memory(np.arange(40), rows[:40]))
    assert synchronise(engine, Memory(np.arange(10, 50), rows[10:]))
    assert not synchronise(engine, Memory(np.arange(10, 50), rows[10:]))
    assert np.array_equal(np.sort(engine.ids()), np.arange(10, 50))
    assert np.array_equal(engine.search(rows[45:], 8)[1], brute(rows[10:], np.arange(10, 50), rows[45:], 8)[1])


def test_compressed_forms_need_fewer_bytes_and_have_a_measured_recall():
    rows, queries = clustered(3000), clustered(3000)[::30] + 0.05
    memory, engines = Memory(np.arange(3000), rows), {}
    for form in FORMS:
        engines[form] = FaissEngine(DIM, form)
        synchronise(engines[form], memory)
    assert {form: engine.bytes_a_row - 8 for form, engine in engines.items()} == {
        "exact": 160, "float16": 80, "int8": 40, "pq": 5}
    shares = {form: recall(engine, engines["exact"], queries) for form, engine in engines.items()}
    assert shares["exact"] == 1 and shares["float16"] > 0.99 and shares["int8"] > 0.9
    assert 0.1 < shares["pq"] < shares["int8"]
    by_hand = [len(set(engines["pq"].search(q[None], 10)[1][0]) & set(brute(rows, range(3000), q[None], 10)[1][0]))
               for q in queries]
    assert shares["pq"] == pytest.approx(np.mean(by_hand) / 10, abs=1e-3)


def test_recall_excludes_queries_without_other_rows():
    rows = clustered(3)
    engines = [FaissEngine(DIM) for _ in range(2)]
    assert np.isnan(recall(*engines, rows[:0]))
    for engine in engines:
        engine.add(np.array([5]), rows[:1])
    assert np.isnan(recall(*engines, rows[:1], own=np.array([5])))
    assert recall(*engines, rows[:2], own=np.array([5, -1])) == 1


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_a_compressed_form_is_saved_and_loaded(tmp_path, form):
    rows, path = clustered(60), tmp_path / "engines/rows.faiss"
    synchronise(FaissEngine(DIM, form, path=path), Memory(np.arange(40), rows[:40]))
    again = FaissEngine(DIM, form, path=path)
    assert len(again) == 40 and not again.wants_training(60)
    synchronise(again, Memory(np.arange(20, 60), rows[20:]))
    assert np.array_equal(np.sort(FaissEngine(DIM, form, path=path).ids()), np.arange(20, 60))
    assert [file.name for file in path.parent.iterdir()] == ["rows.faiss"]


@pytest.mark.parametrize("kept", [True, False], ids=["kept in a file", "in memory"])
def test_a_form_trained_on_few_rows_is_trained_again_with_four_times_the_rows(tmp_path, kept):
    rows, queries, path = clustered(600), clustered(600)[::6] + 0.05, tmp_path / "rows.faiss" if kept else None
    exact, engine = FaissEngine(DIM), FaissEngine(DIM, "int8", path=path)
    synchronise(exact, Memory(np.arange(600), rows))
    synchronise(engine, Memory(np.arange(2), rows[:2]))
    assert not engine.wants_training(7) and engine.wants_training(8) == 8 and engine.wants_training(20_000) == 10_000
    again = FaissEngine(DIM, "int8", path=path) if kept else engine
    assert synchronise(again, Memory(np.arange(600), rows)) and np.array_equal(np.sort(again.ids()), np.arange(600))
    assert recall(again, exact, queries) > 0.95 and not again.wants_training(2399)


def test_a_form_trained_on_enough_rows_is_not_trained_again(monkeypatch):
    monkeypatch.setitem(faiss_engine.TRAINING_ROWS, "int8", 50)
    engine = FaissEngine(DIM, "int8")
    synchronise(engine, Memory(np.arange(60), clustered(60)))
    assert engine.wants_training(10**9) == 0


def test_rows_in_a_milvus_file_are_available_to_the_next_process(tmp_path):
    pytest.importorskip("milvus_lite")
    rows = clustered(30)
    first = MilvusEngine(str(tmp_path / "gallery.db"), "rows", DIM)
    synchronise(first, Memory(np.arange(30), rows))
    first.close()
    second = MilvusEngine(str(tmp_path / "gallery.db"), "rows", DIM)
    assert len(second) == 30
    assert np.array_equal(second.search(rows[:2], 4)[1], brute(rows, np.arange(30), rows[:2], 4)[1])
    with pytest.raises(ValueError, match="collection 'rows' has rows of 40 values, expected 20"):
        MilvusEngine(str(tmp_path / "gallery.db"), "rows", 20)
    with pytest.raises(ValueError, match="20000 results per query were requested, the maximum is 16384"):
        second.search(rows[:1], 20_000)
    second.close()


def filled_until_killed(path: str) -> None:
    """Fill a Milvus Lite file, and exit after its rows are stored and before its log of them is removed."""
    from milvus_lite.storage.wal import WAL

    WAL.close_and_delete = lambda log: os.kill(os.getpid(), signal.SIGKILL)
    synchronise(MilvusEngine(path, "rows", DIM), Memory(np.arange(40), clustered(40)))


class Doubled:
    """An engine with duplicate rows, as a Milvus Lite file has after a kill."""

    def __init__(self, ids):
        self.held = list(ids)

    def wants_training(self, count):
        return 0

    def add(self, ids, rows):
        self.held += list(ids)

    def remove(self, ids):
        self.held = [i for i in self.held if i not in ids]

    def ids(self):
        return np.array(self.held)

    def save(self):
        pass


def test_duplicate_rows_of_an_engine_are_removed_and_added_again():
    engine = Doubled([1, 2, 3, 4, 2, 3, 3])
    assert synchronise(engine, Memory(np.arange(3, 7), clustered(4))) and sorted(engine.held) == [3, 4, 5, 6]
    assert not synchronise(engine, Memory(np.arange(3, 7), clustered(4)))


@pytest.mark.slow
def test_duplicate_rows_of_a_milvus_file_after_a_kill_are_removed_by_the_next_synchronisation(tmp_path):
    pytest.importorskip("milvus_lite")
    process = multiprocessing.get_context("spawn").Process(target=filled_until_killed, args=(str(tmp_path / "g.db"),))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    rows, engine = clustered(50), MilvusEngine(str(tmp_path / "g.db"), "rows", DIM)
    assert len(engine.ids()) == 80  # the duplicates of Milvus Lite
    synchronise(engine, Memory(np.arange(5, 50), rows[5:]))
    assert np.array_equal(np.sort(engine.ids()), np.arange(5, 50))
    assert np.array_equal(engine.search(rows[:3], 9)[1], brute(rows[5:], np.arange(5, 50), rows[:3], 9)[1])
    engine.close()


def test_a_milvus_file_opened_by_another_process_is_reported_as_locked(tmp_path):
    pytest.importorskip("milvus_lite")
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "g.db").mkdir()
    with open(tmp_path / "g.db/LOCK", "w") as lock:  # the lock of a running Milvus Lite
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConnectionError, match="g.db: locked by another process.*Wait until that process ends, or"):
            MilvusEngine(str(tmp_path / "g.db"), "rows", DIM)


def test_a_damaged_milvus_file_is_reported_with_a_remedy(tmp_path):
    pytest.importorskip("milvus_lite")
    (tmp_path / "g.db").write_text("no gallery")
    with pytest.raises(ConnectionError, match="g.db: Milvus Lite cannot open it .*delete the file, it is rebuilt"):
        MilvusEngine(str(tmp_path / "g.db"), "rows", DIM)


def test_training_the_smallest_form_on_few_rows_prints_no_warnings(capfd):
    FaissEngine(DIM, "pq").train(clustered(300))
    assert capfd.readouterr().err == ""


def test_unsupported_configurations_of_faiss_are_rejected_with_a_remedy(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="the form is 'int2', expected one of exact, float16, int8, pq"):
        FaissEngine(DIM, "int2")
    with pytest.raises(ValueError, match="the metric is 'manhattan', expected one of cosine, euclidean"):
        FaissEngine(DIM, metric="manhattan")
    with pytest.raises(ValueError, match="needs a number of values divisible by 8, but rows have 20; use int8"):
        FaissEngine(20, "pq")
    with pytest.raises(ValueError, match="needs at least 256 images for training, but there are 100; use int8"):
        synchronise(FaissEngine(DIM, "pq"), Memory(np.arange(100), clustered(100)))


def halved(content):
    return content[:len(content) // 2]


def zeroed_from_the_middle(content):
    return halved(content) + bytes(len(content) - len(content) // 2)


def one_bit_flipped(content):
    return content[:-500] + bytes([content[-500] ^ 1]) + content[-499:]


@pytest.mark.parametrize("damage", [halved, zeroed_from_the_middle, one_bit_flipped, lambda content: b"no index"])
def test_a_damaged_file_of_a_compressed_form_is_written_again(tmp_path, damage):
    rows, path = clustered(60), tmp_path / "rows.faiss"
    synchronise(FaissEngine(DIM, "int8", path=path), Memory(np.arange(60), rows))
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    engine = FaissEngine(DIM, "int8", path=path)
    assert len(engine) == 0
    synchronise(engine, Memory(np.arange(60), rows))
    assert path.read_bytes() == whole
    assert len(FaissEngine(20, "int8", path=path)) == 0  # a file with another dimension is not used either


def test_a_compressed_form_that_cannot_be_saved_is_built_in_memory_with_a_warning(tmp_path, caplog):
    (tmp_path / "engines").write_text("no folder")  # like a read-only disk, also for root
    rows = clustered(60)
    engine = FaissEngine(DIM, "int8", path=tmp_path / "engines/rows.faiss")
    assert synchronise(engine, Memory(np.arange(60), rows)) and engine.search(rows[:1], 1)[1] == [[0]]
    assert "engines" in caplog.text and "the form int8 is built in memory each time" in caplog.text


def test_an_unavailable_milvus_is_reported_with_a_remedy(tmp_path, monkeypatch):
    pytest.importorskip("pymilvus")
    with pytest.raises(FileNotFoundError, match="no such folder; create it for gallery.db"):
        MilvusEngine(str(tmp_path / "nowhere/gallery.db"), "rows", DIM)
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9: Milvus does not respond"):
        MilvusEngine("http://127.0.0.1:9", "rows", DIM, timeout=1)
    monkeypatch.setitem(__import__("sys").modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r"pymilvus is not installed; pip install pymilvus milvus-lite"):
        MilvusEngine(str(tmp_path / "gallery.db"), "rows", DIM)
