# SPDX-License-Identifier: Apache-2.0
"""Intervals against published tables, scipy and coverage; paired comparison on planted differences."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from foundling.contracts.records import Result
from foundling.errors import MismatchError
from foundling.evaluate.compare import compare
from foundling.evaluate.intervals import WILSON, bootstrap, interval_of, sign_test, wilson


def test_interval_of_a_share_is_wilsons():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3, to four decimals.
    for passed, n, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]:
        assert wilson(passed / n, n) == pytest.approx((low, high), abs=5e-5)
    exact = stats.binomtest(7, 19).proportion_ci(method="wilson")
    assert wilson(7 / 19, 19) == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_wilson_worked_by_hand():
    # n = 4, share 1/2, z² = 3.8415: middle 1/2; half = z / (1 + z²/4) · sqrt(1/16 + z²/64)
    z = 1.959963984540054
    half = z / (1 + z * z / 4) * sqrt(1 / 16 + z * z / 64)
    assert wilson(0.5, 4) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-12)
    assert half == pytest.approx(0.35, abs=1e-3)


def test_bootstrap_agrees_with_scipy_and_needs_two_items():
    values = np.random.default_rng(1).exponential(size=200)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(2))
    low, high = bootstrap(values)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert abs(low - theirs.confidence_interval.low) < 0.1 * width
    assert abs(high - theirs.confidence_interval.high) < 0.1 * width
    assert bootstrap(values) == (low, high)  # the same every time
    assert bootstrap([1.0]) is None and bootstrap([2.0, 2.0]) == (2.0, 2.0)


def test_bootstrap_of_a_ratio_weighs_items_by_their_size():
    nats, tokens = [10.0, 30.0, 20.0, 44.0], [5, 15, 10, 22]  # 2 nats a token everywhere
    assert bootstrap(nats, tokens) == pytest.approx((2.0, 2.0), rel=1e-12)
    low, high = bootstrap([10.0, 0.0], [1, 9])
    assert (low, high) == (0.0, 10.0)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = sum(low <= 0 <= high for low, high in (bootstrap(draw.normal(size=60)) for _ in range(200)))
    assert 0.90 * 200 < hits < 0.99 * 200


def test_the_method_follows_the_scores():
    assert interval_of([1.0, 0.0, 1.0]) == (*wilson(2 / 3, 3), WILSON)
    assert interval_of([0.5, 1.0])[2].startswith("percentile bootstrap")
    assert interval_of([0.5]) == interval_of([]) == (None, None, "")


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 1), (3, 3), (2, 17), (60, 40)])
def test_sign_test_is_the_exact_binomial_test(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def result(scores, **changes) -> Result:
    made = Result("t", "accuracy", sum(scores) / len(scores), len(scores), scores=list(scores), hashes={"task": "a"})
    return replace(made, **changes)


def test_compare_on_a_planted_difference():
    """b fails 20 of 100 items that a passes and passes 4 that a fails."""
    a = [1.0] * 60 + [1.0] * 20 + [0.0] * 4 + [0.0] * 16
    b = [1.0] * 60 + [0.0] * 20 + [1.0] * 4 + [0.0] * 16
    found = compare(result(a), result(b))
    assert found.difference == pytest.approx(-0.16) and (found.gains, found.losses, found.n) == (4, 20, 100)
    assert found.p_value == pytest.approx(stats.binomtest(20, 24).pvalue) and found.p_value < 0.01
    assert -0.3 < found.low < -0.16 < found.high < 0 and (found.test, found.verdict) == ("McNemar, exact", "worse")
    back = compare(result(b), result(a))
    assert back.difference == -found.difference and (back.gains, back.losses, back.verdict) == (20, 4, "better")
    same = compare(result(a), result(a))
    assert (same.difference, same.p_value, same.verdict) == (0.0, 1.0, "same")


def test_pairing_finds_what_unpaired_intervals_hide():
    """Items differ a hundred times as much as the subjects do."""
    hard = np.random.default_rng(0).normal(0, 10, size=200)
    noise = np.random.default_rng(1).normal(0.1, 0.1, size=200)
    a, b = result(hard), result(hard + noise)
    found = compare(a, b)
    assert 0.07 < found.low < found.difference < found.high < 0.13 and found.p_value <= 1e-4
    assert found.test == "paired randomization of the mean" and found.verdict == "better"
    (low_b, _, _), (_, high_a, _) = interval_of(b.scores), interval_of(a.scores)
    assert low_b < high_a  # the intervals of the two means overlap
    lower = compare(replace(a, lower_is_better=True), replace(b, lower_is_better=True))
    assert (lower.gains, lower.losses, lower.verdict) == (found.losses, found.gains, "worse")
    assert lower.difference == pytest.approx(found.difference) and (lower.low, lower.high) == pytest.approx(
        (found.low, found.high), abs=0.002
    )


def test_only_like_is_compared():
    with pytest.raises(MismatchError, match="different task"):
        compare(result([1.0]), result([1.0], hashes={"task": "b"}))
    with pytest.raises(MismatchError, match="different prompt"):
        compare(result([1.0]), result([1.0], hashes={"task": "a", "prompt": "c"}))
    with pytest.raises(MismatchError, match="1 items in the first evaluation, 2 in the second"):
        compare(result([1.0]), result([1.0, 0.0]))
