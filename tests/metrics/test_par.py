"""Attribute recognition: worked examples with exact fractions, and published predictions in all conventions."""

import json
import os
import pathlib

from cerberus_plugin.attributes.schema import DUKEMTMC, MARKET1501
from cerberus_plugin.metrics.par import label_metrics, majority_answers, par_metrics

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from support.data import random_labels

SHARED = pathlib.Path(os.environ.get("CERBERUS_SHARED_DATA")
                      or pathlib.Path(__file__).resolve().parents[3] / "shared" / "data")
NAN = float("nan")


def exactly(*values):
    """Compare double-precision fractions up to rounding errors of a sum."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=1e-14, nan_ok=True)


def columns_of(*classes, sizes, colour):
    """Convert sets or numbers of true classes to ground truth: -> truth, known."""
    truth = []
    for column, size in zip(classes, sizes):
        sets = [true if isinstance(true, set) else {true} for true in column]
        truth.append(torch.tensor([[c in true for c in range(size)] for true in sets]))
    return truth, torch.ones(len(classes[0]), len(classes), dtype=torch.bool), colour


@pytest.fixture
def five_images():
    """Gender, age, and the colour of a garment (red, blue, green) of five images; the third has no listed colour."""
    return columns_of([0, 0, 1, 1, 0], [1, 1, 2, 1, 3], [0, 0, set(), 1, 2], sizes=(2, 4, 3), colour=(0, 0, 1))


PREDICTED = torch.tensor([(0, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 1), (0, 2, 2)])


def test_the_worked_example_gives_the_exact_fractions_of_all_conventions(five_images):
    result = par_metrics(PREDICTED, *five_images)
    assert result.official.tolist() == exactly(4 / 5, 3 / 5, 3 / 5)
    assert result.binary.tolist() == exactly(4 / 5, 3 / 5, 4 / 5)
    assert result.ceiling.tolist() == exactly(1, 1, 4 / 5)
    assert (result.mA_official, result.mA_binary) == exactly(2 / 3, 11 / 15)


def test_predicting_none_never_improves_the_official_accuracy(five_images):
    assert par_metrics(PREDICTED, *five_images).with_none.tolist() == exactly(4 / 5, 3 / 5, 3 / 5)
    predictions = PREDICTED.clone()
    predictions[2, 2] = -1  # correct
    predictions[4, 2] = -1  # was correct
    result = par_metrics(predictions, *five_images)
    assert result.official[2].item() == exactly(2 / 5)
    assert result.with_none[2].item() == exactly(3 / 5) and result.mA_with_none == exactly(2 / 3)
    assert result.binary[2].item() == exactly(12 / 15)


def test_any_of_several_listed_colours_is_correct():
    # black, white, gray, blue
    truth = columns_of([{0, 1}, {3}, set(), {2}], sizes=(4,), colour=(1,))
    result = par_metrics(torch.tensor([[1], [0], [3], [2]]), *truth)
    assert (result.official.item(), result.binary.item(), result.ceiling.item()) == exactly(1 / 2, 3 / 4, 3 / 4)


def test_balanced_accuracy_is_the_mean_of_tpr_and_tnr_of_binary_labels(five_images):
    result = par_metrics(PREDICTED, *five_images)
    gender = (2 / 3 + 1) / 2
    age = [(1 + 1 / 2) / 2, (0 + 3 / 4) / 2, (0 + 1) / 2]  # young never occurs and is excluded
    colour = [(1 / 2 + 1) / 2, (1 + 3 / 4) / 2, (1 + 3 / 4) / 2]
    assert result.balanced.tolist() == exactly(gender, sum(age) / 3, sum(colour) / 3)
    assert result.mA_balanced == exactly((gender + sum(age) + sum(colour)) / 7)
    assert (result.num_undefined_bits, result.num_bits) == (1, 8)


def test_the_worked_example_has_the_exact_label_and_instance_metrics(five_images):
    """Labels: female, four ages, three colours. Positive labels found: 2 of 2, 1 of 2, 1 of 2, 3 of 3 and 1 of 2."""
    found = par_metrics(PREDICTED, *five_images).labels
    assert found.accuracy.tolist() == exactly(4 / 5, 1, 4 / 5, 3 / 5, 4 / 5, 4 / 5, 4 / 5, 4 / 5)
    assert found.f1.tolist() == exactly(4 / 5, NAN, 6 / 7, 0, 0, 2 / 3, 2 / 3, 2 / 3)  # young: never true or predicted
    assert found.instance_accuracy == exactly((1 + 1 / 4 + 1 / 4 + 1 + 1 / 3) / 5)
    assert (found.instance_precision, found.instance_recall) == exactly(19 / 30, 7 / 10)
    assert found.instance_f1 == exactly(2 * (19 / 30) * (7 / 10) / (19 / 30 + 7 / 10))  # from means, not a mean of F1
    assert (found.num_images, found.num_without_yes, found.num_without_answer, found.num_without_either) == (5, 0, 0, 0)


def random_answers(seed=2, images=60, labels=7):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(images, labels, generator=g) < 0.2, torch.rand(images, labels, generator=g) < 0.2,
            torch.rand(images, labels, generator=g) < 0.8)


def ratio(part, whole):
    return part / whole if whole else None


def mean_of_defined(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values)


def test_label_and_instance_metrics_equal_a_reference_implementation():
    answers, truth, known = random_answers()
    found = label_metrics(answers, truth, known)
    cells = [[(bool(a), bool(t)) for a, t, k in zip(*row) if k] for row in zip(*map(torch.Tensor.tolist, (
        answers, truth, known)))]
    both, either, said, yes = ([sum(rule(a, t) for a, t in row) for row in cells] for rule in (
        lambda a, t: a and t, lambda a, t: a or t, lambda a, t: a, lambda a, t: t))
    precision, recall = (mean_of_defined(map(ratio, both, of)) for of in (said, yes))
    assert found.instance_accuracy == exactly(mean_of_defined(map(ratio, both, either)))
    assert (found.instance_precision, found.instance_recall) == exactly(precision, recall)
    assert found.instance_f1 == exactly(2 * precision * recall / (precision + recall))
    assert (found.num_without_yes, found.num_without_answer, found.num_without_either) == tuple(
        sum(count == 0 for count in counts) for counts in (yes, said, either))
    assert min(found.num_without_yes, found.num_without_answer, found.num_without_either) > 0
    for k in range(truth.shape[1]):
        column = [(a, t) for a, t, there in zip(answers[:, k].tolist(), truth[:, k].tolist(), known[:, k]) if there]
        hits, misses, alarms = (sum(pair == kind for pair in column) for kind in (
            (True, True), (False, True), (True, False)))
        right = sum(a == t for a, t in column)
        assert found.accuracy[k].item() == exactly(right / len(column))
        assert found.f1[k].item() == exactly(2 * hits / (2 * hits + misses + alarms))
        no = len(column) - hits - misses
        assert found.balanced[k].item() == exactly((hits / (hits + misses) + (no - alarms) / no) / 2)


def test_predictions_of_missing_labels_have_no_effect():
    answers, truth, known = random_answers()
    assert vars_of(label_metrics(answers ^ ~known, truth, known)) == vars_of(label_metrics(answers, truth, known))
    assert vars_of(label_metrics(answers, truth ^ ~known, known)) == vars_of(label_metrics(answers, truth, known))


def vars_of(result):
    return {name: value.tolist() if torch.is_tensor(value) else value for name, value in vars(result).items()}


def test_counts_convert_metrics_to_the_convention_with_zeros():
    """As in Rethinking_of_PAR."""
    answers, truth, known = random_answers()
    found, (answers, truth) = label_metrics(answers, truth, known), (answers & known, truth & known)
    both = (answers & truth).sum(dim=1).double()
    for metric, excluded, of in ((found.instance_accuracy, found.num_without_either, answers | truth),
                                 (found.instance_precision, found.num_without_answer, answers),
                                 (found.instance_recall, found.num_without_yes, truth)):
        as_zero = (both / of.sum(dim=1).double().clamp(min=1e-20)).mean().item()
        assert metric * (found.num_images - excluded) / found.num_images == exactly(as_zero)


def test_precision_is_undefined_without_positive_predictions():
    truth, known = torch.tensor([[True, False], [False, False]]), torch.ones(2, 2, dtype=torch.bool)
    silent = label_metrics(torch.zeros(2, 2, dtype=torch.bool), truth, known)
    assert (silent.instance_precision, silent.instance_recall, silent.instance_f1) == exactly(NAN, 0, NAN)
    assert silent.f1.tolist() == exactly(0, NAN) and silent.balanced.tolist() == exactly(1 / 2, NAN)
    wrong = label_metrics(~truth, truth, known)
    assert (wrong.instance_accuracy, wrong.instance_precision, wrong.instance_f1) == (0, 0, 0)


def test_a_lower_threshold_gives_more_positive_predictions():
    g = torch.Generator().manual_seed(3)
    probabilities, (_, truth, known) = torch.rand(60, 7, generator=g), random_answers()
    low, high = (label_metrics(probabilities > threshold, truth, known) for threshold in (0.45, 0.5))
    assert low.instance_recall > high.instance_recall


@pytest.mark.parametrize(("schema", "labels"), [(MARKET1501, 30), (DUKEMTMC, 23)])
def test_binary_labels_are_the_bits_of_semantic_ids(schema, labels):
    people = random_labels(schema, 20)
    answers = schema.column_answers(people)
    found = par_metrics(answers, *schema.column_truth(people), [column.is_colour for column in schema.columns])
    assert len(found.labels.accuracy) == labels == schema.num_bits
    bits = torch.cat([schema.bits(people, group) for group in schema.group_names], dim=1)  # (20, L)
    assert found.labels.num_without_yes == int((bits.sum(dim=1) == 0).sum())
    assert found.labels.instance_precision == 1


def test_binary_predictions_of_another_shape_are_an_error():
    answers, truth, known = random_answers()
    with pytest.raises(ValueError, match=r"answers are \(60, 6\), truth \(60, 7\) and known \(60, 7\)"):
        label_metrics(answers[:, :6], truth, known)


def test_a_constant_prediction_has_balanced_accuracy_one_half():
    truth = columns_of([0] * 9 + [1], sizes=(2,), colour=(0,))
    result = par_metrics(torch.zeros(10, 1, dtype=torch.int64), *truth)
    assert (result.mA_official, result.mA_balanced) == exactly(9 / 10, 1 / 2)


def test_no_prediction_in_a_binary_column_is_wrong_in_all_conventions():
    truth = columns_of([0, 1], sizes=(2,), colour=(0,))
    result = par_metrics(torch.tensor([[-1], [-1]]), *truth)
    assert (result.mA_official, result.mA_binary, result.mA_balanced) == (0, 0, 0)


def test_an_unknown_label_excludes_the_image_from_one_column(five_images):
    truth, known, colour = five_images
    known[1, 0] = False  # the only wrong gender
    result = par_metrics(PREDICTED, truth, known, colour)
    assert result.official.tolist() == exactly(1, 3 / 5, 3 / 5)


def test_a_column_without_labels_is_nan_and_excluded_from_means(five_images):
    truth, known, colour = five_images
    known[:, 1] = False
    result = par_metrics(PREDICTED, truth, known, colour)
    assert result.official.tolist() == exactly(4 / 5, NAN, 3 / 5)
    assert (result.mA_official, result.mA_binary) == exactly(7 / 10, 4 / 5)
    assert result.num_undefined_bits == 4


def test_the_majority_baseline_predicts_the_most_frequent_classes(five_images):
    truth, known, _ = five_images
    assert majority_answers(truth, known).tolist() == [0, 1, 0]
    known[0, 2] = False  # each colour occurs once
    known[:, 1] = False
    assert majority_answers(truth, known).tolist() == [0, -1, 0]


def test_the_majority_class_is_none_if_none_is_most_frequent():
    truth, known, colour = columns_of([{0}, set(), set(), {1}, {0}, set()], [0, 1, 1, 0, 0, 0], sizes=(2, 2),
                                      colour=(1, 0))
    assert majority_answers(truth, known).tolist() == [0, 0]
    assert majority_answers(truth, known, colour).tolist() == [-1, 0]
    known[1, 0] = False  # equal to the first class
    assert majority_answers(truth, known, colour).tolist() == [0, 0]


def test_par_metrics_equal_a_loop_over_images():
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
        counts_none = [p < 0 and not any(t) for p, t in rows]
        assert result.with_none[m].item() == exactly((sum(right) + sum(counts_none) * colour[m]) / len(rows))
        assert result.binary[m].item() == exactly(sum(per_class) / 5 if colour[m] else sum(right) / len(rows))
        for c in range(len(per_class)):
            yes = [p == c for p, t in rows if t[c]]
            no = [p != c for p, t in rows if not t[c]]
            questions.append((sum(yes) / len(yes) + sum(no) / len(no)) / 2)
    assert result.mA_balanced == exactly(sum(questions) / len(questions))


def test_predictions_of_another_shape_are_an_error(five_images):
    with pytest.raises(ValueError, match=r"need predictions and known of \(5, 3\); got \(5, 2\)"):
        par_metrics(PREDICTED[:, :2], *five_images)


def test_a_prediction_outside_its_column_is_an_error(five_images):
    with pytest.raises(ValueError, match="5 of 5 predictions of column 2 are outside -1..2"):
        par_metrics(PREDICTED + torch.tensor([0, 0, 3]), *five_images)


# Published predictions for the 13,115 gallery images of Market-1501, with the labels of the 750 test identities.

# The columns, and the order of their colours, differ from those of the annotation file.
PUBLISHED = ("gender", "hair", "age", "up", "down", "clothes", "hat", "backpack", "bag", "handbag", "upper colour",
             "lower colour")
PUBLISHED_COLOURS = {
    "upper colour": ["black", "white", "red", "purple", "gray", "blue", "green", "yellow"],
    "lower colour": ["black", "white", "pink", "gray", "blue", "green", "brown", "yellow", "purple"],
}


@pytest.fixture(scope="module")
def market_gallery():
    """(predictions int64 (13115, 12), truth, known, is_colour), with columns in the published order."""
    loadmat = pytest.importorskip("scipy.io").loadmat
    files = [SHARED / f for f in ("market_attribute.mat", "gallery_market.mat", "market_gallery_counts.json")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"the Market-1501 annotation files are not in {SHARED}; CERBERUS_SHARED_DATA can name their folder")
    split = loadmat(files[0], simplify_cells=True)["market_attribute"]["test"]
    per_person = torch.stack([torch.from_numpy(split[name].astype("int64")) - 1 for name in MARKET1501.field_names], 1)
    counts = json.loads(files[2].read_text())
    assert sorted(counts) == list(split["image_index"]) and sum(counts.values()) == 13115
    # Predictions are sorted by file name, and therefore by identity.
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
    """Compare with published numbers, rounded to their digits."""
    return pytest.approx(values if len(values) > 1 else values[0], abs=0.00501)


def test_published_predictions_have_85_3253_by_the_official_rule(market_gallery):
    result = par_metrics(*market_gallery)
    correct = [11338, 10971, 11420, 12284, 12239, 11995, 12739, 10858, 9845, 11801, 9626, 9169]
    assert result.official.tolist() == exactly(*[count / 13115 for count in correct])
    assert 100 * result.mA_official == pytest.approx(85.3253, abs=5e-5)


def test_published_predictions_have_89_09_by_the_binary_rule(market_gallery):
    result = par_metrics(*market_gallery)
    assert result.binary[10:].tolist() == exactly(99091 / 104920, 110931 / 118035)
    assert 100 * result.mA_binary == percent(89.09)


def test_one_binary_label_of_the_published_predictions_is_undefined(market_gallery):
    result = par_metrics(*market_gallery)
    assert (result.num_undefined_bits, result.num_bits) == (1, 30)  # no test identity wears purple lower clothes
    assert 100 * result.mA_balanced == percent(74.21)


def test_metrics_of_30_labels_equal_those_of_scikit_learn(market_gallery):
    """As in the public code for the attributes of Market-1501: accuracy and F1 of each label, and their means."""
    predictions, truth, known, colour = market_gallery
    found = par_metrics(*market_gallery).labels
    accuracy, f1 = [], []
    for m, own in enumerate(truth):
        classes = range(own.shape[1]) if colour[m] or own.shape[1] > 2 else (1,)
        for c in classes:
            yes, said = own[:, c].numpy(), (predictions[:, m] == c).numpy()
            accuracy.append(accuracy_score(yes, said))
            f1.append(f1_score(yes, said, zero_division=NAN))
    assert found.accuracy.tolist() == exactly(*accuracy) and found.f1.tolist() == exactly(*f1)
    assert len(accuracy) == 30 and found.f1.isnan().sum() == 1  # purple lower clothes are neither true nor predicted
    means = (found.accuracy.mean(), found.f1.nanmean(), found.instance_accuracy, found.instance_f1)
    assert [100 * float(mean) for mean in means] == percent(92.30, 59.01, 72.61, 82.96)
    assert (found.num_without_yes, found.num_without_answer) == (0, 0)


def test_the_ceiling_of_colours_depends_on_images_without_a_listed_colour(market_gallery):
    result = par_metrics(*market_gallery)
    assert result.ceiling.tolist() == exactly(*[1] * 10, (13115 - 1149) / 13115, (13115 - 788) / 13115)
    assert (100 * result.ceiling[10:]).tolist() == percent(91.24, 93.99)


def test_accuracy_of_the_majority_baseline_equals_the_counts(market_gallery):
    _, truth, known, colour = market_gallery
    majority = majority_answers(truth, known).expand(len(known), -1)
    shares = dict(zip(PUBLISHED, (100 * par_metrics(majority, truth, known, colour).official).tolist()))
    expected = {"gender": 55.9, "age": 87.1, "backpack": 74.9, "handbag": 90.5, "bag": 75.7, "hair": 63.9, "hat": 97.1,
                "up": 93.5, "down": 67.0, "clothes": 88.1}
    assert {name: round(shares[name], 1) for name in expected} == expected


def test_negative_predictions_of_all_colours_have_88_6_and_89_6_binary_accuracy(market_gallery):
    predictions, truth, known, colour = market_gallery
    result = par_metrics(torch.full_like(predictions, -1), truth, known, colour)
    assert [round(100 * share, 1) for share in result.binary[10:].tolist()] == [88.6, 89.6]
