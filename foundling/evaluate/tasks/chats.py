# SPDX-License-Identifier: Apache-2.0
"""Held-out chats: whether a model answers the last message as its writer did, and whether its answers end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foundling.contracts.records import Result
from foundling.evaluate.runners import run, score
from foundling.evaluate.scoring import scorer
from foundling.evaluate.subject import Decoding, GeneratedText, Prompt, Subject
from foundling.evaluate.task import Task, exact_match

TASK = "held-out questions"
FREQUENT = "most frequent answer of its kind"
"""a subject that reads no question"""
MAX_TOKENS = 48
"""of an answer"""

Row = Mapping[str, Any]
"""{"messages": [..., the answer], "kind", "group"}"""


def answer_of(row: Row) -> str:
    return str(row["messages"][-1]["content"])


def question_of(row: Row) -> Prompt:
    return row["messages"][:-1]


def tasks(rows: Sequence[Row]) -> list[Task[Row]]:
    """Exactly right, of all and of each group; F1 of words (SQuAD's); the share of answers that end by themselves."""
    f1, decoding = scorer("f1").make(None), Decoding(max_tokens=MAX_TOKENS)
    exact: Any = exact_match(answer_of)
    groups = list(dict.fromkeys(row["group"] for row in rows))

    def task(name: str, value: Any, metric: str = "share") -> Task[Row]:
        return Task(name, rows, question_of, value, metric=metric, decoding=decoding, target=answer_of)

    apart = [(group, [row for row in rows if row["group"] == group]) for group in groups]
    return [
        task(f"{TASK}, answered exactly", exact),
        *(replace(task(f"{TASK}, {group}, answered exactly", exact), examples=part)
          for group, part in apart if len(groups) > 1),
        task(TASK, lambda row, answer: f1({}, answer_of(row), answer.text), "F1 of words"),
        task(f"{TASK}, answers that end", lambda row, answer: float(not answer.cut)),
    ]  # fmt: skip


def measure(subject: Subject, rows: Sequence[Row]) -> tuple[list[Result], list[str]]:
    """The results of a model that chats, and its answers in the order of `rows`."""
    return _scored(rows, run(tasks(rows)[0], subject).answers, subject.name, subject.hashes)


def measure_frequent(rows: Sequence[Row], learnt: Sequence[Row]) -> list[Result]:
    """Of the answer that the `learnt` rows have most often, for each kind of question."""
    by_kind: dict[str, Counter[str]] = {}
    for row in learnt:
        by_kind.setdefault(row["kind"], Counter())[answer_of(row)] += 1
    texts = [by_kind[row["kind"]].most_common(1)[0][0] if row["kind"] in by_kind else "" for row in rows]
    return _scored(rows, [GeneratedText(text) for text in texts], FREQUENT, {})[0]


def _scored(
    rows: Sequence[Row], answers: Sequence[Any], name: str, hashes: Mapping[str, str]
) -> tuple[list[Result], list[str]]:
    by_row = {id(row): answer for row, answer in zip(rows, answers, strict=True)}
    results = [
        replace(score(task, [by_row[id(r)] for r in task.examples], subject=name, hashes=hashes).result, scores=[])
        for task in tasks(rows)
    ]
    return results, [answer.text for answer in answers]
