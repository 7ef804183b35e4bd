"""MATLAB files: values equal those of SciPy, and damaged files raise errors within bounded time and memory."""

import random
import struct
import zlib

from cerberus_plugin.attributes import MARKET1501, read_annotations
from cerberus_plugin.attributes.matlab import read_matlab

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from support.data import random_labels, write_annotations

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def same(ours, theirs) -> bool:
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    ours, theirs = (np.asarray(value, dtype=object) for value in (ours, theirs))
    if ours.shape != theirs.shape:
        return False
    return all(x == y or x != x and y != y if not isinstance(x, dict | np.ndarray) else same(x, y)
               for x, y in zip(ours.flat, theirs.flat))


def by_scipy(path) -> dict:
    return {name: value for name, value in loadmat(path, simplify_cells=True).items() if not name.startswith("__")}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("value", [
    1, -3.5, "text", "Grüße", True, 1 + 2j, np.nan, np.arange(6).reshape(2, 3), np.float32([[0.5], [np.inf]]),
    np.array([1, -1], np.int8), np.uint64([2**64 - 1, 0]), np.array([True, False]),
    np.arange(24).reshape(2, 3, 4), np.array(["ab", "cd", "ef"]), np.array(["0002", 7, np.arange(3)], dtype=object),
    {"a": {"b": {"c": np.array(["x", "yz"], dtype=object)}, "d": 4}, "e_long_name_of_a_field": [1.5, 2]}])
def test_values_equal_those_of_scipy(tmp_path, value, compressed):
    savemat(tmp_path / "a.mat", {"value": value, "other": 1}, do_compression=compressed)
    assert same(read_matlab(tmp_path / "a.mat"), by_scipy(tmp_path / "a.mat"))


@pytest.mark.parametrize("name", ["market_attribute", "duke_attribute"])
def test_the_published_files_give_the_same_values_as_scipy(real_data, name):
    assert same(read_matlab(real_data / f"{name}.mat"), by_scipy(real_data / f"{name}.mat"))


def test_files_of_the_other_byte_order_are_supported(tmp_path):
    def element(kind, content):
        return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")

    matrix = (element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 3)) + element(1, b"numbers")
              + element(4, struct.pack(">HHH", 1, 2, 258)))
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, matrix))
    assert read_matlab(tmp_path / "a.mat")["numbers"].tolist() == [1, 2, 258] == by_scipy(tmp_path / "a.mat")[
        "numbers"].tolist()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compressed"])
def whole(request, tmp_path_factory) -> bytes:
    people = dict(zip((2, 7, 10), random_labels(MARKET1501, 3)))
    path = write_annotations(tmp_path_factory.mktemp("matlab") / "a.mat", MARKET1501, people, people)
    if request.param:
        savemat(path, by_scipy(path), do_compression=True)
    return path.read_bytes()


def test_a_damaged_file_gives_labels_or_an_error_with_its_name(whole, tmp_path):
    """Bytes are changed, removed and repeated, by seed."""
    path, rejected = tmp_path / "a.mat", 0
    for seed in range(250):
        rng, data = random.Random(seed), bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randrange(116 if rng.random() < 0.2 else 128, len(data))
            what = rng.randrange(4)
            if what == 0:
                data[at] = rng.randrange(256)
            elif what == 1:
                at -= at % 4
                data[at:at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80"))
            elif what == 2:
                del data[at:at + rng.randrange(1, 64)]
            else:
                data[at:at] = data[max(0, at - rng.randrange(1, 64)):at]
            if len(data) < 200:
                break
        path.write_bytes(bytes(data))
        try:
            found = read_annotations(path, MARKET1501)
            assert len(found.train) <= 4
        except ValueError as error:
            rejected += 1
            assert str(error).startswith(f"{path}: "), seed
    assert rejected > 100


@pytest.mark.parametrize(("data", "message"), [
    (b"", "truncated or not a MATLAB 5 to 7 file"),
    (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "is a MATLAB 7.3 file; save it with `save -v7`"),
    (HEADER + b"\x0e\0\0\0\xff\xff\xff\x7f", "an element of 2147483647 bytes is truncated"),
    (HEADER + struct.pack("<II", 15, 10) + b"not zlib's", "a compressed variable is damaged"),
    (HEADER + struct.pack("<II", 15, 12) + zlib.compress(bytes(range(99)))[:12], "a compressed variable is truncated"),
])
def test_the_error_gives_the_reason_for_an_invalid_file(tmp_path, data, message):
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.mat: not a readable MATLAB file .*({message})"):
        read_annotations(tmp_path / "a.mat", MARKET1501)


def test_files_above_the_limit_are_rejected_before_and_after_decompression(tmp_path):
    savemat(tmp_path / "a.mat", {"first": np.zeros(2**12), "second": np.zeros(2**12)}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 2**10
    with pytest.raises(ValueError, match="more than 65536 bytes when decompressed"):
        read_matlab(tmp_path / "a.mat", max_bytes=2**16)
    savemat(tmp_path / "a.mat", {"first": np.random.default_rng(0).random(2**13)})
    with pytest.raises(ValueError, match="it has more than 65536 bytes$"):
        read_matlab(tmp_path / "a.mat", max_bytes=2**16)


def test_deeply_nested_structs_are_rejected(tmp_path):
    def element(kind, content):
        return struct.pack("<II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")

    matrix = b""
    for _ in range(1000):
        matrix = (element(6, struct.pack("<II", 2, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, b"s")
                  + element(5, struct.pack("<i", 8)) + element(1, b"field\0\0\0") + element(14, matrix))
    (tmp_path / "a.mat").write_bytes(HEADER + element(14, matrix))
    with pytest.raises(ValueError, match="more than 8 nested structs and cells"):
        read_matlab(tmp_path / "a.mat")
