"""Tables and images that are not read: each of them gives an error or a note."""

import os

from cerberus_plugin.own_data.people import read_people

import pytest
from support.own_data import write_people, write_picture


def people(folder, count: int = 3):
    for person in range(count):
        write_picture(folder / f"p{person}/1.png", person)
    return folder


@pytest.mark.parametrize("name, message", [
    ("metadata.xlsx", "expected metadata.csv or .*save it as CSV"), ("people.ods", "expected people.csv.*as CSV"),
    ("outfits.xls", "expected outfits.csv"), ("people.tsv", "expected people.csv"),
    ("people.parquet", "expected people.csv"), ("People.CSV", "Rename it to people.csv"),
    ("Metadata.csv", "Rename it to metadata.csv"), ("schema.yml", "Rename it to schema.yaml"),
    ("train/metadata.xlsx", "is not read, expected metadata.csv")])
def test_a_table_with_nearly_the_right_name_is_rejected(tmp_path, name, message):
    people(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("person,hat\np0,no\n")
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        read_people(tmp_path)


def test_a_spreadsheet_may_stay_next_to_the_table_saved_from_it(tmp_path):
    people(tmp_path)
    (tmp_path / "people.csv").write_text("person,hat\np0,no\n")
    (tmp_path / "people.xlsx").write_bytes(b"PK")
    assert "people.xlsx" in read_people(tmp_path).notes[0]


def test_other_tables_other_image_formats_and_links_are_listed(tmp_path):
    people(tmp_path / "site")
    (tmp_path / "site/labels.csv").write_text("person,hat\np0,no\n")
    for name in ("p0/a.HEIC", "p1/b.tif", "p1/notes.txt", "synthetic.json"):
        (tmp_path / "site" / name).write_bytes(b"x")
    people(tmp_path / "elsewhere", 1)
    os.symlink(tmp_path / "elsewhere/p0", tmp_path / "site/p9")
    skipped, tables = read_people(tmp_path / "site").notes
    assert all(word in skipped for word in (".heic (1)", ".tif (1)", "linked folders (1)"))
    assert "txt" not in skipped and "json" not in skipped
    assert "not read: labels.csv" in tables
    for file in (tmp_path / "site").rglob("*.png"):
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(ValueError, match=r"there are none, but files ending in .heic \(4\)"):
        read_people(tmp_path / "site")


def test_images_without_a_line_are_counted(tmp_path):
    write_people(tmp_path, people=2)
    write_picture(tmp_path / "img/new.png", 1)
    assert read_people(tmp_path).notes == (
        "metadata.csv: 1 image in the same folders not listed, such as img/new.png",)


def test_a_table_that_a_name_pattern_replaces_gives_a_note(tmp_path):
    write_people(tmp_path, people=2)
    assert read_people(tmp_path, r"(?P<person>\d+)_").notes == (
        "metadata.csv is not read, since --name-pattern is given",)
