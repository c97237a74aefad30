# SPDX-License-Identifier: Apache-2.0
"""The best of N against every subset, against simulation, and by hand; what it refuses; its page."""

import math
import random
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from foundling.errors import DataError
from foundling.evaluate.best_of_n import best_of_n, curve, kl_bound, rank_weights
from foundling.report.best_of_n import best_of_n_page


def of_every_subset(proxy: list[float], gold: list[float], n: int) -> tuple[float, float]:
    """(proxy, gold) of the best of each subset of n, of equally good ones the mean."""
    proxies, golds = list[float](), list[float]()
    for subset in combinations(range(len(proxy)), n):
        top = max(proxy[i] for i in subset)
        proxies.append(top)
        golds.append(fmean(gold[i] for i in subset if proxy[i] == top))
    return fmean(proxies), fmean(golds)


def test_it_is_the_mean_over_every_subset() -> None:
    chance = random.Random(0)
    proxy = [[chance.choice([0.0, 0.5, 1.0, chance.random()]) for _ in range(9)] for _ in range(4)]  # with ties
    gold = [[chance.gauss(0, 1) for _ in range(9)] for _ in range(4)]
    for point in best_of_n(proxy, gold):
        expected = [of_every_subset(p, g, point.n) for p, g in zip(proxy, gold, strict=True)]
        assert point.proxy == pytest.approx(fmean(p for p, _ in expected), rel=1e-12)
        assert point.gold == pytest.approx(fmean(g for _, g in expected), rel=1e-12)


def test_it_is_what_drawing_gives() -> None:
    """The estimate from 16 samples a prompt against drawing N samples of the same distribution anew."""
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(4000, 16))
    proxy = gold + generator.normal(size=gold.shape)
    (point,) = best_of_n(proxy.tolist(), gold.tolist(), [5])
    drawn = generator.normal(size=(40_000, 5))
    noisy = drawn + generator.normal(size=drawn.shape)
    simulated = drawn[np.arange(len(drawn)), noisy.argmax(1)]
    error = simulated.std() / math.sqrt(len(drawn))
    assert point.gold_low is not None and point.gold_high is not None
    assert point.gold_low - 3 * error < simulated.mean() < point.gold_high + 3 * error
    assert point.gold_high - point.gold_low < 0.1  # so that the line above could fail
    assert point.gold == pytest.approx(point.proxy / 2, abs=0.05)  # half of the proxy's variance is gold


def test_weights_are_the_binomials() -> None:
    for n in range(1, 9):
        weights = rank_weights(8, n)
        assert weights.tolist() == pytest.approx([math.comb(k - 1, n - 1) / math.comb(8, n) for k in range(1, 9)])
    assert rank_weights(4096, 2000).sum() == pytest.approx(1)


def test_by_hand() -> None:
    """Samples 0, 1, 2: the best of two is 2 in two of three pairs."""
    points = best_of_n([[0, 1, 2]], [[5, 1, 3]])
    assert [p.proxy for p in points] == pytest.approx([1, (2 + 2 + 1) / 3, 2])
    assert [p.gold for p in points] == pytest.approx([3, (3 + 3 + 1) / 3, 3])
    assert [p.kl for p in points] == pytest.approx([0, math.log(2) - 0.5, math.log(3) - 2 / 3])
    assert points[0].gold_low is None  # one prompt has no interval
    assert kl_bound(64) == pytest.approx(3.1745, abs=1e-4)


@pytest.mark.parametrize(
    ("proxy", "gold", "ns", "message"),
    [
        ([], [], None, "at least one"),
        ([[1.0, 2.0], [1.0]], [[1.0, 2.0], [1.0]], None, "as many answers"),
        ([[1.0, 2.0]], [[1.0]], None, "as many answers"),
        ([[1.0, math.nan]], [[1.0, 2.0]], None, "not finite"),
        ([[1.0, 2.0]], [[1.0, 2.0]], [3], "best of 3 needs as many"),
    ],
)
def test_what_it_refuses(proxy, gold, ns, message: str) -> None:
    with pytest.raises(DataError, match=message):
        best_of_n(proxy, gold, ns)


def test_a_curve_leaves_out_prompts_with_an_empty_answer_and_is_drawn() -> None:
    texts = [["a", "b", "b"], ["c", "", "d"], ["e", "f", "g"]]
    proxy, gold = [[0.0, 1.0, 1.0], [1.0, math.nan, 2.0], [3.0, 1.0, 2.0]], [[1.0, 0.0, 0.0]] * 3
    value = curve(("<proxy>", "gold"), texts, proxy, gold)
    assert (value["prompts"], value["left_out"], value["distinct_answers"]) == (2, 1, 2.5)
    assert [point["n"] for point in value["points"]] == [1, 2, 3] and value["points"][-1]["proxy"] == 2.0
    page = best_of_n_page(value)
    assert "<svg" in page and "Best of N by &lt;proxy&gt;" in page and "<script" not in page
    wide = curve(("a", "b"), [[""] * 70], [list(map(float, range(70)))], [[0.0] * 70])
    assert [point["n"] for point in wide["points"]] == [1, 2, 4, 8, 16, 32, 64, 70]
    with pytest.raises(DataError, match="no curve"):
        curve(("a", "b"), [[""]], [[math.nan]], [[0.0]])
