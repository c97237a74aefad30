# SPDX-License-Identifier: Apache-2.0
"""The reward of the best of N answers, for every N at once, from as many answers as the largest N needs: pure functions
of measured rewards.

Of K samples of a prompt, the one of rank k by the proxy (1 the worst) is the best of N drawn without replacement in
C(k − 1, N − 1) of C(K, N) subsets. The mean of its gold reward with these weights is unbiased for each N, and uses
every sample (as Nakano et al. 2021, "WebGPT", section 3.3, and Gao et al. 2022, "Scaling laws for reward model
overoptimization", appendix A estimate it)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any, NamedTuple

import numpy as np

from foundling.errors import DataError
from foundling.evaluate.intervals import bootstrap
from foundling.limits import COMPLETIONS

Array = Any
MOST_POINTS = 64
"""samples up to which a curve has a point for each N; beyond, for each power of two"""
CAVEAT = (
    "log N − (N − 1)/N is an upper bound of the KL divergence between the best of N and the policy (Stiennon et al. "
    "2020; Beirami et al. 2024). It is close where hardly two answers are equal, and far above the truth where the "
    "policy has few answers to a prompt: if it gives its best one with probability p, the divergence tends to −log p "
    "and not to infinity"
)


class BestOfN(NamedTuple):
    """Means over prompts of the answer that the proxy takes for the best of `n`; 95 % bootstrap over prompts, None for
    one prompt alone."""

    n: int
    kl: float
    """nats; see CAVEAT"""
    proxy: float
    proxy_low: float | None
    proxy_high: float | None
    gold: float
    gold_low: float | None
    gold_high: float | None


def kl_bound(n: int) -> float:
    """log n − (n − 1)/n, in nats."""
    return log(n) - (n - 1) / n


def rank_weights(n_samples: int, n: int) -> Array:
    """(K,) C(k − 1, n − 1) / C(K, n) for ranks k = 1 (the worst) … K: how likely a sample of that rank is the best of n
    of K. They sum to 1."""
    weights = np.zeros(n_samples)
    weights[-1] = n / n_samples
    for k in range(n_samples, n, -1):  # C(k − 2, n − 1) = C(k − 1, n − 1) · (k − n) / (k − 1)
        weights[k - 2] = weights[k - 1] * (k - n) / (k - 1)
    return weights


def best_of_n(
    proxy: Sequence[Sequence[float]], gold: Sequence[Sequence[float]], ns: Sequence[int] | None = None
) -> list[BestOfN]:
    """`proxy`, `gold`: (P prompts, K samples each) rewards. `ns`: the N of the curve, by default 1 … K. Samples with
    equal proxy rewards share their weights, as where one of them is taken at random.

    DataError for no prompt, prompts with different numbers of samples, or a reward that is not finite."""
    if not len(proxy) or len({*map(len, proxy), *map(len, gold)}) != 1 or len(proxy) != len(gold) or not len(proxy[0]):
        raise DataError("best of N needs a proxy and a gold reward of as many answers to each prompt, at least one")
    scores, values = np.asarray(proxy, np.float64), np.asarray(gold, np.float64)
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise DataError("a reward is not finite; best of N needs numbers")
    n_samples = scores.shape[1]
    sizes = [COMPLETIONS.check(n, "n", DataError) for n in (range(1, n_samples + 1) if ns is None else ns)]
    if not sizes or max(sizes) > n_samples:
        raise DataError(f"best of {max(sizes, default=0)} needs as many answers to each prompt; there are {n_samples}")
    weights = np.stack([rank_weights(n_samples, n) for n in sizes])
    means = np.stack([_of_prompt(weights, *row) for row in zip(scores, values, strict=True)])
    return [_point(n, means[:, 0, i], means[:, 1, i]) for i, n in enumerate(sizes)]


def _of_prompt(weights: Array, proxy: Array, gold: Array) -> Array:
    """(2, N) expected proxy and gold reward of the best of each N."""
    order = np.argsort(proxy, kind="stable")
    _, group, counts = np.unique(proxy[order], return_inverse=True, return_counts=True)
    shared = np.stack([np.bincount(group, row) / counts for row in weights])[:, group]
    return np.stack([shared @ proxy[order], shared @ gold[order]])


def _point(n: int, proxy: Array, gold: Array) -> BestOfN:
    """`proxy`, `gold`: (P,) of each prompt."""
    ends = [bootstrap(values.tolist()) or (None, None) for values in (proxy, gold)]
    return BestOfN(n, kl_bound(n), float(proxy.mean()), *ends[0], float(gold.mean()), *ends[1])


def curve(
    names: tuple[str, str], texts: Sequence[Sequence[str]], proxy: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]],
) -> dict[str, Any]:  # fmt: skip
    """The best of N by the proxy as one JSON object, which report.best_of_n draws. `names`: of proxy and gold; `texts`:
    (P, K) answers. Prompts with an answer without a reward (NaN: an empty one) are left out and counted. DataError
    where none is left."""
    whole = [i for i, row in enumerate(proxy) if np.isfinite(row).all()]
    if not whole:
        raise DataError(
            "each prompt has an empty answer, which has no reward, so there is no curve; raise --max-tokens"
        )
    n_samples = len(proxy[whole[0]])
    ns = [n for n in range(1, n_samples + 1) if n_samples <= MOST_POINTS or n == n_samples or not n & (n - 1)]
    points = best_of_n([proxy[i] for i in whole], [gold[i] for i in whole], ns)
    distinct = sum(len(set(texts[i])) for i in whole) / len(whole)
    return {
        "proxy": names[0], "gold": names[1], "prompts": len(whole), "left_out": len(proxy) - len(whole),
        "distinct_answers": distinct, "kl": CAVEAT, "points": [point._asdict() for point in points],
    }  # fmt: skip
