"""Tables in the formats of spreadsheets and programs, and errors with their line."""

import json
import re

from cerberus_plugin.own_data.tables import MOST_COLUMNS, Words, read_table

import numpy as np
import pytest

ROWS = [["0001.jpg", "7", "red, or so"], ["0002.jpg", "8", 'a "quoted" word'], ["0003.jpg", "8", ""],
        ["\u05d0.jpg", "9", "\u05d0\u05d3\u05d5\u05dd"]]
TEXT = 'file_name,person,vest\n0001.jpg,7,"red, or so"\n0002.jpg,8,"a ""quoted"" word"\n0003.jpg,8,\n' + \
       "\u05d0.jpg,9,\u05d0\u05d3\u05d5\u05dd\n"


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, ("file_name", "person"))


def rows_of(table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.to_list() for column in table.columns.values()))]


@pytest.mark.parametrize("content", [
    TEXT.encode(), TEXT.encode("utf-8-sig"), TEXT.encode("utf-16"), TEXT.replace("\n", "\r\n").encode(),
    TEXT.replace("red, or so", "red; or so").replace(",", ";").replace("red; or so", "red, or so").encode(),
    TEXT.replace("red, or so", "@").replace(",", "\t").replace("@", "red, or so").encode(),
    TEXT.replace("\n", "\r").encode(),
    TEXT.replace("person", " Person ").replace("7,", "7  ,").encode(), (TEXT + ",,\n\n  \n").encode(),
    ("\n\r\n" + TEXT).encode()],
    ids=["UTF-8", "byte order mark", "UTF-16", "CRLF", "semicolons", "tabs", "CR", "spaces",
         "blank lines", "blank lines first"])
def test_csv_files_of_spreadsheets_give_the_same_table(tmp_path, content):
    table = read(tmp_path / "metadata.csv", content)
    assert list(table.columns) == ["file_name", "person", "vest"] and rows_of(table) == ROWS


def test_json_lines_and_parquet_give_the_same_table(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    records = [{"file_name": f"{n}.jpg", "person": n, "hat": n == 1, "vest": None if n == 1 else "red"} for n in (1, 2)]
    lines = read(tmp_path / "metadata.jsonl", "\n\n".join(map(json.dumps, records)))
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "metadata.parquet")
    other = read_table(tmp_path / "metadata.parquet", ("file_name", "person"))
    assert rows_of(lines) == rows_of(other) == [["1.jpg", "1", "yes", ""], ["2.jpg", "2", "no", "red"]]
    assert lines.where(1).endswith("metadata.jsonl, line 3") and other.where(1).endswith("metadata.parquet, row 2")


def test_numbers_in_json_lines_stay_as_written(tmp_path):
    lines = ['{"file_name": "a.jpg", "person": 1180591620717411303424, "day": "2024-01-31", "size": 1.50}',
             '{"file_name": "b.jpg", "person": 1180591620717411303425, "day": "2024-02-01", "late": true}',
             '{"file_name": "c.jpg", "person": "x", "size": null}']
    table = read(tmp_path / "metadata.jsonl", "\n".join(lines))
    assert list(table.columns) == ["file_name", "person", "day", "size", "late"] and rows_of(table) == [
        ["a.jpg", "1180591620717411303424", "2024-01-31", "1.50", ""],
        ["b.jpg", "1180591620717411303425", "2024-02-01", "", "yes"], ["c.jpg", "x", "", "", ""]]


def test_whole_numbers_that_pandas_stores_as_floats_are_read_as_whole_numbers(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"file_name": ["a", "b"], "person": [7.0, 8.0], "age": [1.5, float("nan")],
                                  "trade": [3.0, None]}), tmp_path / "metadata.parquet")
    table = read_table(tmp_path / "metadata.parquet", ("file_name", "person"))
    assert rows_of(table) == [["a", "7", "1.5", "3"], ["b", "8", "", ""]]


def test_too_large_files_are_rejected_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("cerberus_plugin.own_data.tables.MOST_BYTES", 2**20)
    with open(tmp_path / "metadata.csv", "wb") as file:
        file.write(b"file_name,person\n")
        file.truncate(2**21)
    with pytest.raises(ValueError, match="has 2 MiB, expected at most 1"):
        read_table(tmp_path / "metadata.csv", ("file_name", "person"))


