"""Spread over seeds: an order is claimed where the interval of the paired differences leaves out zero."""

import math

from cerberus_plugin.evaluation.spread import claims, difference, mean_and_deviation, spread

import pytest

HEADERS = {"mAP": "reID mAP"}
PAIRS = [("b", "a")]


def figures(**by_variant):
    return {name: {seed: {"mAP": value} for seed, value in enumerate(values)} for name, values in by_variant.items()}


def test_mean_and_deviation_are_those_of_the_sample():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_deviation([4.0]) == (4.0, None)
    assert [spread(values) for values in ([1.0, 2.0, 3.0], [4.0], [math.nan, 4.0], [math.nan], [])] == [
        "2.00 ± 1.00", "4.00", "4.00", "undefined", "undefined"]


def test_the_interval_of_three_differences_is_that_worked_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, quantile 4.3027 of two degrees of freedom, / sqrt(3)
    found = difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.half_width == pytest.approx(2.4841, abs=1e-4)
    assert not found.told_apart


def test_seeds_are_paired_so_that_what_they_share_does_not_widen_the_interval():
    apart = difference({0: 50.1, 1: 70.2, 2: 90.15}, {0: 50.0, 1: 70.0, 2: 90.0})
    assert apart.told_apart and apart.mean == pytest.approx(0.15)
    assert difference({0: 1.0, 7: 9.0}, {0: 0.5, 1: 0.5}).seeds == 1
    assert math.isnan(difference({0: 1.0}, {1: 0.5}).mean)


def test_the_higher_one_is_named_first_whichever_way_the_pair_is_given():
    by_seed = figures(a=[80.0, 81.0, 82.0], b=[85.0, 86.1, 86.9])
    for pair in (("b", "a"), ("a", "b")):
        assert claims(by_seed, [pair], HEADERS) == ["reID mAP: b above a by 5.00 ± 0.25 (95% of 3 paired seeds)"]


def test_what_the_spread_does_not_allow_is_not_claimed():
    by_seed = figures(a=[80.0, 85.0, 82.0], b=[82.0, 80.0, 86.0])
    (sentence,) = claims(by_seed, PAIRS, HEADERS)
    assert sentence.startswith("reID mAP: b and a are not told apart (difference 0.33 ± ")
    assert claims(figures(a=[80.0] * 3, b=[80.0] * 3), PAIRS, HEADERS)[0].startswith("reID mAP: b and a are not told")


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_allow_no_order_however_far_apart(seeds):
    by_seed = figures(a=[10.0] * seeds, b=[90.0] * seeds)
    assert claims(by_seed, PAIRS, HEADERS) == [f"{seeds} seed{'s' * (seeds > 1)}: too few seeds to claim an order "
                                               "(3 are needed)"]


def test_a_variant_with_fewer_seeds_is_named_and_one_without_the_figure_is_not():
    by_seed = figures(a=[80.0, 81.0, 82.0], b=[85.0], c=[81.0, 82.0, 83.0]) | {"d": {0: {"APS/mAP": 3.0}}}
    found = claims(by_seed, [("b", "a"), ("c", "a"), ("d", "a")], HEADERS)
    assert found == ["reID mAP: b and a: too few seeds to claim an order (1 of 3 that both have)",
                     "reID mAP: c above a by 1.00 ± 0.00 (95% of 3 paired seeds)"]


def test_many_comparisons_come_with_a_warning_about_chance():
    by_seed = figures(a=[80.0, 81.0, 82.0], b=[85.0, 86.1, 86.9], c=[80.0, 81.0, 82.0])
    assert claims(by_seed, [("b", "a"), ("c", "a")], HEADERS)[-1].startswith("2 comparisons, each at 95%: of twenty")
