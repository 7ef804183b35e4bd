"""Statistics over seeds: a difference is significant if the interval of the paired differences excludes zero."""

import math

from cerberus_plugin.evaluation.spread import claims, difference, mean_and_deviation, spread, tells_apart

import pytest

HEADERS = {"mAP": "reID mAP"}
PAIRS = [("b", "a")]


def figures(**by_variant):
    return {name: {seed: {"mAP": value} for seed, value in enumerate(values)} for name, values in by_variant.items()}


def test_mean_and_sample_standard_deviation():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_deviation([4.0]) == (4.0, None)
    assert [spread(values) for values in ([1.0, 2.0, 3.0], [4.0], [math.nan, 4.0], [math.nan], [])] == [
        "2.00 ± 1.00", "4.00", "4.00", "undefined", "undefined"]


def test_interval_of_three_differences_equals_a_manual_calculation():
    # differences 1, 2, 3: mean 2, standard deviation 1, quantile 4.3027 for two degrees of freedom, divided by sqrt(3)
    found = difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (found.mean, found.seeds) == (2.0, 3)
    assert found.half_width == pytest.approx(2.4841, abs=1e-4)
    assert not found.significant


def test_variation_common_to_paired_seeds_does_not_widen_the_interval():
    apart = difference({0: 50.1, 1: 70.2, 2: 90.15}, {0: 50.0, 1: 70.0, 2: 90.0})
    assert apart.significant and apart.mean == pytest.approx(0.15)
    assert difference({0: 1.0, 7: 9.0}, {0: 0.5, 1: 0.5}).seeds == 1
    assert math.isnan(difference({0: 1.0}, {1: 0.5}).mean)


def test_the_better_variant_is_named_first_in_either_order_of_the_pair():
    by_seed = figures(a=[80.0, 81.0, 82.0], b=[85.0, 86.1, 86.9])
    for pair in (("b", "a"), ("a", "b")):
        assert claims(by_seed, [pair], HEADERS) == [
            "reID mAP: b is above a by 5.00 ± 0.25 (95% confidence interval, 3 paired seeds)"]


def test_differences_within_the_interval_are_not_significant():
    by_seed = figures(a=[80.0, 85.0, 82.0], b=[82.0, 80.0, 86.0])
    (sentence,) = claims(by_seed, PAIRS, HEADERS)
    assert sentence.startswith("reID mAP: no significant difference between b and a (0.33 ± ")
    assert "±" in sentence and not tells_apart(sentence)  # the page of the studies counts these
    assert not tells_apart(claims(figures(a=[80.0] * 3, b=[80.0] * 3), PAIRS, HEADERS)[0])


def test_sentences_of_earlier_records_are_recognised():
    assert tells_apart("reID mAP: b above a by 5.00 ± 0.25 (95% of 3 paired seeds)")
    assert not tells_apart("reID mAP: b and a are not told apart (difference 0.33 ± 9.00 (95% of 3 paired seeds))")


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_are_too_few_for_any_difference(seeds):
    by_seed = figures(a=[10.0] * seeds, b=[90.0] * seeds)
    assert claims(by_seed, PAIRS, HEADERS) == [
        f"{seeds} seed{'s' * (seeds > 1)}: too few to compare variants (3 are needed)"]


def test_variants_with_few_seeds_are_named_and_those_without_the_metric_are_not():
    by_seed = figures(a=[80.0, 81.0, 82.0], b=[85.0], c=[81.0, 82.0, 83.0]) | {"d": {0: {"APS/mAP": 3.0}}}
    found = claims(by_seed, [("b", "a"), ("c", "a"), ("d", "a")], HEADERS)
    assert found == ["reID mAP: b and a: too few seeds to compare (1 in common, 3 are needed)",
                     "reID mAP: c is above a by 1.00 ± 0.00 (95% confidence interval, 3 paired seeds)"]


def test_several_comparisons_end_with_a_caution_about_chance():
    by_seed = figures(a=[80.0, 81.0, 82.0], b=[85.0, 86.1, 86.9], c=[80.0, 81.0, 82.0])
    assert claims(by_seed, [("b", "a"), ("c", "a")], HEADERS)[-1].startswith("2 comparisons, each at 95% confidence:")
