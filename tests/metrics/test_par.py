"""Attribute recognition: worked examples to exact fractions, and a published set of predictions in every convention."""

import json
import os
import pathlib

from cerberus_plugin.attributes.schema import MARKET1501
from cerberus_plugin.metrics.par import majority_answers, par_metrics

import pytest
import torch

SHARED = pathlib.Path(os.environ.get("CERBERUS_SHARED_DATA")
                      or pathlib.Path(__file__).resolve().parents[3] / "shared" / "data")
NAN = float("nan")


def exactly(*values):
    """Fractions in double precision, with room for the last bits of a sum only."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=1e-14, nan_ok=True)


def columns_of(*classes, sizes, colour):
    """Truth of columns from sets or numbers of true classes: -> truth, known."""
    truth = []
    for column, size in zip(classes, sizes):
        sets = [true if isinstance(true, set) else {true} for true in column]
        truth.append(torch.tensor([[c in true for c in range(size)] for true in sets]))
    return truth, torch.ones(len(classes[0]), len(classes), dtype=torch.bool), colour


@pytest.fixture
def five_images():
    """Gender, age, one garment's colour (red, blue, green) of five images; the third wears no listed colour."""
    return columns_of([0, 0, 1, 1, 0], [1, 1, 2, 1, 3], [0, 0, set(), 1, 2], sizes=(2, 4, 3), colour=(0, 0, 1))


PREDICTED = torch.tensor([(0, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 1), (0, 2, 2)])


def test_worked_example_gives_the_exact_fractions_of_every_convention(five_images):
    result = par_metrics(PREDICTED, *five_images)
    assert result.official.tolist() == exactly(4 / 5, 3 / 5, 3 / 5)
    assert result.binary.tolist() == exactly(4 / 5, 3 / 5, 4 / 5)
    assert result.ceiling.tolist() == exactly(1, 1, 4 / 5)
    assert (result.mA_official, result.mA_binary) == exactly(2 / 3, 11 / 15)


def test_answering_none_never_helps_officially_but_does_in_the_binary_convention(five_images):
    predictions = PREDICTED.clone()
    predictions[2, 2] = -1
    result = par_metrics(predictions, *five_images)
    assert result.official[2].item() == exactly(3 / 5)
    assert result.binary[2].item() == exactly(13 / 15)


def test_any_of_several_listed_colours_counts():
    # black, white, gray, blue
    truth = columns_of([{0, 1}, {3}, set(), {2}], sizes=(4,), colour=(1,))
    result = par_metrics(torch.tensor([[1], [0], [3], [2]]), *truth)
    assert (result.official.item(), result.binary.item(), result.ceiling.item()) == exactly(1 / 2, 3 / 4, 3 / 4)


def test_balanced_is_the_mean_of_the_recalls_of_yes_and_no_and_a_two_valued_column_is_one_question(five_images):
    result = par_metrics(PREDICTED, *five_images)
    gender = (2 / 3 + 1) / 2
    age = [(1 + 1 / 2) / 2, (0 + 3 / 4) / 2, (0 + 1) / 2]  # young never occurs: left out
    colour = [(1 / 2 + 1) / 2, (1 + 3 / 4) / 2, (1 + 3 / 4) / 2]
    assert result.balanced.tolist() == exactly(gender, sum(age) / 3, sum(colour) / 3)
    assert result.mA_balanced == exactly((gender + sum(age) + sum(colour)) / 7)
    assert (result.num_undefined_bits, result.num_bits) == (1, 8)


def test_a_constant_answer_is_half_right_when_balanced():
    truth = columns_of([0] * 9 + [1], sizes=(2,), colour=(0,))
    result = par_metrics(torch.zeros(10, 1, dtype=torch.int64), *truth)
    assert (result.mA_official, result.mA_balanced) == exactly(9 / 10, 1 / 2)


