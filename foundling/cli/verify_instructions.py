# SPDX-License-Identifier: Apache-2.0
"""Check whether answers follow verifiable instructions, in the format of IFEval and IFBench."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import say
from foundling.errors import DataError

EXAMPLES = [
    "foundling verify instructions IFBench_test.jsonl responses.jsonl",
    "foundling verify instructions prompts.jsonl responses.jsonl --json",
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", help="JSONL: key, prompt, instruction_id_list, kwargs")
    parser.add_argument("samples", help="JSONL: key or prompt, and response; one for each task at most")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from foundling.verify.instructions import check, score

    tasks, samples = _read(args.tasks, args.samples)
    results = [(name, check(text, *_instructions(tasks[name], name))) for name, text in samples]
    scores = score(followed for _, followed in results)
    unanswered = len(tasks) - len(results)
    if args.json:
        rows = [
            {"key": name, "instructions": followed.kinds, "strict": followed.strict, "loose": followed.loose}
            for name, followed in results
        ]
        return {"tasks": len(tasks), "unanswered": unanswered, **asdict(scores), "results": rows}
    say(f"{scores.prompts} answers, {scores.instructions} instructions, {unanswered} prompts without an answer")
    say(f"prompts with all followed   strict {scores.prompt_strict:6.1%}   loose {scores.prompt_loose:6.1%}")
    say(f"instructions followed       strict {scores.instruction_strict:6.1%}   loose {scores.instruction_loose:6.1%}")
    for kind, (n, strict, loose) in scores.by_kind.items():
        say(f"  {kind:44} {n:5} {strict / n:7.1%} {loose / n:7.1%}")
    return {}


def _read(tasks_path: str, samples_path: str) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """The tasks by key, and (key, answer) of each sample, which names its task by key or by prompt."""
    from foundling.limits import shown
    from foundling.verify.samples import read_rows, read_tasks

    tasks = read_tasks(tasks_path, ("prompt", "instruction_id_list", "kwargs"), key="key")
    by_prompt = {task["prompt"]: name for name, task in tasks.items() if isinstance(task["prompt"], str)}
    samples: dict[str, str] = {}
    for where, row in read_rows(samples_path):
        name = str(row["key"]) if "key" in row else by_prompt.get(str(row.get("prompt")), "")
        if name not in tasks:
            field = "key" if "key" in row else "prompt"
            raise DataError(f"{where}: the {field} {shown(row.get(field))} is not in the tasks")
        if name in samples:
            raise DataError(f"{where}: the key {shown(name)} has two answers; keep one")
        if not isinstance(row.get("response"), str):
            raise DataError(f"{where}: the sample has no text in the field 'response'")
        samples[name] = row["response"]
    if not samples:
        raise DataError(f"{samples_path}: the file has no samples")
    return tasks, list(samples.items())


def _instructions(task: dict[str, Any], name: str) -> tuple[str, list[str], list[dict[str, Any] | None]]:
    from foundling.limits import shown

    prompt, kinds, arguments = task["prompt"], task["instruction_id_list"], task["kwargs"]
    listed = isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds) and isinstance(arguments, list)
    if not (isinstance(prompt, str) and listed and all(item is None or isinstance(item, dict) for item in arguments)):
        raise DataError(
            f"the task {shown(name)} is not of IFEval's format: prompt a text, instruction_id_list a list of texts,"
            " kwargs a list of objects"
        )
    return prompt, kinds, arguments
