# SPDX-License-Identifier: Apache-2.0
"""What the kinds of `foundling verify` share: arguments, the file of verdicts, progress, the summary."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foundling.cli.common import progress_for
from foundling.cli.stdio import note, say
from foundling.errors import Interrupted


def add_files(parser: argparse.ArgumentParser, samples: str) -> None:
    parser.add_argument("tasks", metavar="TASKS", help="JSON lines, gzipped or not: the tasks")
    parser.add_argument("samples", metavar="SAMPLES", help=f"JSON lines, gzipped or not: {samples}")
    parser.add_argument(
        "--out", metavar="FILE",
        help="verdicts as JSON lines, written as they come; those of an earlier run are taken from there "
        "(default: SAMPLES.verdicts.jsonl)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, metavar="N", help="samples judged at once (default: one a processor)")


def workers_of(args: argparse.Namespace) -> int:
    from foundling.limits import WORKERS

    default = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return WORKERS.check(default if args.workers is None else args.workers, "--workers")


def out_of(args: argparse.Namespace) -> Path:
    if args.out:
        return Path(args.out)
    samples = Path(args.samples)
    stem = samples.name.removesuffix(".gz")
    return samples.with_name(f"{stem.removesuffix('.jsonl')}.verdicts.jsonl")


def judge_file(
    args: argparse.Namespace, samples: Sequence[Any], keys: Sequence[str], judge: Callable[[Any], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The verdicts of all samples, in their order. Interrupted says how to go on."""
    from foundling.verify.samples import judge_all, open_verdicts

    done = 0
    with open_verdicts(out_of(args)) as verdicts, progress_for(args).bar("judged", len(samples), unit="samples") as bar:

        def on_verdict(n: int, total: int) -> None:
            nonlocal done
            for _ in range(n - done):
                bar.advance()
            done = n

        try:
            return judge_all(samples, keys, judge, verdicts, workers_of(args), on_verdict)
        except Interrupted as stop:
            at = f"after {done:,} of {len(samples):,} samples"
            raise Interrupted(stop.number, at, "give the same command again") from None


def summarise(
    args: argparse.Namespace, tasks: Mapping[str, Any], samples: Sequence[Any], verdicts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Counts, which every kind has; printed where --json is not given."""
    counts = {name: [0, 0] for name in tasks}
    for sample, verdict in zip(samples, verdicts, strict=True):
        counts[sample.task_id][0] += 1
        counts[sample.task_id][1] += bool(verdict["passed"])
    without = sum(not n for n, _ in counts.values())
    passed = sum(c for _, c in counts.values())
    reasons = dict(Counter(verdict["reason"] for verdict in verdicts).most_common())
    if not args.json:
        say(
            f"{passed:,} of {len(samples):,} samples pass, {len(tasks) - without:,} of {len(tasks):,} tasks have "
            f"samples"
        )
        if set(reasons) - {"passed"}:
            say("not passed: " + ", ".join(f"{reason} {n:,}" for reason, n in reasons.items() if reason != "passed"))
    if without:
        have = "has" if without == 1 else "have"
        note(f"note: {without:,} of {len(tasks):,} tasks {have} no sample; no figure counts them")
    return {
        "tasks": len(tasks), "tasks_without_samples": without, "samples": len(samples), "passed": passed,
        "reasons": reasons, "verdicts": str(out_of(args)),
        "by_task": {name: {"samples": n, "passed": c} for name, (n, c) in counts.items() if n},
    }  # fmt: skip


def mean_over_tasks(values: Sequence[float]) -> dict[str, Any]:
    """A mean with its interval over tasks."""
    from foundling.evaluate.intervals import interval_of

    low, high, method = interval_of(values)
    return {"value": sum(values) / len(values), "low": low, "high": high, "interval": method, "tasks": len(values)}


def show_figure(name: str, figure: Mapping[str, Any]) -> None:
    bounds = "" if figure["low"] is None else f" ({figure['low']:.1%} to {figure['high']:.1%})"
    say(f"{name}: {figure['value']:.1%}{bounds} over {figure['tasks']:,} tasks")
