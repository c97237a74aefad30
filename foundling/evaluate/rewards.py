# SPDX-License-Identifier: Apache-2.0
"""Rewards of answers: what checkers and reward models think of them, weighted and summed.

A reward is named as a score of tasks is (maths, exact, instructions, …), so what an evaluation measures is what
learning from rewards maximises; `matches:REGEX` is 1 where the pattern is found; a directory is that of a reward model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foundling.decode.classify import Classifier
from foundling.errors import ConfigError, DataError, FoundlingError
from foundling.evaluate.scoring import SCORES, scorer
from foundling.limits import REWARDS, check_number, shown
from foundling.runtime.hub import local_directory
from foundling.verify.patterns import check_pattern, search_all

Row = Mapping[str, Any]
"""`messages` or `prompt`, which was answered, and the fields that a checker reads: `answer` is what is right"""
MATCHES = "matches:"
_WEIGHTED = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\*(.+)", re.DOTALL)


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


def build_rewards(names: Sequence[str], *, device: str = "cpu", folder: Path | None = None) -> Rewards:
    """Of names such as "maths", "0.5*matches:^Answer:" or "runs/reward". `folder`: of the prompts, where the databases
    of `sql` are. ConfigError for an unknown one, for one that comes twice, and for a directory that is no reward model
    of conversations."""
    REWARDS.check(len(names), "the number of rewards", ConfigError)
    parts = [_part(name, device, folder) for name in names]
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError(f"a reward is named twice in {', '.join(map(shown, names))}; give each once, with a weight")
    return Rewards(parts)


def check_names(names: Sequence[str]) -> None:
    """ConfigError for a name that is none, without loading anything."""
    for text in names:
        _, name = weighted(text)
        if name.startswith(MATCHES):
            check_pattern(name.removeprefix(MATCHES))
        elif name not in SCORES and not _is_directory(name):
            raise ConfigError(_unknown(name))


def weighted(text: str) -> tuple[float, str]:
    """(weight, name) of a reward as it is given. A name may have a `*` itself, in a pattern or a directory."""
    match = _WEIGHTED.fullmatch(text)
    return (check_number(float(match[1]), f"the weight of {shown(text)}"), match[2]) if match else (1.0, text)


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A reward as it is given, with another name where `names` has one for its name."""
    _, name = weighted(text)
    return f"{text[: len(text) - len(name)]}{names.get(name, name)}"


def _part(text: str, device: str, folder: Path | None) -> Part:
    weight, name = weighted(text)
    if name.startswith(MATCHES):
        pattern = name.removeprefix(MATCHES)
        check_pattern(pattern)
        return Part(name, weight, lambda rows, texts: [float(hit) for hit in search_all(pattern, texts)])
    if name in SCORES:
        rules = scorer(name)
        score, compares = rules.make(folder), not rules.reads_item or name == "sql"

        def score_all(rows: Sequence[Row], texts: Sequence[str]) -> list[float]:
            values = list[float]()
            for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
                item = {"id": str(place), **row}
                values.append(max(score(item, right, text) for right in (rights_of(row) if compares else [""])))
            return values

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


def rights_of(row: Row) -> list[str]:
    """What is right, of a list each that is. DataError where the row does not say so, and for what is neither a text
    nor a number."""
    value = row.get("answer")
    values = value if isinstance(value, list) and value else [value]
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in values):
        asked = shown(str(messages_of(row)[-1]["content"]))
        if value is None:
            raise DataError(f"the prompt {asked} has no answer to compare with; name its column with --target")
        raise DataError(
            f"the answer to the prompt {asked} is {shown(value)}; expected a text, a number or a list of these"
        )
    return [str(int(one)) if isinstance(one, float) and one.is_integer() else str(one) for one in values]


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
