# SPDX-License-Identifier: Apache-2.0
"""Judge queries by what they answer on a SQLite database, beside the reference queries of the tasks."""

from __future__ import annotations

import argparse
import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foundling.cli import verify_samples as shared
from foundling.cli.stdio import say
from foundling.errors import DataError, QueryError
from foundling.limits import shown

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
    databases = {name: _database(path, tasks[name], args.database) for name in {sample.task_id for sample in samples}}
    keys = [sql.sample_key(tasks[s.task_id], s.text, databases[s.task_id], **limits) for s in samples]

    @functools.cache
    def reference(name: str) -> sql.Rows:
        try:
            return sql.execute(databases[name], tasks[name].query, **limits)
        except QueryError as error:
            raise DataError(f"{path}: the reference query of task {shown(name)} fails: {error}") from None

    def judge(sample: Sample) -> dict[str, Any]:
        name = sample.task_id
        result = sql.check(tasks[name], sample.text, reference(name), databases[name], **limits)
        return {field: value for field, value in asdict(result).items() if field != "task_id"}

    verdicts = shared.judge_file(args, samples, keys, judge)
    summary = shared.summarise(args, tasks, samples, verdicts)
    shares = [task["passed"] / task["samples"] for task in summary["by_task"].values()]
    summary["execution_accuracy"] = figure = shared.mean_over_tasks(shares)
    if not args.json:
        shared.show_figure("execution accuracy", figure)
        say(f"verdicts: {summary['verdicts']}")
    return summary


def _database(tasks: Path, task: Any, default: str | None) -> Path:
    """The task's own, beside the file of tasks, or the one of `--database`."""
    from foundling.verify.sql import require_database

    if task.database:
        return require_database(tasks.parent / task.database)
    if default is None:
        raise DataError(f"task {shown(task.task_id)} names no database; give --database FILE")
    return require_database(Path(default))
