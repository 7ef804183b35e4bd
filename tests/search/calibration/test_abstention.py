"""Abstention thresholds: the accuracy of the given answers is reached on unseen people with the required confidence."""

import math

from cerberus_plugin.search import calibration

import pytest
import torch
from scipy.stats import binom

IMAGES = 3  # of each person


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def people_right_by(law, count: int, draw: torch.Generator):
    """Draw answers: probabilities, whether they are correct, and identities; all images of a person have one answer.

    Args:
        law: probability that an answer is correct, as a function of its stated probability.
    """
    p = 0.5 + 0.5 * torch.rand(count, generator=draw)
    right = torch.rand(count, generator=draw) < law(p)
    return p.repeat_interleave(IMAGES), right.repeat_interleave(IMAGES), torch.arange(count).repeat_interleave(IMAGES)


def share_of_samples_that_mislead(law, risk, count: int, accuracy: float, samples: int = 150) -> tuple[float, float]:
    """Return the share of samples whose threshold has a too high risk on unseen people, and the share with a threshold.
    """
    draw = generator()
    found = [calibration.choose_withholding(*people_right_by(law, count, draw), accuracy) for _ in range(samples)]
    given = [t for t in found if t < math.inf]
    return sum(risk(t) > 1 - accuracy for t in given) / samples, len(given) / samples


@pytest.mark.parametrize("count", [30, 50, 100, 300])
def test_uninformative_probabilities_rarely_give_a_threshold(count):
    """The accuracy is 0.87 at every probability, 0.9 is required. The lowest passing threshold would err in half."""
    misled, _ = share_of_samples_that_mislead(lambda p: 0.87, lambda t: 0.13, count, 0.9)
    assert misled <= 0.1


@pytest.mark.parametrize("count", [30, 50, 100, 300])
def test_calibrated_probabilities_keep_the_guarantee_on_unseen_people(count):
    """The accuracy above t is (1 + t) / 2: too low below 0.8, which a naive choice would return in half of samples."""
    misled, given = share_of_samples_that_mislead(lambda p: p, lambda t: (1 - t) / 2, count, 0.9)
    assert misled <= 0.1
    assert given > 0.5 if count == 300 else True


def test_more_confidence_needs_more_people_and_gives_fewer_answers():
    answers = people_right_by(lambda p: p, 400, generator(1))
    thresholds = [calibration.choose_withholding(*answers, 0.8, confidence) for confidence in (0.5, 0.9, 0.99)]
    assert thresholds == sorted(thresholds) and thresholds[0] < thresholds[-1] < 1
    assert [calibration.identities_to_vouch(0.9, confidence) for confidence in (0.5, 0.9, 0.99)] == [7, 22, 44]
    assert calibration.identities_to_vouch(0.95) == 45 and 0.95**45 <= 0.1 < 0.95**44


def test_the_threshold_of_many_people_is_close_to_the_exact_one():
    """For calibrated, uniform probabilities the accuracy above t is (1 + t) / 2, which is 0.9 for t = 0.8."""
    p = torch.rand(20000, generator=generator())
    right = torch.rand(20000, generator=generator(1)) < p
    threshold = calibration.choose_withholding(p, right, torch.arange(20000), 0.9)
    assert 0.79 < threshold < 0.84
    share, accuracy, error = calibration.answered(p, right, torch.arange(20000), threshold)
    assert share == pytest.approx(1 - threshold, abs=0.02) and accuracy == pytest.approx(0.9, abs=4 * error)


def test_testing_stops_at_the_first_threshold_that_fails():
    draw = generator(39)
    p = (torch.rand(160, generator=draw) * 20).round() / 20
    right, owner = torch.rand(160, generator=draw) < p**0.2, torch.arange(160) % 40

    def vouched(t: float) -> bool:
        given = p >= t
        shares = [1 - right[given & (owner == k)].double().mean().item() for k in owner[given].unique()]
        count, wrong = len(shares), sum(shares) / len(shares)
        if wrong >= 0.3:
            return False
        terms = [x * math.log(x / y) for x, y in ((wrong, 0.3), (1 - wrong, 0.7)) if x]
        return min(math.exp(-count * sum(terms)), math.e * binom.cdf(math.ceil(sum(shares) - 1e-9), count, 0.3)) <= 0.1

    enough = [t for t in sorted(p.unique().tolist(), reverse=True) if len(owner[p >= t].unique()) >= 7]  # 0.7^7 < 0.1
    passed = [vouched(t) for t in enough]
    assert passed[0] and any(passed[passed.index(False):]), "a lower threshold passes as well"
    wanted = enough[passed.index(False) - 1]
    assert calibration.choose_withholding(p, right, owner, 0.7) == pytest.approx(wanted)


def test_the_bound_is_exact_without_errors_and_never_below_the_binomial():
    assert calibration.chance_of_so_few(0, 22, 0.1) == pytest.approx(0.9**22)
    for lost in (1, 3, 6, 9):
        assert binom.cdf(lost, 100, 0.1) < calibration.chance_of_so_few(lost, 100, 0.1) < 4 * binom.cdf(lost, 100, 0.1)
    assert calibration.chance_of_so_few(2.5, 100, 0.1) > calibration.chance_of_so_few(2, 100, 0.1)
    assert calibration.chance_of_so_few(10, 100, 0.1) == 1


def test_no_answers_are_given_if_no_threshold_passes():
    p, right = torch.full((40,), 0.9), torch.arange(40) % 2 == 0
    assert calibration.choose_withholding(p, right, torch.arange(40), 0.9) == math.inf
    share, accuracy, error = calibration.answered(p, right, torch.arange(40), math.inf)
    assert share == 0 and math.isnan(accuracy) and math.isnan(error)


def test_too_few_identities_and_invalid_arguments_are_rejected():
    three = torch.arange(3)
    with pytest.raises(ValueError, match="3 identities are too few to guarantee an accuracy of 0.95 with a "
                                         "confidence of 0.9; at least 45 are needed.* at most 0.464"):
        calibration.choose_withholding(torch.rand(3), three > 0, three, 0.95)
    with pytest.raises(ValueError, match="the required accuracy is 1, expected a number"):
        calibration.identities_to_vouch(1)
    with pytest.raises(ValueError, match="calibration: the confidence is 1, expected a number"):
        calibration.identities_to_vouch(0.9, 1)
