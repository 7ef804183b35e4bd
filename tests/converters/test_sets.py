"""Each converter on small files in the format of its dataset: values, splits, schemas, and errors."""

import json

from cerberus_plugin import cli
from cerberus_plugin.converters import CONVERTERS, agreid, convert, pa100k, peta, rap, upar
from cerberus_plugin.metrics.par import par_metrics
from cerberus_plugin.own_data.schema_file import encode
from cerberus_plugin.own_data.tables import Words

import numpy as np
import pytest
import torch
from scipy.io import savemat
from support.own_data import write_picture
from support.published_sets import (
    binaries_of,
    cells,
    drawn_labels,
    read_back,
    rows,
    touch,
    write_agreid,
    write_pa100k,
    write_peta,
    write_rapv1,
    write_rapv2,
    write_upar,
)
from support.training import read_config, trained

PUBLISHED = {"peta": (peta.QUESTIONS, 35), "pa100k": (pa100k.QUESTIONS, 26), "rapv1": (rap.V1, 51),
             "rapv2": (rap.V2, 54), "upar": (upar.QUESTIONS, 40)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fields_of_a_schema_are_the_published_labels_one_to_one(name):
    questions, count = PUBLISHED[name]
    fields = questions.wording.schema.fields
    assert len(fields) == len(questions.published) == len(set(questions.published)) == count
    for field, (_, column, word) in zip(fields, questions.binaries):
        assert field.values[1] == word if not field.column else (field.column, field.word) == (column, word)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_mean_accuracy_of_a_dataset_is_computed_over_its_published_labels(name):
    questions, count = PUBLISHED[name]
    schema, published = questions.wording.schema, drawn_labels(40, count)
    words = questions.words(published.astype(int), questions.published)
    labels = encode(questions.wording, {column: Words.of(own) for column, own in words.items()}, None)
    truth, known = schema.column_truth(torch.from_numpy(labels.astype(np.int64)))
    generator = np.random.default_rng(1)
    answers = np.stack([generator.integers(-own.is_colour, len(own.classes), 40) for own in schema.columns], axis=1)
    result = par_metrics(torch.from_numpy(answers), truth, known, [own.is_colour for own in schema.columns])
    rates = []
    for true, (_, column, word) in zip(published.T, questions.binaries):
        place = schema.columns.index(schema.column(column))
        yes = answers[:, place] == schema.columns[place].classes.index(word)
        rates.append((yes[true == 1].mean() + (~yes)[true == 0].mean()) / 2)
    assert result.num_bits == count and result.mA_balanced == pytest.approx(np.mean(rates), abs=1e-12)


def test_the_labels_of_peta_are_in_the_order_of_their_evaluation():
    # Positions in the file in the order of Rethinking_of_PAR: head, upper, lower, feet, carrying, age, gender.
    order = [10, 18, 19, 30, 15, 7, 9, 11, 14, 21, 26, 29, 32, 33, 34, 6, 8, 12, 25, 27, 31, 13, 23, 24, 28, 4, 5, 17,
             20, 22, 0, 1, 2, 3, 16]
    assert list(peta.QUESTIONS.published) == [peta.EVALUATED[place] for place in order]


def test_peta_is_converted_with_its_35_labels_and_the_chosen_partition(tmp_path):
    labels = drawn_labels(10, 35)
    labels[0] = 0
    labels[0, [0, 1, 16]] = 1  # two ages, male
    source = write_peta(tmp_path, labels)
    for partition, first in ((1, "00001.png"), (3, "00003.png")):
        convert("peta", source, tmp_path / f"out{partition}", allow_subset=True, partition=partition)
        written = rows(tmp_path / f"out{partition}")
        assert min(row["file_name"] for row in written if row["split"] == "train") == f"images/{first}"
        assert [row["split"] for row in written].count("val") == 1
    assert written[0] | {"split": ""} == written[0] | {"split": "", "age": "16 to 30 and 31 to 45", "gender": "male",
                                                       "hat": "no"}
    order = [peta.EVALUATED.index(name) for name in peta.QUESTIONS.published]
    assert np.array_equal(binaries_of(tmp_path / "out1"), labels[:, order])
    assert json.loads((tmp_path / "out3/source.json").read_text())["partition"] == 3
    with pytest.raises(ValueError, match="partitions 1 to 5, got 6"):
        convert("peta", source, tmp_path / "out", partition=6)


@pytest.mark.parametrize("pictures", ["data", "release_data/release_data"])
def test_pa100k_is_converted_with_its_parts_and_all_26_labels(tmp_path, pictures):
    labels = drawn_labels(8, 26)
    convert("pa100k", write_pa100k(tmp_path, labels, pictures=pictures), tmp_path / "out", allow_subset=True)
    assert [row["split"] for row in rows(tmp_path / "out")] == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    assert "person" not in rows(tmp_path / "out")[0]
    assert np.array_equal(binaries_of(tmp_path / "out"), labels)
    assert (tmp_path / "out/images/000001.jpg").resolve() == (tmp_path / pictures / "000001.jpg").resolve()


def test_rapv1_is_converted_with_its_51_labels_and_partitions(tmp_path):
    labels = drawn_labels(9, 51)
    convert("rapv1", write_rapv1(tmp_path, labels), tmp_path / "out", allow_subset=True, partition=2)
    assert [row["split"] for row in rows(tmp_path / "out")] == ["train", "test", "test"] + ["train"] * 6
    assert np.array_equal(binaries_of(tmp_path / "out"), labels)


def test_rapv2_selects_its_54_labels_by_number_and_uncertain_ones_become_unknown(tmp_path):
    labels = drawn_labels(9, 54)
    labels[2, 0], labels[3, 2] = 2, 2  # a gender, and one of the ages, which makes the age unknown
    source = write_rapv2(tmp_path, labels)
    convert("rapv2", source, tmp_path / "out", allow_subset=True)
    assert [row["split"] for row in rows(tmp_path / "out")] == ["train"] * 6 + ["val"] + ["test"] * 2
    expected = labels.astype(int)
    expected[2, 0], expected[3, 1:5] = -1, -1
    assert np.array_equal(binaries_of(tmp_path / "out"), expected)
    convert("rapv2", source, tmp_path / "as published", allow_subset=True, uncertain="no")
    assert np.array_equal(binaries_of(tmp_path / "as published"), np.where(labels == 2, 0, labels))
    assert json.loads((tmp_path / "out/source.json").read_text())["uncertain labels"] == "2, read as unknown"


@pytest.mark.parametrize("train, val, header", [
    ("data/annotations/task1/train/gt.csv", "data/annotations/task1/val/gt.csv", "# image,"),
    ("annotations/train.csv", "annotations/val.csv", "# "),
    ("phase1/train/train.csv", None, "")])
def test_upar_reads_each_format_of_its_csv_files(tmp_path, train, val, header):
    tables = {train: drawn_labels(5, 40)} | ({val: drawn_labels(3, 40, 1)} if val else {})
    done = convert("upar", write_upar(tmp_path, tables, header), tmp_path / "out", allow_subset=True)
    assert [row["split"] for row in rows(tmp_path / "out")] == ["train"] * 5 + ["test"] * 3 * bool(val)
    assert np.array_equal(binaries_of(tmp_path / "out"), np.concatenate(list(tables.values())))
    assert any("there is no test part" in note for note in done.notes) == (val is None)


def test_a_wrong_line_of_upar_raises_an_error_with_its_number(tmp_path):
    labels = drawn_labels(5, 40).astype(int)
    labels[3, 7] = 3
    with pytest.raises(ValueError, match="train.csv, line 5: has the label '3', expected 0 or 1"):
        convert("upar", write_upar(tmp_path, {"train.csv": labels}), tmp_path / "out", allow_subset=True)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([*lines[:2], lines[2].rpartition(",")[0]]))
    with pytest.raises(ValueError, match="train.csv, line 3: has 40 cells, expected a name and 40 labels"):
        convert("upar", tmp_path, tmp_path / "out", allow_subset=True)


