# SPDX-License-Identifier: Apache-2.0
"""One subject, several tasks, one directory: `evaluation.json`, items, recorded answers. An evaluation that was
interrupted goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.errors import ConfigError, Interrupted
from foundling.evaluate.contamination import contamination_of, texts_of_rows, with_contamination
from foundling.evaluate.recorded import Recorded
from foundling.evaluate.runners import run
from foundling.evaluate.subject import Subject
from foundling.evaluate.task import Task

ANSWERS = "answers.jsonl"
Bar = Callable[[str, int], AbstractContextManager[Any]]
"""(name, total) -> what shows progress and has `advance()`"""


def evaluate(
    subject: Subject,
    tasks: Sequence[Task[Any]],
    answers: Path,
    *,
    bar: Bar,
    command: str = "",
    settings: Mapping[str, Any] | None = None,
    machine: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    corpus: Callable[[], Iterable[str]] | None = None,
) -> EvaluationRecord:
    """Runs every task, with answers taken from and written to the file `answers`. `corpus`: documents in which the
    items are looked for, read once. Interrupted (exit code 75) is raised by a signal: what was answered is kept."""
    names = [task.name for task in tasks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"two tasks have the name {sorted(repeated)[0]!r}; rename one")
    recorded = Recorded(answers, subject)
    results, items, notes = list[Result](), dict[str, list[Item]](), list[str]()
    for task in tasks:
        with bar(task.name, _n_answers(task)) as shown:
            try:
                evaluated = run(task, recorded, on_answer=lambda n, shown=shown: shown.advance())
            except Interrupted as stop:
                raise Interrupted(stop.number, f"in {task.name}", "the same command goes on") from None
        items[task.name] = evaluated.items
        results.append(evaluated.result)
    if corpus is not None:
        measured = contamination_of([texts_of_rows(task.examples) for task in tasks], corpus())
        results = [with_contamination(r, items[r.task], m) for r, m in zip(results, measured, strict=True)]
        notes += [f"{task.name}: {m}" for task, m in zip(tasks, measured, strict=True)]
    if recorded.n_replayed:
        notes.append(f"{recorded.n_replayed:,} answers were recorded before")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return EvaluationRecord(
        subject.name, created, command, results, items, dict(settings or {}), dict(machine or {}), dict(about or {}),
        notes,
    )  # fmt: skip


def _n_answers(task: Task[Any]) -> int:
    if task.continuations is None or task.rolling:
        return len(task.examples) + len(task.documents or ())
    return sum(len(task.continuations(example)) for example in task.examples)