def test_no_answer_in_a_two_valued_column_is_wrong_in_every_convention():
    truth = columns_of([0, 1], sizes=(2,), colour=(0,))
    result = par_metrics(torch.tensor([[-1], [-1]]), *truth)
    assert (result.mA_official, result.mA_binary, result.mA_balanced) == (0, 0, 0)


def test_images_with_an_unknown_label_are_left_out_of_that_column_only(five_images):
    truth, known, colour = five_images
    known[1, 0] = False  # the one wrong gender
    result = par_metrics(PREDICTED, truth, known, colour)
    assert result.official.tolist() == exactly(1, 3 / 5, 3 / 5)


def test_a_column_without_a_known_image_is_nan_and_outside_the_means(five_images):
    truth, known, colour = five_images
    known[:, 1] = False
    result = par_metrics(PREDICTED, truth, known, colour)
    assert result.official.tolist() == exactly(4 / 5, NAN, 3 / 5)
    assert (result.mA_official, result.mA_binary) == exactly(7 / 10, 4 / 5)
    assert result.num_undefined_bits == 4


def test_majority_answers_are_the_most_frequent_classes_the_first_of_equals_and_none_without_labels(five_images):
    truth, known, _ = five_images
    assert majority_answers(truth, known).tolist() == [0, 1, 0]
    known[0, 2] = False  # each colour once
    known[:, 1] = False
    assert majority_answers(truth, known).tolist() == [0, -1, 0]


def test_equals_a_twin_written_image_by_image():
    g = torch.Generator().manual_seed(1)
    n, colour = 50, (False, True)
    truth = [torch.nn.functional.one_hot(torch.randint(4, (n,), generator=g), 4).bool(),
             torch.rand(n, 5, generator=g) < 0.2]
    predictions = torch.stack([torch.randint(-1, size, (n,), generator=g) for size in (4, 5)], dim=1)
    known = torch.rand(n, 2, generator=g) < 0.9
    result = par_metrics(predictions, truth, known, colour)
    questions = []
    for m in range(2):
        rows = [(int(predictions[i, m]), truth[m][i].tolist()) for i in range(n) if known[i, m]]
        right = [p >= 0 and t[p] for p, t in rows]
        binary = [[(p == c) == t[c] for p, t in rows] for c in range(len(rows[0][1]))]
        per_class = [sum(b) / len(b) for b in binary]
        assert result.official[m].item() == exactly(sum(right) / len(rows))
        assert result.binary[m].item() == exactly(sum(per_class) / 5 if colour[m] else sum(right) / len(rows))
        for c in range(len(per_class)):
            yes = [p == c for p, t in rows if t[c]]
            no = [p != c for p, t in rows if not t[c]]
            questions.append((sum(yes) / len(yes) + sum(no) / len(no)) / 2)
    assert result.mA_balanced == exactly(sum(questions) / len(questions))


def test_predictions_of_another_shape_are_an_error(five_images):
    with pytest.raises(ValueError, match=r"need predictions and known of \(5, 3\); got \(5, 2\)"):
        par_metrics(PREDICTED[:, :2], *five_images)


def test_an_answer_outside_its_column_is_an_error(five_images):
    with pytest.raises(ValueError, match="5 of 5 predictions of column 2 are outside -1..2"):
        par_metrics(PREDICTED + torch.tensor([0, 0, 3]), *five_images)


# Published predictions for the 13,115 gallery images of Market-1501, against the labels of the 750 test identities.

# Their columns and the order of their colour answers, which is not the label file's.
PUBLISHED = ("gender", "hair", "age", "up", "down", "clothes", "hat", "backpack", "bag", "handbag", "upper colour",
             "lower colour")
PUBLISHED_COLOURS = {
    "upper colour": ["black", "white", "red", "purple", "gray", "blue", "green", "yellow"],
    "lower colour": ["black", "white", "pink", "gray", "blue", "green", "brown", "yellow", "purple"],
}


