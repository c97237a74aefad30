# SPDX-License-Identifier: Apache-2.0
"""Tournaments: all pairs and cycles of few answers, Swiss rounds of many, rankings with ties."""

from itertools import combinations

import pytest

from foundling.evaluate.ranking import (
    cycles,
    expected_wins,
    games,
    n_pairs,
    n_rounds,
    next_pairs,
    rank,
    win_shares,
)


def played(n: int, strength: list[float], seed: int = 0) -> dict[tuple[int, int], float]:
    """All rounds; the stronger one wins, equally strong ones tie."""
    outcomes: dict[tuple[int, int], float] = {}
    for _ in range(n_rounds(n)):
        for i, j in next_pairs(n, outcomes, seed):
            assert i < j and (i, j) not in outcomes
            outcomes[i, j] = 0.5 if strength[i] == strength[j] else float(strength[i] > strength[j])
    return outcomes


@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_answers_meet_in_all_pairs(n: int) -> None:
    outcomes = played(n, [float(-i) for i in range(n)])
    assert sorted(outcomes) == list(combinations(range(n), 2)) and len(outcomes) == n_pairs(n)
    assert rank(win_shares(n, outcomes)) == list(range(n))


def test_a_cycle_is_a_tie() -> None:
    """0 > 1 > 2 > 0, and all beat 3."""
    outcomes = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0, (0, 3): 1.0, (1, 3): 1.0, (2, 3): 1.0}
    assert cycles(4, outcomes) == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [3]]
    assert rank(win_shares(4, outcomes)) == [0, 3]


def test_a_cycle_of_unequal_wins_is_a_tie() -> None:
    """0 > 1 > 2 > 3 > 0, and 0 > 2, 1 > 3: 0 and 1 have two wins, 2 and 3 one; the verdicts order none."""
    outcomes = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 3): 0.0, (0, 2): 1.0, (1, 3): 1.0}
    assert expected_wins(4, outcomes) == [2, 2, 1, 1]
    assert rank(win_shares(4, outcomes)) == [0]


def test_nobody_who_is_beaten_outside_a_cycle_stands_above() -> None:
    """Over all outcomes of four answers: whoever beats another one stands above it, or is in a cycle with it."""
    pairs = list(combinations(range(4), 2))
    for number in range(3 ** len(pairs)):
        digits = [number // 3**k % 3 for k in range(len(pairs))]
        outcomes = {pair: digit / 2 for pair, digit in zip(pairs, digits, strict=True)}
        shares, groups = win_shares(4, outcomes), cycles(4, outcomes)
        for (i, j), share in outcomes.items():
            above, below = (i, j) if share > 0.5 else (j, i)
            assert share == 0.5 or shares[above] >= shares[below] or below in groups[above], outcomes


@pytest.mark.parametrize("n", [5, 6, 8, 13, 16])
def test_many_answers_meet_in_swiss_rounds(n: int) -> None:
    strength = [float((7 * i) % n) for i in range(n)] if n % 7 else [float(i) for i in range(n)]
    outcomes = played(n, strength)
    assert n_pairs(n) * 0.8 <= len(outcomes) <= n_pairs(n) <= n * (n - 1) // 2
    assert n == 5 or n_pairs(n) < n * (n - 1) // 2
    counts = games(n, outcomes)
    assert max(counts) - min(counts) <= 2
    best = max(range(n), key=strength.__getitem__)
    assert win_shares(n, outcomes)[best] == 1.0  # it never loses
    assert played(n, strength) == outcomes  # drawn by the seed alone


def test_of_equal_values_the_first_stays() -> None:
    assert rank([0.5, 1.0, 0.5, 1.0, 0.0]) == [1, 0, 4]
    assert rank([]) == []
