"""`outfit_attributes.csv`: round trip, and error messages for invalid files."""

import random

from cerberus_plugin.attributes import DUKEMTMC, MARKET1501
from cerberus_plugin.attributes.outfits import read_outfits, write_outfits

import pytest
import torch
from support.data import random_labels


@pytest.fixture
def file(tmp_path):
    """Three outfits of two persons; the label "hat" of the last one is missing."""
    labels = dict(zip([("train", 7, "1"), ("train", 7, "2"), ("test", 7, "C")], random_labels(MARKET1501, 3, seed=4)))
    labels["test", 7, "C"][MARKET1501.index("hat")] = -1
    write_outfits(tmp_path / "outfits.csv", MARKET1501, labels)
    return tmp_path / "outfits.csv", labels


@pytest.mark.parametrize("schema", [MARKET1501, DUKEMTMC], ids=lambda schema: schema.name)
def test_outfits_round_trip_through_a_file(tmp_path, schema):
    keys = [("train", person, str(outfit)) for person in range(20) for outfit in range(5)]
    labels = dict(zip(keys, random_labels(schema, len(keys))))
    write_outfits(tmp_path / "outfits.csv", schema, labels)
    found = read_outfits(tmp_path / "outfits.csv", schema)
    assert found.keys() == labels.keys() and all(torch.equal(found[key], labels[key]) for key in labels)


def test_an_empty_value_is_unknown(file):
    path, labels = file
    found = read_outfits(path, MARKET1501)
    assert all(torch.equal(found[key], labels[key]) for key in labels)
    assert found["test", 7, "C"][MARKET1501.index("hat")] == -1


def test_leading_zeros_of_an_outfit_and_the_order_of_columns_do_not_matter(file):
    path, labels = file
    lines = [line.split(",")[::-1] for line in path.read_text().replace("train,7,1,", "train,007,01,").splitlines()]
    path.write_text("\n".join(",".join(line) for line in lines))
    found = read_outfits(path, MARKET1501)
    assert torch.equal(found["train", 7, "1"], labels["train", 7, "1"])


@pytest.mark.parametrize(("old", "new", "message"), [
    ("gender,", "sex,", "lacks column.s. gender; expected split, person, outfit, gender, age"),
    (",gender", ",gender,gender", "unknown or repeated column.s. gender"),
    ("test,7,C", "probe,7,C", "line 2: got 'probe,7,C', expected train or test"),
    ("train,7,1", "train,seven,1", "line 3: got 'train,seven,1'.*the number of a person"),
    ("train,7,1", "train,7,", "line 3: got 'train,7,'.*the name of an outfit"),
    ("train,7,1", "train,7,02", "line 4: outfit '2' of person 7 .train. is listed twice"),
    ("male,", "mail,", "line 2: 'gender' cannot be '(fe)?mail'; did you mean '(fe)?male'"),
    ("train,7,1,", "train,7,1,,", "line 3: expected 15 values"),
])
def test_errors_name_the_line_and_the_allowed_values(file, old, new, message):
    path, _ = file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"{path.name}.*{message}"):
        read_outfits(path, MARKET1501)


def test_a_truncated_line_is_rejected(file):
    path, _ = file
    path.write_text(path.read_text().rsplit(",", 2)[0])
    with pytest.raises(ValueError, match="line 4: expected 15 values"):
        read_outfits(path, MARKET1501)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_written_by_spreadsheet_programs_are_supported(file, separator, encoding, end):
    path, labels = file
    text = path.read_text().replace("test,7,C,", "test,7,Größe,") + "," * 14 + "\n"  # with an empty line
    path.write_bytes(text.replace(",", separator).replace("\n", end).encode(encoding))
    found = read_outfits(path, MARKET1501)
    assert found.keys() == {("train", 7, "1"), ("train", 7, "2"), ("test", 7, "Größe")}
    assert torch.equal(found["test", 7, "Größe"], labels["test", 7, "C"])


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: text.replace(",", "|").encode(), "the first line has one column, 'split.person.*commas, semicolons"),
    (lambda text: text.replace("7,2", "7,é").encode("latin-1"), "line 4: byte 0xe9 is not UTF-8. Save the file in UTF"),
    (lambda text: text.encode("utf-16-le"), "line 1: a NUL character, as in UTF-16 without its byte order mark"),
    (lambda text: text.encode("utf-16")[:-1], "line 4: byte 0x0a is not UTF-16"),
    (lambda text: text.replace("7,2", '7,"2').encode(), "line 4: unexpected end of data. Check the quotes"),
    (lambda text: text.replace("7,2", "7," + 140000 * "2").encode(), "line 4: field larger than field limit"),
    (lambda text: text.replace("n,7,2", f"n,{5000 * '7'},2").encode(), "line 4: got 'train,777777"),
    (lambda text: b"", "the first line lacks column"),
])
def test_errors_for_unreadable_files_name_line_and_remedy(file, change, message):
    path, _ = file
    path.write_bytes(change(path.read_text()))
    with pytest.raises(ValueError, match=f"outfits.csv(, |: ){message}"):
        read_outfits(path, MARKET1501)


def test_a_damaged_file_gives_labels_or_an_error_with_its_name(file):
    path, _ = file
    texts = [path.read_text().encode(encoding) for encoding in ("utf-8", "utf-16")]
    for seed in range(400):
        rng = random.Random(seed)
        data = bytearray(rng.choice(texts))
        for _ in range(rng.choice((1, 3, 20))):
            at = rng.randrange(len(data))
            data[at:at + rng.randrange(3)] = rng.choice((b"", b'"', b",", b"\n", b"\r", b"\0", rng.randbytes(2)))
        path.write_bytes(data)
        try:
            read_outfits(path, MARKET1501)
        except ValueError as error:
            assert str(error).startswith(str(path)), seed


def test_a_missing_file_is_an_error_with_the_expected_columns(tmp_path):
    with pytest.raises(FileNotFoundError, match="one line per outfit of a person, with the columns split, person"):
        read_outfits(tmp_path / "outfits.csv", MARKET1501)
