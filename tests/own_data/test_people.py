"""Reading own data: tables, folders and file names; splits; and errors."""

import csv
import io

from cerberus_plugin.own_data.people import labels_of, read_people, read_wording, split_people
from cerberus_plugin.own_data.split import SPLIT_FILE

import numpy as np
import pytest
from support.own_data import write_people, write_picture


def write(folder, **tables: list[str]):
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def pictures(folder, *names: str):
    for name in names:
        write_picture(folder / name, 1)
    return folder


def test_labels_of_images_take_precedence_over_those_of_outfits_and_people(tmp_path):
    pictures(tmp_path, *(f"{n}.png" for n in range(4)))
    write(tmp_path, metadata=["file_name,person,outfit,hat", "0.png,ann,1,no", "1.png,ann,1,", "2.png,ann,2,",
                              "3.png,bob,1,"],
          outfits=["person,outfit,hat,vest", "ann,1,yes,red", "bob,1,,blue", "cid,1,no,red"],
          people=["person,hat,vest,gender", "ann,cap,green,female", "bob,no,,male"])
    own = read_people(tmp_path)
    assert {name: words.to_list() for name, words in own.attributes.items()} == {
        "hat": ["no", "yes", "cap", "no"], "vest": ["red", "red", "green", "blue"],
        "gender": ["female", "female", "female", "male"]}
    assert "outfits.csv: 1 of 3 lines skipped, since there is no image of the outfit" in own.notes


def test_values_that_differ_only_in_case_and_spaces_are_merged_with_a_note(tmp_path):
    pictures(tmp_path, *(f"{n}.png" for n in range(4)))
    write(tmp_path, metadata=["file_name,person,vest", "0.png,1,Red", "1.png,1,red ", "2.png,2,RED", "3.png,2,blue"])
    own = read_people(tmp_path)
    assert own.attributes["vest"].to_list() == ["red", "red", "red", "blue"]
    assert own.notes == ("'vest': 'Red' (1), 'RED' (1) read as 'red' (1)",)


def test_names_with_commas_quotes_and_other_scripts_are_read(tmp_path):
    names = ["a, b/c;d.png", 'say "hi".png', "\u05e9\u05dc\u05d5\u05dd/\u0645.png", "plain.png"]
    pictures(tmp_path, *names)
    text = io.StringIO()
    csv.writer(text).writerows([["file_name", "person"], *([name, "1"] for name in names)])
    (tmp_path / "metadata.csv").write_text(text.getvalue(), encoding="utf-8")
    assert read_people(tmp_path).files == names


@pytest.mark.parametrize("line, message", [
    ("/etc/0.png,1,no", "line 3: file_name is '/etc/0.png', an absolute path"),
    ("C:\\0.png,1,no", "line 3: .* an absolute path"),
    ("a/../../0.png,1,no", "line 3: .*outside the folder"),
    ("./0.png,1,no", "line 3: '0.png' is also in .*line 2"),
    ("1.png,1,no", "line 3: '1.png' is not found .*1 of 2 images are missing"),
    ("0.PNG,1,no", "line 3: '0.PNG' is not found .*there is '0.png'"),
    ("0.gif,1,no", "line 3: .*expected an image"),
    ("1.png,,no", "line 3: has no person"),
    (",1,no", "line 3: has no file_name"),
    ('"a\nb.png",1,no', "line 3: .*control character"),
])
def test_a_wrong_line_raises_an_error_with_its_number(tmp_path, line, message):
    write(pictures(tmp_path, "0.png"), metadata=["file_name,person,hat", "0.png,1,yes", line])
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s)metadata.csv, {message}"):
        read_people(tmp_path)


