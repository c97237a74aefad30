# SPDX-License-Identifier: Apache-2.0
"""Compare the final answers of solutions with the tasks' answers."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from foundling.cli.stdio import note, say
from foundling.errors import DataError

EXAMPLES = [
    "foundling verify maths tasks.jsonl samples.jsonl",
    "foundling verify maths gsm8k.jsonl samples.jsonl --json",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", help="JSONL: task_id, and answer or solution (also GSM8K's, which ends '#### 72')")
    parser.add_argument("samples", help="JSONL: task_id and completion; a task may have several")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.verify.maths import compare, final_answer
    from foundling.verify.samples import read_samples, read_tasks

    tasks = read_tasks(args.tasks)
    answers = {name: _expected(task, name) for name, task in tasks.items()}
    samples = read_samples(args.samples, tasks)
    results, reasons = [], Counter[str]()
    for sample in samples:
        name = sample["task_id"]
        answer = final_answer(sample["completion"])
        comparison = None if answer is None else compare(answer, answers[name])
        by = "no answer" if comparison is None else comparison.by
        reasons[by] += 1
        right = comparison is not None and comparison.equal
        results.append({"task_id": name, "answer": answer, "expected": answers[name], "right": right, "by": by})
    n = sum(result["right"] for result in results)
    for reason in ("undecided", "math-verify is not installed"):
        if reasons[reason]:
            way = "" if reason == "undecided" else ": pip install 'foundling[verify]'"
            note(f"{reasons[reason]} comparisons count as wrong: {reason}{way}")
    if args.json:
        return {
            "tasks": len(tasks), "samples": len(samples), "right": n, "accuracy": n / len(samples),
            "decided_by": dict(sorted(reasons.items())), "results": results,
        }  # fmt: skip
    say(f"{n} of {len(samples)} samples are right ({n / len(samples):.1%}), {reasons['no answer']} have no answer")
    return {}


def _expected(task: dict[str, Any], name: str) -> str:
    """The final answer of a task: its `answer`, which GSM8K writes with the solution, or its `solution`'s."""
    from foundling.limits import shown
    from foundling.verify.maths import final_answer

    text = task.get("answer", task.get("solution"))
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    answer = final_answer(text) if isinstance(text, str) else None
    if answer is None:
        raise DataError(f"the task {shown(name)} has no final answer in its field 'answer' or 'solution'")
    return answer
