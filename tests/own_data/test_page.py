"""docs/own_data.md: its example tables and schema are valid, and its numbers equal those of the code."""

import csv
import re
from pathlib import Path

from cerberus_plugin.attributes.schema import MOST_COMBINATIONS
from cerberus_plugin.own_data import schema_file, tables
from cerberus_plugin.own_data.check import check
from cerberus_plugin.own_data.overlay import COLUMNS
from cerberus_plugin.own_data.people import labels_of, read_people, read_wording
from cerberus_plugin.utils.images import SUFFIXES

import pytest
from support.own_data import write_picture

PAGE = (Path(__file__).parents[2] / "docs/own_data.md").read_text()
METADATA, PEOPLE, OUTFITS, SPLIT, OVERLAY = re.findall(r"```csv\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture
def folder(tmp_path):
    for line in csv.DictReader(METADATA.splitlines()):
        write_picture(tmp_path / line["file_name"], int(line["file_name"][4:8]))
    for name, text in (("metadata.csv", METADATA), ("people.csv", PEOPLE), ("outfits.csv", OUTFITS)):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_tables_of_the_page_are_read_as_described(folder):
    own = read_people(folder)
    assert list(own.attributes) == ["mask", "vest colour", "helmet", "gender"]
    assert own.attributes["vest colour"].to_list() == ["orange", "orange", "none", "none", "none"]
    assert own.attributes["mask"].to_list() == ["yes", "no", "", "no", "no"]
    assert own.camera.to_list() == ["gate", "hall", "gate", "gate", "hall"] and own.time[1] == "12:05"


def test_the_schema_of_the_page_fits_its_tables(folder):
    (folder / "schema.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, flags=re.S)[1])
    own = read_people(folder)
    wording = read_wording(own)
    schema = wording.schema
    assert schema.group_names == ("head", "upper", "person") and schema.lasting_groups == ("person",)
    assert [column.display for column in schema.columns] == ["helmet", "colour of the vest", "gender"]
    assert labels_of(own, wording).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert wording.labels_of("vest colour", "orange and yellow").tolist() == [-1, 1, 1, -1]
    report = check(folder)
    assert "column 'mask' is not in" in " ".join(report.notes)


def test_the_split_and_the_corrections_of_the_page_are_read(folder):
    assert SPLIT.splitlines()[0] == "file_name,split" and tuple(OVERLAY.splitlines()[0].split(",")) == COLUMNS
    (folder / "labels_overlay.csv").write_text(OVERLAY)
    own = read_people(folder)
    assert own.attributes["mask"][1] == "yes" and own.attributes["vest colour"][2] == ""
    assert own.person.to_list() == ["ann"] * 3 + ["bob", "ann"]


def test_numbers_and_keys_of_the_page_equal_those_of_the_code():
    for text in (f"more than {schema_file.MOST_VALUES} different", f"more than {schema_file.FEW_VALUES} different",
                 f"more than {schema_file.MOST_LETTERS} letters", f"{tables.MOST_COLUMNS} columns",
                 f"{tables.MOST_BYTES // 2**20} MiB", f"{tables.MOST_ROWS:,} rows", f"{tables.LONGEST // 2**20} MiB;",
                 f"{schema_file.MOST_BYTES // 2**20} MiB, aliases", f"at most {MOST_COMBINATIONS:,}",
                 *(f"`{name}`" for name in (*tables.KEYS, *SUFFIXES))):
        assert text in PAGE, text
