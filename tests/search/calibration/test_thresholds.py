"""Thresholds for false-match rates: they keep the wanted rate on people whom they were not chosen on."""

import math

from cerberus_plugin.search import calibration
from cerberus_plugin.search.calibration import ScoredPairs

import pytest
import torch
from scipy.stats import norm

IMAGES = 4  # pairs of images of a pair of persons


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs_of(scores: torch.Tensor, owners: torch.Tensor) -> ScoredPairs:
    return ScoredPairs(torch.ones(1), torch.zeros(1).long(), scores, owners, len(scores))


def drawn_pairs(people: int, own: float, draw: torch.Generator) -> ScoredPairs:
    """Scores of variance 1: `own` of it of the two persons, half each, most of the rest of the pair of them."""
    a, b = torch.triu_indices(people, people, 1)
    person, noise = torch.randn(people, generator=draw), torch.randn(len(a), IMAGES, generator=draw)
    both = torch.randn(len(a), generator=draw)
    of_pair = (own / 2)**0.5 * (person[a] + person[b]) + (0.9 - own)**0.5 * both
    owners = torch.stack([a, b], dim=1).repeat_interleave(IMAGES, dim=0)
    return pairs_of((of_pair[:, None] + 0.1**0.5 * noise).flatten(), owners)


@pytest.mark.parametrize(("people", "own"), [(30, 0.5), (50, 0.5), (50, 0.9), (100, 0.9)])
def test_other_people_are_taken_for_one_another_no_more_often_than_wanted(people, own):
    """The score that one in a hundred of the pairs reaches is too low on other people in half of samples or more."""
    draw = generator()
    samples = [drawn_pairs(people, own, draw) for _ in range(100)]
    found = torch.tensor([calibration.threshold_for(pairs, 0.01) for pairs in samples])
    rates = torch.from_numpy(norm.sf(found))
    assert rates.mean() < 0.008 and (rates > 0.01).double().mean() <= 0.16, "0.1 and what a hundred samples leave open"
    naive = torch.stack([pairs.different.quantile(0.99) for pairs in samples])
    assert (torch.from_numpy(norm.sf(naive)) > 0.01).double().mean() > 0.4


def test_the_mean_rate_is_kept_where_thirty_people_are_nearly_all_that_scores_differ_by():
    draw = generator(1)
    rates = torch.tensor([norm.sf(calibration.threshold_for(drawn_pairs(30, 0.9, draw), 0.01)) for _ in range(200)])
    assert rates.mean() < 0.01 and 0.1 < (rates > 0.01).double().mean() < 0.3, "as its docstring says"


def test_many_people_come_near_the_rate_and_equal_scores_stay_together():
    draw = generator(2)
    a, b = torch.triu_indices(300, 300, 1)
    owners = torch.stack([a, b], dim=1)
    bell = torch.randn(len(a), generator=draw)
    threshold = calibration.threshold_for(pairs_of(bell, owners), 0.01)
    assert 2.3263 < threshold < 2.40
    ties = (bell > 2.0).float() + (bell > 2.6).float()
    assert 1 < calibration.threshold_for(pairs_of(ties, owners), 0.01) < 1.001, "half a percent has a 2, two have a 1"
    assert 2 < calibration.threshold_for(pairs_of(ties, owners), 0.001) < 2.001


def test_one_who_is_taken_for_everybody_raises_the_threshold():
    a, b = torch.triu_indices(100, 100, 1)
    owners = torch.stack([a, b], dim=1)
    draw = generator(3)
    scores, chosen = torch.rand(len(a), generator=draw), torch.randperm(len(a), generator=draw)[:99]
    of_many, of_one = scores.clone(), scores + (a == 0)  # 99 of 4950 pairs are above all others
    of_many[chosen] += 1
    assert calibration.threshold_for(pairs_of(of_many, owners), 0.03) < 1
    assert calibration.threshold_for(pairs_of(of_one, owners), 0.03) > 1.5, "another such person would exceed the rate"


def test_a_rate_that_people_cannot_show_is_refused_with_how_many_it_takes():
    assert calibration.pairs_needed(1e-3) == 2302 and (1 - 1e-3)**2302 <= 0.1 < (1 - 1e-3)**2301
    assert calibration.people_needed(1e-3) == 69 and 69 * 68 / 2 >= 2302 > 68 * 67 / 2
    assert calibration.people_needed(0.01, 0.5) == 13 and calibration.people_needed(0.01) == 22
    pairs = drawn_pairs(68, 0.5, generator())
    assert len(pairs.different) > 2302, "images are no people"
    with pytest.raises(ValueError, match="68 people, 2,278 pairs of them, cannot show 0.001 with a confidence of 0.9; "
                                         "it takes 2,302 pairs, so 69 people at least"):
        calibration.threshold_for(pairs, 1e-3)
    assert math.isfinite(calibration.threshold_for(drawn_pairs(69, 0.5, generator()), 1e-3))
    with pytest.raises(ValueError, match="false-match rate: 0, expected a share between 0 and 1"):
        calibration.pairs_needed(0)
