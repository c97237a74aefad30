# SPDX-License-Identifier: Apache-2.0
"""Small evaluations for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.evaluate.intervals import interval_of

HASHES = {name: name[0] * 64 for name in ("model", "task", "prompt", "code", "template", "backend")}


def items_of(scores: Sequence[float], *, prefix: str = "q") -> list[Item]:
    """A question with two choices for each score; the second choice is taken where it is 0."""
    return [
        Item(
            id=f"{prefix}{i}", prompt=f"Question {i}:", target=" yes", answer=" yes" if score else " no",
            score=float(score), choices=[(" yes", -1.0 if score else -2.5), (" no", -2.0)],
        )
        for i, score in enumerate(scores)
    ]  # fmt: skip


def evaluation(
    tasks: Mapping[str, Sequence[float]], *, subject: str = "a", lower: Sequence[str] = (), **hashes: str
) -> EvaluationRecord:
    """A record with items of each task; the tasks named in `lower` are in bits per byte and without items."""
    results, items = list[Result](), dict[str, list[Item]]()
    for task, values in tasks.items():
        scores = [float(value) for value in values]
        low, high, method = interval_of(scores)
        results.append(
            Result(
                task, "bits per byte" if task in lower else "accuracy", sum(scores) / max(1, len(scores)), len(scores),
                subject, low, high, method, task in lower, scores, {**HASHES, **hashes},
                cost={"seconds": 2.0, "prompt_tokens": 30.0, "new_tokens": 0.0},
            )
        )  # fmt: skip
        if task not in lower:
            items[task] = items_of(scores, prefix=task[:1])
    return EvaluationRecord(
        subject, "2026-11-27T12:00:00", f"foundling evaluate runs/{subject} --out evals/{subject}", results, items,
        about={"family": "llama", "params": 1_000_000}, notes=["nothing was left out"],
    )  # fmt: skip
