# SPDX-License-Identifier: Apache-2.0
"""A task: examples, how each becomes a prompt, and how an answer to it is scored."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from foundling.errors import DataError
from foundling.evaluate.metrics import Figure
from foundling.evaluate.subject import Continuation, Decoding, GeneratedText, Prompt

E = TypeVar("E")


@dataclass(frozen=True)
class Task(Generic[E]):
    """`score(example, answer)` is a number per example, and their mean is the task's figure.

    An answer is the GeneratedText that follows the prompt; with `continuations` a list with a Continuation for each of
    these texts; with `rolling` the Continuation of the prompt itself, a whole text.
    """

    name: str
    examples: Sequence[E]
    """plain data (numbers, strings, lists, dicts, dataclasses): they are hashed"""
    prompt: Callable[[E], Prompt]
    score: Callable[[E, Any], float]
    continuations: Callable[[E], Sequence[str]] | None = None
    metric: str = "accuracy"
    lower_is_better: bool = False
    rolling: bool = False
    documents: Sequence[tuple[str, str]] | None = None
    """(id, text) of what the prompts are queries for: an answer is then a Ranking (evaluate/retrieval.py)"""
    pictures: bool = False
    """each prompt is a Picture, and a Continuation is a text that could describe it"""
    decoding: Decoding = field(default_factory=Decoding)
    """how answers are generated"""
    target: Callable[[E], str] | None = None
    """what is right, for a reader"""
    weight: Callable[[E], float] | None = None
    """of an example in the mean: the bytes of a text, for a score in bits per byte"""
    figures: Callable[[Sequence[E], Sequence[Any]], dict[str, Figure]] | None = None
    """more figures of all examples and answers, by name: calibration, F1"""
    scale: Callable[[Continuation], float] | None = None
    """what the log-probability of a continuation is divided by before options are compared; None for 1"""
    rule: str = ""
    """how answers are scored, by name, where several rules have one metric"""
    packages: tuple[str, ...] = ()
    """whose files are a part of the code that scores, beside those that define the functions"""
    fields: tuple[str, ...] = ()
    """of a row, that its templates read; () for all"""

    def hashes(self, *runner: Callable[..., Any]) -> dict[str, str]:
        """SHA-256 of the examples with the task's name, what is right and the rule; of the rendered prompts and
        continuations, with how they are answered; and of the source files that score."""
        rendered = [
            [self.prompt(example), list(self.continuations(example)) if self.continuations else []]
            for example in self.examples
        ]
        functions = [self.prompt, self.score, *([self.continuations] if self.continuations else []), *runner]
        code = sorted({*map(_source, functions), *(_package(name) for name in self.packages)})
        right = [self.target(example) for example in self.examples] if self.target else []
        sampled = self.decoding.temperature > 0  # a greedy answer has no seed
        decoding = dataclasses.asdict(self.decoding if sampled else dataclasses.replace(self.decoding, seed=0))
        return {
            "task": _digest(
                [self.name, self.metric, self.rule, right, [_plain(example) for example in self.examples]]
                + ([list(map(list, self.documents))] if self.documents is not None else []),
                self.name,
            ),
            "prompt": _digest([rendered, decoding], self.name),
            "code": _digest(code, self.name),
        }


def choice(answer: Callable[[Any], int]) -> Callable[[Any, list[Continuation]], float]:
    """Scores 1 where the likeliest continuation is number answer(example)."""
    return lambda example, options: float(best(options) == answer(example))


def choice_per_byte(answer: Callable[[Any], int]) -> Callable[[Any, list[Continuation]], float]:
    """`choice` by log-probability per UTF-8 byte, so that length does not decide (lm-evaluation-harness: acc_norm)."""
    return lambda example, options: float(best(options, per_byte) == answer(example))


def exact_match(answer: Callable[[Any], str]) -> Callable[[Any, GeneratedText], float]:
    """Scores 1 where the generated text is answer(example), white space at either end aside."""
    return lambda example, generated: float(generated.text.strip() == answer(example).strip())


def per_byte(option: Continuation) -> float:
    """The UTF-8 bytes of a continuation: a `scale`."""
    return max(1, len(option.text.encode()))


def best(options: Sequence[Continuation], scale: Callable[[Continuation], float] | None = None) -> int:
    """The index of the likeliest, the first of equal ones."""
    values = [c.logprob / (scale(c) if scale else 1) for c in options]
    return max(range(len(values)), key=values.__getitem__)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _digest(value: Any, task: str) -> str:
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"task {task!r}: its examples are not plain data ({error}); use numbers, strings, lists and dicts"
        ) from None
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=16)
def _package(name: str) -> str:
    """A digest of all modules of a package."""
    (folder,) = importlib.import_module(name).__path__
    files = sorted(Path(folder).rglob("*.py"))
    return hashlib.sha256("".join(map(_file_digest, map(str, files))).encode()).hexdigest()


def _source(function: Callable[..., Any]) -> str:
    """A digest of the file that defines the function; of its bytecode where there is no file."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(function if hasattr(function, "__code__") else type(function))
        return _file_digest(path or "")
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return hashlib.sha256(code.co_code if code else repr(type(function)).encode()).hexdigest()
