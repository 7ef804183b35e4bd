"""Damaged index files: detected, reported and repaired, without changing results."""

import json
import shutil
import sqlite3

from cerberus_plugin.search.gallery import Damaged, GalleryIndex, Query
from cerberus_plugin.search.gallery.parts import BLOCK_BYTES, PartFile, write_rows
from cerberus_plugin.utils import files as whole_files

import numpy as np
import pytest
from support.galleries import QUIET, BandEncoder, Words, build, draw_many, read, stored
from support.processes import Killed, kill_at_file

RED_HEAD = Query(words={"head colour": "red"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    draw_many(folder / "crops", 20)
    build(folder, BandEncoder()).close()
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of an index with its images: 20 rows in parts of 8, 8 and 4."""
    shutil.copytree(whole / "index", tmp_path / "index")
    record = json.loads((tmp_path / "index/index.json").read_text())
    (tmp_path / "crops").symlink_to(record["images"])
    return tmp_path


def again(folder, **options) -> tuple[GalleryIndex, BandEncoder]:
    encoder = BandEncoder()
    record = json.loads((folder / "index/index.json").read_text())
    index = GalleryIndex.build(folder / "index", record["images"], encoder, pace=QUIET, read=read, **options)
    return index, encoder


def answers_of(index) -> list:
    return [(hit.path, round(hit.score, 5), {name: (own.value, round(own.probability, 4))
                                             for name, own in hit.attributes.items()})
            for hit in index.search(RED_HEAD, top=20)]


def missing(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def longer(path):
    path.write_bytes(path.read_bytes() + b"more")


def half_zeroed(path):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2] + bytes(len(content) - len(content) // 2))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def swapped(path):
    other = path.with_name(path.name.replace("000001", "000000"))
    path.write_bytes(other.read_bytes())


def with_objects(path):
    np.save(path, np.array([{}] * 8, dtype=object), allow_pickle=True)


DAMAGES = [missing, cut, empty, longer, half_zeroed, flipped, swapped, with_objects]
NOTICED_LATER = (half_zeroed, flipped, swapped)  # the size is as it was


@pytest.mark.parametrize("what", ["embeddings", "answers"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_reported_by_searches_and_repaired_by_the_next_build(whole, folder, damage, what):
    path = folder / f"index/parts/000001.{what}.npy"
    expected = GalleryIndex.open(whole / "index", Words())
    damage(path)
    with pytest.raises(Damaged, match=rf"000001\.{what}\.npy: .*run `cerberus index` again") as raised:
        index = GalleryIndex.open(folder / "index", Words())
        assert damage in NOTICED_LATER
        index.search(RED_HEAD, top=20)
    assert "pickle" not in str(raised.value)
    index, encoder = again(folder)
    assert encoder.count == (8 if what == "embeddings" else 0)  # only the lost part; attributes need no images
    assert [error.path.name for error in index.lost][:1] == [path.name] and index.summary == (0, 0, 0, 0, 20)
    assert sorted(map(str, answers_of(index))) == sorted(map(str, answers_of(expected)))
    after, encoder = again(folder)
    assert (encoder.count, after.lost) == (0, [])


def test_a_part_truncated_during_a_search_raises_an_error_and_does_not_end_the_process(folder):
    index = GalleryIndex.open(folder / "index", Words())
    before = answers_of(index)
    path = folder / "index/parts/000001.embeddings.npy"
    content = path.read_bytes()
    with open(path, "r+b") as file:  # the file that the index has open
        file.truncate(200)
    with pytest.raises(Damaged, match="000001.embeddings.npy"):
        index.search(RED_HEAD, top=20)
    path.write_bytes(content)
    assert answers_of(index) == before


def test_deleted_images_of_a_lost_part_are_removed_from_the_index(tmp_path):
    crops = draw_many(tmp_path / "crops", 20)
    build(tmp_path, BandEncoder()).close()
    missing(tmp_path / "index/parts/000001.embeddings.npy")
    crops[8].unlink()
    encoder = BandEncoder()
    index = build(tmp_path, encoder)
    assert index.summary == (0, 0, 1, 0, 19) and encoder.count == 7 and crops[8].name not in stored(index)


def test_an_index_whose_image_folder_is_missing_keeps_the_record_of_a_lost_part(tmp_path):
    draw_many(tmp_path / "crops", 20)
    build(tmp_path, BandEncoder()).close()
    missing(tmp_path / "index/parts/000001.embeddings.npy")
    (tmp_path / "crops").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="crops"):
        build(tmp_path, BandEncoder())
    (tmp_path / "away").rename(tmp_path / "crops")
    encoder = BandEncoder()
    assert len(build(tmp_path, encoder)) == 20 and encoder.count == 8


def in_format_2(folder):
    """Convert the index to format 2, which has no checksums."""
    path = folder / "index/index.json"
    record = json.loads(path.read_text())
    del record["checksum"], record["follow_links"]
    path.write_text(json.dumps(record | {"format": 2}))
    with sqlite3.connect(folder / "index/rows.sqlite") as base:
        base.execute("DROP TABLE files")
    base.close()


def test_an_index_without_checksums_can_be_searched_and_the_next_update_adds_them(whole, folder):
    in_format_2(folder)
    expected = answers_of(GalleryIndex.open(whole / "index", Words()))
    assert answers_of(GalleryIndex.open(folder / "index", Words())) == expected
    index, encoder = again(folder)
    assert (encoder.count, index.lost) == (0, []) and answers_of(index) == expected
    assert json.loads((folder / "index/index.json").read_text())["format"] == 3
    flipped(folder / "index/parts/000002.embeddings.npy")
    with pytest.raises(Damaged, match="000002.embeddings.npy: was modified"):
        answers_of(GalleryIndex.open(folder / "index", Words()))


@pytest.mark.parametrize("damage", [missing, cut, empty, longer])
def test_without_checksums_the_sizes_of_parts_are_still_checked(folder, damage):
    in_format_2(folder)
    damage(folder / "index/parts/000001.embeddings.npy")
    with pytest.raises(Damaged, match="000001.embeddings.npy"):
        GalleryIndex.open(folder / "index", Words())
    index, encoder = again(folder)
    assert encoder.count == 8 and len(index.lost) == 1


def test_an_update_repairs_zeroed_embeddings_without_checksums(whole, folder):
    in_format_2(folder)
    half_zeroed(folder / "index/parts/000001.embeddings.npy")
    index, encoder = again(folder)
    assert encoder.count == 8 and [lost.path.name for lost in index.lost] == ["000001.embeddings.npy"]
    assert answers_of(index) == answers_of(GalleryIndex.open(whole / "index", Words()))


def test_compacting_adds_checksums(folder):
    in_format_2(folder)
    index = GalleryIndex.open(folder / "index", Words())
    before = answers_of(index)
    index.compact(part_rows=20)
    assert answers_of(index) == before
    flipped(next((folder / "index/parts").glob("*.embeddings.npy")))
    with pytest.raises(Damaged, match="embeddings.npy: was modified"):
        answers_of(GalleryIndex.open(folder / "index", Words()))


@pytest.mark.parametrize("damage", [cut, empty, half_zeroed, lambda path: path.write_bytes(b"[" * 100_000),
                                    lambda path: path.write_text(path.read_text().replace("crops", "crocs")),
                                    lambda path: path.write_text("[1, 2]"),
                                    lambda path: path.write_bytes(b"\xff\xfe{")])
def test_a_modified_record_is_reported_with_a_remedy(folder, damage):
    damage(folder / "index/index.json")
    with pytest.raises(ValueError, match=r"index\.json: .*(delete the index and build it|build the index) again"):
        GalleryIndex.open(folder / "index")


def halved(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [halved, empty, half_zeroed, lambda path: path.write_bytes(b"no database" * 1000)])
def test_a_damaged_table_of_images_is_reported_with_a_remedy(folder, damage):
    damage(folder / "index/rows.sqlite")
    for attempt in (lambda: answers_of(GalleryIndex.open(folder / "index", Words())), lambda: again(folder)):
        with pytest.raises(Damaged, match=r"rows\.sqlite: .*delete the index and build it again with `cerberus index`"):
            attempt()


def test_a_table_of_images_that_cannot_be_opened_is_reported_with_a_remedy(tmp_path):
    draw_many(tmp_path / "crops", 1)
    (tmp_path / "index/rows.sqlite").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"index/rows\.sqlite: unable to open .*; check that the disk has"):
        build(tmp_path, BandEncoder())


def test_invalid_values_in_the_table_of_images_are_reported_as_damage(folder):
    for change in ("UPDATE rows SET place = 99 WHERE place = 7", "UPDATE rows SET place = 'x' WHERE place = 7",
                   "UPDATE rows SET path = x'00ff' WHERE place = 3 AND part = 1",
                   "UPDATE rows SET part = 77 WHERE part = 1",
                   "DELETE FROM words", "DELETE FROM columns WHERE number > 2"):
        shutil.copytree(folder / "index", folder / "other", dirs_exist_ok=True)
        with sqlite3.connect(folder / "other/rows.sqlite") as base:
            base.execute(change)
        base.close()
        with pytest.raises(Damaged):
            answers_of(GalleryIndex.open(folder / "other", Words()))


def test_rows_are_read_in_any_order_and_every_block_is_checked(tmp_path):
    rows = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    path = tmp_path / "rows.npy"
    recorded = write_rows(path, rows)
    file = PartFile(path, rows.dtype, (16,), recorded)
    assert file.check() == recorded and np.array_equal(np.load(path), rows)
    for places in ([], [3], [499, 0, 7, 7], np.random.default_rng(1).permutation(500)):
        assert np.array_equal(file.read(places), rows[np.array(places, dtype=int)])
    in_a_block = BLOCK_BYTES // rows[0].nbytes
    content = bytearray(path.read_bytes())
    content[-1] ^= 128
    path.write_bytes(content)
    file = PartFile(path, rows.dtype, (16,), recorded)
    last = 499 // in_a_block * in_a_block
    assert np.array_equal(file.read([last - 1]), rows[[last - 1]])
    with pytest.raises(Damaged, match=f"was modified near row {last}"):
        file.read([499])
    with pytest.raises(Damaged, match="has 500 rows, but a row with position 500"):
        file.read([500])


def test_an_array_without_rows_is_stored_too(tmp_path):
    recorded = write_rows(tmp_path / "rows.npy", np.empty((0, 4), np.float16))
    assert len(PartFile(tmp_path / "rows.npy", np.float16, (4,), recorded).read([])) == 0


@pytest.mark.parametrize("file", range(1, 5))
def test_a_kill_during_a_repair_loses_nothing(whole, folder, monkeypatch, file):
    missing(folder / "index/parts/000000.embeddings.npy")
    flipped(folder / "index/parts/000001.answers.npy")
    missing(folder / "index/parts/000002.answers.npy")
    with monkeypatch.context() as patch:
        kill_at_file(patch, whole_files, file)
        with pytest.raises(Killed):
            again(folder)
    index, _ = again(folder)
    expected = answers_of(GalleryIndex.open(whole / "index", Words()))
    assert answers_of(index) == expected and again(folder)[0].lost == []
    assert {path.suffix for path in (folder / "index").rglob("*") if path.is_file()} <= {
        ".json", ".sqlite", ".tsv", ".npy", ""}


def test_a_search_during_an_update_of_the_attributes_reads_the_old_or_the_new_predictions(folder, monkeypatch):
    """The process is killed between writing the new file and recording it."""
    before = answers_of(GalleryIndex.open(folder / "index", Words()))
    record = json.loads((folder / "index/index.json").read_text())
    encoder = BandEncoder()
    encoder.vocabulary = Words(scale=3.0)
    with monkeypatch.context() as patch:
        kill_at_file(patch, whole_files, 2)
        with pytest.raises(Killed):
            GalleryIndex.build(folder / "index", record["images"], encoder, pace=QUIET, read=read)
    between = answers_of(GalleryIndex.open(folder / "index", Words()))
    index = GalleryIndex.build(folder / "index", record["images"], encoder, pace=QUIET, read=read)
    after = answers_of(index)
    assert before != after and all(row in before or row in after for row in between)
