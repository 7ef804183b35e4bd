"""Calibration: known temperatures are recovered, metrics equal values computed by hand, intervals cover the rates."""

import json
import math

from cerberus_plugin.attributes import GROUPS, MARKET1501, SIDTable
from cerberus_plugin.inference import ProbabilityReader, PrototypeReader, image_scores
from cerberus_plugin.search import calibration
from cerberus_plugin.search.calibration import Calibration, ScoredPairs

import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit
from support.data import random_labels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_scores(temperature: float, count: int = 6000, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw scores, and classes with the probabilities of the scores at this temperature."""
    scores = 3 * torch.randn(count, rows, generator=generator())
    return scores, torch.multinomial((scores / temperature).softmax(dim=1), 1, generator=generator(1))[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_simulated_data_is_recovered(temperature):
    scores, row = drawn_scores(temperature)
    right = F.one_hot(row, 6).bool()
    assert calibration.fit_temperature(scores, right, torch.arange(6000)) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_recovered_if_classes_have_several_semantic_ids():
    answers = torch.tensor([-1, 0, 0, 1, 1, 1])
    scores, row = drawn_scores(2.0)
    right = answers[row][:, None] == answers
    scores = torch.cat([scores, torch.full((6000, 1), float("-inf"))], dim=1)  # an answer that is not allowed
    right = F.pad(right, (0, 1), value=True)
    assert calibration.fit_temperature(scores, right, torch.arange(6000)) == pytest.approx(2, rel=0.08)


def test_images_without_a_correct_answer_are_ignored():
    scores, row = drawn_scores(2.0, 500)
    right, owner = F.one_hot(row, 6).bool(), torch.arange(500)
    more = torch.cat([scores, 9 * torch.randn(100, 6, generator=generator(2))])
    silent = torch.cat([right, torch.zeros(100, 6).bool()])
    assert calibration.fit_temperature(more, silent, torch.arange(600)) == calibration.fit_temperature(scores, right,
                                                                                                      owner)
    with pytest.raises(ValueError, match="temperature: none of 100 images has a correct answer"):
        calibration.fit_temperature(more[500:], silent[500:], torch.arange(100))


def test_without_errors_the_probability_is_limited_by_the_number_of_people():
    """Eight people with four images each support a probability of 0.9 = 1 / (1 + exp(-3 / T))."""
    scores, right = torch.tensor([[3.0, 0.0]]).repeat(32, 1), torch.tensor([[True, False]]).repeat(32, 1)
    found = calibration.fit_temperature(scores, right, torch.arange(32) % 8)
    assert found == pytest.approx(3 / math.log(9), rel=1e-4)


def test_uninformative_scores_give_the_upper_bound():
    scores = 5 * torch.randn(4000, 2, generator=generator())
    right = F.one_hot(torch.arange(4000) % 2, 2).bool()
    found = calibration.fit_temperature(scores, right, torch.arange(4000))
    assert found == pytest.approx(calibration.BOUNDS[1], rel=1e-3)


def test_each_of_two_listed_colours_is_correct_and_none_if_no_colour_is_listed():
    truth = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    assert calibration.right_answers(truth).tolist() == [[False, True, True, False], [True, False, False, False],
                                                         [False, False, False, True]]


def test_the_calibration_error_and_the_brier_score_equal_values_computed_by_hand():
    p = torch.tensor([0.6, 0.6, 0.6, 0.6, 0.9, 0.9, 0.9, 0.9])
    right = torch.tensor([1, 0, 1, 0, 1, 1, 1, 1]).bool()
    found = calibration.reliability(p, right, torch.arange(8), bins=2)
    assert found.ece == pytest.approx((abs(0.5 - 0.6) + abs(1 - 0.9)) / 2)
    assert found.probability.tolist() == pytest.approx([0.6, 0.9]) and found.accuracy.tolist() == [0.5, 1]
    assert found.share.tolist() == [0.5, 0.5]
    mean, error = calibration.brier(p, right, torch.arange(8))
    squares = torch.tensor([0.16, 0.36, 0.16, 0.36, 0.01, 0.01, 0.01, 0.01])
    assert mean == pytest.approx(squares.mean().item()) and error == pytest.approx((squares.std() / 8**0.5).item())
    heavy = torch.tensor([3.0] * 4 + [1.0] * 4)
    assert calibration.reliability(p, right, torch.arange(8), bins=2, weights=heavy).ece == pytest.approx(0.1)
    assert calibration.reliability(p[:4], right[:4], torch.arange(4)).share.tolist() == [1], "one bin"


def test_more_images_of_the_same_people_do_not_reduce_the_standard_error():
    p = torch.rand(60, generator=generator())
    right = torch.rand(60, generator=generator(1)) < p**2
    owner = torch.arange(60)
    one = calibration.reliability(p, right, owner, bins=5)
    same, others = (calibration.reliability(p.repeat(4), right.repeat(4), who, bins=5)
                    for who in (owner.repeat(4), torch.arange(240)))
    assert same.error == pytest.approx(one.error) and others.error < 0.7 * one.error
    assert same.ece == pytest.approx(one.ece) and others.chance < 0.7 * one.chance


def test_the_calibration_error_of_true_probabilities_is_the_one_expected_by_chance():
    ratios = []
    for seed in range(20):
        p = torch.rand(300, generator=generator(seed))
        right = torch.rand(300, generator=generator(100 + seed)) < p
        found = calibration.reliability(p, right, torch.arange(300))
        ratios.append(found.ece / found.chance)
    assert sum(ratios) / 20 == pytest.approx(1, abs=0.1)


def test_different_shapes_and_invalid_probabilities_are_rejected():
    three = torch.arange(3)
    with pytest.raises(ValueError, match=r"have the shapes \(3,\), \(2,\), \(3,\)"):
        calibration.reliability(torch.rand(3), torch.ones(2).bool(), three)
    with pytest.raises(ValueError, match=r"1 of 3 probabilities are outside \[0, 1\], such as 1.5"):
        calibration.brier(torch.tensor([0.5, 1.5, 1]), three > 0, three)


def reader_by_prototypes(**options) -> PrototypeReader:
    table = SIDTable.build(MARKET1501, random_labels(MARKET1501, 30))
    rows = [torch.randn(size, 6, generator=generator(size)) for size in table.sizes]
    return PrototypeReader(table, rows, tau=0, **options)


def test_the_temperature_of_a_column_divides_only_its_cosine_scale():
    embeddings = torch.randn(7, 30, generator=generator())
    bare, half = reader_by_prototypes(cosine_scale=16.0), reader_by_prototypes(cosine_scale=8.0)
    names = [column.name for column in MARKET1501.columns]
    warm = reader_by_prototypes(cosine_scale=16.0, temperatures={"upper colour": 2.0})
    m = names.index("upper colour")
    for n in range(len(names)):
        wanted = half if n == m else bare
        for got, expected in zip(warm.confidences(embeddings), wanted.confidences(embeddings)):
            assert torch.equal(got[:, n], expected[:, n])
    assert torch.equal(warm.recognise(embeddings), bare.recognise(embeddings))
    labels = random_labels(MARKET1501, 3, seed=5)
    labels = bare.table.decode(bare.table.lookup(labels).clamp(min=0))
    assert torch.equal(warm.search(labels, embeddings), bare.search(labels, embeddings))
    again = bare.calibrated({"upper colour": 2.0})
    assert torch.equal(again.confidences(embeddings)[1], warm.confidences(embeddings)[1]) and not bare.temperatures
    scores, answers = bare.column_scores(embeddings)[m]
    group = GROUPS.index(MARKET1501.column_groups[m])
    assert torch.allclose(scores, 16 * bare.cosines(embeddings)[group]) and len(answers) == scores.shape[1]


def test_the_temperature_of_a_column_divides_its_logits():
    sizes = MARKET1501.column_sizes
    weight, bias = torch.randn(sum(sizes), 5, generator=generator()), torch.zeros(sum(sizes))
    embeddings = torch.randn(4, 5, generator=generator(1))
    name = MARKET1501.columns[3].name
    bare, warm = (ProbabilityReader(MARKET1501, weight, bias, temperatures=t) for t in (None, {name: 2.5}))
    expected = ((embeddings @ weight.T).split(sizes, dim=1)[3] / 2.5).softmax(dim=1).amax(dim=1)
    assert torch.allclose(warm.confidences(embeddings)[1][:, 3], expected)
    others = [m for m in range(len(sizes)) if m != 3]
    assert torch.equal(warm.confidences(embeddings)[1][:, others], bare.confidences(embeddings)[1][:, others])
    scores, answers = bare.column_scores(embeddings)[3]
    assert torch.allclose((scores / 2.5).softmax(dim=1).amax(dim=1), expected)
    assert answers.tolist() == list(range(sizes[3]))


@pytest.mark.parametrize(("temperatures", "message"), [({"sleeves": 1.0}, "'sleeves' is not a column of market1501"),
                                                       ({"hat": 0.0}, "of 'hat' is 0.0, expected a positive")])
def test_temperatures_of_unknown_columns_and_invalid_temperatures_are_rejected(temperatures, message):
    with pytest.raises(ValueError, match=message):
        reader_by_prototypes(temperatures=temperatures)


def people(identities: int, images: int = 6, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw embeddings, pids and camids of people, with two cameras."""
    pids = torch.arange(identities).repeat_interleave(images)
    centres = torch.randn(identities, 8, generator=generator())
    embeddings = centres[pids] + spread * torch.randn(len(pids), 8, generator=generator(1))
    return embeddings, pids, torch.arange(len(pids)) % 2


def test_each_pair_of_images_from_different_cameras_is_scored_once():
    embeddings, pids, camids = people(5)
    pairs = calibration.collect_pairs(image_scores, embeddings, pids, camids)
    scores = image_scores(embeddings, embeddings)
    expected = {True: [], False: []}
    for i in range(30):
        for j in range(i + 1, 30):
            if camids[i] != camids[j]:
                expected[bool(pids[i] == pids[j])].append(scores[i, j].item())
    assert sorted(pairs.same.tolist()) == pytest.approx(sorted(expected[True]))
    assert sorted(pairs.different.tolist()) == pytest.approx(sorted(expected[False]))
    assert pairs.there == len(expected[False]) and (pairs.owners[:, 0] != pairs.owners[:, 1]).all()
    drawn = calibration.collect_pairs(image_scores, embeddings, pids, camids, most=60)
    assert len(drawn.same) == len(pairs.same) and drawn.there == pairs.there and 30 < len(drawn.different) < 90
    with pytest.raises(ValueError, match="found 0 pairs of images of one person and 9 pairs of different people"):
        calibration.collect_pairs(image_scores, embeddings[::6], pids[::6], torch.tensor([0, 1, 2, 0, 3]))


def test_the_fit_of_two_normal_distributions_is_their_log_likelihood_ratio():
    """log N(s; 1, 1) / N(s; -1, 1) = 2 s, independent of the number of pairs of each kind."""
    same = torch.randn(3000, generator=generator()) + 1
    different = torch.randn(60000, generator=generator(1)) - 1
    slope, intercept = calibration.fit_logistic(same, different)
    assert slope == pytest.approx(2, abs=0.12) and intercept == pytest.approx(0, abs=0.12)
    assert calibration.likelihood_ratio_cost(same, different, 0, 0) == pytest.approx(1)
    fitted = calibration.likelihood_ratio_cost(same, different, slope, intercept)
    assert fitted < min(calibration.likelihood_ratio_cost(same, different, s, 0) for s in (0.5, 1.0, 4.0))


def test_a_prior_multiplies_the_odds():
    odds = {}
    for prior in (0.5, 0.001):
        p = calibration.same_person_probability(0.7, 20, -10, prior)
        odds[prior] = p / (1 - p)
    assert odds[0.5] == pytest.approx(math.exp(4)) and odds[0.001] == pytest.approx(math.exp(4) / 999)
    for score in (0.0, 0.5, 0.7, 40.0, -40.0):  # as precise in the tails as scipy
        assert calibration.same_person_probability(score, 20, -10) == pytest.approx(expit(20 * score - 10), rel=1e-12)
    with pytest.raises(ValueError, match="the prior is 1.0, expected a probability greater than 0 and less than 1"):
        calibration.same_person_probability(0.7, 20, -10, 1.0)


def test_separable_scores_give_a_finite_slope_and_uninformative_scores_an_error():
    slope, intercept = calibration.fit_logistic(torch.linspace(0.8, 0.9, 50), torch.linspace(0, 0.1, 500))
    assert calibration.same_person_probability(0.85, slope, intercept) == pytest.approx(51 / 52, abs=0.01)
    for same, different in ((torch.linspace(0, 1, 50), torch.linspace(0.5, 1.5, 500)),
                            (torch.full((20,), 0.7), torch.full((50,), 0.7))):
        with pytest.raises(ValueError, match="pairs of one person do not score higher than pairs of different people"):
            calibration.fit_logistic(same, different)


def test_intervals_of_rates_take_into_account_that_pairs_share_people():
    embeddings, pids, camids = people(30, spread=0.2)
    pairs = calibration.collect_pairs(image_scores, embeddings, pids, camids)
    share, low, high = calibration.false_match_rate(pairs, 0.5)
    n = len(pairs.different)
    assert share == (pairs.different >= 0.5).double().mean() and low < share < high
    assert high - low > 3 * 2 * 1.96 * (share * (1 - share) / n)**0.5, "shorter for independent pairs"
    share, low, high = calibration.true_match_rate(pairs, 0.95)
    assert share == (pairs.same >= 0.95).double().mean() and low < share < high
    share, low, high = calibration.true_match_rate(pairs, 0.0)
    assert (share, high) == (1, 1) and low == pytest.approx(0.025**(1 / len(pairs.same)))
    share, low, high = calibration.false_match_rate(pairs, 1.1)
    assert (share, low) == (0, 0) and high == pytest.approx(1 - 0.025**(1 / n)), "the upper limit is above 0"


def test_the_bootstrap_samples_people_not_pairs():
    """Two of twenty people are always confused; a sample contains their pair only if it contains both."""
    a, b = torch.triu_indices(20, 20, 1)
    swapped = ((a == 0) & (b == 1)).float()
    pairs = ScoredPairs(torch.ones(20), torch.arange(20), swapped, torch.stack([a, b], dim=1), 190)
    share, low, high = calibration.false_match_rate(pairs, 0.5)
    counts = calibration.draws(20)
    pairs_drawn = (counts.sum(dim=1)**2 - counts.square().sum(dim=1)) / 2
    rates = counts[:, 0] * counts[:, 1] / pairs_drawn
    assert share == 1 / 190 and low == 0 and high == pytest.approx(rates.quantile(0.975).item())


def test_an_invalid_calibration_file_is_rejected(tmp_path):
    path = tmp_path / "calibration.json"
    for content, message in (("{", "not valid JSON"), ("[]", "not a valid calibration file"),
                             ('{"format": 9}', "its format is 9, expected 2"), ('{"format": 2}', "has no 'columns'")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Calibration.read(path)
    path.write_text(json.dumps({"format": 2, "checkpoint": "model_final.pth", "checkpoint sha256": "0",
                                "columns": {"hat": {"temperature": 2, "withhold below": None}},
                                "same person": {"slope": 20, "intercept": -10, "prior": 0.1, "metric": "cosine",
                                                "groups": ["head"],
                                                "false-match rates": [{"rate": 0.01, "threshold": 0.7},
                                                                      {"rate": 1e-6, "refused": "too few"}]}}))
    found = Calibration.read(path)
    assert found.withhold_below == {"hat": math.inf} and found.verification.threshold(0.01) == 0.7
    assert found.verification.probability(0.5) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="false-match rate 1e-06: not calibrated; calibrated rates: 0.01"):
        found.verification.threshold(1e-6)
