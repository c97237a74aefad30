# SPDX-License-Identifier: Apache-2.0
"""More than one answer to a question, and one that is given: the best, the most frequent, the first that holds.

All answers share the prompt's memory: an engine reads it once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from foundling.decode.answer import Answer, Request
from foundling.decode.engine.engine import Engine
from foundling.errors import GenerationError


def several(request: Request, n: int) -> list[Request]:
    """The same question n times, the seeds counted on. GenerationError where all would say the same."""
    if n < 1:
        raise GenerationError(f"n is {n}; expected at least 1")
    if n > 1 and request.sampling.temperature == 0:
        raise GenerationError(f"temperature 0 says the same {n} times; raise it or ask once")
    return [replace(request, seed=request.seed + i) for i in range(n)]


class Best(NamedTuple):
    answer: Answer
    score: float
    answers: list[Answer]
    """all of them, in the order of their seeds"""
    scores: list[float]


def best_of(engine: Engine, request: Request, n: int, score: Callable[[Answer], float] | None = None) -> Best:
    """The answer of the highest score, the earliest of equals; by default of the highest mean log-probability a token
    (under the model's own distribution). A score that is not a number loses to every other."""
    if score is None:
        request = replace(request, logprobs=request.logprobs or 0)
        score = lambda answer: answer.mean_logprob if answer.tokens else -math.inf  # noqa: E731
    answers = engine.answer(several(request, n))
    scores = [float(score(answer)) for answer in answers]
    place = max(range(n), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
    return Best(answers[place], scores[place], answers, scores)


class Majority(NamedTuple):
    answer: Answer
    """the first of those that say it"""
    votes: int
    counts: dict[str, int]
    """normalised text -> votes, most first; None of `normalise` does not vote"""


def majority(
    engine: Engine, request: Request, n: int, normalise: Callable[[str], str | None] = str.strip
) -> Majority | None:
    """Self-consistency (Wang et al. 2022): the text that most answers agree on, after `normalise`; of equals the one
    first said. None where no answer has one. The request needs a `decode`."""
    if request.decode is None:
        raise GenerationError("a majority needs texts; give the request a `decode`, ids to text")
    answers = engine.answer(several(request, n))
    said = [normalise(answer.text or "") for answer in answers]
    counts = Counter(text for text in said if text is not None)
    if not counts:
        return None
    text, votes = counts.most_common(1)[0]
    return Majority(answers[said.index(text)], votes, dict(counts.most_common()))


class Valid(NamedTuple):
    answer: Answer
    text: str
    """as it was said, or repaired"""
    tried: int
    """answers that had ended by then"""


def first_valid(
    engine: Engine,
    request: Request,
    n: int,
    valid: Callable[[str], bool],
    repair: Callable[[str], str] | None = None,
) -> Valid | None:
    """Writes n answers at once and gives the first one to end whose text, or its repair, is valid; the others are
    cancelled. None where none is. The request needs a `decode`."""
    if request.decode is None:
        raise GenerationError("checking needs texts; give the request a `decode`, ids to text")
    tried, events = 0, engine.run(several(request, n))
    try:
        for event in events:
            if event.answer is None:
                continue
            tried += 1
            said = event.answer.text or ""
            for text in [said] if repair is None else [said, repair(said)]:
                if valid(text):
                    return Valid(event.answer, text, tried)
        return None
    finally:
        events.close()