@pytest.mark.parametrize("tables, message", [
    ({"people": ["person,hat", "1,no", "1,yes"]}, "people.csv, line 3: person '1' is also in .*line 2"),
    ({"people": ["person,hat", "01,no", "02,no"]}, "people.csv, line 2: person '01' has no image, but '1' has"),
    ({"people": ["person,hat", "ann,no", "bob,no"]}, "people.csv, line 2: person 'ann' has no .* such as person '1'"),
    ({"metadata": ["file_name,Person ID,hat", "0.png,1,no"]}, "no column 'person', but a column 'Person ID'"),
    ({"people": ["person,split", "1,train"]}, "people.csv: has the column 'split', which belongs to images"),
    ({"people": ["person,hat", ",no"]}, "people.csv, line 2: has no person"),
    ({"people": ["person,Hat", "1,no"]}, "columns 'hat' and 'Hat' differ only in case"),
    ({"outfits": ["person,outfit,hat", "1,1,no"]}, "outfits.csv: .*has no column 'outfit'"),
    ({"metadata": ["file_name,person,split", "0.png,1,train", "1.png,1,tset"]}, "line 3: split is 'tset', expected"),
    ({"metadata": ["file_name,person,split", "0.png,1,train", "1.png,1,"]}, "line 3: split is '', expected one of"),
])
def test_tables_that_contradict_each_other_raise_errors(tmp_path, tables, message):
    pictures(tmp_path, "0.png", "1.png")
    write(tmp_path, **({"metadata": ["file_name,person,hat", "0.png,1,yes", "1.png,1,no"]} | tables))
    with pytest.raises(ValueError, match=message):
        read_people(tmp_path)


def test_a_value_that_the_schema_lacks_raises_an_error_with_its_line(tmp_path):
    pictures(tmp_path, "0.png", "1.png")
    write(tmp_path, metadata=["file_name,person,vest", "0.png,1,red", "1.png,2,"],
          people=["person,hat", "1,no", "2,Maybe"])
    schema = ("groups: [{name: head, region: 0, attributes: [{name: hat, values: [no, yes]}]}, "
              "{name: upper, region: whole, attributes: [{name: vest, values: [red, blue]}]}]")
    (tmp_path / "schema.yaml").write_text(schema)
    own = read_people(tmp_path)
    with pytest.raises(ValueError, match="people.csv, line 3: 'hat' is 'Maybe', expected one of no, yes. Correct"):
        labels_of(own, read_wording(own))
    (tmp_path / "schema.yaml").write_text(schema.replace("name: vest", "name: coat"))
    with pytest.raises(ValueError, match="schema.yaml: has the attribute 'coat', but .* no column"):
        labels_of(own, read_wording(own))


def test_folders_of_people_are_read_with_and_without_folders_of_the_split(tmp_path):
    pictures(tmp_path, "a/x/1.png", "a/y/2.png", *(f"b/{part}/x/{part}.png" for part in ("train", "query", "gallery")))
    flat, split = read_people(tmp_path / "a"), read_people(tmp_path / "b")
    assert flat.person.to_list() == ["x", "y"] and flat.split is None
    assert split.split.to_list() == ["gallery", "query", "train"] and split.person.words == ("x",)
    pictures(tmp_path, "a/z.png")
    with pytest.raises(ValueError, match="a: expected images .*PERSON/IMAGE; 1 of 3 .* 'z.png'.*--name-pattern"):
        read_people(tmp_path / "a")
    for name, message in (("c/x/cam/1.png", r"\^\(\?P<person>\[\^/\]\+\)/\(\?P<camera>"),
                          ("d/ x/1.png", "begins or ends with a space")):
        pictures(tmp_path, name)
        with pytest.raises(ValueError, match=message):
            read_people(tmp_path / name[0])
    with pytest.raises(ValueError, match="people.csv: is read in addition to a table of images. Give the folder, "):
        read_people(tmp_path / "people.csv")
    with pytest.raises(FileNotFoundError, match="no such folder or table"):
        read_people(tmp_path / "none")


