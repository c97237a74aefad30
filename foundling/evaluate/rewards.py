# SPDX-License-Identifier: Apache-2.0
"""Rewards of answers: what checkers and reward models think of them, weighted and summed.

A reward is named as a score of tasks is (maths, exact, instructions, …), so what an evaluation measures is what
learning from rewards maximises; `matches:REGEX` is 1 where the pattern is found; a directory is that of a reward model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from foundling.decode.classify import Classifier
from foundling.errors import ConfigError, DataError, FoundlingError
from foundling.evaluate.scoring import SCORES, scorer
from foundling.limits import REWARDS, shown
from foundling.runtime.hub import local_directory

Row = Mapping[str, Any]
"""`messages` or `prompt`, which was answered, and the fields that a checker reads: `answer` is what is right"""
MATCHES = "matches:"
_WEIGHTED = re.compile(r"([-+]?[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\*(.+)", re.DOTALL)


class Part(NamedTuple):
    name: str
    weight: float
    score: Callable[[Sequence[Row], Sequence[str]], Sequence[float]]
    model: Classifier | None = None
    """of a reward model"""


class Rewards:
    """Of all parts together; `parts` alone says what each contributes."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)

    def __call__(self, rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
        """A number for each text, which answers the row at the same place. DataError, with the name of the reward, for
        a row without the fields that a checker needs, and for a number that is not finite."""
        return self.summed(self.by_part(rows, texts))

    def summed(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """What `by_part` returned, weighted and summed."""
        weights = [part.weight for part in self.parts]
        return [sum(w * value for w, value in zip(weights, one)) for one in zip(*parts.values())]

    def by_part(self, rows: Sequence[Row], texts: Sequence[str]) -> dict[str, list[float]]:
        """Without weights, by name."""
        every = dict[str, list[float]]()
        for part in self.parts:
            try:
                values = [float(value) for value in part.score(rows, texts)]
            except FoundlingError as error:
                raise DataError(f"the reward '{part.name}' cannot be computed: {error}") from None
            for text, value in zip(texts, values, strict=True):
                if not math.isfinite(value):
                    raise DataError(f"the reward '{part.name}' of {shown(text)} is {value}; expected a finite number")
            every[part.name] = values
        return every

    def check(self, rows: Sequence[Row]) -> None:
        """DataError for the first row that a checker cannot score, found before anything is drawn."""
        for part in self.parts:
            if part.model is None:
                Rewards([part]).by_part(rows, [""] * len(rows))

    @property
    def directories(self) -> list[str]:
        """of the reward models"""
        return [part.name for part in self.parts if part.model is not None]


def build_rewards(names: Sequence[str], *, device: str = "cpu") -> Rewards:
    """Of names such as "maths", "0.5*matches:^Answer:" or "runs/reward". ConfigError for an unknown one, for one that
    comes twice, and for a directory that is no reward model of conversations."""
    REWARDS.check(len(names), "the number of rewards", ConfigError)
    parts = [_part(name, device) for name in names]
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError(f"a reward is named twice in {', '.join(map(shown, names))}; give each once, with a weight")
    return Rewards(parts)


def check_names(names: Sequence[str]) -> None:
    """ConfigError for a name that is none, without loading anything."""
    for name in names:
        _, name = _weighted(name)
        if name.startswith(MATCHES):
            _pattern(name)
        elif name not in SCORES and not _is_directory(name):
            raise ConfigError(_unknown(name))


def _part(text: str, device: str) -> Part:
    weight, name = _weighted(text)
    if name.startswith(MATCHES):
        pattern = _pattern(name)
        return Part(name, weight, lambda rows, texts: [float(pattern.search(text) is not None) for text in texts])
    if name in SCORES:
        rules = scorer(name)
        score, reads_item = rules.make(None), rules.reads_item

        def score_all(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
            rights = [right_of(row, needed=not reads_item) for row in rows]
            return [score(dict(r), right, text) for r, right, text in zip(rows, rights, texts, strict=True)]

        return Part(name, weight, score_all)
    if not _is_directory(name):
        raise ConfigError(_unknown(name))
    model = Classifier.load(name)
    if not model.scores_chats:
        raise ConfigError(f"{name}: is no reward model; foundling align reward makes one")
    model.model.to(device).requires_grad_(False)
    return Part(name, weight, lambda rows, texts: score_answers(model, rows, texts), model)


def score_answers(model: Classifier, rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
    """By a reward model, which reads conversations by its own tokenizer and template. DataError for one that is too
    long for it."""
    chats = [[*messages_of(row), {"role": "assistant", "content": text}] for row, text in zip(rows, texts, strict=True)]
    values = list[float]()
    for value in model.score_chats(chats):
        if value is None:
            raise DataError(
                f"a conversation is longer than the {model.longest:,} tokens that the reward model reads; shorten "
                "prompts or answers"
            )
        values.append(value)
    return values


def messages_of(row: Row) -> list[dict[str, Any]]:
    """What was asked, as messages."""
    asked = row.get("messages", row.get("prompt", ""))
    return [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)


def right_of(row: Row, *, needed: bool = True) -> str:
    """What is right. DataError where it is `needed` and the row does not say so."""
    value = row.get("answer")
    if value is None and needed:
        asked = shown(messages_of(row)[-1]["content"])
        raise DataError(f"the prompt {asked} has no answer to compare with; name its column with --target")
    return "" if value is None else str(value)


def _weighted(text: str) -> tuple[float, str]:
    match = _WEIGHTED.fullmatch(text)
    return (float(match[1]), match[2]) if match else (1.0, text)


def _pattern(name: str) -> re.Pattern[str]:
    text = name.removeprefix(MATCHES)
    try:
        return re.compile(text, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"the pattern {shown(text)} of a reward is no regular expression: {error}") from None


def _is_directory(name: str) -> bool:
    try:
        return (local_directory(name) / "config.json").is_file() or (
            local_directory(name) / "adapter_config.json"
        ).is_file()
    except (FoundlingError, OSError):
        return False


def _unknown(name: str) -> str:
    known = ", ".join(SCORES)
    return f"the reward {shown(name)} is unknown; use {known}, {MATCHES}REGEX, or the directory of a reward model"