PEOPLE = {"train": {"P0001T02140A0": {"gender": "male", "age": "old", "ethnicity": "asian", "beard": "yes",
                                      "hair style": "pony tail", "upper clothes": "T-shirt", "bag": "no bag"},
                    "P0002T02141A1": {"gender": "female", "glasses": "no", "shoes": "high heels"}},
          "test": {"P0003T02140A2": {"gender": "female", "height": "tall", "lower clothes": "leggings"},
                   "P0004T04041A0": {"head accessory": "necklace", "hair colour": "gray", "moustache": "no"}}}


def test_agreid_is_converted_with_labels_of_people_and_the_images_of_a_setting(tmp_path):
    convert("agreid", write_agreid(tmp_path, PEOPLE), tmp_path / "out", allow_subset=True)
    people = {row.pop("person"): row for row in rows(tmp_path / "out", "people.csv")}
    for name, words in (PEOPLE["train"] | PEOPLE["test"]).items():
        known = {column: word for column, word in words.items() if column != "ethnicity"}
        assert {column: word for column, word in people[name].items() if word} == known
    written = rows(tmp_path / "out")
    assert {(row["split"], row["camera"]) for row in written} == {("train", "0"), ("train", "3"), ("query", "0"),
                                                                  ("gallery", "3")}
    assert len(written) == 8 + 4 + 4 and {row["person"] for row in written if row["split"] == "query"} == set(
        PEOPLE["test"])
    convert("agreid", tmp_path, tmp_path / "ground", allow_subset=True, setting="ground-to-aerial")
    assert {row["camera"] for row in rows(tmp_path / "ground") if row["split"] == "query"} == {"3"}
    assert len(read_back(tmp_path / "out", "people.csv")[0]) == 14
    record = json.loads((tmp_path / "out/source.json").read_text())
    assert record["ethnicity"] == "left out" and len(record["labels"]) == 88 - 15 - 4  # without "unknown" and ethnicity