def test_tables_in_folders_of_the_split_are_joined(tmp_path):
    pictures(tmp_path, *(f"{part}/{n}.png" for part in ("train", "test") for n in range(2)))
    (tmp_path / "train/metadata.csv").write_text("file_name,person,hat\n0.png,a,no\n1.png,a,yes\n")
    (tmp_path / "test/metadata.jsonl").write_text("".join(
        f'{{"file_name": "{n}.png", "person": "b", "vest": "red"}}\n' for n in range(2)))
    own = split_people(read_people(tmp_path))
    assert own.files == ["train/0.png", "train/1.png", "test/0.png", "test/1.png"]
    assert own.split.to_list() == ["train", "train", "query", "gallery"]
    assert {name: words.to_list() for name, words in own.attributes.items()} == {
        "hat": ["no", "yes", "", ""], "vest": ["", "", "red", "red"]}
    assert own.where(3).endswith("test/metadata.jsonl, line 2")
    (tmp_path / "test/metadata.jsonl").write_text('{"file_name": "/0.png", "person": "b"}\n')
    with pytest.raises(ValueError, match="test/metadata.jsonl, line 1: file_name is '/0.png', an absolute path"):
        read_people(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,person\ntrain/0.png,a\n")
    with pytest.raises(ValueError, match="expected either one table, or one in each of the folders"):
        read_people(tmp_path)


def test_a_pattern_reads_person_camera_time_and_outfit_from_file_names(tmp_path):
    pictures(tmp_path, "7_c2_o1_0900.png", "sub/8_c1_o1_0901.png")
    own = read_people(tmp_path, r"(?P<person>\d+)_c(?P<camera>\d)_o(?P<outfit>\d)_(?P<time>\d+)")
    assert [words.to_list() for words in (own.person, own.camera, own.outfit, own.time)] == [
        ["7", "8"], ["2", "1"], ["1", "1"], ["0900", "0901"]]
    for pattern, message in ((r"(?P<camera>\d)", "expected person"), ("(", "not a regular expression"),
                             (r"(?P<person>x)", "finds no person in '7_c2_o1_0900.png' .2 of 2")):
        with pytest.raises(ValueError, match=message):
            read_people(tmp_path, pattern)


def test_a_drawn_split_is_stored_and_separates_training_and_test_people(tmp_path):
    write_people(tmp_path, people=9, cameras=2)
    pictures(tmp_path, "img/single.png")
    with open(tmp_path / "metadata.csv", "a") as file:
        file.write("img/single.png,alone,0,no,red\n")
    own = split_people(read_people(tmp_path), seed=3)
    people = {part: set(np.array(own.person.words)[own.person.codes[own.is_in(part)]]) for part in own.split.words}
    assert not people["train"] & (people["query"] | people["gallery"]) and people["query"] == people["gallery"]
    assert len(people["query"]) == 4 and "alone" in people["train"]
    assert "1 person has only one image: used for training only" in own.notes
    again = split_people(read_people(tmp_path), seed=4)
    assert again.split.to_list() == own.split.to_list()
    other = split_people(read_people(tmp_path), seed=4, write=False)
    assert other.split.to_list() == own.split.to_list()
    (tmp_path / SPLIT_FILE).unlink()
    assert split_people(read_people(tmp_path), seed=4, write=False).split.to_list() != own.split.to_list()
    assert not (tmp_path / SPLIT_FILE).exists()


def test_a_split_file_with_missing_or_repeated_images_or_unknown_parts_raises_errors(tmp_path):
    pictures(tmp_path, "0.png", "1.png")
    write(tmp_path, metadata=["file_name,person", "0.png,1", "1.png,1"], split=["file_name,split", "0.png,train"])
    with pytest.raises(ValueError, match="split.csv: has no line for '1.png' .1 of 2 images"):
        split_people(read_people(tmp_path))
    write(tmp_path, split=["file_name,split", "0.png,train", "1.png,"])
    with pytest.raises(ValueError, match="split.csv, line 3: split is '', expected one of train"):
        split_people(read_people(tmp_path))
    write(tmp_path, split=["file_name,split", "0.png,Train", "1.png,gallery", "0.png,gallery"])
    with pytest.raises(ValueError, match="split.csv, line 4: '0.png' is also in .*split.csv, line 2"):
        split_people(read_people(tmp_path))
    write(tmp_path, split=["file_name,split", "0.png,Train", "1.png,gallery "])
    assert split_people(read_people(tmp_path)).split.to_list() == ["train", "gallery"]


def test_a_part_test_is_divided_into_queries_and_gallery(tmp_path):
    names = [f"{part}/{person}/{n}.png" for part, people in (("train", "ab"), ("test", "cd")) for person in people
             for n in range(3)]
    own = split_people(read_people(pictures(tmp_path, *names)))
    assert {name: word for name, word in zip(own.files, own.split.to_list()) if name[:4] == "test"} == {
        f"test/{person}/{n}.png": "gallery" if n else "query" for person in "cd" for n in range(3)}
    assert own.is_in("train").sum() == 6 and not (tmp_path / SPLIT_FILE).exists()


@pytest.mark.parametrize("cameras", [True, False])
def test_there_is_one_query_per_person_and_camera_or_per_person(tmp_path, cameras):
    names = [f"{person}/{camera}_{n}.png" for person in range(4) for camera in range(2) for n in range(2)]
    pictures(tmp_path, *names)
    own = split_people(read_people(tmp_path, r"(?P<person>\d+)/" + (r"(?P<camera>\d)" if cameras else "")))
    queries = [own.files[row] for row in np.flatnonzero(own.is_in("query"))]
    assert len(queries) == (4 if cameras else 2) and own.is_in("gallery").sum() == 8 - len(queries)