@pytest.fixture(scope="module")
def market_gallery():
    """(predictions int64 (13115, 12), truth, known, is_colour), columns in the published order."""
    loadmat = pytest.importorskip("scipy.io").loadmat
    files = [SHARED / f for f in ("market_attribute.mat", "gallery_market.mat", "market_gallery_counts.json")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"the Market-1501 annotation files are not in {SHARED}; CERBERUS_SHARED_DATA can name their folder")
    split = loadmat(files[0], simplify_cells=True)["market_attribute"]["test"]
    per_person = torch.stack([torch.from_numpy(split[name].astype("int64")) - 1 for name in MARKET1501.field_names], 1)
    counts = json.loads(files[2].read_text())
    assert sorted(counts) == list(split["image_index"]) and sum(counts.values()) == 13115
    # The predictions are in the order of the sorted file names, hence of the identities.
    labels = per_person.repeat_interleave(torch.tensor([counts[pid] for pid in split["image_index"]]), dim=0)
    truth, known = MARKET1501.column_truth(labels)
    columns = {column.name: (m, column) for m, column in enumerate(MARKET1501.columns)}
    published = torch.from_numpy(loadmat(files[1])["gallery"].astype("int64")) - 1
    predictions = []
    for k, name in enumerate(PUBLISHED):
        words, answer = columns[name][1].classes, published[:, k]
        if name in PUBLISHED_COLOURS:
            answer = torch.tensor([words.index(word) for word in PUBLISHED_COLOURS[name]])[answer]
        predictions.append(answer)
    chosen = [columns[name][0] for name in PUBLISHED]
    colour = [columns[name][1].is_colour for name in PUBLISHED]
    return torch.stack(predictions, dim=1), [truth[m] for m in chosen], known[:, chosen], colour


def percent(*values):
    """Figures as published, rounded to the digits given."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=0.00501)


def test_published_predictions_give_their_counts_and_85_3253_officially(market_gallery):
    result = par_metrics(*market_gallery)
    correct = [11338, 10971, 11420, 12284, 12239, 11995, 12739, 10858, 9845, 11801, 9626, 9169]
    assert result.official.tolist() == exactly(*[count / 13115 for count in correct])
    assert 100 * result.mA_official == pytest.approx(85.3253, abs=5e-5)


def test_the_same_predictions_give_89_09_by_binary_colours(market_gallery):
    result = par_metrics(*market_gallery)
    assert result.binary[10:].tolist() == exactly(99091 / 104920, 110931 / 118035)
    assert 100 * result.mA_binary == percent(89.09)


def test_the_published_predictions_have_one_question_that_balanced_accuracy_leaves_out(market_gallery):
    result = par_metrics(*market_gallery)
    assert (result.num_undefined_bits, result.num_bits) == (1, 30)  # nobody in the test wears purple below
    assert 100 * result.mA_balanced == percent(74.21)


def test_official_ceiling_of_the_colours_is_set_by_images_without_a_listed_one(market_gallery):
    result = par_metrics(*market_gallery)
    assert result.ceiling.tolist() == exactly(*[1] * 10, (13115 - 1149) / 13115, (13115 - 788) / 13115)
    assert (100 * result.ceiling[10:]).tolist() == percent(91.24, 93.99)


def test_majority_answers_of_the_gallery_are_right_as_often_as_counted(market_gallery):
    _, truth, known, colour = market_gallery
    majority = majority_answers(truth, known).expand(len(known), -1)
    shares = dict(zip(PUBLISHED, (100 * par_metrics(majority, truth, known, colour).official).tolist()))
    expected = {"gender": 55.9, "age": 87.1, "backpack": 74.9, "handbag": 90.5, "bag": 75.7, "hair": 63.9, "hat": 97.1,
                "up": 93.5, "down": 67.0, "clothes": 88.1}
    assert {name: round(shares[name], 1) for name in expected} == expected


def test_saying_no_to_every_colour_has_88_6_and_89_6_binary_accuracy(market_gallery):
    predictions, truth, known, colour = market_gallery
    result = par_metrics(torch.full_like(predictions, -1), truth, known, colour)
    assert [round(100 * share, 1) for share in result.binary[10:].tolist()] == [88.6, 89.6]
