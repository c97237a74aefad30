# SPDX-License-Identifier: Apache-2.0
"""95 % confidence intervals of measured figures, and the tests that go with paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, sqrt
from statistics import NormalDist

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


def tango(gains: int, losses: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The score interval of the difference of two paired shares, (gains − losses) / n, where `gains` of n pairs changed
    from 0 to 1 and `losses` from 1 to 0 (Tango 1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design"). Its variance is the likeliest under each difference that is tried, so
    that a pair that was never seen to change is not taken for one that cannot."""
    z = normal_quantile(0.5 + level / 2)
    share = (gains - losses) / n

    def outside(d: float) -> bool:
        b = (2 * n - gains + losses) * d - gains - losses
        lost = (sqrt(max(0.0, b * b + 8 * n * losses * d * (1 - d))) - b) / (4 * n)
        return n * (share - d) ** 2 > z * z * max(0.0, 2 * lost + d * (1 - d))

    return _edge(outside, share, -1.0), _edge(outside, share, 1.0)


def _edge(outside: Callable[[float], bool], inner: float, outer: float) -> float:
    """Where `outside` begins between a point that is inside and the end of the range, which may be inside as well."""
    if not outside(outer):
        return outer
    for _ in range(60):
        middle = (inner + outer) / 2
        inner, outer = (inner, middle) if outside(middle) else (middle, outer)
    return outer


def score_interval(
    differences: Sequence[float], weights: Sequence[float], *, level: float = 0.95
) -> tuple[float, float]:
    """Of the mean of paired differences of scores between 0 and 1; `weights` have a mean of 1. As Wilson's and Tango's
    it takes the variance under each mean that is tried: what was seen, and the changes by 1 that would move the mean
    there. Where only losses were seen, its far end is Wilson's; it is wider than the bootstrap's where few changed."""
    z2, weight = normal_quantile(0.5 + level / 2) ** 2, np.asarray(weights, np.float64)
    values = np.asarray(differences, np.float64)
    n, largest, mean = len(values), float(weight.max()), float((values * weight).mean())
    spread = float(((weight * (values - mean)) ** 2).mean())
    ends = []
    for side in (-1.0, 1.0):  # (n + z²) t² + z² (2 side·mean − largest) t − z² spread = 0
        a, b = n + z2, z2 * (2 * side * mean - largest)
        ends.append(mean + side * (sqrt(b * b + 4 * a * z2 * spread) - b) / (2 * a))
    return max(-1.0, ends[0]), min(1.0, ends[1])


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


def permutation_test(groups: Sequence[Sequence[float]], *, resamples: int = 9999, seed: int = 0) -> float:
    """The two-sided p-value of Σ over groups of mean(differences): how often it is as far from 0 where the two members
    of each pair change places at random (the paired randomization test; Noreen 1989, chapter 2; Monte Carlo with 1
    added to both counts, Phipson & Smyth 2010). `groups` are the paired differences of one task each; on 0/1 scores of
    one task it is McNemar's test. Differences of one size in one group are drawn together, as a binomial."""
    generator = np.random.default_rng(seed)
    observed, sums = 0.0, np.zeros(resamples)
    for group in groups:
        values = np.asarray(group, np.float64) / len(group)
        observed += float(values.sum())
        sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
        often = counts > 1
        for size, count in zip(sizes[often], counts[often], strict=True):
            sums += size * (2.0 * generator.binomial(count, 0.5, resamples) - count)
        single = sizes[~often]
        rows = max(1, _CHUNK // max(1, len(single)))
        for start in range(0, resamples if len(single) else 0, rows):
            n = min(rows, resamples - start)
            sums[start : start + n] += (2.0 * generator.integers(2, size=(n, len(single))) - 1) @ single
    as_far = np.abs(sums) >= abs(observed) * (1 - 1e-9) - 1e-15
    return float((1 + as_far.sum()) / (1 + resamples))


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Adjusted p-values: rejecting those ≤ α rejects any true hypothesis with a probability of at most α, whatever the
    dependence (Holm 1979; with `weights`, its section 4). Weights share α out before the first rejection."""
    shares = [1.0] * len(p_values) if weights is None else list(weights)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i] / shares[i])
    adjusted, largest, rest = [0.0] * len(p_values), 0.0, sum(shares)
    for i in order:
        largest = max(largest, min(1.0, p_values[i] * rest / shares[i]))
        adjusted[i] = largest
        rest -= shares[i]
    return adjusted


def normal_quantile(share: float) -> float:
    """Of the standard normal distribution."""
    return NormalDist().inv_cdf(share)


def smallest_difference(deviation: float, n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The mean difference of n pairs that a two-sided test at `alpha` shows with probability `power`, for paired
    differences of that standard deviation (normal approximation)."""
    return (normal_quantile(1 - alpha / 2) + normal_quantile(power)) * deviation / sqrt(n)


def pairs_needed(difference: float, discordant: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items that a comparison of 0/1 scores needs to show `difference` where a share `discordant` of the items is
    scored differently (Connor 1987, "Sample size for testing differences in proportions for the paired-sample design",
    equation 3), and 1 / difference more, as the exact test is that much more careful (its continuity correction)."""
    alone, both = sqrt(discordant), sqrt(discordant - difference**2)
    root = normal_quantile(1 - alpha / 2) * alone + normal_quantile(power) * both
    return ceil((root / difference) ** 2 + 1 / abs(difference))
