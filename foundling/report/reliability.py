# SPDX-License-Identifier: Apache-2.0
"""Reliability: how often answers are right against how likely the model took them to be, in bins and as a drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp, isfinite
from typing import NamedTuple

from foundling.contracts.records import Item

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


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """Softmax. All equal where none is finite."""
    top = max(logprobs)
    powers = [exp(value - top) if isfinite(top) else 1.0 for value in logprobs]
    return [power / sum(powers) for power in powers]


def choice_confidences(items: Iterable[Item]) -> tuple[list[float], list[float]]:
    """(probability of the likeliest choice, whether it was right) of each item of a choice that is right or wrong."""
    confidences, correct = list[float](), list[float]()
    for item in items:
        choices = item.get("choices", [])
        if len(choices) > 1 and item["score"] in (0, 1):
            shares = probabilities([logprob for _, logprob in choices])
            # the answer that was scored, which another scale than the log-probability may have preferred
            answers = [share for (text, _), share in zip(choices, shares, strict=True) if text == item["answer"]]
            confidences.append(max(answers or shares))
            correct.append(item["score"])
    return confidences, correct


def reliability_bins(confidences: Sequence[float], correct: Sequence[float], n_bins: int = BINS) -> list[Bin]:
    """Bins of equal width (Guo et al. 2017, section 2); those without items are left out."""
    sums = [[0, 0.0, 0.0] for _ in range(n_bins)]
    for confidence, right in zip(confidences, correct, strict=True):
        place = min(n_bins - 1, max(0, -int(-confidence * n_bins // 1) - 1))  # ceil - 1: a bin holds its upper end
        cell = sums[place]
        cell[0], cell[1], cell[2] = cell[0] + 1, cell[1] + confidence, cell[2] + right
    return [
        Bin(i / n_bins, (i + 1) / n_bins, int(n), confidence / n, right / n)
        for i, (n, confidence, right) in enumerate(sums)
        if n
    ]


def expected_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3)."""
    n = sum(b.n for b in bins)
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / n


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