def test_line_numbers_are_correct_after_values_of_several_lines(tmp_path):
    table = read(tmp_path / "metadata.csv", 'file_name,person,note\na.jpg,1,"two\nlines"\n\n,,\nb.jpg,2,x\n')
    assert [table.where(row).rpartition(", ")[2] for row in range(2)] == ["line 2", "line 6"]
    assert table.columns["note"][0] == "two\nlines"


@pytest.mark.parametrize("content, message", [
    ("file_name,person\na.jpg,caf\u00e9\n".encode("cp1252"), "line 2: byte 0xe9 is not UTF-8.*CSV UTF-8"),
    ("file_name,person,hat\na.jpg,1,no\nb.jpg,2\n", "line 3: has 2 cells, expected 3"),
    ("file_name,person,hat\na.jpg,1,no\nb.jpg,2,red, blue\n", "line 3: has 4 cells, expected 3.*Quote values"),
    ('file_name,person\na.jpg,1\nb.jpg,"2\nc.jpg,3\n', "line 3: .*closing quote.* is missing|line 3: has 2"),
    ("file_name,person,hat,hat\na.jpg,1,no,no\n", "line 1: two columns are called 'hat'"),
    ("file_name,person,hat,Hat\na.jpg,1,no,no\n", "two columns are called"),
    ("file_name,person,\na.jpg,1,no\n", "column 3 has values but no name"),
    ("file_name\na.jpg\n", "line 1: has one column, 'file_name'"),
    ("name,person\na.jpg,1\n", "has no column 'file_name'; its columns are name, person"),
    ("file_name,person\n", "has no rows"),
    ("", "has one column, ''"),
    ("sep=;\nfile_name;person\na.jpg;1\n", "line 1: is 'sep=;'.*Delete the line"),
    ("file_name,person\n" + "x" * 3 * 2**24 + ",1\n", "a line is longer than 16 MiB"),
    ("x" * 2**24, "line 1: a line is longer than 16 MiB"),
    ("file_name,person,note\na.jpg,1," + "x" * 2**18 + "\nb.jpg,2\n", "line 3: has 2 cells, expected 3"),
    ("file_name,person," + ",".join(f"f{n}" for n in range(30_000)) + "\n", f"30002 columns, .* {MOST_COLUMNS}"),
], ids=lambda value: None if isinstance(value, bytes) else value[:20])
def test_a_wrong_table_raises_an_error_with_its_place(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"metadata.csv.*(?:{message})"):
        read(tmp_path / "metadata.csv", content)


def test_wrong_json_lines_and_other_files_raise_errors(tmp_path):
    for content, message in (("[1]\n", "expected one object per line"), ("{\n", "line 1: not valid JSON"),
                             ('{"file_name": "a", "person": 1}\n{"file_name": ', "line 2: not valid JSON"),
                             ('{"file_name": "a", "person": 1, "person": 2}\n', "line 1: has 'person' twice"),
                             ('{"file_name": "a", "person": "\\ud800"}\n', "which is not valid text"),
                             ('{"file_name": "a", "person": {"x": 1}}\n', "line 1: 'person' is")):
        with pytest.raises(ValueError, match=f"metadata.jsonl.*{re.escape(message)}"):
            read(tmp_path / "metadata.jsonl", content)
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        read(tmp_path / "metadata.parquet", "no")
    with pytest.raises(ValueError, match="ends in '.xlsx', expected one of .csv"):
        read(tmp_path / "metadata.xlsx", "no")
    with pytest.raises(FileNotFoundError, match="people.csv: not found"):
        read_table(tmp_path / "people.csv", ("person",))


def test_words_that_become_equal_are_merged():
    words = Words.of(["Red", "red", "", "blue"]).renamed({"Red": "red", "blue": ""})
    assert words.words == ("red",) and words.codes.tolist() == [0, 0, -1, -1] and words.counts().tolist() == [2]
    assert Words(np.array([1, -1], np.int32), ("a", "b")).in_use().to_list() == ["b", ""]
