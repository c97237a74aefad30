# SPDX-License-Identifier: Apache-2.0
"""Calibration: whether answers that a model takes to be likely are right as often, from the log-probabilities of
choices or the probabilities of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import Any, NamedTuple

import numpy as np

from foundling.errors import DataError
from foundling.evaluate.intervals import BOOTSTRAP, RESAMPLES, bootstrap
from foundling.evaluate.metrics import Figure
from foundling.report.reliability import BINS, Bin, bin_of, binned_error, log_shares, reliability_bins, top

Array = Any
FLOOR = log(1e-12)
"""log-probabilities below are taken for this one: a class that is impossible and true would make the rest invisible"""
TEMPERATURES = (0.05, 20.0)
_CHUNK = 1 << 20


class Calibration(NamedTuple):
    n: int
    accuracy: Figure
    confidence: float
    """mean probability of the likeliest class"""
    ece: Figure
    """expected calibration error in BINS bins of equal width (Guo et al. 2017, equation 3). It is never below 0 and
    grows as items get fewer: compare it with `ece_calibrated`"""
    ece_calibrated: float
    """the ECE that a model with these confidences exceeds in 5 of 100 cases although it is perfectly calibrated
    (consistency resampling; Bröcker & Smith 2007)"""
    ece_mass: Figure
    """in bins with as many items each (Nixon et al. 2019, "Measuring Calibration in Deep Learning")"""
    brier: Figure
    """Σ over classes of (probability − truth)², 0 to 2 (Brier 1950)"""
    nll: Figure
    """−ln of the probability of the true class"""
    temperature: float
    """by which log-probabilities are divided so that the NLL is least (Guo et al. 2017, section 4.2)"""
    ece_after: Figure
    """after temperature scaling; each half of the items by the temperature of the other half"""
    nll_after: Figure
    bins: list[Bin]


def calibration(logprobs: Sequence[Sequence[float]], truth: Sequence[int]) -> Calibration:
    """`logprobs`: of each item those of its classes or choices, in nats and up to a constant (they are normalised);
    `truth`: the index of the right one. Items may have different numbers of choices. Intervals are 95 %, by bootstrap
    over items. DataError for items that do not fit together or hold no numbers."""
    rows, right = _checked(logprobs, truth)
    n, every = len(right), np.arange(len(right))
    normal = log_shares(rows)
    confidence, correct = top(normal, right)
    fitted = fit_temperature(rows, right)
    half, after = every % 2 == 0, rows / fitted
    if n > 3:
        after[half] = rows[half] / fit_temperature(rows[~half], right[~half])
        after[~half] = rows[~half] / fit_temperature(rows[half], right[half])
    scaled = log_shares(after)
    nll = -np.maximum(normal[every, right], FLOOR)
    target = np.zeros(rows.shape)
    target[every, right] = 1
    return Calibration(
        n=n, accuracy=_mean(correct), confidence=float(confidence.mean()), ece=_ece(confidence, correct),
        ece_calibrated=_ece_calibrated(confidence), ece_mass=_ece(confidence, correct, mass=True),
        brier=_mean(((np.exp(normal) - target) ** 2).sum(1)), nll=_mean(nll), temperature=fitted,
        ece_after=_ece(*top(scaled, right)), nll_after=_mean(-np.maximum(scaled[every, right], FLOOR)),
        bins=reliability_bins(confidence.tolist(), correct.tolist()),
    )  # fmt: skip


def calibration_figures(answer: Callable[[Any], int]) -> Callable[[Sequence[Any], Sequence[Any]], dict[str, Figure]]:
    """The `figures` of a Task of choices: answer(example) is the index of the right one."""

    def figures(examples: Sequence[Any], answers: Sequence[Any]) -> dict[str, Figure]:
        return as_figures(calibration([[c.logprob for c in options] for options in answers], [*map(answer, examples)]))

    return figures


def as_figures(measured: Calibration) -> dict[str, Figure]:
    """By the names that a result shows them under."""
    return {
        "ECE": measured.ece, "ECE of a calibrated model, at most": Figure(measured.ece_calibrated, None, None, ""),
        "Brier score": measured.brier, "NLL": measured.nll,
        "temperature": Figure(measured.temperature, None, None, ""), "ECE after temperature": measured.ece_after,
        "NLL after temperature": measured.nll_after,
    }  # fmt: skip


def fit_temperature(logprobs: Array, truth: Array) -> float:
    """The T in TEMPERATURES with the least mean NLL of softmax(logprobs / T), to 1e-4: the NLL is convex in 1 / T, so
    golden-section search finds it."""
    rows = np.arange(len(truth))

    def loss(inverse: float) -> float:
        return -float(log_shares(logprobs * inverse)[rows, truth].mean())

    low, high, golden = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0], (5**0.5 - 1) / 2
    a, b = high - golden * (high - low), low + golden * (high - low)
    at_a, at_b = loss(a), loss(b)
    while high - low > 1e-4 * low:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - golden * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + golden * (high - low)
            at_b = loss(b)
    return 2 / (low + high)


def _checked(logprobs: Sequence[Sequence[float]], truth: Sequence[int]) -> tuple[Array, Array]:
    """(n, most choices), with a probability of nothing for choices that an item lacks; (n,)"""
    if len(logprobs) != len(truth) or not len(truth):
        raise DataError(
            f"{len(logprobs)} items with probabilities and {len(truth)} answers; expected as many, at least 1"
        )
    rows = np.full((len(logprobs), max(map(len, logprobs))), 2 * FLOOR * TEMPERATURES[1])
    for i, (values, right) in enumerate(zip(logprobs, truth, strict=True)):
        row = np.asarray(values, np.float64)
        if not 0 <= right < len(row):
            raise DataError(f"item {i} has {len(row)} choices, and number {right} is the right one; count from 0")
        if np.isnan(row).any() or not np.isfinite(row.max()):
            raise DataError(f"item {i}: probabilities that are no numbers, or all 0")
        rows[i, : len(row)] = np.maximum(row - row.max(), FLOOR)
    return rows, np.asarray(truth, np.int64)


def _mean(values: Array) -> Figure:
    low, high = bootstrap(values) or (None, None)
    return Figure(float(values.mean()), low, high, BOOTSTRAP if low is not None else "")


def _ece(confidence: Array, correct: Array, *, mass: bool = False) -> Figure:
    order = np.argsort(confidence, kind="stable")
    gaps, place = (correct - confidence)[order], bin_of(confidence[order])
    n = len(gaps)

    def error(rows: Array) -> Array:  # (draws, n) of places in the order of confidence
        if mass:  # bins are cut anew: a row in order has its bins in a row
            cuts = np.array([n * i // min(BINS, n) for i in range(min(BINS, n))])
            return np.abs(np.add.reduceat(gaps[np.sort(rows, 1)], cuts, 1)).sum(1) / n
        return binned_error(gaps[rows], place[rows])

    value = float(error(np.arange(n)[None])[0])
    if n < 2:
        return Figure(value, None, None, "")
    generator, size = np.random.default_rng(0), max(1, _CHUNK // n)
    draws = [error(generator.integers(n, size=(min(size, RESAMPLES - i), n))) for i in range(0, RESAMPLES, size)]
    low, high = np.quantile(np.concatenate(draws), [0.025, 0.975])
    return Figure(value, float(low), float(high), BOOTSTRAP)


def _ece_calibrated(confidence: Array) -> float:
    n, place = len(confidence), bin_of(confidence)
    generator, size, draws = np.random.default_rng(0), max(1, _CHUNK // n), list[Array]()
    for start in range(0, RESAMPLES, size):
        shape = (min(size, RESAMPLES - start), n)
        gaps = (generator.random(shape) < confidence) - confidence
        draws.append(binned_error(gaps, np.broadcast_to(place, shape)))
    return float(np.quantile(np.concatenate(draws), 0.95))
