# SPDX-License-Identifier: Apache-2.0
"""Two evaluations: tests by hand and against scipy, verdicts, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize, stats

from foundling.errors import ConfigError, DataError, MismatchError
from foundling.evaluate.compare import compare_evaluations
from foundling.evaluate.intervals import (
    holm,
    pairs_needed,
    permutation_test,
    score_interval,
    sign_test,
    smallest_difference,
    tango,
    wilson,
)
from foundling.report.comparison import rows
from tests.evaluate.records import evaluation

# --- the statistics ---------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    # 0.01·3, 0.02·2, 0.04·1 in order; the second of them is the largest
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    # weights ½, ¼, ¼: 0.02/½ = 0.04 first, then 0.015·½/¼ = 0.03, which may not be smaller, then 0.4·¼/¼
    assert holm([0.02, 0.015, 0.4], [0.5, 0.25, 0.25]) == pytest.approx([0.04, 0.04, 0.4])


def test_holm_keeps_its_promise_whatever_the_weights() -> None:
    """Under the null, any p ≤ 0.05 after adjustment comes with a probability of 5 %."""
    draws = np.random.default_rng(0).random((4000, 4))
    for weights in (None, [0.5, 1 / 6, 1 / 6, 1 / 6]):
        share = np.mean([min(holm(row, weights)) <= 0.05 for row in draws.tolist()])
        assert 0.04 < share < 0.06


def test_the_randomization_test_is_mcnemars_on_scores_of_0_and_1() -> None:
    for gains, losses, ties in ((30, 12, 50), (5, 5, 3), (9, 0, 0)):
        differences = [1.0] * gains + [-1.0] * losses + [0.0] * ties
        exact = stats.binomtest(gains, gains + losses).pvalue
        assert sign_test(gains, losses) == pytest.approx(exact)
        assert permutation_test([differences]) == pytest.approx(exact, abs=0.02)


def test_the_randomization_test_against_scipy() -> None:
    values = np.random.default_rng(1).normal(0.25, 1, 60)
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    assert permutation_test([values.tolist()]) == pytest.approx(theirs.pvalue, abs=0.01)
    assert permutation_test([[0.0, 0.0]]) == 1.0 and permutation_test([]) == 1.0


def test_tasks_weigh_the_same_in_the_mean_whatever_their_items() -> None:
    """A change in ten items is worth 0.1, one in a thousand 0.001. By hand: the four sums ±0.1 ± 0.001 are as likely;
    all are as far from 0 as 0.099, two of them as 0.101."""
    assert permutation_test([[1.0] + [0.0] * 9, [-1.0] + [0.0] * 999]) == 1.0
    assert permutation_test([[1.0] + [0.0] * 9, [1.0] + [0.0] * 999]) == pytest.approx(0.5, abs=0.02)


def test_the_size_of_a_sample() -> None:
    """Connor 1987: (1.96·√0.04 + 0.8416·√0.0399)² / 0.01² = 3137.2, and 1 / 0.01 = 100 more."""
    by_hand = (1.959964 * 0.2 + 0.841621 * math.sqrt(0.0399)) ** 2 / 1e-4
    assert pairs_needed(0.01, 0.04) == math.ceil(by_hand + 100) == 3238
    deviation = math.sqrt(0.04 - 0.01**2)
    assert smallest_difference(deviation, 3137) == pytest.approx(0.01, rel=0.01)


def test_the_power_is_what_is_promised() -> None:
    """Pairs of which 10 % are discordant and 5 points are lost: the exact test, over draws of the discordant items."""
    n = pairs_needed(0.05, 0.10)
    generator = np.random.default_rng(0)
    losses, gains = generator.binomial(n, 0.075, 2000), generator.binomial(n, 0.025, 2000)
    shown = np.mean([sign_test(int(g), int(x)) <= 0.05 for g, x in zip(gains, losses, strict=True)])
    assert 0.78 < shown < 0.85


# --- verdicts ---------------------------------------------------------------------------------------------------------


def pair(gains: int, losses: int, ties: int) -> tuple[list[int], list[int]]:
    return [0] * gains + [1] * losses + [1] * ties, [1] * gains + [0] * losses + [1] * ties


def test_one_task_by_hand() -> None:
    a, b = pair(2, 12, 86)
    comparison = compare_evaluations(evaluation({"t": a}), evaluation({"t": b}, subject="b"))
    assert comparison.verdict == "worse" and comparison.overall is None and len(comparison.tasks) == 1
    row = comparison.tasks[0]
    assert (row.n, row.a, row.b, row.gains, row.losses) == (100, 0.98, 0.88, 2, 12)
    assert row.difference == pytest.approx(-0.10) and row.p_value == row.adjusted
    assert row.p_value == pytest.approx(2 * sum(math.comb(14, k) for k in range(3)) / 2**14)
    assert row.low is not None and row.high is not None and row.low < -0.10 < row.high < 0
    assert [c.gain for c in row.changed] == [-1.0] * 12 + [1.0] * 2
    assert row.changed[0].a == " yes" and row.changed[0].b == " no" and row.changed[0].id == "t2"


def test_a_loss_on_one_task_is_worse_whatever_the_others() -> None:
    lost, won, same = pair(1, 40, 60), pair(40, 1, 60), pair(3, 3, 95)
    names = ("lost", "won", "same")
    a, b = ({n: p[side] for n, p in zip(names, (lost, won, same), strict=True)} for side in (0, 1))
    comparison = compare_evaluations(evaluation(a), evaluation(b))
    assert [row.verdict for row in comparison.tasks] == ["worse", "better", "same"]
    assert comparison.verdict == "worse" and comparison.overall and comparison.overall.verdict == "same"
    assert comparison.overall.difference == pytest.approx(0.0, abs=0.001)


def test_many_tasks_ask_for_more_than_one() -> None:
    """p = 0.039 (McNemar, 1 against 8) is a verdict alone, and none among ten tasks."""
    a, b = pair(1, 8, 91)
    alone = compare_evaluations(evaluation({"t": a}), evaluation({"t": b}))
    assert alone.verdict == "worse" and alone.tasks[0].p_value == pytest.approx(20 / 512)
    others = {f"o{i}": [1] * 100 for i in range(9)}
    many = compare_evaluations(evaluation({"t": a, **others}), evaluation({"t": b, **others}))
    assert many.verdict == "same" and many.tasks[0].adjusted > 0.05 and len(many.tasks) == 10


def test_losses_that_no_task_shows_alone_are_shown_by_their_mean() -> None:
    a, b = pair(4, 10, 186)
    tasks = [f"t{i}" for i in range(6)]
    comparison = compare_evaluations(evaluation(dict.fromkeys(tasks, a)), evaluation(dict.fromkeys(tasks, b)))
    assert {row.verdict for row in comparison.tasks} == {"same"}
    assert comparison.overall and comparison.overall.verdict == comparison.verdict == "worse"
    assert comparison.overall.n == 1200 and comparison.overall.low and comparison.overall.low < -0.03


def test_lower_is_better_and_other_units_stay_out_of_the_mean() -> None:
    generator = np.random.default_rng(0)
    bits = generator.normal(1.2, 0.2, 80)
    worse = bits + generator.normal(0.05, 0.02, 80)
    a = evaluation({"t": [1] * 50, "u": [0] * 50, "wiki": bits.tolist()}, lower=["wiki"])
    b = evaluation({"t": [1] * 50, "u": [0] * 50, "wiki": worse.tolist()}, lower=["wiki"])
    comparison = compare_evaluations(a, b)
    wiki = comparison.tasks[2]
    assert wiki.verdict == comparison.verdict == "worse" and wiki.difference == pytest.approx(0.05, abs=0.01)
    assert wiki.low is not None and wiki.low > 0 and wiki.losses > wiki.gains and not wiki.changed
    assert comparison.overall and comparison.overall.task == "mean of 2 tasks" and comparison.overall.n == 100
    assert compare_evaluations(b, a).verdict == "better"


def test_weighted_items() -> None:
    """Bits per byte of texts of 1 and 3 bytes: 1·0.5 and 3·0.1 more, over 4 bytes."""
    a, b = (evaluation({"w": scores}, lower=["w"]) for scores in ([1.0, 2.0], [1.5, 2.1]))
    a, b = (replace(r, results=[replace(r.results[0], weights=[1.0, 3.0])]) for r in (a, b))
    row = compare_evaluations(a, b).tasks[0]
    assert row.difference == pytest.approx(0.2) and (row.a, row.b) == pytest.approx((1.75, 1.95))
    with pytest.raises(MismatchError, match="weigh differently"):
        compare_evaluations(a, replace(b, results=[replace(b.results[0], weights=[1.0, 1.0])]))


def test_the_same_answers() -> None:
    record = evaluation({"t": [1, 0, 1, 1], "u": [0, 1]})
    comparison = compare_evaluations(record, record)
    assert comparison.verdict == "same" and all(row.p_value == row.adjusted == 1 for row in comparison.tasks)
    assert comparison.notes == ["both evaluations are of the same weights"]
    assert all(row.smallest is None for row in comparison.tasks), "four items show nothing: 2 / 2⁴ is above 5 %"
    many = evaluation({"t": [1, 0] * 50})
    row = compare_evaluations(many, many).tasks[0]
    assert row.low is not None and row.high is not None
    # Tango 1998 of no changed item in n: z² / (n + z²)
    assert row.high == -row.low == pytest.approx(1.959964**2 / (100 + 1.959964**2))


def test_a_tolerance_has_to_be_shown() -> None:
    few, many = pair(5, 5, 90), pair(50, 50, 9900)
    records = {n: [evaluation({"t": side}) for side in p] for n, p in (("few", few), ("many", many))}
    assert compare_evaluations(*records["few"]).verdict == "same"
    assert compare_evaluations(*records["few"], tolerance=1).verdict == "undecided"
    assert compare_evaluations(*records["many"], tolerance=1).verdict == "same"
    lost = [evaluation({"t": side}) for side in pair(0, 40, 9960)]  # 0.4 points, beyond doubt
    assert compare_evaluations(*lost).verdict == "worse"
    assert compare_evaluations(*lost, tolerance=1).verdict == "same"
    assert compare_evaluations(*lost, tolerance=0.1).verdict == "worse"
    with pytest.raises(ConfigError, match="--tolerance"):
        compare_evaluations(*lost, tolerance=-1)


def likeliest_variance(gains: int, losses: int, n: int, d: float) -> float:
    """Of gain − loss under a true difference d, by a search for the likeliest share of losses."""

    def minus_log(lost: float) -> float:
        counts, shares = (gains, losses, n - gains - losses), (lost + d, lost, 1 - d - 2 * lost)
        return -sum(count * math.log(max(share, 1e-300)) for count, share in zip(counts, shares, strict=True) if count)

    bounds = max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12
    lost = optimize.minimize_scalar(minus_log, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return 2 * lost + d - d * d


@pytest.mark.parametrize(("gains", "losses", "n"), [(12, 2, 50), (0, 7, 90), (3, 3, 40), (40, 1, 400)])
def test_tangos_interval_against_a_search_for_the_likeliest(gains: int, losses: int, n: int) -> None:
    """At either end the difference is z standard errors away."""
    for level, z in ((0.95, 1.959964), (0.90, 1.644854)):
        for end in tango(gains, losses, n, level=level):
            away = abs((gains - losses) / n - end) / math.sqrt(likeliest_variance(gains, losses, n, end) / n)
            assert away == pytest.approx(z, rel=1e-3)


def test_intervals_of_shares_where_few_or_none_change() -> None:
    for n in (5, 100, 1000):
        z2 = 1.959964**2
        assert tango(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-6)
        assert score_interval([0.0] * n, [1.0] * n) == pytest.approx(tango(0, 0, n), abs=1e-6)
    # losses alone: the far end is Wilson's of their share
    assert score_interval([-1.0] * 3 + [0.0] * 97, [1.0] * 100)[0] == pytest.approx(-wilson(0.03, 100)[1], abs=1e-6)
    assert tango(0, 3, 100)[0] == pytest.approx(-wilson(0.03, 100)[1], abs=1e-6)
    assert tango(9, 0, 9)[1] == 1 and tango(0, 9, 9)[0] == -1
    values = np.random.default_rng(0).normal(0.02, 0.2, 2000).clip(-1, 1)  # many items: the normal interval
    error = 1.96 * values.std() / math.sqrt(2000)
    expected = values.mean() - error, values.mean() + error
    assert score_interval(values.tolist(), [1.0] * 2000) == pytest.approx(expected, abs=0.0015)


def p_same(n: int, tolerance: float, gain: float) -> float:
    """P(same) where b loses `gain` + tolerance of the items and gains `gain`: summed over all outcomes."""
    lost, chance = gain + tolerance, 0.0
    for gains in range(int(stats.binom.isf(1e-5, n, gain)) + 1 if gain else 1):
        most = int(stats.binom.ppf(0.7, n, lost)) + 1  # of more losses than expected, nothing is shown
        shown = [k for k in range(most) if max(map(abs, tango(gains, k, n, level=0.90))) <= tolerance]
        rest = stats.binom.pmf(shown, n - gains, lost / (1 - gain)).sum() if shown else 0.0
        chance += stats.binom.pmf(gains, n, gain) * rest
    return float(chance)


@pytest.mark.parametrize(("n", "points"), [(100, 2), (100, 5), (200, 1), (200, 3), (400, 1)])
def test_same_within_a_tolerance_is_wrong_in_about_5_of_100_cases_at_most(n: int, points: float) -> None:
    """The true difference is the tolerance. Counts are whole numbers: the score test errs in up to 6 of 100 cases."""
    for gain in (0.0, 0.002, 0.01):
        assert p_same(n, points / 100, gain) <= 0.06, gain


@pytest.mark.parametrize(("tasks", "n", "levels"), [(1, 300, 3), (4, 100, 1), (3, 150, 2)])
def test_same_of_means_and_of_fractions_is_wrong_as_seldom(tasks: int, n: int, levels: int) -> None:
    """Losses alone, of 1 / levels of a score each, whose mean is the tolerance: 100 drawn pairs."""
    generator, wrong, tolerance = np.random.default_rng(5), 0, 0.02
    for _ in range(100):
        lost = {f"t{t}": generator.random(n) < tolerance * levels for t in range(tasks)}
        a = evaluation({task: [1.0] * n for task in lost})
        b = evaluation({task: (1.0 - share / levels).tolist() for task, share in lost.items()})
        comparison = compare_evaluations(a, b, tolerance=100 * tolerance)
        wrong += (comparison.overall or comparison.tasks[0]).verdict == "same"
    assert wrong <= 12, "5 are expected at most; 13 come with a probability of 0.1 %"


def test_a_tolerance_says_nothing_of_figures_that_are_no_shares() -> None:
    bits = [1.5, 1.2, 1.9, 1.1, 1.4]
    a = evaluation({"w": bits}, lower=["w"])
    b = evaluation({"w": [x - d for x, d in zip(bits, (0.9, 0.1, -0.1, 0.2, 0.05), strict=True)]}, lower=["w"])
    comparison = compare_evaluations(a, b, tolerance=1)
    assert comparison.verdict == comparison.tasks[0].verdict == "undecided" and comparison.tasks[0].equivalence is None
    assert comparison.notes[-1] == "--tolerance is in points, and no scores between 0 and 1: w"
    assert compare_evaluations(a, b).verdict == "same"


def test_what_can_be_shown_is_possible() -> None:
    """Six items all changed have p = 1/32, so nothing less than all of them is shown; of five p = 1/16 at best."""
    for n, expected in ((5, None), (6, 1.0)):
        record = evaluation({"t": [1] * n})
        smallest = compare_evaluations(record, record).tasks[0].smallest
        assert smallest is None if expected is None else smallest == pytest.approx(expected)
    random = np.random.default_rng(0)
    for n in (2, 6, 9, 20):  # losses and gains, of which the formula asks for more than 100 points
        a, b = (evaluation({t: random.integers(2, size=n).tolist() for t in "tuv"}) for _ in "ab")
        comparison = compare_evaluations(a, b)
        assert all(r.smallest is None or r.smallest <= 1 for r in [*comparison.tasks, comparison.overall] if r)
    assert rows(compare_evaluations(evaluation({"t": [1, 0]}), evaluation({"t": [0, 1]})))[0].smallest == "none"


def test_the_seeds_of_a_task_are_no_more_items() -> None:
    """One item lost under each of five seeds is one item lost, not five."""
    seeds = [f"q, seed {s}" for s in range(5)]
    a, b = ([1.0] * 40, [0.0] + [1.0] * 39)
    comparison = compare_evaluations(evaluation(dict.fromkeys(seeds, a)), evaluation(dict.fromkeys(seeds, b)))
    row = comparison.tasks[0]
    assert comparison.overall is None and len(comparison.tasks) == 1
    assert (row.task, row.n, row.losses, row.p_value, row.test) == ("q", 40, 1, 1.0, "McNemar, exact")
    assert "q: each item counts once, by its mean over 5 seeds" in comparison.notes
    assert [c.id for c in row.changed] == [f"q0, seed {s}" for s in range(5)]
    # seeds that choose other solved examples leave out other items: they are joined by id
    x, y = (
        evaluation({"q, seed 0": [1, 0, 1], "q, seed 1": [1, 1]}),
        evaluation({"q, seed 0": [0, 0, 1], "q, seed 1": [0, 1]}),
    )
    for record in (x, y):
        record.items["q, seed 1"][1]["id"] = "q7"
    row = compare_evaluations(x, y).tasks[0]
    assert (row.n, row.losses, row.gains) == (4, 1, 0) and row.difference == pytest.approx(-2 / 5)


def test_seeds_make_no_false_alarms() -> None:
    """Subjects that differ on items by chance alone, each asked with three seeds: 100 pairs."""
    generator, n, alarms = np.random.default_rng(3), 200, 0
    for _ in range(100):
        first = generator.random(n) < 0.5
        second = np.where(generator.random(n) < 0.12, generator.random(n) < 0.5, first)
        sides = [
            {f"q, seed {s}": (side ^ (generator.random(n) < 0.02)).astype(float).tolist() for s in range(3)}
            for side in (first, second)
        ]
        alarms += compare_evaluations(*map(evaluation, sides)).verdict != "same"
    assert alarms <= 12, "5 are expected at most; 13 come with a probability of 0.1 %"


def test_two_metrics_of_one_task_are_one_task_of_the_mean() -> None:
    record = evaluation({"t": [1, 0, 1, 1], "u": [1, 1]})
    double = replace(record, results=[*record.results, replace(record.results[0], metric="F1")])
    overall = compare_evaluations(double, double).overall
    assert overall and overall.task == "mean of 2 tasks" and overall.n == 6


def test_the_interval_holds_the_difference_that_the_tasks_mean() -> None:
    """The bootstrap of the mean of two tasks against the normal interval of independent means."""
    generator = np.random.default_rng(3)
    a = {t: generator.integers(2, size=400).tolist() for t in "tu"}
    b = {t: generator.integers(2, size=400).tolist() for t in "tu"}
    row = compare_evaluations(evaluation(a), evaluation(b)).overall
    assert row and row.low is not None and row.high is not None
    differences = [np.subtract(b[t], a[t]) for t in "tu"]
    error = math.sqrt(sum(d.var() / 400 for d in differences)) / 2
    middle = np.mean([d.mean() for d in differences])
    assert (row.low, row.high) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.005)


# --- what may be compared ---------------------------------------------------------------------------------------------


def test_items_are_matched_by_id() -> None:
    a, b = evaluation({"t": [1, 0, 0, 1]}), evaluation({"t": [1, 0, 0, 1]})
    turned = replace(
        b, items={"t": b.items["t"][::-1]}, results=[replace(b.results[0], scores=b.results[0].scores[::-1])]
    )
    row = compare_evaluations(a, turned).tasks[0]
    assert (row.gains, row.losses) == (0, 0)
    other = replace(b, items={"t": [{**item, "id": item["id"] + "x"} for item in b.items["t"]]})
    with pytest.raises(MismatchError, match=r"no item 't0' in the second"):
        compare_evaluations(a, other)
    twice = replace(turned, items={"t": [turned.items["t"][0], *turned.items["t"][:3]]})
    with pytest.raises(MismatchError, match="the items differ"):
        compare_evaluations(a, twice)


@pytest.mark.parametrize("name", ["prompt", "template", "backend"])
def test_another_hash_is_refused_unless_named(name: str) -> None:
    a, b = evaluation({"t": [1, 0]}), evaluation({"t": [1, 1]}, **{name: "f" * 64})
    with pytest.raises(MismatchError, match=f"different {name} .*; to compare all the same: --across {name}"):
        compare_evaluations(a, b)
    comparison = compare_evaluations(a, b, across=[name])
    assert any(f"different {name}" in note for note in comparison.notes)


def test_what_cannot_be_compared() -> None:
    a = evaluation({"t": [1, 0]})
    for b, says in (
        (evaluation({"t": [1, 0]}, task="f" * 64), "different task .*evaluate both on the same"),
        (evaluation({"u": [1, 0]}), "no task in common: 't' and 'u'"),
        (evaluation({"t": [1, 0, 1]}), "2 items in the first evaluation, 3 in the second"),
        (evaluation({}), "no task in common: 't' and none"),
        (replace(a, results=[replace(a.results[0], scores=[])], items={}), "no scores of items"),
        (replace(a, results=[replace(a.results[0], lower_is_better=True)]), "lower is better in one"),
    ):
        with pytest.raises(MismatchError, match=says):
            compare_evaluations(a, b)
    with pytest.raises(ConfigError, match="--across 'task': expected one or more of template, backend, prompt"):
        compare_evaluations(a, a, across=["task"])
    with pytest.raises(DataError, match="item 1 of the second evaluation has no finite score"):
        compare_evaluations(a, replace(a, results=[replace(a.results[0], scores=[1.0, math.nan])], items={}))


def test_tasks_of_one_evaluation_alone_are_named() -> None:
    comparison = compare_evaluations(evaluation({"t": [1], "u": [1]}), evaluation({"t": [1], "v": [1]}))
    assert [row.task for row in comparison.tasks] == ["t"]
    assert "in the first evaluation only, and not compared: u" in comparison.notes
    assert "in the second evaluation only, and not compared: v" in comparison.notes
