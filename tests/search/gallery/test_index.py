"""The gallery index: building, continuing after a kill, updates, and rejected input."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

from cerberus_plugin.search.gallery import Damaged, GalleryIndex, Pace, Query, files
from cerberus_plugin.utils import files as whole_files

import numpy as np
import pytest
from support.galleries import (
    BLUE,
    GREEN,
    QUIET,
    RED,
    BandEncoder,
    PlainEncoder,
    Words,
    build,
    draw,
    draw_many,
    read,
    stored,
)
from support.processes import Killed, kill_at_file


@pytest.fixture
def crops(tmp_path):
    return draw_many(tmp_path / "crops", 20)


# Building.


def test_an_index_contains_embedding_attributes_and_name_of_every_image(tmp_path, crops):
    index, encoder = build(tmp_path, BandEncoder()), BandEncoder()
    assert index.summary == (20, 0, 0, 0, 20) and len(index) == 20
    embeddings = encoder.encode([read(path) for path in crops])
    for path, embedding in zip(crops, embeddings):
        assert np.allclose(stored(index)[path.name], embedding, atol=1e-6)
    rows = {row.path: row for row in index.store.rows(index.store.ids)}
    for path, answers in zip(crops, Words().recognise(embeddings)):
        row = rows[path.name]
        assert (row.named.identity, row.named.camera) == (path.name[:4], path.name[6])
        assert {name: value for name, (value, _) in row.recognised.items()} == {n: a.value for n, a in answers.items()}
        assert [p for _, p in row.recognised.values()] == pytest.approx([a.probability for a in answers.values()])


def test_half_precision_has_two_bytes_per_value_and_three_digits(tmp_path, crops):
    index = build(tmp_path, BandEncoder(), dtype="float16")
    expected = BandEncoder().encode([read(path) for path in crops])
    assert np.allclose([stored(index)[path.name] for path in crops], expected, atol=5e-4)
    parts = [np.load(path) for path in (tmp_path / "index/parts").glob("*.embeddings.npy")]
    assert {part.dtype for part in parts} == {np.dtype("float16")} and sum(map(len, parts)) == 20


def test_blocks_are_normalised_to_unit_length(tmp_path, crops):
    class Shortened(BandEncoder):
        def encode(self, images):  # such as the mean of an image and its mirror image
            return super().encode(images) * 0.7

    rows = np.array(list(stored(build(tmp_path, Shortened())).values()))
    assert np.allclose(np.linalg.norm(rows.reshape(20, 5, 4), axis=2), 1)


def test_a_kill_only_loses_the_unfinished_part(tmp_path, crops, monkeypatch):
    first = BandEncoder()
    with monkeypatch.context() as patch:
        # Files are index.json and two arrays per part: the process is killed within the second part.
        kill_at_file(patch, whole_files, 5)
        with pytest.raises(Killed):
            build(tmp_path, first)
    assert len(GalleryIndex.open(tmp_path / "index")) == 8
    second = BandEncoder()
    index = build(tmp_path, second)
    assert second.count == 12 and len(index) == 20
    whole = build(tmp_path / "other", BandEncoder()) if draw_many(tmp_path / "other/crops", 20) else None
    assert {path: e.tolist() for path, e in stored(index).items()} == {p: e.tolist() for p, e in stored(whole).items()}


@pytest.mark.parametrize("file", range(1, 8))
def test_an_index_interrupted_at_any_file_is_completed(tmp_path, crops, monkeypatch, file):
    with monkeypatch.context() as patch:
        kill_at_file(patch, whole_files, file)
        with pytest.raises(Killed):
            build(tmp_path, BandEncoder())
    index = build(tmp_path, BandEncoder())
    assert sorted(stored(index)) == [path.name for path in crops]
    parts = list((tmp_path / "index/parts").iterdir())
    assert len(parts) == 2 * len({part.name[:6] for part in parts})


def test_embedded_images_are_stored_if_the_encoder_fails(tmp_path, crops):
    with pytest.raises(MemoryError, match="no memory left"):
        build(tmp_path, BandEncoder(fails_at=12))
    encoder = BandEncoder()
    assert len(build(tmp_path, encoder)) == 20 and encoder.count == 8


def test_an_index_is_continued_after_its_process_was_killed(tmp_path, crops):
    class Deadly(BandEncoder):
        def encode(self, images):
            if self.count == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().encode(images)

    process = multiprocessing.get_context("fork").Process(target=build, args=(tmp_path, Deadly()))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    encoder = BandEncoder()
    assert len(build(tmp_path, encoder)) == 20 and encoder.count == 12


def test_a_progress_bar_is_shown(tmp_path, crops, capsys):
    build(tmp_path, BandEncoder(), pace=Pace())
    assert "indexing: 100%" in (shown := capsys.readouterr().err) and "20/20" in shown and "images/s" in shown


def test_an_update_follows_the_folder(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    before = stored(index)
    crops[0].unlink()
    draw(crops[1], RED, GREEN, BLUE, RED, GREEN)
    os.utime(crops[1], ns=(0, 12345))
    draw(tmp_path / "crops/new/0099_c2_f0000007.png", BLUE)
    encoder = BandEncoder()
    assert index.update(encoder, pace=QUIET, read=read) == (1, 1, 1, 0, 20) and encoder.count == 2
    after = stored(index)
    assert crops[0].name not in after and "new/0099_c2_f0000007.png" in after
    assert np.allclose(after[crops[1].name], encoder.encode([read(crops[1])])[0], atol=1e-6)
    assert all(np.array_equal(before[path.name], after[path.name]) for path in crops[2:])
    hits = index.search(Query(index.embed(encoder, crops[1], read)), top=20)
    assert hits[0].path == str(crops[1]) and str(crops[0]) not in [hit.path for hit in hits]


def test_compacting_keeps_remaining_rows_and_their_ids(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    for path in crops[:7]:
        path.unlink()
    index.update(BandEncoder(), pace=QUIET, read=read)
    before, ids = stored(index), set(index.store.ids.tolist())
    index.compact(part_rows=10)
    after = stored(index)
    assert set(index.store.ids.tolist()) == ids and list(after) == list(before)
    assert all(np.array_equal(after[path], before[path]) for path in before)
    lengths = sorted(len(np.load(path)) for path in (tmp_path / "index/parts").glob("*.embeddings.npy"))
    assert lengths == [3, 10]
    assert index.search(Query(words={"head colour": "red"}), top=1)[0].attributes["head colour"].value == "red"


def test_a_search_finds_what_another_process_has_added(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    assert len(index.search(Query(words={"head colour": "red"}), top=30)) == 20
    draw(tmp_path / "crops/new.png", RED)
    crops[0].unlink()
    build(tmp_path, BandEncoder())
    hits = index.search(Query(words={"head colour": "red"}), top=30)
    assert len(hits) == 20 and hits[0].path.endswith("new.png") and str(crops[0]) not in [hit.path for hit in hits]


def test_new_attribute_tables_of_the_same_model_predict_attributes_again_without_images(tmp_path, crops):
    build(tmp_path, BandEncoder()).close()
    calibrated = BandEncoder()
    calibrated.vocabulary = Words(scale=2.0)
    index = build(tmp_path, calibrated)
    assert calibrated.count == 0
    row = index.store.rows(index.store.ids[:1])[0]
    expected = Words(scale=2.0).recognise(index.store.embeddings(index.store.ids[:1]))[0]
    assert [p for _, p in row.recognised.values()] == pytest.approx([a.probability for a in expected.values()])
    hit = index.search(Query(words={"head colour": "red"}), top=1)[0]
    told = Words(scale=2.0).recognise(stored(index)[Path(hit.path).name][None])[0]
    for name, answer in hit.attributes.items():
        assert (answer.value, answer.abstained) == (told[name].value, told[name].abstained)
    assert json.loads((tmp_path / "index/index.json").read_text())["vocabulary"] == {"scale": 2.0}


def test_another_pattern_reads_the_names_again(tmp_path, crops):
    build(tmp_path, BandEncoder()).close()
    encoder = BandEncoder()
    index = build(tmp_path, encoder, pattern=r"_c(?P<camera>\d)s(?P<time>\d)")
    assert encoder.count == 0
    assert {row.named for row in index.store.rows(index.store.ids)} == {(None, str(c), "1") for c in range(1, 7)}


def test_names_are_read_as_before_if_no_pattern_is_given(tmp_path, crops):
    build(tmp_path, BandEncoder(), pattern=r"_c(?P<camera>\d)s(?P<time>\d)").close()
    draw(tmp_path / "crops/9999_c9s9_000000_00.png", RED)
    index = build(tmp_path, BandEncoder())
    names = {row.path: row.named for row in index.store.rows(index.store.ids)}
    assert names["9999_c9s9_000000_00.png"] == (None, "9", "9") and names[crops[0].name] == (None, "1", "1")
    index = build(tmp_path, BandEncoder(), pattern="")
    assert index.store.rows(index.store.ids[:1])[0].named == ("0000", "1", "s1_000000")


def test_a_pattern_is_stored_with_the_names_and_not_for_another_model(tmp_path, crops, monkeypatch):
    build(tmp_path, BandEncoder()).close()
    pattern = r"_c(?P<camera>\d)"
    with pytest.raises(ValueError, match="made with the model"):
        build(tmp_path, PlainEncoder(), pattern=pattern)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("cerberus_plugin.search.gallery.store.Store.name_again", lambda *_: (_ for _ in ()).throw(Killed))
        build(tmp_path, BandEncoder(), pattern=pattern)
    index = GalleryIndex.open(tmp_path / "index", Words())
    assert index.store.rows(index.store.ids[:1])[0].named.identity == "0000"
    index = build(tmp_path, BandEncoder(), pattern=pattern)
    assert index.store.rows(index.store.ids[:1])[0].named == (None, "1", None)


def test_a_model_without_attributes_is_indexed_and_compared_by_distance(tmp_path):
    for name, colour in (("red", RED), ("green", GREEN), ("dark", (100, 0, 0))):
        draw(tmp_path / f"crops/{name}.png", colour)
    index = build(tmp_path, PlainEncoder())
    hits = index.search(Query(index.embed(PlainEncoder(), draw(tmp_path / "query.png", RED), read)))
    assert [Path(hit.path).stem for hit in hits] == ["red", "dark", "green"]
    assert [hit.score for hit in hits] == pytest.approx([0, -(155 / 255), -(2**0.5)], abs=1e-6)
    assert hits[0].attributes == {} and hits[0].similarities == {}


def test_a_moved_index_is_opened_with_the_new_image_folder(tmp_path, crops):
    build(tmp_path, BandEncoder()).close()
    (tmp_path / "crops").rename(tmp_path / "moved")
    index = GalleryIndex.open(tmp_path / "index", Words(), images=tmp_path / "moved")
    assert Path(index.search(Query(words={"head colour": "red"}), top=1)[0].path).is_file()
    assert index.update(BandEncoder(), pace=QUIET, read=read) == (0, 0, 0, 0, 20)


# Errors.


def test_another_model_is_rejected_with_both_fingerprints(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    message = f"made with the model {'a' * 12}, but this is the model {'b' * 12}.*build a new index"
    for attempt in (lambda: index.update(PlainEncoder()), lambda: index.embed(PlainEncoder(), crops[0]),
                    lambda: build(tmp_path, PlainEncoder())):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_a_folder_with_other_files_is_not_written_to(tmp_path, crops):
    (tmp_path / "index").mkdir()
    (tmp_path / "index/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains files, but no index"):
        build(tmp_path, BandEncoder())
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["thesis.txt"]
    with pytest.raises(FileNotFoundError, match="index.json: not found; give the folder of an index"):
        GalleryIndex.open(tmp_path / "index")


def test_an_index_without_its_table_of_images_is_rejected(tmp_path, crops):
    build(tmp_path, BandEncoder()).close()
    (tmp_path / "index/rows.sqlite").unlink()
    for attempt in (lambda: GalleryIndex.open(tmp_path / "index"), lambda: build(tmp_path, BandEncoder())):
        with pytest.raises(Damaged, match="rows.sqlite: is missing; .*delete the index and build it again"):
            attempt()
    assert not (tmp_path / "index/rows.sqlite").exists()


def test_an_index_of_other_images_another_precision_or_format_is_rejected(tmp_path, crops):
    build(tmp_path, BandEncoder())
    with pytest.raises(ValueError, match="an index with images .*crops, not .*others"):
        GalleryIndex.build(tmp_path / "index", tmp_path / "others", BandEncoder(), dtype="float32")
    with pytest.raises(ValueError, match="an index with dtype float32, not float16"):
        build(tmp_path, BandEncoder(), dtype="float16")
    with pytest.raises(ValueError, match="dtype 'int4' is not supported, expected one of float16, float32"):
        build(tmp_path, BandEncoder(), dtype="int4")
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        GalleryIndex.build(tmp_path / "new", tmp_path / "others", BandEncoder())
    path = tmp_path / "index/index.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 1'))
    with pytest.raises(ValueError, match="has format 1, this version supports 2 and 3"):
        GalleryIndex.open(tmp_path / "index")


def test_the_setting_for_links_is_kept_unless_it_is_changed(tmp_path, crops):
    draw(tmp_path / "elsewhere/0099_c2_f0000007.png", BLUE)
    (tmp_path / "crops/linked").symlink_to(tmp_path / "elsewhere")
    assert [len(build(tmp_path, BandEncoder(), follow_links=each)) for each in (None, True, None, False, None)] == [
        20, 21, 21, 20, 20]


def test_an_image_folder_without_any_indexed_image_does_not_empty_the_index(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    for path in crops:
        path.unlink()
    with pytest.raises(ValueError, match="contains none of the 20 images of .*index; check that its disk is mounted"):
        index.update(BandEncoder())
    assert len(GalleryIndex.open(tmp_path / "index")) == 20


def test_a_second_writer_is_rejected(tmp_path, crops):
    pytest.importorskip("fcntl")
    index = build(tmp_path, BandEncoder())
    with files.only_writer(index.folder), pytest.raises(RuntimeError, match="another process is writing this index"):
        index.update(BandEncoder())


def test_embeddings_that_are_not_finite_or_have_another_shape_are_rejected(tmp_path, crops):
    class Broken(BandEncoder):
        def encode(self, images):
            return np.where(np.arange(len(images))[:, None] == 1, np.nan, super().encode(images))

    with pytest.raises(ValueError, match=f"the embedding of {crops[1].name} is not finite"):
        build(tmp_path, Broken())
    small = BandEncoder()
    small.dim = 10
    with pytest.raises(ValueError, match=r"returned the shape \(4, 20\) for 4 images, expected \(4, 10\)"):
        GalleryIndex.build(tmp_path / "small", tmp_path / "crops", small, pace=QUIET, read=read)


def test_models_with_euclidean_distance_use_float32_by_default_and_float16_cannot_overflow(tmp_path, crops):
    class Far(PlainEncoder):
        offset = 1000.0

        def encode(self, images):
            return super().encode(images) * 0.01 + self.offset

    index = build(tmp_path, Far(), dtype=None)
    assert index.store.dtype == np.float32 and build(tmp_path, Far(), dtype=None).summary.rows == 20
    for path in crops:
        assert index.search(Query(index.embed(Far(), path, read)), top=1)[0].path == str(path)
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit/crops").symlink_to(tmp_path / "crops")
    assert build(tmp_path / "unit", BandEncoder(), dtype=None).store.dtype == np.float16
    Far.offset = 1e5
    with pytest.raises(ValueError, match=f"the embedding of {crops[0].name} has values too large for float16; build"):
        GalleryIndex.build(tmp_path / "half", tmp_path / "crops", Far(), dtype="float16", pace=QUIET)


def test_a_missing_part_and_predictions_of_other_attributes_are_reported(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    other = BandEncoder()
    other.vocabulary.recognise = lambda embeddings: [{"age": ("old", 1.0)}] * len(embeddings)
    other.vocabulary.scale = 1.0
    with pytest.raises(ValueError, match="its attributes are head colour, .*, but the model predicts age"):
        index.update(other)
    index = GalleryIndex.open(tmp_path / "index", Words())
    (tmp_path / "index/parts/000000.embeddings.npy").unlink()
    with pytest.raises(Damaged, match="000000.embeddings.npy: is missing; run `cerberus index` again"):
        index.search(Query(words={"head colour": "red"}))
    with pytest.raises(KeyError, match="row 99 or another requested row was removed"):
        index.store.embeddings([99])


def test_a_pace_without_images_or_workers_is_rejected():
    with pytest.raises(ValueError, match="must be at least 1"):
        Pace(workers=0)
