# SPDX-License-Identifier: Apache-2.0
"""Several completions of one request, and one that is returned: the best, the most frequent, the first valid one.

All completions share the prompt's cache: an engine computes it once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from foundling.decode.engine.engine import Engine
from foundling.decode.request import Completion, Request, sample_seed
from foundling.errors import GenerationError
from foundling.limits import COMPLETIONS


def repeat_request(request: Request, n: int) -> list[Request]:
    """The request n times; time k draws by sample_seed(seed, k). GenerationError where all would be equal."""
    COMPLETIONS.check(n, "n", GenerationError)
    if n > 1 and request.sampling.temperature == 0:
        raise GenerationError(f"temperature 0 gives the same completion {n} times; raise it or use n=1")
    return [replace(request, seed=sample_seed(request.seed, i)) for i in range(n)]


class BestOf(NamedTuple):
    completion: Completion
    score: float
    completions: list[Completion]
    """all of them, in the order of their seeds"""
    scores: list[float]


def best_of(engine: Engine, request: Request, n: int, score: Callable[[Completion], float] | None = None) -> BestOf:
    """The completion with the highest score, the earliest of equal ones. The default score is the mean log-probability
    per token under the model's own distribution. NaN ranks below every number."""
    if score is None:
        request = replace(request, logprobs=request.logprobs or 0)
        score = lambda completion: completion.mean_logprob if completion.tokens else -math.inf  # noqa: E731
    completions = engine.generate(repeat_request(request, n))
    scores = [float(score(completion)) for completion in completions]
    best = max(range(n), key=lambda i: -math.inf if math.isnan(scores[i]) else scores[i])
    return BestOf(completions[best], scores[best], completions, scores)


class Majority(NamedTuple):
    completion: Completion
    """the first with the most frequent text"""
    votes: int
    counts: dict[str, int]
    """normalised text → votes, most frequent first"""


def majority_vote(
    engine: Engine, request: Request, n: int, normalise: Callable[[str], str | None] = str.strip
) -> Majority | None:
    """Self-consistency (Wang et al. 2022): the most frequent text after `normalise`, the earliest of equally frequent
    ones. A text that `normalise` maps to None does not vote; the result is None where none votes. The request needs
    `decode`."""
    if request.decode is None:
        raise GenerationError("a majority vote compares texts; give the request `decode`, a function from ids to text")
    completions = engine.generate(repeat_request(request, n))
    texts = [normalise(completion.text or "") for completion in completions]
    counts = Counter(text for text in texts if text is not None)
    if not counts:
        return None
    text, votes = counts.most_common(1)[0]
    return Majority(completions[texts.index(text)], votes, dict(counts.most_common()))


class ValidCompletion(NamedTuple):
    completion: Completion
    text: str
    """as generated, or repaired"""
    n_tried: int
    """completions that had finished by then"""


def first_valid(
    engine: Engine,
    request: Request,
    n: int,
    valid: Callable[[str], bool],
    repair: Callable[[str], str] | None = None,
) -> ValidCompletion | None:
    """Generates n completions at once and returns the first to finish whose text, or its repair, is valid; the others
    are cancelled. None where none is valid. The request needs `decode`."""
    if request.decode is None:
        raise GenerationError("validation needs texts; give the request `decode`, a function from ids to text")
    n_tried, outputs = 0, engine.stream(repeat_request(request, n))
    try:
        for output in outputs:
            if output.completion is None:
                continue
            n_tried += 1
            generated = output.completion.text or ""
            for text in [generated] if repair is None else [generated, repair(generated)]:
                if valid(text):
                    return ValidCompletion(output.completion, text, n_tried)
        return None
    finally:
        outputs.close()
