# SPDX-License-Identifier: Apache-2.0
"""Metrics of labels, tags, values and texts, each with a 95 % interval: pure functions of what is true and what was
predicted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import atanh, sqrt, tanh
from typing import Any, NamedTuple

import numpy as np

from foundling.errors import DataError
from foundling.evaluate.intervals import BOOTSTRAP, RESAMPLES, Z, interval_of
from foundling.text.tags import spans_of

Array = Any
FISHER = "Fisher's z with the variance of Bonett & Wright (2000)"
_CHUNK = 1 << 18  # indices drawn at once


class Figure(NamedTuple):
    """A measured figure and its 95 % interval; None where nothing defines it."""

    value: float | None
    low: float | None
    high: float | None
    interval: str
    """its method"""


def accuracy(truth: Sequence[Any], found: Sequence[Any]) -> Figure:
    """The share of items that are right."""
    scores = [float(a == b) for a, b in _pairs(truth, found)]
    return Figure(sum(scores) / len(scores), *interval_of(scores))


def exact_match(truth: Sequence[str], found: Sequence[str]) -> Figure:
    """The share of texts that are equal, white space at either end aside."""
    return accuracy([text.strip() for text in truth], [text.strip() for text in found])


def confusion(truth: Sequence[Any], found: Sequence[Any], labels: Sequence[Any]) -> list[list[int]]:
    """Rows are what is true, columns what was predicted, both in the order of `labels`."""
    place = {label: index for index, label in enumerate(labels)}
    table = [[0] * len(labels) for _ in labels]
    for a, b in _pairs(truth, found):
        table[place[a]][place[b]] += 1
    return table


class ClassFigures(NamedTuple):
    precision: float
    recall: float
    f1: float
    support: int
    """items of the class"""


def per_class(truth: Sequence[Any], found: Sequence[Any], labels: Sequence[Any]) -> dict[Any, ClassFigures]:
    """Of each label; 0 where it was never predicted, or has no item."""
    table = np.array(confusion(truth, found, labels), np.float64)
    hits, rows, columns = table.diagonal(), table.sum(1), table.sum(0)
    share = [_ratio(hits, part) for part in (columns, rows)]
    f1 = _ratio(2 * hits, rows + columns)
    return {label: ClassFigures(float(share[0][i]), float(share[1][i]), float(f1[i]), int(rows[i]))
            for i, label in enumerate(labels)}  # fmt: skip


def macro_f1(truth: Sequence[Any], found: Sequence[Any], labels: Sequence[Any] | None = None) -> Figure:
    """The mean of the classes' F1; the classes are those that occur, or `labels`."""
    return _of_cells(truth, found, labels, lambda hits, rows, columns: _ratio(2 * hits, rows + columns).mean(-1))


def micro_f1(truth: Sequence[Any], found: Sequence[Any], labels: Sequence[Any] | None = None) -> Figure:
    """F1 of all decisions on `labels` together; of all labels it is the accuracy."""
    return _of_cells(
        truth, found, labels, lambda hits, rows, columns: _ratio(2 * hits.sum(-1), (rows + columns).sum(-1))
    )


def matthews(truth: Sequence[Any], found: Sequence[Any]) -> Figure:
    """The correlation of classes (Gorodkin 2004, R_K; of two classes Matthews 1975): 1 for all right, 0 for what a
    constant or a guess reaches."""

    def correlation(hits: Array, rows: Array, columns: Array) -> Array:
        n = rows.sum(-1)
        top = hits.sum(-1) * n - (rows * columns).sum(-1)
        bottom = np.sqrt((n**2 - (columns**2).sum(-1)) * (n**2 - (rows**2).sum(-1)))
        return _ratio(top, bottom)

    return _of_cells(truth, found, None, correlation)


def cohen_kappa(truth: Sequence[Any], predicted: Sequence[Any]) -> Figure:
    """The agreement of two raters beyond what their shares of classes give by chance (Cohen 1960): 1 for all equal, 0
    for what chance reaches, and for a single class."""
    return _of_cells(truth, predicted, None, beyond_chance)


def beyond_chance(hits: Array, rows: Array, columns: Array) -> Array:
    """Cohen's kappa of counts (..., classes): of equal judgements, and of those of either rater."""
    n = rows.sum(-1)
    chance = (rows * columns).sum(-1)
    return _ratio(n * hits.sum(-1) - chance, n**2 - chance)


