# SPDX-License-Identifier: Apache-2.0
"""Compare two results of one task item by item: what differs between subjects, freed of what differs between items."""

from __future__ import annotations

from typing import NamedTuple

from foundling.contracts.records import Result
from foundling.errors import MismatchError
from foundling.evaluate.intervals import bootstrap, sign_test


class Comparison(NamedTuple):
    difference: float
    """mean of a's score − b's, over the items"""
    low: float | None
    high: float | None
    """95 %: percentile bootstrap over pairs; None for fewer than two items"""
    p_value: float
    """two-sided, of no difference: exact McNemar for 0/1 scores, the sign test for others (both drop ties)"""
    n: int
    wins: int
    """items on which a is better"""
    losses: int
    test: str


def compare(a: Result, b: Result) -> Comparison:
    """Pairs the scores of a and b by item. MismatchError where they are not of the same task, items and prompts."""
    for name in ("task", "prompt"):
        if a.hashes.get(name) != b.hashes.get(name):
            raise MismatchError(f"the results are of different {name}s ({a.task!r}, {b.task!r}); run both on the same")
    if len(a.scores) != len(b.scores) or not a.scores:
        raise MismatchError(f"one result has scores of {len(a.scores)} items, the other of {len(b.scores)}")
    differences = [float(x) - float(y) for x, y in zip(a.scores, b.scores, strict=True)]
    better = [-d if a.lower_is_better else d for d in differences]
    wins, losses = sum(d > 0 for d in better), sum(d < 0 for d in better)
    low, high = bootstrap(differences) or (None, None)
    binary = all(score in (0, 1) for score in (*a.scores, *b.scores))
    return Comparison(
        difference=sum(differences) / len(differences),
        low=low,
        high=high,
        p_value=sign_test(wins, losses),
        n=len(differences),
        wins=wins,
        losses=losses,
        test="McNemar, exact" if binary else "sign test, exact",
    )
