"""Confident learning: thresholds and confident classes worked by hand, and findings about labels."""

from cerberus_plugin.audit.confident import confident_classes, pooled, thresholds
from cerberus_plugin.audit.labels import label_findings
from cerberus_plugin.audit.predictions import folds_of_people
from cerberus_plugin.own_data.people import labels_of

import numpy as np
import pytest
from support.audit import WORDING, predicted, site


def test_thresholds_are_the_mean_probability_of_a_class_over_its_labels():
    p = np.array([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.2, 0.8, 0.0]])
    right = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], bool)
    limits = thresholds(p, right)
    assert limits[:2] == pytest.approx([(0.9 + 0.5 + 0.2) / 3, (0.6 + 0.8) / 2]) and np.isinf(limits[2])
    # The thresholds are 0.5333 and 0.7: the second and the third row reach neither.
    assert confident_classes(p, limits).tolist() == [0, -1, -1, 1]


def test_a_class_is_not_confident_if_another_one_is_more_probable():
    p = np.array([[0.3, 0.6], [0.3, 0.4], [0.6, 0.4]])
    assert confident_classes(p, np.array([0.2, 0.5])).tolist() == [1, -1, 0]


def test_probabilities_are_averaged_over_groups():
    found = pooled(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), np.array([1, 0, 1]))
    assert found.tolist() == [[0.0, 1.0], [0.75, 0.25]]


def test_folds_contain_whole_people_and_have_similar_sizes(tmp_path):
    own = site(tmp_path, people=9)
    fold = folds_of_people(own.person, 3)
    assert np.bincount(fold).tolist() == [12, 12, 12]
    assert all(len(set(fold[own.person.codes == person].tolist())) == 1 for person in range(9))
    with pytest.raises(ValueError, match="--folds is 5, expected 2 to 4"):
        folds_of_people(own.person, 5)


def test_a_label_that_most_views_contradict_is_a_finding(tmp_path):
    own = site(tmp_path)
    blue = [0.02, 0.02, 0.96]
    predictions = predicted(own, dict.fromkeys(range(4), 0.95), dict.fromkeys(range(8, 12), blue))
    findings, _ = label_findings(own, WORDING, labels_of(own, WORDING), predictions)
    hat, vest = sorted(findings, key=lambda one: one.attribute)
    assert (hat.kind, hat.person, hat.label, hat.proposed) == ("label", "p0", "no", "yes")
    assert hat.confidence == pytest.approx(0.95) and hat.choices[0].rows == (("", "p0", "", "hat", "yes", "no"),)
    assert (vest.person, vest.label, vest.proposed) == ("p2", "Nothing", "blue")
    assert [choice.text for choice in vest.choices] == ["blue", "red", "unknown"]


def test_one_camera_that_contradicts_is_a_finding_about_its_images(tmp_path):
    own = site(tmp_path)
    predictions = predicted(own, {2: 0.95, 3: 0.95}, dict.fromkeys((4, 5), [0.96, 0.02, 0.02]))
    findings, _ = label_findings(own, WORDING, labels_of(own, WORDING), predictions)
    hat, vest = sorted(findings, key=lambda one: one.attribute)
    assert (hat.kind, hat.files) == ("view", ("0_2.png", "0_3.png"))
    assert hat.choices[0].rows == tuple((file, "", "", "hat", "yes", "no") for file in hat.files)
    assert hat.choices[-1].text == "unknown" and "camera 1" in hat.reason
    assert (vest.person, vest.label, vest.proposed) == ("p1", "blue", "Nothing")  # spelt as in the table


def test_people_without_a_model_that_was_not_trained_on_them_are_excluded(tmp_path):
    own = site(tmp_path)
    predictions = predicted(own, dict.fromkeys(range(4), 0.95), {})
    predictions.model[:4] = -1
    assert not label_findings(own, WORDING, labels_of(own, WORDING), predictions)[0]
