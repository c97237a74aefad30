# SPDX-License-Identifier: Apache-2.0
"""Run a task: ask a subject, or judge texts that are there already."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from foundling.contracts.records import Item, Result
from foundling.decode.request import sample_seed
from foundling.errors import DataError
from foundling.evaluate.intervals import BOOTSTRAP, bootstrap, interval_of
from foundling.evaluate.pseudo import is_pseudo, pseudo_task
from foundling.evaluate.retrieval import Ranking, rank
from foundling.evaluate.subject import (
    Continuation,
    GeneratedText,
    GenerateRequest,
    LikelihoodRequest,
    MatchRequest,
    Picture,
    Subject,
    prompt_text,
)
from foundling.evaluate.task import Task, best


class Evaluated(NamedTuple):
    result: Result
    items: list[Item]
    answers: list[Any]
    """as the task's score reads them"""


def run(task: Task[Any], subject: Subject, *, on_answer: Callable[[int], None] | None = None) -> Evaluated:
    """Asks the subject for an answer to each example and scores it. Example i draws by sample_seed(seed, i) of the
    task's decoding. `on_answer` is called with the number of answers that each step adds.

    Raises DataError for a task without examples, GenerationError for what the subject cannot do or read."""
    if not task.examples:
        raise DataError(f"task {task.name!r} has no examples; give at least one")
    start = time.perf_counter()
    answers = _ask(task, subject, on_answer or (lambda n: None))
    seconds = time.perf_counter() - start
    evaluated = score(task, answers, subject=subject.name, hashes=subject.hashes)
    counted = [part for answer in answers for part in (answer if isinstance(answer, list) else [answer])]
    cost = {
        "seconds": seconds,
        "prompt_tokens": float(sum(_n_read(part) for part in counted)),
        "new_tokens": float(sum(part.n_tokens for part in counted if isinstance(part, GeneratedText))),
    }
    return evaluated._replace(result=replace(evaluated.result, cost=cost))


def _n_read(part: Any) -> int:
    """Tokens that were read for it: of a continuation its own as well."""
    return part.n_prompt + (part.n_tokens if isinstance(part, Continuation) else 0)


def _ask(task: Task[Any], subject: Subject, on_answer: Callable[[int], None]) -> list[Any]:
    prompts = [task.prompt(example) for example in task.examples]
    if task.documents is not None:
        texts = [*map(prompt_text, prompts), *(text for _, text in task.documents)]
        vectors = _in_order(subject.embed(texts), len(texts), on_answer)
        return rank(vectors[: len(prompts)], vectors[len(prompts) :], [name for name, _ in task.documents])
    if task.rolling:
        return _in_order(subject.rolling([prompt_text(prompt) for prompt in prompts]), len(prompts), on_answer)
    if task.continuations is None:
        sampled = task.decoding.temperature > 0  # greedy answers do not depend on their place
        requests = [
            GenerateRequest(prompt, replace(task.decoding, seed=sample_seed(task.decoding.seed, i) if sampled else 0))
            for i, prompt in enumerate(prompts)
        ]
        return _in_order(subject.generate(requests), len(requests), on_answer)
    options = [list(task.continuations(example)) for example in task.examples]
    if task.pictures:
        matches = [MatchRequest(p, text) for p, texts in zip(prompts, options) if isinstance(p, Picture)
                   for text in texts]  # fmt: skip
        answers = iter(_in_order(subject.match(matches), len(matches), on_answer))
        return [normalised([next(answers) for _ in texts]) for texts in options]
    pairs = [LikelihoodRequest(prompt, text) for prompt, texts in zip(prompts, options) for text in texts]
    answers = iter(_in_order(subject.loglikelihood(pairs), len(pairs), on_answer))
    return [[next(answers) for _ in texts] for texts in options]


def normalised(options: Sequence[Continuation]) -> list[Continuation]:
    """The same with log-probabilities that are of these options alone."""
    top = max(option.logprob for option in options)
    total = top + math.log(sum(math.exp(option.logprob - top) for option in options))
    return [option._replace(logprob=option.logprob - total) for option in options]


def _in_order(answers: Iterable[tuple[int, Any]], n: int, on_answer: Callable[[int], None]) -> list[Any]:
    by_index = dict[int, Any]()
    for index, answer in answers:
        by_index[index] = answer
        on_answer(1)
    assert len(by_index) == n, "a subject answers every request once"
    return [by_index[i] for i in range(n)]


def judge(
    task: Task[Any], answers: Sequence[GeneratedText], *, subject: str = "model", model_hash: str | None = None
) -> Result:
    """Scores texts that are there already, one an example, whoever wrote them."""
    return score(task, answers, subject=subject, hashes={"model": model_hash} if model_hash else {}).result


def score(
    task: Task[Any], answers: Sequence[Any], *, subject: str = "model", hashes: Mapping[str, str] | None = None
) -> Evaluated:
    """The figure, its interval and the items of answers, one an example."""
    if len(answers) != len(task.examples):
        raise DataError(f"task {task.name!r} has {len(task.examples)} examples and got {len(answers)} answers")
    if task.rolling and is_pseudo(answers):
        task = pseudo_task(task)
    scores = [float(task.score(example, answer)) for example, answer in zip(task.examples, answers, strict=True)]
    items = [_item(task, i, answer, scores[i]) for i, answer in enumerate(answers)]
    figures = {name: (f.value, f.low, f.high) for name, f in task.figures(task.examples, answers).items()} \
        if task.figures else {}  # fmt: skip
    result = replace(result_of(task, scores, subject, None), figures=figures)
    return Evaluated(replace(result, hashes={**(hashes or {}), **result.hashes}), items, list(answers))


def _item(task: Task[Any], i: int, answer: Any, score: float) -> Item:
    example = task.examples[i]
    item = Item(
        id=str(example.get("id", i) if isinstance(example, dict) else i),
        prompt=prompt_text(task.prompt(example)), target=task.target(example) if task.target else "",
        answer="", score=score,
    )  # fmt: skip
    if isinstance(answer, GeneratedText):
        item["answer"], item["cut"] = answer.text, answer.cut
    elif isinstance(answer, list):
        item["answer"] = answer[best(answer, task.scale)].text
        item["choices"] = [(option.text, option.logprob) for option in answer]
    elif isinstance(answer, Continuation):
        item["choices"] = [("", answer.logprob)]
    elif isinstance(answer, Ranking):
        item["answer"] = str(answer)
    return item


def result_of(task: Task[Any], scores: list[float], subject: str, model_hash: str | None, runner: Any = None) -> Result:
    weights = [task.weight(example) for example in task.examples] if task.weight else []
    if weights:
        products = [score * weight for score, weight in zip(scores, weights, strict=True)]
        value = sum(products) / sum(weights)
        low, high, method = (*(bootstrap(products, weights) or (None, None)), BOOTSTRAP)
    else:
        value = sum(scores) / len(scores) if scores else None
        low, high, method = interval_of(scores)
    return Result(
        task=task.name, metric=task.metric, value=value, n=len(scores), subject=subject, low=low, high=high,
        interval=method, lower_is_better=task.lower_is_better, scores=scores, weights=weights,
        hashes={**({"model": model_hash} if model_hash else {}), **task.hashes(*([runner] if runner else []))},
    )  # fmt: skip
