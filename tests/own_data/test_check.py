"""`cerberus check`: counts, warnings, errors, and the exit code."""

import os
import subprocess
import sys
from pathlib import Path

from cerberus_plugin import cli
from cerberus_plugin.own_data.check import check, html, text
from cerberus_plugin.own_data.people import read_people, read_wording
from cerberus_plugin.own_data.recipe import Facts

import pytest
from support.own_data import write_people, write_picture
from support.processes import WITHOUT_TORCH

ROOT = Path(__file__).parents[2]


def section(report, title: str) -> list[tuple]:
    return next(own.rows for own in report.sections if own.title.startswith(title))


def table(folder, *lines: str):
    for line in lines[1:]:
        name = line.split(",")[0]
        write_picture(folder / name, *name.encode())
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_data_without_problems_is_counted_and_gets_a_schema_and_a_split(tmp_path):
    report = check(write_people(tmp_path, people=12))
    assert not report.errors and not report.warnings
    assert section(report, "Images of") == [("images", 36), ("people", 12), ("images per person", "3 to 3, median 3"),
                                            ("cameras", "3"), ("outfits", "unknown")]
    assert section(report, "Split") == [("train", 18, 6), ("query", 6, 6), ("gallery", 12, 6)]
    assert section(report, "Attributes") == [("hat", "head", "no 18, yes 18", "0%"),
                                             ("vest", "upper", "blue 12, red 12, none 12", "0%")]
    assert section(report, "Attributes that differ")[0][:2] == ("hat", 12)
    assert report.facts == Facts(18, 6, 6, attributes=2, size=(48, 24))
    assert any(f"cerberus train {tmp_path} " in each and "--model plus" in each for each in report.advice)
    written = read_wording(read_people(tmp_path))
    assert written.path.endswith("schema.yaml") and [g.strip for g in written.schema.groups] == [0, None]
    assert check(tmp_path, pictures=False).sections[1] == report.sections[1]


def test_unreadable_images_and_copies_between_people_and_parts_are_found(tmp_path):
    write_people(tmp_path, people=8)
    check(tmp_path, pictures=False)
    own = read_people(tmp_path)
    split = dict(line.split(",") for line in (tmp_path / "split.csv").read_text().splitlines()[1:])
    train = [name for name in own.files if split[name] == "train"]
    gallery = [name for name in own.files if split[name] == "gallery"]
    (tmp_path / train[0]).write_bytes((tmp_path / gallery[0]).read_bytes())
    (tmp_path / train[1]).write_bytes(b"not an image")
    report = check(tmp_path)
    assert [row[0] for row in section(report, "Unreadable images")] == [train[1]]
    assert report.errors[0].startswith(f"1 image cannot be read, such as {train[1]}")
    assert [each.partition(",")[0].partition(";")[0] for each in report.warnings] == [
        "1 image has identical copies under other people", "1 image is in both training and test"]


# Hat and gender of four people, two of them for training; after "|" those of the second image if they differ.
@pytest.mark.parametrize("words, warning", [
    (("no,male", "yes,male", "no,male", "yes,male"), "'gender' is always male where it is known"),
    (("no,male", "yes,female", "no,male", ","), "1 person has no attributes: p3"),
    (("no,male", "no,female|no,male", "yes,male", "yes,male"), "attributes of lasting groups differ"),
    ((",male", ",female", "yes,female", "no,male"), "all attributes of group 'head' are known for 0 of 4 "),
    (("no,male", "no,female", "yes,male", "no,female"), "'hat': no training image has the value yes"),
], ids=["one value", "unknown", "lasting", "incomplete", "unseen"])
def test_attributes_that_cannot_be_learned_are_reported(tmp_path, words, warning):
    lines = []
    for number, own in enumerate(words):
        parts = ("train", "train") if number < 2 else ("query", "gallery")
        values = (own.split("|") * 2)[:2]
        lines += [f"{number}{camera}.png,p{number},{camera},{part},{value}"
                  for camera, (part, value) in enumerate(zip(parts, values))]
    table(tmp_path, "file_name,person,camera,split,hat,gender", *lines)
    (tmp_path / "schema.yaml").write_text(
        "groups: [{name: head, region: 0, attributes: [{name: hat, values: [no, yes]}]}, {name: person, region: whole, "
        "lasting: yes, attributes: [{name: gender, values: [male, female]}]}]")
    assert any(each.startswith(warning) for each in check(tmp_path, pictures=False).warnings)


