"""`labels_overlay.csv`: corrections of own data in all formats and of Market-1501, and errors."""

import logging

from cerberus_plugin.attributes import MARKET1501, Annotations
from cerberus_plugin.data.datasets import with_overlay
from cerberus_plugin.data.own import OwnDataset
from cerberus_plugin.own_data.people import labels_of, read_people, read_wording, split_people

import pytest
import torch
from support.own_data import write_people, write_picture

HEAD = "file_name,person,outfit,attribute,value,was\n"


@pytest.fixture
def folder(tmp_path):
    """Two images of each of three people, with labels of images, outfits and people."""
    names = [f"{person}{number}.png" for person in "abc" for number in range(2)]
    for name in names:
        write_picture(tmp_path / name, *name.encode())
    (tmp_path / "metadata.csv").write_text(
        "file_name,person,outfit,split,hat\n" + "".join(
            f"{name},{name[0]},{name[1]},{'train' if name[0] != 'c' else 'query' if name[1] == '0' else 'gallery'},"
            f"{'yes' if name == 'a0.png' else 'no'}\n" for name in names))
    (tmp_path / "outfits.csv").write_text("person,outfit,vest\na,0,red\na,1,blue\nb,0,red\nb,1,red\nc,0,blue\n")
    (tmp_path / "people.csv").write_text("person,gender\na,male\nb,female\nc,female\n")
    return tmp_path


def words(folder, *lines: str) -> dict[str, list[str]]:
    (folder / "labels_overlay.csv").write_text(HEAD + "\n".join(lines) + "\n")
    own = read_people(folder)
    return {name: column.to_list() for name, column in own.attributes.items()} | {"person": own.person.to_list()}


def test_labels_of_images_outfits_and_people_are_corrected(folder):
    found = words(folder, "b0.png,,,hat,Yes,no", ",a,1,vest,,blue", ",c,,gender,male,female", ",a,,hat,no,yes",
                  "a1.png,,,gender,,male")
    assert found == {"hat": ["no", "no", "yes", "no", "no", "no"], "vest": ["red", "", "red", "red", "blue", ""],
                     "gender": ["male", "", "female", "female", "male", "male"], "person": list("aabbcc")}
    own = read_people(folder)
    assert own.notes[-1] == ("labels_overlay.csv: 5 rows applied: 6 labels of images changed, 0 images moved to "
                             "another person")
    assert labels_of(own, read_wording(own)).shape == (6, 3)


def test_images_take_precedence_over_outfits_and_these_over_people(folder):
    found = words(folder, "b0.png,,,hat,yes,no", ",b,,hat,,no", "a0.png,,,vest,,red", ",a,,vest,blue,red")
    assert found["hat"][2:4] == ["yes", ""] and found["vest"][:2] == ["", "blue"]


def test_a_later_row_can_correct_the_result_of_an_earlier_row(folder):
    found = words(folder, ",b,,hat,yes,no", "b0.png,,,hat,,yes", ",c,,gender,male,female", ",c,,gender,,male",
                  "a0.png,,,person,b,a", "a0.png,,,person,c,b")
    assert found["hat"][2:4] == ["", "yes"] and found["gender"][4:] == ["", ""]
    assert found["person"] == ["c", "a", "b", "b", "c", "c"]
    # `was` is compared with the tables first, so these two rows swap two labels of a person.
    found = words(folder, ",a,,hat,no,yes", ",a,,hat,yes,no")
    assert found["hat"][:2] == ["no", "yes"]


def test_a_moved_image_gets_the_labels_and_the_part_of_its_new_person(folder):
    found = words(folder, "a1.png,,,person,c,a", "c0.png,,,person,b,c", "b1.png,,,person,new,b")
    assert found["person"] == ["a", "c", "b", "new", "b", "c"]
    assert found["gender"] == ["male", "female", "female", "", "female", "female"]
    assert found["vest"] == ["red", "", "red", "", "red", ""]  # c has no outfit 1
    own = split_people(read_people(folder))
    assert own.split.to_list() == ["train", "gallery", "train", "train", "train", "gallery"]
    assert "1 new person: new" in " ".join(own.notes)
    assert own.notes[-1].startswith("labels_overlay.csv: 2 moved images change between training and test")


