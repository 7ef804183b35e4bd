"""Thresholds for false-match rates: the rate is not exceeded on unseen people."""

import math

from cerberus_plugin.search import calibration
from cerberus_plugin.search.calibration import ScoredPairs

import pytest
import torch
from scipy.stats import norm

IMAGES = 4  # pairs of images per pair of people


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs_of(scores: torch.Tensor, owners: torch.Tensor) -> ScoredPairs:
    return ScoredPairs(torch.ones(1), torch.zeros(1).long(), scores, owners, len(scores))


def drawn_pairs(people: int, own: float, draw: torch.Generator) -> ScoredPairs:
    """Draw scores of variance 1: the share `own` comes from the two people, 0.1 is noise, the rest from the pair."""
    a, b = torch.triu_indices(people, people, 1)
    person, noise = torch.randn(people, generator=draw), torch.randn(len(a), IMAGES, generator=draw)
    both = torch.randn(len(a), generator=draw)
    of_pair = (own / 2)**0.5 * (person[a] + person[b]) + (0.9 - own)**0.5 * both
    owners = torch.stack([a, b], dim=1).repeat_interleave(IMAGES, dim=0)
    return pairs_of((of_pair[:, None] + 0.1**0.5 * noise).flatten(), owners)


@pytest.mark.parametrize(("people", "own"), [(30, 0.5), (50, 0.5), (50, 0.9), (100, 0.9)])
def test_the_false_match_rate_is_kept_on_unseen_people(people, own):
    """The plain 99 % quantile of the pairs exceeds the rate on unseen people in about half of samples or more."""
    draw = generator()
    samples = [drawn_pairs(people, own, draw) for _ in range(100)]
    found = torch.tensor([calibration.threshold_for(pairs, 0.01) for pairs in samples])
    rates = torch.from_numpy(norm.sf(found))
    assert rates.mean() < 0.008 and (rates > 0.01).double().mean() <= 0.16, "0.1 and the sampling error of 100 samples"
    naive = torch.stack([pairs.different.quantile(0.99) for pairs in samples])
    assert (torch.from_numpy(norm.sf(naive)) > 0.01).double().mean() > 0.4


def test_the_mean_rate_is_kept_if_nearly_all_variance_comes_from_thirty_people():
    draw = generator(1)
    rates = torch.tensor([norm.sf(calibration.threshold_for(drawn_pairs(30, 0.9, draw), 0.01)) for _ in range(200)])
    assert rates.mean() < 0.01 and 0.1 < (rates > 0.01).double().mean() < 0.3, "as documented"


def test_with_many_people_the_rate_is_nearly_reached_and_equal_scores_are_not_split():
    draw = generator(2)
    a, b = torch.triu_indices(300, 300, 1)
    owners = torch.stack([a, b], dim=1)
    bell = torch.randn(len(a), generator=draw)
    threshold = calibration.threshold_for(pairs_of(bell, owners), 0.01)
    assert 2.3263 < threshold < 2.40
    ties = (bell > 2.0).float() + (bell > 2.6).float()
    assert 1 < calibration.threshold_for(pairs_of(ties, owners), 0.01) < 1.001, "0.5 % score 2, 2 % score 1"
    assert 2 < calibration.threshold_for(pairs_of(ties, owners), 0.001) < 2.001


def test_one_person_confused_with_all_others_raises_the_threshold():
    a, b = torch.triu_indices(100, 100, 1)
    owners = torch.stack([a, b], dim=1)
    draw = generator(3)
    scores, chosen = torch.rand(len(a), generator=draw), torch.randperm(len(a), generator=draw)[:99]
    of_many, of_one = scores.clone(), scores + (a == 0)  # 99 of 4950 pairs are above all others
    of_many[chosen] += 1
    assert calibration.threshold_for(pairs_of(of_many, owners), 0.03) < 1
    assert calibration.threshold_for(pairs_of(of_one, owners), 0.03) > 1.5, "a second such person would exceed the rate"


def test_too_few_people_for_a_rate_are_rejected_with_the_required_number():
    assert calibration.pairs_needed(1e-3) == 2302 and (1 - 1e-3)**2302 <= 0.1 < (1 - 1e-3)**2301
    assert calibration.people_needed(1e-3) == 69 and 69 * 68 / 2 >= 2302 > 68 * 67 / 2
    assert calibration.people_needed(0.01, 0.5) == 13 and calibration.people_needed(0.01) == 22
    pairs = drawn_pairs(68, 0.5, generator())
    assert len(pairs.different) > 2302, "people count, not images"
    with pytest.raises(ValueError, match="68 people and 2,278 pairs of people are too few to guarantee 0.001 with a "
                                         "confidence of 0.9; at least 2,302 pairs are needed, of at least 69 people"):
        calibration.threshold_for(pairs, 1e-3)
    assert math.isfinite(calibration.threshold_for(drawn_pairs(69, 0.5, generator()), 1e-3))
    with pytest.raises(ValueError, match="false-match rate: 0, expected a number greater than 0"):
        calibration.pairs_needed(0)
