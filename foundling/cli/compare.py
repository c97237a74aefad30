# SPDX-License-Identifier: Apache-2.0
"""Compare two evaluations item by item, with a verdict for continuous integration."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from foundling.cli import exits
from foundling.cli.stdio import note, say
from foundling.errors import ConfigError

EXAMPLES = [
    "foundling compare evals/before evals/after",
    "foundling compare evals/before evals/after --tolerance 1 --html changed.html",
    "foundling compare evals/small evals/large --across template --json",
]
SHOWN = 5
"""changed answers of a task that are printed, of the largest losses and as many of the largest gains"""
WIDTH, NAME = 200, 48
"""characters of a prompt or an answer in a line, and of a task's name in the table"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", help="directory of an evaluation: the baseline")
    parser.add_argument("b", help="directory of another one, judged against it")
    parser.add_argument(
        "--tolerance", type=float, metavar="POINTS",
        help="differences of at most so many points do not matter; 'same' then has to be shown",
    )  # fmt: skip
    parser.add_argument(
        "--across", default="", metavar="NAMES",
        help="compare although these differ: template, backend, prompt (with commas)",
    )  # fmt: skip
    parser.add_argument(
        "--changed",
        default=str(SHOWN),
        metavar="N",
        help=f"changed answers to show of each task, or 'all' (default {SHOWN})",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page with all changed answers side by side")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.evaluate.compare import compare_evaluations
    from foundling.evaluate.store import read_evaluation

    n_changed = _number(args.changed)
    across = [name.strip() for name in args.across.split(",") if name.strip()]
    a, b = read_evaluation(args.a), read_evaluation(args.b)
    comparison = compare_evaluations(a, b, tolerance=args.tolerance, across=across)
    for text in comparison.notes:
        note(f"note: {text}")
    if args.html:
        from foundling.report.comparison import write_comparison_page

        write_comparison_page(comparison, args.html)
    code = {"worse": exits.WORSE, "undecided": exits.UNDECIDED}.get(comparison.verdict, 0)
    if args.json:
        value = asdict(comparison)
        for row in value["tasks"]:
            row["n_changed"] = len(row["changed"])
            row["changed"] = _few(row["changed"], n_changed)
        return value | {"page": args.html, "exit_code": code}
    _print(comparison, n_changed)
    if args.html:
        say(f"page: {args.html}")
    return {"exit_code": code}


def _number(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"--changed {text}: expected a whole number, or 'all'")
    return int(text)


def _few(changed: list[Any], n: int | None) -> list[Any]:
    """The largest losses and as many of the largest gains; all for None."""
    return changed if n is None or len(changed) <= 2 * n else changed[:n] + changed[len(changed) - n :]


def _print(comparison: Any, n_changed: int | None) -> None:
    from foundling.report.comparison import change, headline, rows

    say(headline(comparison))
    table = [["task", "n", "a", "b", "difference (95 %)", "p adjusted", "better", "worse", "could show", "verdict"]]
    table += [[row.task if len(row.task) <= NAME else row.task[: NAME - 1] + "…", *row[1:]] for row in rows(comparison)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        cells = [cell.ljust(w) if i in (0, 9) else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))]
        say("  ".join(cells).rstrip())
    say(f"rule: {comparison.rule}")
    for task in comparison.tasks:
        few = _few(task.changed, n_changed)
        if few:
            say()
            more = f", {len(few)} shown" if len(few) < len(task.changed) else ""
            say(f"{task.task}: {len(task.changed)} changed answers{more}")
        for changed in few:
            say(f"  {change(changed, task)}  {changed.id}", limit=WIDTH)
            lines = ("prompt", changed.prompt[-WIDTH:]), ("right", changed.target), ("a", changed.a), ("b", changed.b)
            for name, text in lines:
                if text:
                    say(f"    {name:7}{text}", limit=WIDTH + 12)
