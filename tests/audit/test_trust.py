"""Accuracy of the models: attributes against the majority class, people against chance, and what is not judged."""

from cerberus_plugin.audit.identities import Telling, told_apart
from cerberus_plugin.audit.labels import label_findings
from cerberus_plugin.audit.people import people_findings
from cerberus_plugin.audit.predictions import Predictions
from cerberus_plugin.audit.trust import Reading, Trust, reading
from cerberus_plugin.own_data.people import labels_of

import numpy as np
import pytest
from support.audit import WORDING, pictures, predicted, site

YES_NO = np.eye(2, dtype=bool)


def accuracy(labels: list[int], answers: list[int]) -> Reading:
    return reading("hat", np.eye(2)[answers] * 0.8 + 0.1, YES_NO[labels], ("no", "yes"))


def test_an_attribute_is_compared_with_the_majority_class():
    # Six no, four yes. All yes and five no are right: better in 4 and worse in 1 of 5; p = P(4 or more of 5) = 6 / 32.
    found = accuracy([0] * 6 + [1] * 4, [1] + [0] * 5 + [1] * 4)
    assert (found.labels, found.right, found.frequent, found.constant) == (10, 0.9, "no", 0.6)
    assert found.p == pytest.approx(6 / 32) and not found.judged
    # All are right: 4 of 4 has p = 1 / 16, and 5 of 5 has p = 1 / 32.
    assert accuracy([0] * 6 + [1] * 4, [0] * 6 + [1] * 4).p == pytest.approx(1 / 16)
    assert accuracy([0] * 6 + [1] * 5, [0] * 6 + [1] * 5).judged


def test_a_rare_value_with_many_false_predictions_is_not_judged():
    # Four of five labels of each class are right, but about three of four predictions of "yes" are wrong.
    found = accuracy([0] * 75 + [1] * 5, [0] * 60 + [1] * 15 + [1] * 4 + [0])
    assert found.right == pytest.approx(0.8) and found.constant == pytest.approx(75 / 80) and not found.judged


def test_predicting_the_majority_class_is_not_judged():
    found = accuracy([0] * 90 + [1] * 10, [0] * 100)
    assert (found.right, found.constant, found.p, found.judged) == (0.9, 0.9, 1.0, False)


def test_either_value_of_a_label_with_two_values_is_right():
    right = np.array([[0, 1, 1], [0, 1, 0], [1, 0, 0]], bool)
    p = np.array([[0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    found = reading("vest", p, right, ("none", "red", "blue"))
    assert (found.right, found.frequent, found.constant) == (pytest.approx(2 / 3), "red", pytest.approx(2 / 3))


def test_only_judged_attributes_have_findings(tmp_path):
    own = site(tmp_path)
    labels = labels_of(own, WORDING)
    # Hats are right for 13 of 24 people, and the majority class for 12. One label of a vest is contradicted.
    wrong = {row: 0.1 if labels[row, 0] == 1 else 0.9 for row in range(4 * 11)}
    predictions = predicted(own, wrong, dict.fromkeys(range(8, 12), [0.02, 0.02, 0.96]))
    findings, (hat, vest) = label_findings(own, WORDING, labels, predictions)
    assert (hat.labels, hat.right, hat.constant, hat.judged) == (24, pytest.approx(13 / 24), 0.5, False)
    assert (vest.right, vest.constant, vest.judged) == (pytest.approx(23 / 24), pytest.approx(1 / 3), True)
    assert [(one.person, one.attribute) for one in findings] == [("p2", "vest")]


def by_hand(spaces, model_of, true):
    """Number of images, share of comparisons, share of images, and chance, by a loop over images."""
    nearer, first, chance = [], [], []
    for row, own in enumerate(true):
        others = np.flatnonzero(model_of == model_of[own])
        vectors = spaces[model_of[own]].rows(np.arange(len(true)))
        alike = {other: np.mean([vectors[row] @ vectors[k] for k in np.flatnonzero(true == other) if k != row])
                 for other in others}
        less = [alike[other] < alike[own] for other in others if other != own]
        nearer += less
        first.append(all(less))
        chance.append(1 / len(others))
    return len(first), np.mean(nearer), np.mean(first), np.mean(chance)


@pytest.mark.parametrize("mixed", [0, 30, 72])
def test_images_are_compared_with_people_that_the_model_was_not_trained_on(mixed):
    true = np.repeat(np.arange(12), 6)
    names = true.copy()
    names[:mixed] = np.random.default_rng(0).permutation(names[:mixed])
    folds = np.arange(12) % 2
    spaces = pictures(names, true, folds)
    found = told_apart(spaces, folds, names)
    assert (found.pictures, found.nearer, found.first, found.chance) == pytest.approx(by_hand(spaces, folds, names))
    assert found.chance == pytest.approx(1 / 6) and found.judged is (mixed == 0)


def test_people_are_not_judged_if_they_are_not_distinguished_well(tmp_path):
    own = site(tmp_path)
    rng = np.random.default_rng(0)
    person = own.person.codes
    centres = rng.normal(size=(24, 16))

    def found(noise):
        vectors = centres[person] + noise * rng.normal(size=(len(own), 16))
        vectors[:2] = centres[5] + noise * rng.normal(size=(2, 16))  # two of the four images of p0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return people_findings(own, None, Predictions((), [], np.zeros(len(own), int), [vectors.astype(np.float16)]))

    findings, telling = found(0.3)
    assert telling.judged and telling.nearer > 0.95
    assert [one.person for one in findings if one.kind == "two people"] == ["p0"]
    findings, telling = found(3.0)
    assert not findings and not telling.judged and 0.4 < telling.nearer < 0.85


def test_people_are_not_judged_without_two_people_with_two_images():
    names = np.array([0, 0, 1, 2])
    found = told_apart(pictures(names, names, np.zeros(3, int)), np.zeros(3, int), names)
    assert found == Telling(0, 0.0, 0.0, 0.0, False)
    assert "two images" in " ".join(Trust((), found).sentences())


def test_the_sentences_list_what_is_not_judged_with_a_remedy():
    good, bad = Reading("vest", 60, 0.9, "red", 0.4, 1e-6, True), Reading("hat", 60, 0.5, "no", 0.6, 0.9, False)
    known, unknown = Telling(360, 0.95, 0.6, 0.05, True), Telling(360, 0.6, 0.1, 0.05, False)
    text = " ".join(Trust((good, bad), known).sentences())
    assert "hat" in text and "vest" not in text and "--epochs" in text and "'same person'" not in text
    assert "'same person'" in " ".join(Trust((good,), unknown).sentences())
    assert "--epochs" not in " ".join(Trust((good,), known).sentences())
    assert not Trust((good,), None).sentences()