def test_rows_of_a_person_apply_to_its_images_after_the_moves(tmp_path):
    for name in ("x/1.png", "x/2.png", "y/3.png"):
        write_picture(tmp_path / name, *name.encode())
    (tmp_path / "people.csv").write_text("person,hat\nx,no\ny,yes\n")
    move = "x/2.png,,,person,y,x"
    assert words(tmp_path, move, ",x,,hat,yes,no", ",y,,hat,no,yes")["hat"] == ["yes", "no", "no"]
    assert words(tmp_path, move, "x/2.png,,,hat,no,yes")["hat"] == ["no", "no", "yes"]  # label of y
    assert words(tmp_path, move, "x/2.png,,,hat,,no")["hat"] == ["no", "", "yes"]  # label of x, before the move
    merged = words(tmp_path, ",y,,person,x,y", ",y,,hat,no,yes")  # y has no images any more
    assert merged == {"hat": ["no", "no", "no"], "person": ["x", "x", "x"]}


def test_two_people_become_one_and_the_split_file_follows(folder):
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text("\n".join(",".join(line.split(",")[i] for i in (0, 1, 2, 4))
                                                   for line in text.splitlines()) + "\n")
    (folder / "split.csv").write_text("file_name,split\n" + "".join(
        f"{line.split(',')[0]},{line.split(',')[3]}\n" for line in text.splitlines()[1:]))
    assert words(folder, ",c,,person,a,c")["person"] == list("aabbaa")
    assert split_people(read_people(folder)).split.to_list() == ["train"] * 6


def test_lines_whose_images_have_all_been_moved_are_skipped(folder):
    (folder / "outfits.csv").write_text("person,outfit,vest\na,0,red\n")
    (folder / "people.csv").write_text("person,gender\nA,male\nc,female\n")  # names of people are case-sensitive
    (folder / "metadata.csv").write_text((folder / "metadata.csv").read_text().replace(",b,", ",A,"))
    found = words(folder, ",A,,person,a,A", "a0.png,,,person,c,a")
    assert found["person"] == ["c", "a", "a", "a", "c", "c"] and found["vest"] == ["", "", "red", "", "", ""]
    assert found["gender"] == ["female", "", "", "", "female", "female"]
    found = words(folder, "a0.png,,,person,c,a")  # the only line of outfits.csv
    assert found["vest"] == [""] * 6
    assert "outfits.csv: 1 of 1 line skipped, since there is no image of the outfit" in read_people(folder).notes


def test_images_of_training_and_test_cannot_become_one_new_person(folder):
    words(folder, "a1.png,,,person,new,a", "c0.png,,,person,new,c")
    with pytest.raises(ValueError, match=r"labels_overlay.csv: moves 'a1.png' \(train\) and 'c0.png' \(query\) to the "
                                         "new person 'new'"):
        split_people(read_people(folder))


@pytest.mark.parametrize("line, message", [
    ("a0.png,,,hat,no,no", "'value' and 'was' are both 'no'"),
    ("a0.png,,,hat,,no", "the row is out of date: it replaces 'hat' 'no', but the label is now 'yes'"),
    (",b,,hat,no,yes", "the row is out of date: it replaces 'hat' 'yes', but the label is now 'no'"),
    ("a0.png,,,person,b,c", "the row is out of date: it replaces 'person' 'c', but the label is now 'a'"),
    ("a0.png,,,person,,a", "has no new person"),
    ("a9.png,,,hat,no,yes", "there is no image 'a9.png'"),
    (",z,,hat,no,yes", "there is no person 'z'"),
    (",a,7,hat,no,yes", "person 'a' has no outfit '7'"),
    ("a0.png,,,hut,no,yes", "'hut' is not an attribute; expected one of hat, vest, gender, person; did you mean"),
    ("a0.png,,,camera,1,2", "'camera' is not an attribute"),
    ("a0.png,,,hat,maybe,yes", "sets 'hat' to 'maybe', which does not occur in the tables; values are yes, no"),
    ("a0.png,a,,hat,no,yes", "names both an image and a person"),
    (",,1,hat,no,yes", "names no image and no person"),
    ("a0.png,,,,no,yes", "has no attribute"),
    (",b,,vest,blue,red", "repeats .*line 2"),
    (",b,,vest,,red", "contradicts .*line 2"),
])
def test_a_wrong_row_raises_an_error_with_its_line(folder, line, message):
    with pytest.raises(ValueError, match=f"labels_overlay.csv, line 3: {message}"):
        words(folder, ",b,,vest,blue,red", line)


