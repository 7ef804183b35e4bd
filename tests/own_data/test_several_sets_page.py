"""The examples of docs/several_sets.md."""

import contextlib
import io
import re
from pathlib import Path

from cerberus_plugin.attributes.schema import Column
from cerberus_plugin.own_data.check import check
from cerberus_plugin.own_data.ontology import read_ontology

import pytest
from support.own_data import write_picture

PAGE = Path(__file__).parents[2] / "docs/several_sets.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.S)


def test_the_python_example_prints_the_output_shown_on_the_page():
    shown = [line.partition("  # ")[2] for line in blocks("python")[0].splitlines() if line.startswith("print")]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(blocks("python")[0], {})
    assert printed.getvalue().splitlines() == shown


def test_the_ontology_of_the_page_is_read_and_rejects_missing_attributes(tmp_path):
    (tmp_path / "yard.yaml").write_text(blocks("yaml")[0])
    found = read_ontology(tmp_path / "yard.yaml")
    names = ("cap", "shirt", "satchel", "case")
    columns = [Column(name, (), (), "other") for name in names]
    with pytest.raises(ValueError, match="line 8: dataset 'yard' has no attribute 'trade'"):
        found.readings("yard", columns)
    assert tuple(found.readings("yard", [*columns, Column("trade", (), (), "other")])) == names


def test_the_table_of_the_page_has_no_identities(tmp_path):
    (tmp_path / "metadata.csv").write_text(blocks("csv")[0])
    for name in ("0001.jpg", "0002.jpg"):
        write_picture(tmp_path / name, 1)
    assert check(tmp_path).sections[1].rows == [("train", 1), ("test", 1)]


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).is_file(), link