@pytest.mark.parametrize("parts, error", [
    (("train", "train", "train", "train"), "the split has no query images"),
    (("train", "query", "gallery", "gallery"), "1 person is in both training and test: p0"),
    (("train", "train", "query", "gallery"), "2 images of 1 person are too few for training"),
])
def test_splits_on_which_training_would_fail_are_errors(tmp_path, parts, error):
    table(tmp_path, "file_name,person,split", *(f"{n}.png,p{n // 2},{part}" for n, part in enumerate(parts)))
    assert any(each.startswith(error) for each in check(tmp_path, pictures=False).errors)


@pytest.mark.parametrize("names", ["Ann and ann", "007 and 7"])
def test_names_that_differ_only_in_case_or_leading_zeros_give_a_warning(tmp_path, names):
    one, other = names.split(" and ")
    table(tmp_path, "file_name,person,split", f"a.png,{one},train", f"b.png,{other},train", "c.png,bob,query",
          "d.png,bob,gallery")
    warning, = check(tmp_path, pictures=False).warnings
    assert warning.startswith("names of people differ") and f"such as {names} (1 group in all)" in warning


def test_two_spellings_of_yes_give_a_warning(tmp_path):
    words = ("yes", "true", "no", "No")
    table(tmp_path, "file_name,person,hat", *(f"{n}.png,p{n % 4},{words[n % 4]}" for n in range(8)))
    assert [text for text in check(tmp_path, pictures=False).warnings
            if text.startswith("'hat' has true and yes, which are learned as different values")]


def test_people_under_one_camera_give_an_error_with_a_remedy(tmp_path):
    table(tmp_path, "file_name,person,camera", *(f"{n}.png,p{n % 4},gate" for n in range(16)))
    assert any("the split has no query images" in error and "delete the column 'camera'" in error
               for error in check(tmp_path, pictures=False).errors)
    table(tmp_path, "file_name,person", *(f"{n}.png,p{n % 4}" for n in range(16)))
    (tmp_path / "split.csv").unlink()
    assert not check(tmp_path, pictures=False).errors


def test_values_that_mean_unknown_give_a_warning(tmp_path):
    words = ("unknown", "N/A", "no", "yes")
    table(tmp_path, "file_name,person,hat", *(f"{n}.png,p{n % 4},{words[n % 4]}" for n in range(8)))
    assert [text for text in check(tmp_path, pictures=False).warnings if "N/A, unknown, which is learned" in text]


def test_a_named_pipe_among_the_images_is_reported_and_does_not_block(tmp_path):
    write_people(tmp_path, people=2)
    (tmp_path / "img/0_0.png").unlink()
    os.mkfifo(tmp_path / "img/0_0.png")
    assert any("img/0_0.png (is not a file)" in text for text in check(tmp_path).errors)


def test_queries_with_matches_only_under_their_own_camera_are_an_error(tmp_path):
    table(tmp_path, "file_name,person,camera,split", "a.png,1,0,train", "b.png,2,0,query", "c.png,2,0,gallery")
    assert "only under the query's own camera" in check(tmp_path, pictures=False).errors[0]


def test_too_many_combinations_and_a_missing_strip_give_warnings(tmp_path):
    names = [f"a{n}" for n in range(14)]
    table(tmp_path, f"file_name,person,split,{','.join(names)}",
          *(f"{n}.png,p{n // 2},{('train', 'train', 'query', 'gallery')[n]}" + f",{('no', 'yes')[n // 2]}" * 14
            for n in range(4)))
    (tmp_path / "schema.yaml").write_text("groups: [{name: all, region: whole, attributes: [" + ", ".join(
        f"{{name: {name}, values: [no, yes]}}" for name in names) + "]}]")
    report = check(tmp_path, pictures=False)
    assert "group 'all' have 16384 combinations" in report.warnings[-2] and report.facts.crowded == ("all",)
    assert "divide the attributes into two groups" in report.warnings[-1] == report.facts.not_for_cerberus