def span_f1(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Figure:
    """F1 of spans, of tags a sentence: a span counts where its type and both its ends are right (conlleval; Tjong Kim
    Sang & De Meulder 2003). The interval draws sentences."""
    hits, sizes = zip(*(span_counts(a, b) for a, b in _pairs(truth, found)), strict=True)
    if not sum(sizes):
        return Figure(None, None, None, "")
    top, bottom = 2.0 * np.asarray(hits), np.asarray(sizes, np.float64)

    def share(rows: Array) -> Array:
        size = bottom[rows].sum(-1)  # 0 where sentences without a span alone are drawn
        return np.where(size > 0, _ratio(top[rows].sum(-1), size), np.nan)

    return _of_draws(share, len(sizes))


def span_counts(truth: Sequence[str], found: Sequence[str]) -> tuple[int, int]:
    """(spans that are right, spans that are true + spans that were predicted) of a sentence"""
    if len(truth) != len(found):
        raise DataError(f"a sentence has {len(truth)} true tags and {len(found)} predicted ones; expected as many")
    expected, predicted = {*spans_of(truth)}, {*spans_of(found)}
    return len(expected & predicted), len(expected) + len(predicted)


def mae(truth: Sequence[float], found: Sequence[float]) -> Figure:
    """Mean absolute error."""
    errors = [abs(a - b) for a, b in _pairs(truth, found)]
    return Figure(sum(errors) / len(errors), *interval_of(errors))


def rmse(truth: Sequence[float], found: Sequence[float]) -> Figure:
    """The root of the mean squared error."""
    squares = [(a - b) ** 2 for a, b in _pairs(truth, found)]
    low, high, method = interval_of(squares)
    ends = (None, None) if low is None or high is None else (sqrt(low), sqrt(high))
    return Figure(sqrt(sum(squares) / len(squares)), *ends, method)


def r_squared(truth: Sequence[float], found: Sequence[float]) -> Figure:
    """1 − squared error / squared deviation from the mean; None where all true values are one."""
    a, b = (np.asarray(values, np.float64) for values in zip(*_pairs(truth, found), strict=True))

    def share(rows: Array) -> Array:
        true, error = a[rows], (a - b)[rows]
        spread = ((true - true.mean(-1, keepdims=True)) ** 2).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 0, 1 - (error**2).sum(-1) / spread, np.nan)

    return _of_draws(share, len(a))


def spearman(truth: Sequence[float], found: Sequence[float]) -> Figure:
    """The correlation of ranks; equal values share their mean rank. None where one side is constant."""
    a, b = (_ranks(np.asarray(values, np.float64)) for values in zip(*_pairs(truth, found), strict=True))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    if not size:
        return Figure(None, None, None, "")
    r = float((a * b).sum()) / size
    if len(a) < 4 or abs(r) >= 1:
        return Figure(r, None, None, "")
    half = Z * sqrt((1 + r * r / 2) / (len(a) - 3))
    return Figure(r, tanh(atanh(r) - half), tanh(atanh(r) + half), FISHER)


def _pairs(truth: Sequence[Any], found: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(truth) != len(found) or not len(truth):
        raise DataError(f"{len(truth)} true items and {len(found)} predicted ones; expected as many, and at least one")
    return list(zip(truth, found, strict=True))


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=np.asarray(bottom) != 0)


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _of_cells(
    truth: Sequence[Any],
    found: Sequence[Any],
    labels: Sequence[Any] | None,
    figure: Callable[[Array, Array, Array], Array],
) -> Figure:
    """A figure of right items, true items and predicted items of each class, (..., n) each. Items that are drawn with
    replacement fall into the cells of the confusion matrix as a multinomial says."""
    pairs = _pairs(truth, found)
    classes = list(dict.fromkeys([*truth, *found])) if labels is None else list(labels)
    cells = {pair: index for index, pair in enumerate(dict.fromkeys(pairs))}
    counts = np.bincount([cells[pair] for pair in pairs], minlength=len(cells))
    true, predicted = (np.array([[pair[side] == c for c in classes] for pair in cells], np.float64) for side in (0, 1))

    def of(drawn: Array) -> Array:
        return figure(drawn @ (true * predicted), drawn @ true, drawn @ predicted)

    value = float(of(counts.astype(np.float64)))
    if len(pairs) < 2:
        return Figure(value, None, None, "")
    draws = np.random.default_rng(0).multinomial(len(pairs), counts / len(pairs), size=RESAMPLES)
    low, high = np.quantile(of(draws.astype(np.float64)), [0.025, 0.975])
    return Figure(value, float(low), float(high), BOOTSTRAP)


def _of_draws(figure: Callable[[Array], Array], n: int) -> Figure:
    """A figure of rows of items, with draws of n items with replacement."""
    value = float(figure(np.arange(n)[None])[0])
    if n < 2 or np.isnan(value):
        return Figure(None if np.isnan(value) else value, None, None, "")
    generator, figures, rows = np.random.default_rng(0), list[Array](), max(1, _CHUNK // n)
    for start in range(0, RESAMPLES, rows):
        figures.append(figure(generator.integers(n, size=(min(rows, RESAMPLES - start), n))))
    low, high = np.nanquantile(np.concatenate(figures), [0.025, 0.975])
    return Figure(value, float(low), float(high), BOOTSTRAP)
