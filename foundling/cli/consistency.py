# SPDX-License-Identifier: Apache-2.0
"""Measure how far a model's answers depend on what should not matter: hardware, number format, wording of a prompt."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import note, say

EXAMPLES = [
    "foundling consistency runs/notes questions.yaml",
    "foundling consistency runs/chat questions.yaml --chat --limit 50 --json",
]
LIMIT, MAX_TOKENS = 30, 48


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="directory of a model or adapter, or hf://ORG/NAME")
    parser.add_argument("task", help="task file (.yaml) whose prompts are asked")
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="N", help=f"first N items (default {LIMIT})")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N",
                        help=f"tokens of an answer (default {MAX_TOKENS})")  # fmt: skip
    parser.add_argument("--chat", action="store_true", help="frame each prompt by the chat template")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.cli.subjects import is_local
    from foundling.errors import ConfigError
    from foundling.evaluate.conditions import conditions
    from foundling.evaluate.consistency import agreement, measure, variants
    from foundling.evaluate.subject import Decoding, GenerateRequest, LikelihoodRequest
    from foundling.evaluate.task_file import load_task
    from foundling.limits import ITEMS, MAX_TOKENS

    if not is_local(args.dir):
        raise ConfigError(
            f"{args.dir} is no directory; threads, batches and number formats are set on this machine alone"
        )
    ITEMS.check(args.limit, "--limit")
    task, decoding = load_task(args.task, limit=args.limit), Decoding(MAX_TOKENS.check(args.max_tokens, "--max-tokens"))
    prompts = [task.prompt(example) for example in task.examples]
    requests: list[Any] = [GenerateRequest(prompt, decoding) for prompt in prompts]
    if task.continuations:
        requests += [LikelihoodRequest(prompt, text) for prompt, example in zip(prompts, task.examples)
                     for text in task.continuations(example)]  # fmt: skip
    subjects = conditions(args.dir, chat=args.chat)
    note(f"asking {len(requests)} requests under {len(subjects)} conditions")
    report = measure(subjects, requests)
    reworded = [variants(prompt) for prompt in prompts]
    names = list(reworded[0])
    every = [GenerateRequest(prompt, decoding) for row in reworded for prompt in row.values()]
    answers = dict(subjects[report.reference].generate(every))
    wording = agreement(
        {name: [answers[i * len(names) + j].text for i in range(len(reworded))] for j, name in enumerate(names)}
    )
    if not args.json:
        assert report.answers
        _table(f"answers that differ from {report.reference}", report.answers.by_condition)
        for name, change in report.logprobs.items():
            say(f"  {name:28} log-probabilities: mean |Δ| {change.mean.value:.2g}, largest {change.largest:.2g} nats")
        if report.preferred:
            _table("options whose order differs", report.preferred.by_condition)
        _table("answers that differ from those to the prompt as it is", wording.by_condition)
    return {"reference": report.reference, "hardware": _json(report), "wording": _shares(wording.by_condition)}


def _table(title: str, rows: Any) -> None:
    say(title)
    for name, figure in rows.items():
        say(f"  {name:28} {figure.value:6.1%} ({figure.low:.1%} to {figure.high:.1%})")


def _shares(rows: Any) -> dict[str, Any]:
    return {name: figure._asdict() for name, figure in rows.items()}


def _json(report: Any) -> dict[str, Any]:
    logprobs = {name: row._asdict() | {"mean": row.mean._asdict()} for name, row in report.logprobs.items()}
    return {
        "answers": _shares(report.answers.by_condition),
        "logprobs": logprobs,
        "preferred": _shares(report.preferred.by_condition) if report.preferred else {},
    }
