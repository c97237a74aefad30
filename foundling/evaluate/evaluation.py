# SPDX-License-Identifier: Apache-2.0
"""One subject, several tasks, one directory: `evaluation.json`, items, recorded answers. An evaluation that was
interrupted goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.errors import ConfigError, Interrupted, MismatchError
from foundling.evaluate.contamination import contamination_of, texts_of_rows, with_contamination
from foundling.evaluate.recorded import REPORTED, Recorded
from foundling.evaluate.runners import run
from foundling.evaluate.subject import Subject
from foundling.evaluate.task import Task

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
    if recorded.others:
        raise MismatchError(
            f"{answers}: holds answers of {sorted(recorded.others)[0]!r}, or of another template or backend; choose "
            "another --out"
        )
    results, items, notes = list[Result](), dict[str, list[Item]](), list[str]()
    for task in tasks:
        with bar(task.name, _n_answers(task)) as shown:
            before = recorded.n_replayed
            try:
                evaluated = run(task, recorded, on_answer=lambda n, shown=shown: shown.advance())
            except Interrupted as stop:
                raise Interrupted(stop.number, f"in {task.name}", "the same command goes on") from None
        items[task.name], result = evaluated.items, evaluated.result
        if recorded.n_replayed > before:  # the time of what was computed before is not known
            result = replace(result, cost={k: v for k, v in result.cost.items() if k != "seconds"})
        results.append(result)
    if corpus is not None:
        measured = contamination_of([texts_of_rows(task.examples, task.fields) for task in tasks], corpus())
        results = [with_contamination(r, items[r.task], m) for r, m in zip(results, measured, strict=True)]
        notes += [f"{task.name}: {m}" for task, m in zip(tasks, measured, strict=True)]
    if recorded.n_replayed:
        notes.append(f"{recorded.n_replayed:,} answers were recorded before")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return EvaluationRecord(
        subject.name, created, command, results, items, dict(settings or {}), dict(machine or {}), dict(about or {}),
        notes,
    )  # fmt: skip


def check_same_subject(previous: EvaluationRecord, subject: Subject, place: Path) -> None:
    """MismatchError where a directory holds an evaluation of another model, template or backend."""
    now = subject.hashes
    for result in previous.results:
        before = result.hashes
        other = [
            name
            for name in ("model", "template", "backend")
            if before.get(name) != now.get(name) and not before.get(name, "").startswith(REPORTED)
        ]
        if other:
            raise MismatchError(
                f"{place}: holds an evaluation of {previous.subject!r} with another {other[0]}; choose another --out"
            )


def with_previous(previous: EvaluationRecord, record: EvaluationRecord) -> EvaluationRecord:
    """The record with the tasks of an earlier one that were not run again."""
    names = {result.task for result in record.results}
    earlier = [result for result in previous.results if result.task not in names]
    items = {result.task: previous.items[result.task] for result in earlier if result.task in previous.items}
    notes = [f"{result.task}: as it was measured before" for result in earlier]
    return replace(
        record, results=[*earlier, *record.results], items={**items, **record.items}, notes=[*record.notes, *notes]
    )


def _n_answers(task: Task[Any]) -> int:
    if task.continuations is None or task.rolling:
        return len(task.examples) + len(task.documents or ())
    return sum(len(task.continuations(example)) for example in task.examples)
