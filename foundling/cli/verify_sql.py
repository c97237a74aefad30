# SPDX-License-Identifier: Apache-2.0
"""Judge queries by what they answer on a SQLite database, beside the reference queries of the tasks."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundling.cli import verify_samples as shared
from foundling.cli.stdio import say
from foundling.errors import DataError, QueryError

EXAMPLES = [
    "foundling verify sql questions.jsonl samples.jsonl --database movies.db",
    "foundling verify sql questions.jsonl samples.jsonl --timeout 30 --json     # tasks name their databases",
]


def add(parser: argparse.ArgumentParser) -> None:
    shared.add_files(parser, "task_id and completion, or query")
    parser.add_argument("--database", metavar="FILE", help="of the tasks that name none")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for one query (default 5)")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="MiB of memory of one (default 256)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.verify import sql
    from foundling.verify.samples import Sample, read_samples, read_tasks

    path = Path(args.tasks)
    tasks = read_tasks(path, sql.parse_task)
    samples = read_samples(Path(args.samples), tasks, ["completion", "query"])
    limits = {"timeout": args.timeout, "memory": args.memory << 20}
    gold = dict[str, tuple[str, sql.Rows]]()
    for name in dict.fromkeys(sample.task_id for sample in samples):
        task = tasks[name]
        database = str(path.parent / task.database) if task.database else args.database
        if not database:
            raise DataError(f"task {name} names no database; give --database FILE")
        try:
            gold[name] = database, sql.execute(database, task.query, **limits)
        except QueryError as error:
            raise DataError(f"{path}: the reference query of task {name} fails: {error}") from None
    keys = [sql.sample_key(tasks[s.task_id], s.text, gold[s.task_id][0], **limits) for s in samples]

    def judge(sample: Sample) -> dict[str, Any]:
        database, rows = gold[sample.task_id]
        result = sql.check(tasks[sample.task_id], sample.text, rows, Path(database), **limits)
        return {name: value for name, value in asdict(result).items() if name != "task_id"}

    verdicts = shared.judge_file(args, samples, keys, judge)
    summary = shared.summarise(args, tasks, samples, verdicts)
    shares = [task["passed"] / task["samples"] for task in summary["by_task"].values()]
    summary["execution_accuracy"] = figure = shared.mean_over_tasks(shares)
    if not args.json:
        shared.show_figure("execution accuracy", figure)
        say(f"verdicts: {summary['verdicts']}")
    return summary
