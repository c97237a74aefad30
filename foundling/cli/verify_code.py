# SPDX-License-Identifier: Apache-2.0
"""Judge completions of programming tasks by the tests of the tasks, in a sandbox."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundling.cli import verify_samples as shared
from foundling.cli.stdio import note, say
from foundling.errors import ConfigError
from foundling.limits import SANDBOX_MEMORY, SANDBOX_SECONDS, check_number, shown

EXAMPLES = [
    "foundling verify code HumanEval.jsonl.gz samples.jsonl --k 1,10,100",
    "foundling verify code mbpp.jsonl samples.jsonl --timeout 10 --workers 8 --json",
]


def add(parser: argparse.ArgumentParser) -> None:
    shared.add_files(parser, "task_id and completion, several for a task where pass@k is asked for")
    parser.add_argument("--k", default="1", metavar="LIST", help="pass@k for these k (default 1)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for one sample (default 5)")
    parser.add_argument("--memory", type=int, default=512, metavar="MIB", help="MiB of memory of one (default 512)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.verify import code, sandbox
    from foundling.verify.samples import Sample, read_samples, read_tasks

    ks = _numbers(args.k)
    tasks = read_tasks(Path(args.tasks), code.parse_task)
    samples = read_samples(Path(args.samples), tasks, ["completion"])
    check_number(args.timeout, "--timeout", *SANDBOX_SECONDS)
    limits = sandbox.checked_limits(timeout=args.timeout, memory=_memory(args.memory))
    backend = sandbox.choose()
    keys = [code.sample_key(tasks[s.task_id], s.text, limits.timeout, limits.memory) for s in samples]

    def judge(sample: Sample) -> dict[str, Any]:
        result = code.check(
            tasks[sample.task_id], sample.text, timeout=limits.timeout, memory=limits.memory, backend=backend
        )
        return {name: value for name, value in asdict(result).items() if name != "task_id"}

    verdicts = shared.judge_file(args, samples, keys, judge)
    summary = shared.summarise(args, tasks, samples, verdicts) | {"sandbox": backend, "pass_at_k": {}}
    counts = [(task["samples"], task["passed"]) for task in summary["by_task"].values()]
    for k in ks:
        if values := code.pass_at_k_of_tasks(counts, k):
            summary["pass_at_k"][str(k)] = figure = shared.mean_over_tasks(values)
            if not args.json:
                shared.show_figure(f"pass@{k}", figure)
        if len(values) < len(counts):
            n = len(counts) - len(values)
            note(f"note: pass@{k} leaves out {n:,} task{'s' * (n > 1)} with fewer than {k} samples")
    if not args.json:
        say(f"verdicts: {summary['verdicts']} (sandbox: {backend})")
    return summary


def _memory(mebibytes: int) -> int:
    """Bytes of --memory."""
    low, high = SANDBOX_MEMORY.low >> 20, SANDBOX_MEMORY.high >> 20
    if not low <= mebibytes <= high:
        raise ConfigError(f"--memory is {shown(mebibytes)} MiB; expected from {low} to {high:,}")
    return mebibytes << 20


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise ConfigError(f"--k is '{text}'; expected whole numbers from 1, such as 1,10,100")
    return sorted(set(numbers))
