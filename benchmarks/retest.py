# SPDX-License-Identifier: Apache-2.0
"""Whether a judge says the same twice: test–retest agreement of its grades, before and after three remedies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from foundling.decode.request import sample_seed
from foundling.decode.response_cache import ResponseCache
from foundling.errors import DataError
from foundling.evaluate.intervals import BOOTSTRAP, bootstrap, interval_of
from foundling.evaluate.judge import Graded, Judge
from foundling.evaluate.metrics import Figure, cohen_kappa
from foundling.evaluate.subject import Decoding
from foundling.limits import check_number

BEFORE, GREEDY, SEED, CACHE, LOGPROBS = "sampled", "greedy", "fixed seed", "answer cache", "log-probabilities"


class Retest(NamedTuple):
    """Two gradings of the same texts."""

    agreement: Figure
    """share of texts with the same grade twice, of those whose grades could both be read"""
    difference: Figure
    """mean distance of the two grades, of these"""
    kappa: Figure
    """Cohen's, unweighted"""
    same_text: Figure
    """share of all texts for which the judge wrote the same twice; of log-probabilities, the same grade"""
    n: int
    unparsed: tuple[int, int]
    """grades that could not be read, of the first and the second time"""


def retest(
    judge: Judge, texts: Sequence[tuple[str, str]], *, temperature: float = 1.0, seed: int = 0, logprobs: bool = False
) -> dict[str, Retest]:
    """Grades each (prompt, answer) twice under each of

    - "sampled": at `temperature`, with another seed for each text and time: before any remedy;
    - "greedy": the likeliest token each time;
    - "fixed seed": at `temperature`, with a seed that depends on the text's number alone;
    - "answer cache": as the first, but what was answered is not asked again;
    - "log-probabilities": the likeliest grade, without writing (only with `logprobs`, where the subject gives them).

    The second time the texts come in reverse order, so that they fall into other batches. DataError for no text."""
    if not texts:
        raise DataError("a retest needs at least one text to judge twice")
    check_number(temperature, "temperature", 1e-6, 100)
    base = replace(judge.decoding, temperature=temperature)
    written = replace(judge, by="text")
    n = len(texts)
    fixed = [replace(base, seed=sample_seed(seed, i)) for i in range(n)]
    again = [replace(base, seed=sample_seed(seed + 1, i)) for i in range(n)]
    greedy = [replace(base, temperature=0.0)] * n
    cache: ResponseCache[Graded] = ResponseCache(n)
    first = _graded(written, texts, fixed)
    for (prompt, answer), graded in zip(texts, first, strict=True):
        cache.put(answer, graded, prompt)
    cached = [cache.get(answer, prompt) for prompt, answer in texts]
    results = {
        BEFORE: _compared(first, _graded(written, texts, again, reverse=True)),
        GREEDY: _compared(*_twice(lambda reverse: _graded(written, texts, greedy, reverse=reverse))),
        SEED: _compared(first, _graded(written, texts, fixed, reverse=True)),
        CACHE: _compared(first, [graded for graded in cached if graded is not None]),
    }
    if logprobs:
        likely = replace(judge, by="logprobs")
        results[LOGPROBS] = _compared(*_twice(lambda reverse: _graded(likely, texts, greedy, reverse=reverse)))
    return results


def _twice(grade: Callable[[bool], list[Graded]]) -> tuple[list[Graded], list[Graded]]:
    return grade(False), grade(True)


def _graded(
    judge: Judge, texts: Sequence[tuple[str, str]], decodings: Sequence[Decoding], *, reverse: bool = False
) -> list[Graded]:
    """In the order of `texts`, also where they are asked in reverse."""
    step = -1 if reverse else 1
    return judge.grade_all(texts[::step], decodings=decodings[::step])[::step]


def _compared(first: list[Graded], second: list[Graded]) -> Retest:
    pairs = [(a.grade, b.grade) for a, b in zip(first, second, strict=True)]
    read = [(a, b) for a, b in pairs if a is not None and b is not None]
    same = [float(a == b) for a, b in read]
    distances = [float(abs(a - b)) for a, b in read]
    texts = [float((a.text, a.grade) == (b.text, b.grade)) for a, b in zip(first, second, strict=True)]
    nothing = Figure(None, None, None, "")
    return Retest(
        _share(same), _mean(distances), cohen_kappa(*zip(*read, strict=True)) if read else nothing, _share(texts),
        len(pairs), (sum(a is None for a, _ in pairs), sum(b is None for _, b in pairs)),
    )  # fmt: skip


def _mean(values: list[float]) -> Figure:
    """By bootstrap, also where all are 0 or 1: distances are no shares."""
    ends = bootstrap(values)
    value = sum(values) / len(values) if values else None
    return Figure(value, *ends, BOOTSTRAP) if ends else Figure(value, None, None, "")


def _share(values: list[float]) -> Figure:
    return Figure(sum(values) / len(values), *interval_of(values)) if values else Figure(None, None, None, "")
