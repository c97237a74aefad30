# SPDX-License-Identifier: Apache-2.0
"""A comparison of two evaluations in words, rows and one page: pure functions of an EvaluationComparison."""

from __future__ import annotations

from os import PathLike
from typing import NamedTuple

from foundling.contracts.comparison import ChangedAnswer, EvaluationComparison, TaskComparison
from foundling.report import units
from foundling.report.pages import page, write_page

MAX_CHANGED, MAX_PAGE_CHANGED = 400, 2_000
"""changed answers on the page: of one task, and of all"""


class Row(NamedTuple):
    task: str
    n: str
    a: str
    b: str
    difference: str
    p: str
    better: str
    worse: str
    smallest: str
    verdict: str


def headline(comparison: EvaluationComparison) -> str:
    """The verdict in one line."""
    parts = [comparison.overall] * (comparison.overall is not None) + comparison.tasks
    rows = [part for part in parts if part and part.verdict == comparison.verdict]
    where = f" on {', '.join(row.task for row in rows[:3])}" if comparison.verdict in ("better", "worse") else ""
    where += f" and {len(rows) - 3} more" if where and len(rows) > 3 else ""
    also = [part.task for part in parts if part and part.verdict == "better" and comparison.verdict == "worse"]
    mixed = f" (and better on {', '.join(also[:3])})" if also else ""
    words = {
        "same": "no difference shown" if comparison.tolerance is None
        else f"the same within {comparison.tolerance:g} points",
        "undecided": f"too few items to show that they differ by at most {comparison.tolerance or 0:g} points",
    }.get(comparison.verdict, "")  # fmt: skip
    return f"{comparison.b} against {comparison.a}: {comparison.verdict}{where}{mixed}{': ' + words if words else ''}"


def rows(comparison: EvaluationComparison) -> list[Row]:
    """Tasks, and the mean over them last."""
    return [_row(task) for task in [*comparison.tasks, *([comparison.overall] if comparison.overall else [])]]


def amount(value: float | None, share: bool, *, signed: bool = True) -> str:
    """A difference: of shares in points."""
    if value is None:
        return units.ABSENT
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}" if share else f"{value:{sign}.4g}"


def change(changed: ChangedAnswer, task: TaskComparison) -> str:
    """What became of a score, in words."""
    if {changed.a_score, changed.b_score} == {0, 1}:
        words = ("wrong", "right") if not task.lower_is_better else ("0", "1")
        return f"{words[int(changed.a_score)]} → {words[int(changed.b_score)]}"
    word = "worse" if changed.gain < 0 else "better"
    return f"{word}: {_score(changed.a_score, task.share)} → {_score(changed.b_score, task.share)}"


def write_comparison_page(comparison: EvaluationComparison, path: str | PathLike[str]) -> None:
    """Writes the page. OutputError if it cannot be written."""
    write_page(comparison_html(comparison), path)


def comparison_html(comparison: EvaluationComparison) -> str:
    """The page as text: the table, and changed answers side by side, at most MAX_CHANGED a task."""
    parts = [*comparison.tasks, *([comparison.overall] if comparison.overall else [])]
    scales = {share: _scale([part for part in parts if part.share == share]) for share in (True, False)}
    share = max(2, min(MAX_CHANGED, MAX_PAGE_CHANGED // max(1, len(comparison.tasks))))
    return page(
        "comparison.html.j2", "viewer.js", comparison=comparison, headline=headline(comparison), amount=amount,
        table=[(part, _row(part), _bar(part, scales[part.share])) for part in parts],
        tasks=[(f"task-{i + 1}", task, few(task.changed, share)) for i, task in enumerate(comparison.tasks)],
        change=change,
    )  # fmt: skip


def few(changed: list[ChangedAnswer], n: int) -> list[ChangedAnswer]:
    """At most n: the largest losses and as many of the largest gains."""
    return changed if len(changed) <= n else changed[: n // 2] + changed[len(changed) - n // 2 :]


def _row(task: TaskComparison) -> Row:
    interval = f" [{amount(task.low, task.share)}, {amount(task.high, task.share)}]" if task.low is not None else ""
    name = task.task if task.share else f"{task.task}, {task.metric}"
    return Row(
        name, f"{task.n:,}", _score(task.a, task.share), _score(task.b, task.share),
        amount(task.difference, task.share) + interval, _p(task.adjusted), f"{task.gains:,}", f"{task.losses:,}",
        "±" + amount(task.smallest, task.share, signed=False) if task.smallest is not None else "none",
        task.verdict,
    )  # fmt: skip


def _score(value: float, share: bool) -> str:
    return f"{100 * value:.1f}" if share else f"{value:.4g}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _scale(tasks: list[TaskComparison]) -> float:
    """The largest end of an interval."""
    return max((abs(end) for task in tasks for end in (task.low or 0.0, task.high or 0.0)), default=1.0) or 1.0


def _bar(task: TaskComparison, scale: float) -> tuple[float, float, float] | None:
    """low, difference, high in percent of a track with 0 in its middle"""
    if task.low is None or task.high is None:
        return None
    low, value, high = (50 + 50 * v / scale for v in (task.low, task.difference, task.high))
    return low, value, high
