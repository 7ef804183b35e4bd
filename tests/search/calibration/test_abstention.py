"""Answers that are withheld: those given are right as often as wanted on other people with the confidence asked for."""

import math

from cerberus_plugin.search import calibration

import pytest
import torch
from scipy.stats import binom

IMAGES = 3  # of each person


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def people_right_by(law, count: int, draw: torch.Generator):
    """Probabilities of people's answers, whether right, by a law of the probability, and whose: persons err as one."""
    p = 0.5 + 0.5 * torch.rand(count, generator=draw)
    right = torch.rand(count, generator=draw) < law(p)
    return p.repeat_interleave(IMAGES), right.repeat_interleave(IMAGES), torch.arange(count).repeat_interleave(IMAGES)


def share_of_samples_that_mislead(law, risk, count: int, accuracy: float, samples: int = 150) -> tuple[float, float]:
    """Shares of samples of people: with a threshold whose risk on other people is too high, and with any."""
    draw = generator()
    found = [calibration.choose_withholding(*people_right_by(law, count, draw), accuracy) for _ in range(samples)]
    given = [t for t in found if t < math.inf]
    return sum(risk(t) > 1 - accuracy for t in given) / samples, len(given) / samples


@pytest.mark.parametrize("count", [30, 50, 100, 300])
def test_probabilities_that_tell_nothing_seldom_give_a_threshold(count):
    """0.87 are right at every probability, 0.9 are wanted; the least threshold that passes was given in half."""
    misled, _ = share_of_samples_that_mislead(lambda p: 0.87, lambda t: 0.13, count, 0.9)
    assert misled <= 0.1


@pytest.mark.parametrize("count", [30, 50, 100, 300])
def test_true_probabilities_keep_their_promise_on_other_people(count):
    """From t on answers are right with (1 + t) / 2 on average: too seldom below 0.8, which was chosen in half."""
    misled, given = share_of_samples_that_mislead(lambda p: p, lambda t: (1 - t) / 2, count, 0.9)
    assert misled <= 0.1
    assert given > 0.5 if count == 300 else True


def test_more_confidence_takes_more_people_and_tells_less():
    answers = people_right_by(lambda p: p, 400, generator(1))
    thresholds = [calibration.choose_withholding(*answers, 0.8, confidence) for confidence in (0.5, 0.9, 0.99)]
    assert thresholds == sorted(thresholds) and thresholds[0] < thresholds[-1] < 1
    assert [calibration.identities_to_vouch(0.9, confidence) for confidence in (0.5, 0.9, 0.99)] == [7, 22, 44]
    assert calibration.identities_to_vouch(0.95) == 45 and 0.95**45 <= 0.1 < 0.95**44


def test_withheld_is_what_would_be_wrong_too_often():
    """Answers of probability p are right with it, so those from t on are right with (1 + t) / 2: 0.9 from 0.8 on."""
    p = torch.rand(20000, generator=generator())
    right = torch.rand(20000, generator=generator(1)) < p
    threshold = calibration.choose_withholding(p, right, torch.arange(20000), 0.9)
    assert 0.79 < threshold < 0.84
    share, accuracy, error = calibration.answered(p, right, torch.arange(20000), threshold)
    assert share == pytest.approx(1 - threshold, abs=0.02) and accuracy == pytest.approx(0.9, abs=4 * error)


def test_testing_ends_at_the_first_threshold_that_people_do_not_vouch_for():
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
    assert passed[0] and any(passed[passed.index(False):]), "the last that passes is another one"
    wanted = enough[passed.index(False) - 1]
    assert calibration.choose_withholding(p, right, owner, 0.7) == pytest.approx(wanted)


def test_a_bound_on_a_mean_is_exact_without_a_loss_and_never_below_the_binomial():
    assert calibration.chance_of_so_few(0, 22, 0.1) == pytest.approx(0.9**22)
    for lost in (1, 3, 6, 9):
        assert binom.cdf(lost, 100, 0.1) < calibration.chance_of_so_few(lost, 100, 0.1) < 4 * binom.cdf(lost, 100, 0.1)
    assert calibration.chance_of_so_few(2.5, 100, 0.1) > calibration.chance_of_so_few(2, 100, 0.1)
    assert calibration.chance_of_so_few(10, 100, 0.1) == 1


def test_nothing_is_told_where_no_answer_is_sure_enough():
    p, right = torch.full((40,), 0.9), torch.arange(40) % 2 == 0
    assert calibration.choose_withholding(p, right, torch.arange(40), 0.9) == math.inf
    share, accuracy, error = calibration.answered(p, right, torch.arange(40), math.inf)
    assert share == 0 and math.isnan(accuracy) and math.isnan(error)


def test_what_people_cannot_vouch_for_is_refused():
    three = torch.arange(3)
    with pytest.raises(ValueError, match="3 identities cannot vouch for an accuracy of 0.95 with a confidence of 0.9; "
                                         "it takes 45 at least.* 0.464 at most"):
        calibration.choose_withholding(torch.rand(3), three > 0, three, 0.95)
    with pytest.raises(ValueError, match="the wanted accuracy is 1, expected a share between"):
        calibration.identities_to_vouch(1)
    with pytest.raises(ValueError, match="calibration: the confidence is 1, expected a share between"):
        calibration.identities_to_vouch(0.9, 1)
