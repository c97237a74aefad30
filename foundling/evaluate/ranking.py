# SPDX-License-Identifier: Apache-2.0
"""From rewards, or from verdicts on pairs, to a ranking of the answers to one prompt: pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil, log2

Pair = tuple[int, int]
Outcomes = Mapping[Pair, float]
"""(i, j), i < j -> how much of the win i has: 1, 0, ½ for a tie, or a probability"""
MOST_OF_ALL_PAIRS = 4
"""answers of which every pair is judged; of more, the rounds of a Swiss-system tournament"""


def n_rounds(n: int) -> int:
    """Of a tournament of n answers: one of all pairs, or ⌈log₂ n⌉ + 1 Swiss ones."""
    return 1 if n <= MOST_OF_ALL_PAIRS else ceil(log2(n)) + 1


def n_pairs(n: int) -> int:
    """Of a tournament, at most."""
    return n * (n - 1) // 2 if n <= MOST_OF_ALL_PAIRS else n_rounds(n) * (n // 2)


def next_pairs(n: int, outcomes: Outcomes, seed: int = 0) -> list[Pair]:
    """The pairs of the next round. Up to MOST_OF_ALL_PAIRS answers all of them; of more, answers with about equally
    many wins meet, each pair once (the Swiss system), in an order that `seed` draws at first. Of an odd number one of
    the weakest sits out."""
    if n <= MOST_OF_ALL_PAIRS:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    wins, played = expected_wins(n, outcomes), games(n, outcomes)
    order = sorted(range(n), key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())
    left = sorted(order, key=lambda i: -wins[i])
    if n % 2:  # the weakest of those that sat out least
        left.remove(max(reversed(left), key=lambda i: played[i]))
    pairs = list[Pair]()
    while left:
        first = left.pop(0)
        partner = next((i for i in left if _pair(first, i) not in outcomes), None)
        if partner is not None:  # else all that are left have met it
            left.remove(partner)
            pairs.append(_pair(first, partner))
    return pairs


def expected_wins(n: int, outcomes: Outcomes) -> list[float]:
    """Of each answer, a tie for a half."""
    wins = [0.0] * n
    for (i, j), share in outcomes.items():
        wins[i] += share
        wins[j] += 1 - share
    return wins


def games(n: int, outcomes: Outcomes) -> list[int]:
    """Pairs of each answer."""
    return [sum(i in pair for pair in outcomes) for i in range(n)]


def cycles(n: int, outcomes: Outcomes) -> list[list[int]]:
    """Of each answer, those that are in a cycle with it, itself among them: each beats another of them, directly or
    not, so that the verdicts do not order them."""
    reaches = [[i == j or outcomes.get((i, j), 1 - outcomes.get((j, i), 0.5)) > 0.5 for j in range(n)]
               for i in range(n)]  # fmt: skip
    for k in range(n):  # Warshall's transitive closure
        for i in range(n):
            for j in range(n):
                reaches[i][j] = reaches[i][j] or (reaches[i][k] and reaches[k][j])
    return [[j for j in range(n) if reaches[i][j] and reaches[j][i]] for i in range(n)]


def win_shares(n: int, outcomes: Outcomes) -> list[float]:
    """The share of its pairs that each answer wins, 0 to 1, by which it is ranked. Where all pairs were judged, answers
    in a cycle share their mean. In a Swiss tournament a sparse set of pairs always has cycles, and only the wins count;
    an answer that sat out a round has fewer pairs."""
    wins, played = expected_wins(n, outcomes), games(n, outcomes)
    shares = [w / max(1, g) for w, g in zip(wins, played, strict=True)]
    if n > MOST_OF_ALL_PAIRS:
        return shares
    return [sum(shares[j] for j in cycle) / len(cycle) for cycle in cycles(n, outcomes)]


def rank(values: Sequence[float]) -> list[int]:
    """Places of the answers, the best first; of equal values only the first place stays."""
    first = dict[float, int]()
    for place, value in enumerate(values):
        first.setdefault(value, place)
    return [first[value] for value in sorted(first, reverse=True)]


def _pair(i: int, j: int) -> Pair:
    return min(i, j), max(i, j)
