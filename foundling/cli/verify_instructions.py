# SPDX-License-Identifier: Apache-2.0
"""Check whether answers follow verifiable instructions, in the format of IFEval and IFBench."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from foundling.cli import verify_samples as shared
from foundling.cli.stdio import say
from foundling.errors import DataError
from foundling.limits import shown

EXAMPLES = [
    "foundling verify instructions IFBench_test.jsonl responses.jsonl",
    "foundling verify instructions prompts.jsonl responses.jsonl --json",
]


class _Task(NamedTuple):
    prompt: str
    kinds: list[str]
    arguments: list[dict[str, Any] | None]


def add(parser: argparse.ArgumentParser) -> None:
    shared.add_files(parser, "key or prompt, and response; tasks have key, prompt, instruction_id_list and kwargs")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict
    from importlib.util import find_spec

    from foundling.verify.instructions import Followed, check, score
    from foundling.verify.samples import Sample, key_of, read_tasks

    tasks = read_tasks(Path(args.tasks), _task, "key")
    samples = _samples(Path(args.samples), tasks)

    def judge(sample: Sample) -> dict[str, Any]:
        followed = check(sample.text, *tasks[sample.task_id])
        passed = all(followed.strict)
        return {"passed": passed, "reason": "passed" if passed else "not followed", **asdict(followed)}

    language = find_spec("py3langid") is not None
    keys = [key_of("instructions", language, tasks[sample.task_id], sample.text) for sample in samples]
    verdicts = shared.judge_file(args, samples, keys, judge)
    summary = shared.summarise(args, tasks, samples, verdicts)
    scores = score(Followed(v["kinds"], v["strict"], v["loose"]) for v in verdicts)
    if not args.json:
        for name, strict, loose in (
            ("prompts with all followed", scores.prompt_strict, scores.prompt_loose),
            ("instructions followed", scores.instruction_strict, scores.instruction_loose),
        ):
            say(f"{name:27} strict {strict:6.1%}   loose {loose:6.1%}")
        for kind, (n, strict, loose) in scores.by_kind.items():
            say(f"  {kind:44} {n:5} {strict / n:7.1%} {loose / n:7.1%}")
        say("rules: foundling (docs/verification.md says where they differ from the published checkers')")
    return summary | asdict(scores) | {"rules": "foundling"}


def _samples(path: Path, tasks: dict[str, _Task]) -> list[Any]:
    """Each names its task by key or by prompt."""
    from foundling.verify.samples import Sample, read_lines, task_id, text_field

    by_prompt: dict[str, list[str]] = {}
    for name, task in tasks.items():
        by_prompt.setdefault(task.prompt, []).append(name)
    samples = []
    for number, row in read_lines(path):
        where = f"{path}:{number}"
        names = [task_id(row, where, "key")] if "key" in row else by_prompt.get(str(row.get("prompt")), [])
        if len(names) > 1:
            several = f"that of {len(names):,} tasks ({shown(names)}); give the 'key'"
            raise DataError(f"{where}: prompt {shown(row['prompt'])} is {several}")
        name = names[0] if names else ""
        if name not in tasks:
            field = "key" if "key" in row else "prompt"
            raise DataError(f"{where}: {field} {shown(row.get(field))} is none of the {len(tasks):,} tasks")
        samples.append(Sample(number, name, text_field(row, ["response"], where)))
    if not samples:
        raise DataError(f"{path}: has no samples; expected JSON lines with 'key' or 'prompt', and 'response'")
    return samples


def _task(row: dict[str, Any], name: str, where: str) -> _Task:
    prompt, kinds, arguments = (row.get(field) for field in ("prompt", "instruction_id_list", "kwargs"))
    if (
        isinstance(prompt, str) and isinstance(kinds, list) and isinstance(arguments, list)
        and all(isinstance(kind, str) for kind in kinds)
        and all(item is None or isinstance(item, dict) for item in arguments)
    ):  # fmt: skip
        return _Task(prompt, kinds, arguments)
    raise DataError(
        f"{where}: is not of IFEval's format: prompt a text, instruction_id_list a list of texts, kwargs a list of "
        "objects"
    )
