"""The restricted reader of pickles: it reads data and executes no code."""

import os
import pickle
import sys
import types

from cerberus_plugin.converters import convert, upar
from cerberus_plugin.converters.pickles import read_pickle

import numpy as np
import pytest
from support.published_sets import binaries_of, drawn_labels, rows, touch


@pytest.fixture
def easydict(monkeypatch):
    """The class in which public readers store records, under its name; its items are also attributes."""

    class EasyDict(dict):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            super().__setitem__(name, value)

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", module)
    return EasyDict


def write(path, value, protocol: int = 4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_records_and_arrays_are_read_unchanged(tmp_path, easydict, protocol):
    record = easydict()
    record.names = ["0001.jpg", "שלום"]
    record.label = np.arange(6, dtype=np.uint8).reshape(2, 3)
    record.columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    record.big = np.arange(3, dtype=">i4")
    record.objects = np.array([np.arange(2), "word", None], object)
    record.lists = np.empty(2, object)
    record.lists[0], record.lists[1] = [1, 2], [np.arange(2), np.arange(2)]
    record.words = np.array(["a", "bcd"])
    record.nested = easydict()
    record.nested.parts = [[np.array([1, 2])], (3, 4.5, True)]
    record.scalar, record.many = np.float32(0.25), range(3, 9)
    read = read_pickle(write(tmp_path / "a.pkl", record, protocol))
    assert type(read) is dict and list(read) == list(record)
    for name in ("label", "columns", "big", "words"):
        assert np.array_equal(read[name], record[name]) and read[name].dtype == record[name].dtype
    assert read["objects"][0].tolist() == [0, 1] and read["objects"].tolist()[1:] == ["word", None]
    assert read["lists"][0] == [1, 2] and [each.tolist() for each in read["lists"][1]] == [[0, 1], [0, 1]]
    assert read["nested"]["parts"][0][0].tolist() == [1, 2] and read["nested"]["parts"][1] == (3, 4.5, True)
    assert read["scalar"] == np.float32(0.25) and list(read["many"]) == [3, 4, 5, 6, 7, 8]
    assert read["names"] == record.names


class Calls:
    """An object that is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function, arguments, name", [
    (os.system, ("touch {}",), "(posix|nt).system"), (eval, ("open('{}', 'w')",), "builtins.eval"),
    (exec, ("open('{}', 'w')",), "builtins.exec"), (getattr, (1, "real"), "builtins.getattr"),
    (np.load, ("{}",), r"numpy(\.lib\._npyio_impl)?.load"), (__import__, ("os",), "builtins.__import__")])
def test_a_pickle_with_a_function_raises_an_error_with_its_name_and_runs_nothing(tmp_path, function, arguments, name):
    made = tmp_path / "made"
    arguments = tuple(each.format(made) if isinstance(each, str) else each for each in arguments)
    path = write(tmp_path / "a.pkl", {"label": Calls(function, *arguments)})
    with pytest.raises(ValueError, match=f"a.pkl: not a readable pickle .it uses {name}; only containers, numpy"):
        read_pickle(path)
    assert not made.exists()


@pytest.mark.parametrize("data, message", [
    (b"", "Ran out of input"), (pickle.dumps([1, 2])[:-3], "pickle"),
    # An array of objects whose dtype is replaced by plain bytes: numpy would use the bytes as addresses.
    (pickle.dumps(np.array([None])).replace(b"O8", b"V8"), "it contains an array of the type V8"),
    (b"cnumpy.core.multiarray\n_reconstruct\n(N}tb.", "it sets attributes of a function"),
    (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "it encodes text as rot13"),
    (b"cos\nsystem\n.", "it uses os.system"),
    (b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00f8tR.", None),
])
def test_damaged_and_malicious_pickles_raise_errors(tmp_path, data, message):
    (tmp_path / "a.pkl").write_bytes(data)
    if message is None:  # a dtype without an array is harmless
        read_pickle(tmp_path / "a.pkl")
        return
    with pytest.raises(ValueError, match=f"a.pkl: not a readable pickle .*({message})"):
        read_pickle(tmp_path / "a.pkl")


def test_upar_reads_a_partition_of_its_pickle(tmp_path, easydict):
    labels = drawn_labels(8, 40)
    record = easydict()
    record.image_name = [f"PETA/images/{n}.png" for n in range(8)]
    record.attr_name, record.label = list(upar.QUESTIONS.published), labels
    record.partition = easydict()
    record.partition.train = [np.arange(4), [np.array([7, 6]), np.array([5])]]  # in one array, or one per source
    record.partition.val = [np.array([4]), [np.array([4])]]
    record.partition.test = [np.array([5, 6, 7]), [np.array([0, 1]), np.array([2, 3])]]
    write(tmp_path / "dataset_all.pkl", record)
    touch(tmp_path, record.image_name)
    for partition, split in ((1, "tttt v eee"), (2, "eeee v ttt")):
        convert("upar", tmp_path, tmp_path / f"out{partition}", partition=partition)
        parts = {"t": "train", "v": "val", "e": "test"}
        assert [row["split"] for row in rows(tmp_path / f"out{partition}")] == [
            parts[letter] for letter in split.replace(" ", "")]
        assert np.array_equal(binaries_of(tmp_path / f"out{partition}"), labels)
    with pytest.raises(ValueError, match="has the partitions 1 to 2, got 3"):
        convert("upar", tmp_path, tmp_path / "out", partition=3)
    write(tmp_path / "dataset_all.pkl", [1, 2])
    with pytest.raises(ValueError, match="expected a record with image_name, .*, found list"):
        convert("upar", tmp_path, tmp_path / "out", partition=1)