def test_agreid_includes_ethnicity_only_with_the_option(tmp_path):
    source = write_agreid(tmp_path, PEOPLE)
    convert("agreid", source, tmp_path / "with", allow_subset=True, with_ethnicity=True)
    assert rows(tmp_path / "with", "people.csv")[0]["ethnicity"] == "asian"
    assert len(json.loads((tmp_path / "with/source.json").read_text())["labels"]) == 88 - 15
    assert sum(len(agreid.words_of(listed)) + 1 for *_, listed in agreid.ATTRIBUTES) == 88


def test_agreid_rejects_two_values_unknown_names_and_people_without_labels(tmp_path):
    def twice(record):
        record["train"]["genderfemale"][0] = 2

    def misnamed(record):
        record["test"]["hairstylepony"] = record["test"].pop("hairstylehorsetail")

    def otherwise(record):
        record["test"]["beardon"][1] = 0

    for number, (change, message) in enumerate([
            (twice, "train has gendermale and genderfemale for identity 1021400"),
            (misnamed, "test lacks the label 'hairstylehorsetail'"), (otherwise, "test.beardon has the label 0")]):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(ValueError, match=f"v4_88_attributes.mat: {message}"):
            convert("agreid", write_agreid(tmp_path / str(number), PEOPLE, change), tmp_path / "out", allow_subset=True)
    (tmp_path / "3").mkdir()
    source = write_agreid(tmp_path / "3", PEOPLE)
    touch(source / "query_all_c0", ["P0009T02140A2C0F31.jpg"])
    with pytest.raises(ValueError, match="has no labels for P0009T02140A2"):
        convert("agreid", source, tmp_path / "out", allow_subset=True)


def test_counts_that_differ_from_the_published_ones_raise_an_error_with_both(tmp_path):
    source = write_pa100k(tmp_path, drawn_labels(8, 26))
    with pytest.raises(ValueError, match="4 train images, published: 80000; 2 val images, .*--allow-subset"):
        convert("pa100k", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes, message", [
    ({"attributes": cells([*pa100k.QUESTIONS.published[:3], "Child", *pa100k.QUESTIONS.published[4:]])},
     "attribute 4 is 'Child', expected 'AgeLess18'"),
    ({"attributes": cells(list(pa100k.QUESTIONS.published[:20]))},
     "attribute 21 is 'nothing', expected 'LowerPattern'"),
    ({"val_label": np.full((2, 26), 3)}, "'Female' for 000005.jpg is 3, expected 0 or 1; 52 labels are wrong"),
    ({"val_label": np.zeros((2, 25))}, "labels are 2 x 25, expected 2 images x 26 attributes"),
    ({"test_images_name": np.zeros((2, 1))}, "test_images_name contain 0.0, expected text"),
])
def test_a_file_that_is_not_as_published_raises_an_error_with_the_place(tmp_path, changes, message):
    source = write_pa100k(tmp_path, drawn_labels(8, 26), **changes)
    with pytest.raises(ValueError, match=f"annotation.mat: {message}"):
        convert("pa100k", source, tmp_path / "out", allow_subset=True)


