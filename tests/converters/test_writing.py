"""Writing a converted dataset: links and copies, interruptions, and existing folders."""

import json
import os
import shutil

from cerberus_plugin.converters import convert, writing
from cerberus_plugin.converters.registry import CONVERTERS, register_converter
from cerberus_plugin.own_data.schema_file import read_schema

import pytest
from support.published_sets import drawn_labels, write_pa100k


@pytest.fixture
def source(tmp_path):
    (tmp_path / "sets/PA-100K").mkdir(parents=True)
    source = write_pa100k(tmp_path / "sets/PA-100K", drawn_labels(8, 26))
    (source / "data/000001.jpg").write_bytes(b"pixels")
    return source


def converted(source, out, **options):
    return convert("pa100k", source, out, allow_subset=True, **options)


def test_links_are_relative_so_that_folders_can_move_together(tmp_path, source):
    converted(source, tmp_path / "data/pa100k")
    link = tmp_path / "data/pa100k/images/000001.jpg"
    assert os.readlink(link) == "../../../sets/PA-100K/data/000001.jpg"
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    shutil.move(tmp_path / "sets", tmp_path / "moved")
    (tmp_path / "sets").symlink_to("moved")
    assert (tmp_path / "elsewhere/pa100k/images/000001.jpg").read_bytes() == b"pixels"


def test_links_work_if_folders_are_links(tmp_path, source):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "data").symlink_to("far/away")
    (tmp_path / "set").symlink_to(source)
    converted(tmp_path / "set", tmp_path / "data/pa100k")
    assert (tmp_path / "data/pa100k/images/000001.jpg").read_bytes() == b"pixels"


def test_copies_do_not_need_the_source(tmp_path, source):
    converted(source, tmp_path / "out", copy=True)
    shutil.rmtree(source)
    assert (tmp_path / "out/images/000001.jpg").read_bytes() == b"pixels"
    assert json.loads((tmp_path / "out/source.json").read_text())["pictures"] == "copied"


def test_an_interrupted_conversion_starts_again(tmp_path, source, monkeypatch):
    made = []

    def stop(target, path):
        made.append(path)
        if len(made) == 3:
            raise KeyboardInterrupt
        os.symlink(target, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "_link", stop)
        converted(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.unfinished/source.json").is_file()
    assert converted(source, tmp_path / "out").fresh
    assert len(list((tmp_path / "out/images").iterdir())) == 8 and not (tmp_path / "out.unfinished").exists()


def test_the_same_conversion_writes_nothing_and_other_contents_raise_an_error(tmp_path, source):
    converted(source, tmp_path / "out")
    schema = tmp_path / "out/schema.yaml"
    schema.write_text(schema.read_text().replace("name: hat", "name: hat\n    display: cap"))  # corrected by the user
    record = json.loads((tmp_path / "out/source.json").read_text())  # texts of another version
    (tmp_path / "out/source.json").write_text(json.dumps(record | {"evaluation": "26 labels"}))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert not converted(source, tmp_path / "out").fresh
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ValueError, match="out: exists with other contents"):
        converted(source, tmp_path / "out", copy=True)
    for place in ("file", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / ("file" if place == "file" else "folder/mine")).write_text("mine")
        with pytest.raises(ValueError, match=f"{place}: exists with other contents"):
            converted(source, tmp_path / place)
    (tmp_path / "empty").mkdir()
    assert converted(source, tmp_path / "empty").fresh
    (tmp_path / "new.unfinished").mkdir()
    (tmp_path / "new.unfinished/mine").write_text("mine")
    with pytest.raises(ValueError, match="new.unfinished: exists"):
        converted(source, tmp_path / "new")


def test_the_record_contains_licence_counts_rule_and_labels(tmp_path, source):
    done = converted(source, tmp_path / "out")
    record = json.loads((tmp_path / "out/source.json").read_text())
    assert record["set"] == "pa100k" and record["licence"] == "CC BY 4.0" and "threshold 0.5" in record["evaluation"]
    assert record["counts"]["train pictures"] == {"found": 4, "published": 80_000}
    assert ("train images", 4, 80_000) in done.counts and ("yes/no labels", 26, "") in done.counts
    assert record["labels"][:2] == [["Female", "gender", "female"], ["AgeOver60", "age", "over 60"]]
    schema = read_schema(tmp_path / "out/schema.yaml").schema
    assert schema.name == "pa100k" and [(g.name, g.strip, g.lasting) for g in schema.groups][:3] == [
        ("identity", None, True), ("view", None, False), ("head", 0, False)]


def test_a_file_system_without_links_raises_an_error_with_a_remedy(tmp_path, source, monkeypatch):
    def fail(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.symlink", fail)
    with pytest.raises(OSError, match="cannot create the link .* with --copy"):
        converted(source, tmp_path / "out")


def test_two_converters_of_the_same_name_raise_an_error():
    with pytest.raises(ValueError, match="converter 'peta': a converter of this name is already registered"):
        register_converter("peta", title="", licence="", rule="")(lambda source: None)
    assert CONVERTERS["peta"].title.startswith("PETA")
