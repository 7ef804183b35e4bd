"""Image folders: found files, changes, file names, and files that cannot be read."""

import os
import shutil
from collections import Counter

from cerberus_plugin.search.gallery.folder import Naming, compare
from cerberus_plugin.utils.folders import HIDDEN, LINKS, Picture, counts_text, walk

import pytest
from support.galleries import RED, draw


def test_a_walk_finds_images_of_all_subfolders_in_order_without_hidden_ones(tmp_path):
    for name in ("b/2.jpg", "b/1.PNG", "a.webp", ".hidden.jpg", ".cache/3.jpg", "notes.txt", "b/c/4.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    found = list(walk(tmp_path))
    assert [picture.path for picture in found] == ["a.webp", "b/1.PNG", "b/2.jpg", "b/c/4.bmp"]
    assert found[0].size == 5 and found[0].mtime_ns == os.stat(tmp_path / "a.webp").st_mtime_ns
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list(walk(tmp_path / "nowhere"))


def test_an_image_has_changed_if_its_size_or_modification_time_differs():
    known = {"same": (1, 10), "longer": (1, 10), "later": (1, 10), "gone": (1, 10)}
    found = [Picture("same", 1, 10), Picture("longer", 2, 10), Picture("later", 1, 11), Picture("fresh", 1, 10)]
    changes = compare(found, known)
    assert changes == ([found[3]], [found[1], found[2]], ["gone"])


@pytest.mark.parametrize(("path", "named"), [
    ("query/0002_c1s1_000451_03.jpg", ("0002", "1", "s1_000451")),
    ("-1_c3s2_000101_00.jpg", ("-1", "3", "s2_000101")),
    ("a/b/0001_c2_f0046182.jpg", ("0001", "2", "0046182")),
    ("12345_c12s1_000451_03.JPG", ("12345", "12", "s1_000451")),
    ("0001_c1_f0046182.old/0002_c2_f0046182.jpg", ("0002", "2", "0046182")),
    ("lobby/20240131.jpg", (None, None, None)),
])
def test_identity_camera_and_time_are_read_from_names_of_market_and_duke(path, named):
    assert Naming().read(path) == named


def test_a_pattern_reads_camera_and_time_from_the_relative_path():
    naming = Naming(r"(?P<camera>\w+)/(?P<time>\d+)")
    assert naming.read("lobby/20240131.jpg") == (None, "lobby", "20240131")
    assert naming.read("lobby/first.jpg") == (None, None, None)
    for name in ("person", "identity"):
        naming = Naming(rf"(?P<{name}>w\d+)/(?P<camera>[a-z]+)")
        assert naming.read("site/w0007/gate_0731_1.jpg") == ("w0007", "gate", None)
    assert Naming(r"(?P<person>\d+)_o(?P<outfit>\d)").read("7_o1.jpg") == ("7", None, None)


@pytest.mark.parametrize(("pattern", "message"), [(r"(?P<camera>", "not a regular expression"),
                                                  (r"\d+", "has the groups none"), (r"(?P<cam>\d+)", "groups cam,")])
def test_a_pattern_without_these_groups_is_rejected(pattern, message):
    with pytest.raises(ValueError, match=message):
        Naming(pattern)


def test_a_walk_continues_if_files_are_deleted_during_it(tmp_path):
    for name in ("a/1.jpg", "b/2.jpg", "c.jpg", "d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = walk(tmp_path)
    assert next(found).path == "a/1.jpg"
    (tmp_path / "c.jpg").unlink()
    shutil.rmtree(tmp_path / "b")
    assert [picture.path for picture in found] == ["d.jpg"]


def test_files_that_cannot_be_read_end_a_walk_unless_it_collects_them(tmp_path, monkeypatch):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "one.jpg").touch()
    with pytest.raises(OSError, match=r"loop.jpg: cannot be accessed \(Too many levels of symbolic links\)"):
        list(walk(tmp_path))
    refused = {}
    assert [picture.path for picture in walk(tmp_path, refused.__setitem__)] == ["one.jpg"] and list(refused) == [
        "loop.jpg"]

    for error in (PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file or directory")):
        monkeypatch.setattr(os, "scandir", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(OSError, match=error.strerror):  # no image counts as deleted
            list(walk(tmp_path, refused.__setitem__))


def test_links_to_folders_are_counted_and_followed_on_request(tmp_path):
    crops, elsewhere = tmp_path / "crops", tmp_path / "elsewhere"
    draw(crops / "a/1.png", RED)
    draw(elsewhere / "deep/2.png", RED)
    (crops / "linked").symlink_to(elsewhere)
    (crops / "linked.png").symlink_to(elsewhere / "deep/2.png")  # a link to an image counts as an image
    passed_over = Counter()
    assert [each.path for each in walk(crops, passed_over=passed_over)] == ["a/1.png", "linked.png"]
    assert passed_over == {LINKS: 1}
    followed = [each.path for each in walk(crops, follow_links=True)]
    assert followed == ["a/1.png", "linked/deep/2.png", "linked.png"]


def test_each_image_is_found_once_if_links_form_a_cycle_or_lead_to_one_folder(tmp_path):
    crops, elsewhere = tmp_path / "crops", tmp_path / "elsewhere"
    draw(crops / "z/1.png", RED)
    draw(elsewhere / "2.png", RED)
    (crops / "a").symlink_to(crops / "z")  # also reachable by its own path
    (crops / "up").symlink_to(crops)
    (crops / "z/out").symlink_to(elsewhere)
    (crops / "out").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(crops)
    (elsewhere / "self").symlink_to(elsewhere)
    (crops / "root").symlink_to(tmp_path)  # contains the folder itself
    (crops / "gone").symlink_to(tmp_path / "gone")
    (crops / "loop").symlink_to(crops / "loop")
    assert [each.path for each in walk(crops, follow_links=True)] == ["out/2.png", "z/1.png"]


def test_skipped_files_are_counted_by_kind(tmp_path):
    for name in ("a.tif", "b.TIF", "notes", "c.txt", ".hidden.png"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    passed_over = Counter()
    assert list(walk(tmp_path, passed_over=passed_over)) == []
    parts = ["files ending in .tif (2)", f"{HIDDEN} (1)", "files ending in .txt (1)", "files without a suffix (1)",
             "broken links (1)"]
    text = counts_text(passed_over)
    assert sorted(text.split(", ")) == sorted(parts) and text.startswith(parts[0])
