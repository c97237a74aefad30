# SPDX-License-Identifier: Apache-2.0
"""Reliability: how often answers are right against how likely the model took them to be, in bins and as a drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from foundling.contracts.records import Item

Array = Any
BINS = 15
"""as Guo et al. (2017) have it"""
_SIZE, _LEFT, _TOP, _FOOT = 240, 38, 8, 62


class Bin(NamedTuple):
    low: float
    high: float
    """confidence in (low, high]"""
    n: int
    confidence: float
    """mean"""
    accuracy: float


def log_shares(logprobs: Array) -> Array:
    """(n, choices) log-probabilities up to a constant of each row -> log-probabilities (log-softmax)."""
    shifted = logprobs - logprobs.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """Of one item's choices. All equal where none is finite."""
    row = np.asarray([logprobs], np.float64)
    if not np.isfinite(row.max()):
        return [1 / len(logprobs)] * len(logprobs)
    return np.exp(log_shares(row))[0].tolist()


def top(shares: Array, right: Array) -> tuple[Array, Array]:
    """(confidence, whether it is right as 0 or 1) of the likeliest of each row's log-probabilities, the first of equal
    ones; `right`: (n,) the number of the right one"""
    return np.exp(shares.max(1)), (shares.argmax(1) == right).astype(np.float64)


def choice_confidences(items: Iterable[Item]) -> tuple[list[float], list[float]]:
    """(probability of the likeliest choice, whether it was right) of each item of a choice, by the target among its
    texts: what the calibration figures of the task are of, also where answers are chosen on another scale."""
    confidences, correct = list[float](), list[float]()
    for item in items:
        texts = [text.strip() for text, _ in item.get("choices", [])]
        row = np.asarray([[logprob for _, logprob in item.get("choices", [])]], np.float64)
        if len(texts) > 1 and item["target"].strip() in texts and np.isfinite(row.max()):
            confidence, is_right = top(log_shares(row), np.array([texts.index(item["target"].strip())]))
            confidences += confidence.tolist()
            correct += is_right.tolist()
    return confidences, correct


def bin_of(confidence: Array) -> Array:
    """The number of the bin of each; a bin holds its upper end."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def binned_error(gaps: Array, place: Array) -> Array:
    """Expected calibration error (Guo et al. 2017, equation 3) of each row: Σ over bins of |Σ gap| / n, where a gap is
    correct − confidence; (rows, n) both."""
    rows, n = gaps.shape
    flat = (np.arange(rows)[:, None] * BINS + place).ravel()
    return np.abs(np.bincount(flat, gaps.ravel(), rows * BINS)).reshape(rows, BINS).sum(1) / n


def expected_error(confidences: Sequence[float], correct: Sequence[float]) -> float:
    """Expected calibration error of some items in bins of equal width."""
    confidence = np.asarray(confidences, np.float64)
    return float(binned_error((np.asarray(correct) - confidence)[None], bin_of(confidence)[None])[0])


def reliability_bins(confidences: Sequence[float], correct: Sequence[float]) -> list[Bin]:
    """Bins of equal width (Guo et al. 2017, section 2); those without items are left out."""
    confidence, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    place = bin_of(confidence)
    return [
        Bin(i / BINS, (i + 1) / BINS, int(within.sum()), float(confidence[within].mean()), float(right[within].mean()))
        for i in range(BINS)
        if (within := place == i).any()
    ]


def reliability_svg(bins: Sequence[Bin], label: str = "") -> str:
    """Accuracy against confidence: a bar a bin, the gap to the diagonal shaded, and below how many items a bin has.
    Colours are variables of the page. `label`: plain text of ours for a screen reader."""
    right, bottom = _LEFT + _SIZE, _TOP + _SIZE
    most = max((b.n for b in bins), default=1)
    parts = list[str]()
    for share in (0, 0.5, 1):
        y = bottom - share * _SIZE
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}" stroke="var(--rule)"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{share:g}", "end"))
    for b in bins:
        x, width = _LEFT + b.low * _SIZE + 1, (b.high - b.low) * _SIZE - 2
        top, foot = max(b.accuracy, b.confidence), min(b.accuracy, b.confidence)
        says = f"confidence {b.confidence:.2f}, right {b.accuracy:.2f}, {b.n} items"
        gap = "var(--wrong)" if b.confidence > b.accuracy else "var(--accent)"
        parts.append(
            f"<g><title>{says}</title>{_bar(x, bottom, width, foot * _SIZE, 'var(--accent)', 0.75)}"
            f"{_bar(x, bottom - foot * _SIZE, width, (top - foot) * _SIZE, gap, 0.35)}"
            f"{_bar(x, bottom + 40, width, 32 * b.n / most, 'var(--quiet)', 0.5)}</g>"
        )
    parts.append(
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{_TOP}" stroke="var(--quiet)" stroke-dasharray="4 4"/>'
    )
    for x, word, anchor in ((_LEFT, "0", "start"), (_LEFT + _SIZE / 2, "confidence", "middle"), (right, "1", "end")):
        parts.append(_text(x, bottom + _FOOT - 8, word, anchor))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 8} {bottom + _FOOT}" role="img" '
        f'aria-label="{label or "reliability"}" font-size="11" font-family="inherit">{"".join(parts)}</svg>'
    )


def _bar(x: float, foot: float, width: float, height: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{foot - height:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
        f'opacity="{opacity}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="var(--quiet)" text-anchor="{anchor}">{text}</text>'