def test_a_value_that_the_schema_lacks_raises_an_error_with_the_line_of_the_overlay(folder):
    (folder / "schema.yaml").write_text(
        "groups: [{name: head, region: 0, attributes: [{name: hat, values: [no, yes]}]}, "
        "{name: upper, region: whole, attributes: [{name: gender, values: [male, female, other]}]}]")
    words(folder, "a0.png,,,gender,other,male", "a1.png,,,hat,maybe,no")
    own = read_people(folder)
    with pytest.raises(ValueError, match="labels_overlay.csv, line 3: 'hat' is 'maybe', expected one of no, yes"):
        labels_of(own, read_wording(own))


def test_folders_of_people_are_corrected(tmp_path):
    for name in ("x/1.png", "x/2.png", "y/3.png"):
        write_picture(tmp_path / name, *name.encode())
    (tmp_path / "people.csv").write_text("person,hat\nx,no\ny,yes\n")
    found = words(tmp_path, "x/2.png,,,person,y,x", ",x,,hat,yes,no")
    assert found == {"hat": ["yes", "yes", "yes"], "person": ["x", "y", "y"]}
    own = read_people(tmp_path, name_pattern=r"(?P<person>\w)/")
    assert own.person.to_list() == ["x", "y", "y"]


def test_training_reads_the_overlay_and_the_digest_of_the_labels_changes(tmp_path):
    folder = write_people(tmp_path)
    before = OwnDataset(str(folder))
    (folder / "labels_overlay.csv").write_text(HEAD + "0_0.png,,,hat,no,yes\n".replace("0_0", "img/0_0"))
    after = OwnDataset(str(folder))
    path = str(folder / "img/0_0.png")
    labels = [data.schema.describe(data.labels_of(data.units[path]))["hat"] for data in (before, after)]
    assert labels == ["yes", "no"] and before.annotations.digest != after.annotations.digest


def test_annotations_of_market_1501_are_corrected_by_identity(tmp_path, caplog):
    labels = torch.from_numpy(MARKET1501.parse({
        "gender": "male", "age": "young", "hair": "short", "up": "long sleeve", "down": "long", "clothes": "pants",
        "hat": "no", "backpack": "no", "bag": "no", "handbag": "no", "upper colour": "red", "lower colour": "none"}))
    (tmp_path / "labels").write_text("")
    given = Annotations(MARKET1501, {2: labels, 7: labels}, {3: labels}, str(tmp_path / "labels"))
    path = tmp_path / "labels_overlay.csv"
    assert with_overlay(given, path) is given
    path.write_text(HEAD + ",0002,,upper colour,blue,red\n,3,,hair length,,short\n,3,,lower colour,pink,none\n")
    with caplog.at_level(logging.INFO, "fastreid.cerberus"):
        found = with_overlay(given, path)
    assert MARKET1501.describe(found.train[2])["upper colour"] == "blue" and torch.equal(found.train[7], labels)
    assert "hair" not in MARKET1501.describe(found.test[3])
    assert MARKET1501.describe(found.test[3])["lower colour"] == "pink"
    assert MARKET1501.describe(given.train[2])["upper colour"] == "red" and found.digest and given.digest is None
    assert "3 rows applied" in caplog.text
    for line, message in ((",2,,upper colour,blue,green", "'upper colour' 'green', but the label is now 'red'"),
                          (",9,,hat,yes,no", "there is no identity '9'"),
                          (",2,,hat,maybe,no", "'hat' cannot be 'maybe'"),
                          (",2,,hut,yes,no", "unknown attribute 'hut'"), ("2.jpg,,,hat,yes,no", "corrects an image"),
                          (",2,,person,3,2", "corrects an image")):
        path.write_text(HEAD + line + "\n")
        with pytest.raises(ValueError, match=f"labels_overlay.csv, line 2: .*{message}"):
            with_overlay(given, path)
