# SPDX-License-Identifier: Apache-2.0
"""What an evaluation will take: tokens counted exactly, seconds by a short probe of the same computation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from foundling.evaluate.local import LocalModel
from foundling.evaluate.runners import run
from foundling.evaluate.subject import Decoding, GenerateRequest, LikelihoodRequest
from foundling.evaluate.subjects import LocalSubject
from foundling.evaluate.task import Task

PROBE_ROWS, PROBE_TOKENS = 8, 24
"""answers that a probe generates, and their length"""


class TaskEstimate(NamedTuple):
    task: str
    items: int
    tokens: int
    """of prompts, options and texts, those that several share once"""
    new_tokens: int
    """that are generated, at most"""
    seconds: float
    """if every answer is as long as it may be"""


def estimate(subject: LocalSubject, tasks: Sequence[Task[Any]]) -> list[TaskEstimate]:
    if not isinstance(subject, LocalModel):
        return [_by_its_first_items(subject, task) for task in tasks]
    counts = [subject.count(task) for task in tasks]
    read = _reading_speed(subject) if any(n for n, _ in counts) else 1.0
    written = _writing_speed(subject, tasks, read) if any(n for _, n in counts) else 1.0
    return [
        TaskEstimate(task.name, len(task.examples), tokens, new, tokens / read + new / written)
        for task, (tokens, new) in zip(tasks, counts, strict=True)
    ]


def _by_its_first_items(subject: LocalSubject, task: Task[Any]) -> TaskEstimate:
    """Seconds in proportion to the tokens, which the first items of the task itself take."""
    documents = None if task.documents is None else task.documents[:PROBE_ROWS]
    few = replace(task, examples=task.examples[:PROBE_ROWS], documents=documents, figures=None)
    run(few, subject)  # warms up, and refuses a task that does not fit
    start = time.perf_counter()
    run(few, subject)
    seconds = time.perf_counter() - start
    tokens, probed = subject.count(task)[0], subject.count(few)[0]
    return TaskEstimate(task.name, len(task.examples), tokens, 0, seconds * tokens / max(1, probed))


def _reading_speed(subject: LocalModel) -> float:
    """Tokens a second of prompts."""
    length = min(256, subject.model.config.max_seq_len - 1, subject.window)
    word = subject.framing.tokenizer.decode(subject.framing.tokenizer.encode("a b c d e f g h")) * length
    ids = subject.framing.tokenizer.encode(word)[: length - 1]
    text, n_rows = subject.framing.tokenizer.decode(ids), max(1, min(8, subject.batch_tokens // length))
    requests = [LikelihoodRequest(f"{i} {text}"[:-1], " a") for i in range(n_rows)]
    seconds = list[float]()
    n = 0
    for _ in range(3):
        start = time.perf_counter()
        n = sum(answer.n_prompt for _, answer in _scored(subject, requests))
        seconds.append(time.perf_counter() - start)
    return n / min(seconds[1:])


def _scored(subject: LocalModel, requests: list[LikelihoodRequest]) -> Any:
    before, subject.truncate = subject.truncate, True
    try:
        return list(subject.loglikelihood(requests))
    finally:
        subject.truncate = before


def _writing_speed(subject: LocalModel, tasks: Sequence[Task[Any]], read: float) -> float:
    """Tokens a second of answers, for the first prompts of the tasks, all rows together."""
    decoding = Decoding(PROBE_TOKENS)
    prompts = [task.prompt(e) for task in tasks if not task.rolling and task.continuations is None
               for e in task.examples[:PROBE_ROWS]][:PROBE_ROWS]  # fmt: skip
    requests = [GenerateRequest(prompt, decoding) for prompt in prompts]
    list(subject.generate(requests))  # warms up, and reads prompts that are then shared
    start = time.perf_counter()
    answers = [answer for _, answer in subject.generate(requests)]
    return max(1, sum(answer.n_tokens for answer in answers)) / (time.perf_counter() - start)