def test_the_command_prints_and_writes_the_report_and_fails_if_training_would(tmp_path, capsys):
    write_people(tmp_path / "ok", people=8)
    page = tmp_path / "check.html"
    cli.main(["check", str(tmp_path / "ok"), "--html", str(page)])
    assert "hat" in capsys.readouterr().out and "<h2>Attributes" in page.read_text()
    (tmp_path / "ok/img/0_0.png").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(tmp_path / "ok")])
    assert ended.value.code == 1 and "error: 1 image cannot be read" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="metadata.csv, line 2: '0.png' is not found"):
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad/metadata.csv").write_text("file_name,person\n0.png,1\n")
        cli.main(["check", str(tmp_path / "bad")])


def test_values_and_names_cannot_change_the_terminal_or_the_page(tmp_path):
    table(tmp_path, "file_name,person,hat,vest", "0.png,<b>1</b>,<script>,no", "1.png,\x1b[2J,yes,yes")
    report = check(tmp_path, pictures=False)
    assert "\x1b" not in text(report) and "<script>" not in html(report) and "&lt;script&gt;" in html(report)


@pytest.mark.slow
def test_a_million_rows_are_checked_in_30_seconds_and_2_gib(tmp_path):
    """In CPU time, without looking for the files, since that depends on the disk."""
    program = f"""
import resource, sys, time
from pathlib import Path
import numpy as np
from cerberus_plugin.own_data import check, people
folder = Path({str(tmp_path)!r})
words = np.array(["red", "Red", "blue", "none", ""])[np.random.default_rng(0).integers(0, 5, (10**6, 8))].tolist()
with open(folder / "metadata.csv", "w") as file:
    file.write("file_name,person,camera," + ",".join(f"hat {{n}}" for n in range(4)) + ",a,b,c,d\\n")
    file.writelines(f"{{n:07d}}.jpg,{{n // 20}},{{n % 6}},{{','.join(row)}}\\n" for n, row in enumerate(words))
del words
people._check_files = lambda *args: []
start = time.process_time()
report = check.check(folder, pictures=False)
print(check.text(report)[:200])
seconds = time.process_time() - start
assert report.sections[0].rows[0] == ("images", 10**6) and seconds < 30, seconds
assert int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) < 2**21
"""
    done = subprocess.run([sys.executable, "-c", f"{WITHOUT_TORCH}\n{program}"], capture_output=True, text=True,
                          cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_command_runs_without_torch(tmp_path):
    write_people(tmp_path, people=8)
    done = subprocess.run([sys.executable, "-c", f"{WITHOUT_TORCH}\nfrom cerberus_plugin.cli import main\n"
                           f"main(['check', {str(tmp_path)!r}])"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "images per person" in done.stdout


def test_people_in_both_parts_of_a_written_split_are_told_to_delete_it(tmp_path):
    table(tmp_path, "file_name,person", *(f"{n}.png,p{n // 2}" for n in range(4)))
    (tmp_path / "split.csv").write_text("file_name,split\n0.png,train\n1.png,gallery\n2.png,query\n3.png,gallery\n")
    assert any(each.endswith("into one of them, or delete split.csv to draw a new split")
               for each in check(tmp_path, pictures=False).errors)


def test_a_value_of_the_schema_that_no_image_has_is_a_warning(tmp_path):
    table(tmp_path, "file_name,person,hat,gender", *(f"{n}.png,p{n // 2},{'no' if n < 4 else 'yes'},male"
                                                     for n in range(8)))
    (tmp_path / "schema.yaml").write_text(
        "groups: [{name: head, region: 0, attributes: [{name: hat, values: [no, yes, yess]}]}, {name: person, region: "
        "whole, attributes: [{name: gender, values: [male, female]}]}]")
    assert ("'hat': no image has the value yess. Delete it from schema.yaml if it was a mistake"
            in check(tmp_path, pictures=False).warnings)
