"""Mixed-up identities in synthetic embeddings: people with two names, names of two people, and strays."""

from cerberus_plugin.audit.identities import clusters, same_people, space_of, strays, two_people

import numpy as np
from support.audit import EACH, PEOPLE, SIZE, pictures


def test_similarities_are_scaled_on_people_that_the_model_was_not_trained_on():
    true = np.repeat(np.arange(PEOPLE), EACH)
    space = pictures(true, true, np.arange(PEOPLE) % 2)[0]
    own = np.arange(0, PEOPLE, 2)
    vectors = space.rows(np.arange(len(true)))
    pairs = vectors @ vectors.T
    same = np.equal.outer(true, true) & ~np.eye(len(true), dtype=bool) & (true % 2 == 0)
    assert np.isclose(space.one, pairs[same].mean(), atol=1e-3)
    means = np.stack([vectors[true == one].mean(axis=0) for one in own])
    between = (means @ means.T)[~np.eye(len(own), dtype=bool)].mean()
    assert np.isclose(space.zero, between, atol=1e-3)
    assert np.isclose(np.nanmean(space.scaled(space.within(own))), 1, atol=1e-3)


def test_one_person_with_two_names_is_the_most_similar_pair():
    true = np.repeat(np.arange(PEOPLE), EACH)
    names = true.copy()
    names[[6, 7, 8]] = PEOPLE  # half of person 1
    folds = np.append(np.arange(PEOPLE) % 2, 0)  # the new name and person 1 have different models
    unknown = np.full((PEOPLE + 1, 2), -1)
    pairs = same_people(pictures(names, true, folds), folds, unknown)
    assert (pairs[0].first, pairs[0].second) == (1, PEOPLE) and pairs[0].alike > 0.8
    assert all(pair.alike < 0.6 for pair in pairs[1:])
    folds[:] = 0
    pairs = same_people(pictures(names, true, folds)[:1], folds, unknown)
    assert (pairs[0].first, pairs[0].second, pairs[0].agreement) == (1, PEOPLE, 1)
    answers = np.zeros((PEOPLE + 1, 4), int)
    answers[1], answers[PEOPLE] = (0, 1, -1, 1), (0, 0, 1, 1)
    pair = next(pair for pair in same_people(pictures(names, true, folds)[:1], folds, answers) if pair.first == 1)
    assert pair.second == PEOPLE and np.isclose(pair.agreement, 2 / 3)


def test_one_name_of_two_people_is_divided_into_their_images():
    true = np.repeat(np.arange(PEOPLE + 1), EACH)[:-2]
    names = np.where(true == PEOPLE, 3, true)
    folds = np.arange(PEOPLE) % 2
    found = two_people(pictures(names, true, folds), folds, names)
    assert found[0].person == 3 and found[0].smaller.tolist() == np.flatnonzero(true == PEOPLE).tolist()
    assert found[0].alike < 0.4 < 0.6 < found[1].alike


def test_swapped_images_are_found_as_strays():
    true = np.repeat(np.arange(PEOPLE), EACH)
    names = true.copy()
    names[2], names[20] = true[20], true[2]
    folds = np.arange(PEOPLE) % 2
    found = strays(pictures(names, true, folds), folds, names)
    assert {(stray.row, stray.other) for stray in found} == {(2, 0), (20, 3)}


def test_strays_need_a_margin_that_wrong_names_reach_five_times_as_often():
    # The images of two people are on two axes; one image of the first person leans towards the second.
    def space(lean):
        angle = np.pi / 2 * np.array([0, 0, 0, 0, lean, 1, 1, 1, 1, 1])
        return [space_of(np.stack([np.cos(angle), np.sin(angle)], axis=1), names, np.ones(2, bool), 2)]

    names, folds = np.repeat([0, 1], 5), np.zeros(2, int)
    # One of ten images is a stray; with the other name, all others would have a margin of 0.75 or 0.8.
    assert [(stray.row, stray.other) for stray in strays(space(1.0), folds, names)] == [(4, 1)]
    # With random embeddings, most images are more similar to another person, whether their names are right or wrong.
    true = np.repeat(np.arange(PEOPLE), EACH)
    random = np.random.default_rng(0).normal(size=(len(true), SIZE))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    found = strays([space_of(random, true, np.ones(PEOPLE, bool), PEOPLE)], np.zeros(PEOPLE, int), true)
    assert len(found) < 6


def test_unreadable_images_are_ignored():
    true = np.repeat(np.arange(4), EACH)
    folds = np.zeros(4, int)
    space = pictures(true, true, folds)[0]
    vectors = np.array(space.vectors)
    vectors[0] = np.nan
    without = space_of(vectors, true, folds == 0, 4)
    assert without.counts.tolist() == [EACH - 1, EACH, EACH, EACH] and np.isfinite(without.sums).all()
    assert not strays([without], folds, true)


def test_two_separate_clouds_of_points_are_the_clusters():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(9, 5)) + 4 * (np.arange(9) % 3 == 0)[:, None]
    found = clusters(cloud)
    assert set(map(tuple, (found, ~found))) >= {tuple(np.arange(9) % 3 == 0)}
