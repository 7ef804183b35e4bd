"""Reading images for an index: permanently and temporarily unreadable files, and the memory limit."""

import os
import threading
import time

from cerberus_plugin.search.gallery import Pace, image_reader
from cerberus_plugin.utils.images import Unreadable, read_image

import numpy as np
import pytest
from support.galleries import QUIET, RED, BandEncoder, build, draw, draw_many, stored


@pytest.fixture
def crops(tmp_path):
    return draw_many(tmp_path / "crops", 20)


def test_unreadable_images_are_listed_with_their_reason_and_skipped_until_they_change(tmp_path, crops):
    crops[3].write_bytes(b"no picture")
    crops[5].write_bytes(b"")
    asked = []

    def counted(path):
        asked.append(path.name)
        return read_image(path)

    index = build(tmp_path, BandEncoder(), read=counted)
    assert index.summary == (20, 0, 0, 2, 18)
    lines = (tmp_path / "index/unreadable.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [crops[3].name, crops[5].name]
    assert "is not an image of a supported format" in lines[0].split("\t")[1]
    asked.clear()
    assert index.update(BandEncoder(), pace=QUIET, read=counted) == (0, 0, 0, 0, 18) and asked == []
    draw(crops[3], RED)
    assert index.update(BandEncoder(), pace=QUIET, read=counted) == (0, 1, 0, 0, 19) and asked == [crops[3].name]
    assert [path for path, _ in index.unreadable] == [crops[5].name]


@pytest.mark.parametrize("error", [
    OSError(5, "Input/output error"), PermissionError(13, "Permission denied"), MemoryError("no memory left"),
    Unreadable("crop", "cannot be opened (Input/output error)", passing=True),
], ids=lambda error: type(error).__name__)
def test_temporarily_unreadable_images_are_read_again(tmp_path, crops, error):
    def refusing(path):
        if path == crops[3]:
            raise error
        return read_image(path)

    index = build(tmp_path, BandEncoder(), read=refusing)
    assert index.summary == (20, 0, 0, 1, 19) and [path for path, _ in index.unreadable] == [crops[3].name]
    assert index.update(BandEncoder(), pace=QUIET, read=refusing) == (1, 0, 0, 1, 19)
    assert index.update(BandEncoder(), pace=QUIET, read=read_image) == (1, 0, 0, 0, 20) and index.unreadable == []


def test_an_image_that_has_become_unreadable_is_removed_from_the_index(tmp_path, crops):
    index = build(tmp_path, BandEncoder())
    crops[2].write_bytes(b"cut")
    assert index.update(BandEncoder(), pace=QUIET, read=read_image) == (0, 1, 0, 1, 19)
    assert crops[2].name not in stored(index)


def test_folders_that_cannot_be_read_are_listed_and_their_rows_stay(tmp_path, crops, monkeypatch):
    draw(tmp_path / "crops/sub/1.png", RED)
    index = build(tmp_path, BandEncoder())
    (tmp_path / "crops/loop.jpg").symlink_to("loop.jpg")
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refusing)
        assert index.update(BandEncoder(), pace=QUIET) == (0, 0, 0, 2, 21)
    assert index.unreadable == [("loop.jpg", "cannot be accessed (Too many levels of symbolic links)"),
                                ("sub/", "cannot be listed (Permission denied)")]
    (tmp_path / "crops/loop.jpg").unlink()
    (tmp_path / "crops/sub/1.png").unlink()
    assert index.update(BandEncoder(), pace=QUIET) == (0, 0, 1, 0, 20) and index.unreadable == []


def test_undecodable_names_are_listed_differently_from_names_with_an_escape_sequence(tmp_path):
    folder = draw(tmp_path / "crops/\\xff.png", RED).parent  # a backslash, x, f, f
    for name in (b"\xff.png", b"\\xff\xff.png", b"\xff\\xff.png", b"\xfe/1.png"):
        draw(folder / os.fsdecode(name), RED)
    index = build(tmp_path, BandEncoder())
    assert list(stored(index)) == ["\\xff.png"]
    reason = "its name is not valid UTF-8; rename it"
    assert index.unreadable == [(path, reason) for path in (
        "./\\\\xff\\xff.png", "./\\xfe/", "./\\xff.png", "./\\xff\\\\xff.png")]
    assert index.update(BandEncoder(), pace=QUIET) == (0, 0, 0, 4, 1)


# Memory.


@pytest.mark.parametrize("most", [1, 1000, 20 * 160])
def test_images_are_not_read_while_the_pixel_limit_is_reached(tmp_path, crops, monkeypatch, most):
    monkeypatch.setattr(image_reader, "MOST_PIXELS", most)
    pixels, held, seen, sizes = 8 * 20, 0, [], []  # of one image
    lock = threading.Lock()

    def counted(path):
        nonlocal held
        with lock:
            held += pixels
            seen.append(held)
        return read_image(path)

    class Slow(BandEncoder):
        def encode(self, images):
            nonlocal held
            time.sleep(0.02)  # lets the threads read up to the limit
            out = super().encode(images)
            sizes.append(len(images))
            with lock:
                held -= pixels * len(images)
            return out

    index = build(tmp_path, Slow(), read=counted)
    assert list(stored(index)) == [path.name for path in crops]
    # The last admitted image may exceed the limit, and each of two threads reads one image.
    assert max(seen) <= most + 3 * pixels
    assert max(sizes) == min(4, most // 3 // pixels + 1)
    whole = np.array(list(stored(index).values()))
    assert np.allclose(whole, BandEncoder().encode([read_image(path) for path in crops]), atol=1e-6)


def test_a_build_that_fails_does_not_wait_for_the_pixel_limit(tmp_path, crops, monkeypatch):
    monkeypatch.setattr(image_reader, "MOST_PIXELS", 1)
    with pytest.raises(MemoryError, match="no memory left"):
        build(tmp_path, BandEncoder(fails_at=2))


def test_images_that_are_slower_to_read_than_later_ones_do_not_cause_a_deadlock(tmp_path, crops, monkeypatch):
    monkeypatch.setattr(image_reader, "MOST_PIXELS", 200)

    def uneven(path):
        time.sleep(0.01 * (int(path.name[:4]) % 3 == 0))
        return read_image(path)

    index = build(tmp_path, BandEncoder(), read=uneven, pace=Pace(batch_size=4, workers=5, progress=False))
    assert list(stored(index)) == [path.name for path in crops]
