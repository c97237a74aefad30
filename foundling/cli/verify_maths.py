# SPDX-License-Identifier: Apache-2.0
"""Compare the final answers of solutions with the tasks' answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foundling.cli import verify_samples as shared
from foundling.cli.stdio import note
from foundling.errors import DataError

EXAMPLES = [
    "foundling verify maths tasks.jsonl samples.jsonl",
    "foundling verify maths gsm8k.jsonl samples.jsonl --json",
]
NOT_INSTALLED = "math-verify is not installed"


def add(parser: argparse.ArgumentParser) -> None:
    shared.add_files(parser, "task_id and completion; tasks have an answer or a solution (GSM8K's ends '#### 72')")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.verify import symbolic
    from foundling.verify.maths import compare, final_answer
    from foundling.verify.samples import Sample, key_of, read_samples, read_tasks

    answers = read_tasks(Path(args.tasks), _expected)
    samples = read_samples(Path(args.samples), answers, ["completion"])

    def judge(sample: Sample) -> dict[str, Any]:
        answer = final_answer(sample.text)
        comparison = None if answer is None else compare(answer, answers[sample.task_id])
        passed = comparison is not None and comparison.equal
        reason = "passed" if passed else "no answer" if comparison is None else "another answer"
        if comparison is not None and comparison.by in ("undecided", NOT_INSTALLED):
            reason = comparison.by
        return {"passed": passed, "reason": reason, "answer": answer, "expected": answers[sample.task_id]}

    keys = [key_of("maths", symbolic.version(), answers[sample.task_id], sample.text) for sample in samples]
    verdicts = shared.judge_file(args, samples, keys, judge)
    summary = shared.summarise(args, answers, samples, verdicts)
    if n := summary["reasons"].get(NOT_INSTALLED):
        note(f"{n} answers count as wrong, since {NOT_INSTALLED}: pip install 'foundling[verify]'")
    shares = [task["passed"] / task["samples"] for task in summary["by_task"].values()]
    summary["accuracy"] = figure = shared.mean_over_tasks(shares)
    if not args.json:
        shared.show_figure("accuracy", figure)
    return summary


def _expected(task: dict[str, Any], name: str, where: str) -> str:
    """The final answer of a task: its `answer`, which GSM8K writes with the solution, or its `solution`'s."""
    from foundling.verify.maths import final_answer

    text = task.get("answer", task.get("solution"))
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)
    answer = final_answer(text) if isinstance(text, str) else None
    if answer is None:
        raise DataError(f"{where}: has no final answer in its field 'answer' or 'solution'")
    return answer
