# SPDX-License-Identifier: Apache-2.0
"""95 % confidence intervals of measured figures, and the tests that go with paired comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

Z = 1.959963984540054
"""the 97.5 % quantile of the normal distribution"""
RESAMPLES = 2000
WILSON = "Wilson score (Wilson 1927)"
BOOTSTRAP = f"percentile bootstrap over items, {RESAMPLES:,} resamples (Efron & Tibshirani 1993, chapter 13)"
_CHUNK = 1 << 18  # indices drawn at once


def wilson(share: float, n: int) -> tuple[float, float]:
    """The score interval of a share seen in n tries (Wilson 1927): unlike ± it stays inside 0 and 1."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(
    values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile interval of mean(values), or with `weights` of the ratio Σ values / Σ weights, by drawing items
    with replacement (Efron & Tibshirani 1993, chapter 13). None for fewer than two items."""
    n = len(values)
    if n < 2:
        return None
    top = np.asarray(values, np.float64)
    bottom = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    generator, figures = np.random.default_rng(seed), []
    rows = max(1, _CHUNK // n)
    for start in range(0, RESAMPLES, rows):
        drawn = generator.integers(n, size=(min(rows, RESAMPLES - start), n))
        figures.append(top[drawn].sum(1) / bottom[drawn].sum(1))
    low, high = np.quantile(np.concatenate(figures), [0.025, 0.975])
    return float(low), float(high)


def interval_of(scores: Sequence[float]) -> tuple[float | None, float | None, str]:
    """(low, high, method) of the mean of the scores of items: Wilson where all are 0 or 1, else bootstrap."""
    if scores and all(score in (0, 1) for score in scores):
        return *wilson(sum(scores) / len(scores), len(scores)), WILSON
    found = bootstrap(scores)
    return (None, None, "") if found is None else (*found, BOOTSTRAP)


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of as uneven a split or more, if wins and losses were equally likely: the exact binomial
    test. On pairs of 0/1 scores this is the exact form of McNemar's test (McNemar 1947)."""
    n = wins + losses
    tail = ways = 1  # C(n, 0)
    for k in range(min(wins, losses)):
        ways = ways * (n - k) // (k + 1)  # C(n, k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**n)
