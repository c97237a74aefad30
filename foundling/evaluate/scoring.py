# SPDX-License-Identifier: Apache-2.0
"""How a generated text is scored: 1 for right, 0 for wrong, or a share between."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundling.errors import ConfigError

Score = Callable[[dict[str, Any], str, str], float]
"""(the item, what is right, the generated text) -> score"""


def scorer(name: str, folder: Path | None = None) -> tuple[str, Score]:
    """The metric's name and the function. ConfigError for a name that is none of SCORES."""
    if name not in SCORES:
        raise ConfigError(f"score {name!r} is unknown; use {', '.join(SCORES)}")
    metric, make = SCORES[name]
    return metric, make(folder)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space (SQuAD's evaluation, Rajpurkar et al. 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _exact(folder: Path | None) -> Score:
    return lambda item, right, text: float(text.strip() == right.strip())


def _normalised(folder: Path | None) -> Score:
    return lambda item, right, text: float(normalised(text) == normalised(right))


def _contains(folder: Path | None) -> Score:
    return lambda item, right, text: float(bool(right.strip()) and normalised(right) in normalised(text))


def _f1(folder: Path | None) -> Score:
    """Of words, as in SQuAD."""

    def score(item: dict[str, Any], right: str, text: str) -> float:
        expected, words = normalised(right).split(), normalised(text).split()
        if not expected or not words:
            return float(expected == words)
        same = sum((Counter(expected) & Counter(words)).values())
        return 2 * same / (len(expected) + len(words))

    return score


SCORES: dict[str, tuple[str, Callable[[Path | None], Score]]] = {
    "exact": ("accuracy", _exact),
    "normalised": ("accuracy", _normalised),
    "contains": ("accuracy", _contains),
    "f1": ("F1 of words", _f1),
}