def test_files_that_are_missing_or_belong_to_another_dataset_raise_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no annotation.mat and no annotation/annotation.mat"):
        convert("pa100k", tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        convert("pa100k", tmp_path / "nowhere", tmp_path / "out")
    savemat(tmp_path / "annotation.mat", {"peta": {"data": np.zeros(3)}})
    with pytest.raises(ValueError, match="has no 'attributes', only data. Is this .* another dataset"):
        convert("pa100k", tmp_path, tmp_path / "out")
    (tmp_path / "annotation.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(ValueError, match="MATLAB 7.3.*`save -v7`"):
        convert("pa100k", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("train, message", [([1, 2, 99], "numbers outside 1 to 6"), ([1, 2, 6], "image 6 is in")])
def test_a_partition_with_wrong_or_repeated_numbers_raises_an_error(tmp_path, train, message):
    parts = [{"train_index": np.array(train)[:, None], "val_index": np.array([[4]]),
              "test_index": np.array([[5], [6]])}] * 5
    source = write_peta(tmp_path, drawn_labels(6, 35), partitions=parts)
    with pytest.raises(ValueError, match=f"PETA.mat: .*{message}"):
        convert("peta", source, tmp_path / "out", allow_subset=True)


def test_missing_images_raise_an_error_or_are_skipped(tmp_path):
    source = write_pa100k(tmp_path, drawn_labels(8, 26))
    (source / "data/000003.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="data/000003.jpg: not found, image 3 of .*annotation.mat .1 of 8 "):
        convert("pa100k", source, tmp_path / "out")
    done = convert("pa100k", source, tmp_path / "out", allow_subset=True)
    assert len(rows(tmp_path / "out")) == 7 and "1 missing image skipped" in done.notes


@pytest.mark.parametrize("name, message", [("../../000003.jpg", "outside"), ("/etc/000003.jpg", "absolute path"),
                                           ("000002.jpg", "same as image 2"), ("000003.txt", "expected an image")])
def test_a_repeated_file_name_or_one_outside_the_folder_raises_an_error(tmp_path, name, message):
    names = cells(["000001.jpg", "000002.jpg", name, "000004.jpg"])
    source = write_pa100k(tmp_path, drawn_labels(8, 26), train_images_name=names)
    with pytest.raises(ValueError, match=f"annotation.mat: the name of image 3 is '{name}', .*{message}"):
        convert("pa100k", source, tmp_path / "out", allow_subset=True)


def test_the_command_prints_counts_the_licence_and_the_rule(tmp_path, capsys):
    write_rapv2(tmp_path, drawn_labels(9, 54))
    cli.main(["convert", "rapv2", str(tmp_path), "--out", str(tmp_path / "out"), "--allow-subset", "--partition", "2",
              "--uncertain", "no"])
    printed = capsys.readouterr().out
    assert "50957" in printed and "54 labels, 53 in the zero-shot split" in printed and "on request" in printed
    assert json.loads((tmp_path / "out/source.json").read_text())["partition"] == 2
    for words, message in ((["pa100k", "--partition", "2"], "pa100k has no option --partition"),
                           (["peta", "--uncertain", "no"], "peta has no option --uncertain; it has --partition"),
                           (["nothing"], "expected one of agreid, pa100k, peta")):
        with pytest.raises(SystemExit, match=message):
            cli.main(["convert", words[0], str(tmp_path), "--out", str(tmp_path / "other"), *words[1:]])


def test_every_converter_has_a_licence_and_an_evaluation_rule():
    assert set(CONVERTERS) == {"peta", "pa100k", "rapv1", "rapv2", "upar", "agreid", "market1501", "dukemtmc"}
    for own in CONVERTERS.values():
        assert own.licence and own.rule and own.title


def test_a_dataset_without_identities_is_checked_trained_and_evaluated(tmp_path, capsys):
    labels = drawn_labels(48, 26)
    labels[:, 1:4] = labels[:, 4:7] = np.eye(3)[np.arange(48) % 3]  # one age and one view each
    write_pa100k(tmp_path, labels, parts=(24, 8, 16))
    for number in range(1, 49):
        write_picture(tmp_path / f"data/{number:06d}.jpg", number)
    out = str(tmp_path / "out")
    cli.main(["convert", "pa100k", str(tmp_path), "--out", out, "--allow-subset"])
    cli.main(["check", out])  # exit code 0
    assert "unknown" in capsys.readouterr().out
    figures = trained(read_config("DATASETS.NAMES", (out,), "DATASETS.TESTS", (out,), "OUTPUT_DIR",
                                  str(tmp_path / "run"), "SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_EPOCH", 1,
                                  "TEST.EVAL_PERIOD", 1)).results
    assert figures["PAR/questions"] == 26 and figures["PAR/images"] == 16 and "mAP" not in figures
    assert {"PAR/label/mA", "PAR/instance/accuracy", "PAR/instance/F1"} <= set(figures)
