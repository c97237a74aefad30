# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation: tasks with intervals and cost, reliability, and the items with what was asked and
answered. A pure function of the record."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

from markupsafe import Markup

from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.report import units
from foundling.report.pages import page, write_page
from foundling.report.reliability import (
    choice_confidences,
    expected_error,
    probabilities,
    reliability_bins,
    reliability_svg,
)
from foundling.report.units import known

MAX_ITEMS, MAX_PAGE_ITEMS = 200, 2_000
"""on the page: of one task, and of all"""
MAX_CHOICES = 12
MARKS = {"right": "✓", "wrong": "✗", "part": "~", "none": "·"}


class Choice(NamedTuple):
    text: str
    probability: float
    right: bool


class ItemRow(NamedTuple):
    item: Item
    outcome: str
    """right, wrong, part, or none where scores are no shares"""
    mark: str
    score: str
    choices: list[Choice]


class TaskRow(NamedTuple):
    result: Result
    anchor: str
    value: str
    interval: str
    bar: tuple[float, float, float] | None
    """low, value, high in percent of the track"""
    scale: str
    """what the track goes to"""
    seconds: str
    tokens: str
    latency: str
    figures: list[tuple[str, str]]
    plot: Markup | None
    calibration: str
    rows: list[ItemRow]
    n_items: int


def write_evaluation_page(record: EvaluationRecord, path: str | PathLike[str]) -> None:
    """Writes the page. OutputError if it cannot be written."""
    write_page(evaluation_html(record), path)


def evaluation_html(record: EvaluationRecord) -> str:
    """The page as text. It holds at most MAX_ITEMS items a task and says so; evaluation.json's directory has all."""
    share = max(1, min(MAX_ITEMS, MAX_PAGE_ITEMS // max(1, len(record.results))))
    listed = set[str]()
    rows = list[TaskRow]()
    for i, result in enumerate(record.results):
        first = result.task not in listed  # two metrics of one task share its items
        listed.add(result.task)
        rows.append(_task_row(result, f"task-{i + 1}", record.items.get(result.task, []) if first else [], share))
    total = {
        key: sum(r.cost.get(key, 0.0) for r in record.results) for key in ("seconds", "prompt_tokens", "new_tokens")
    }
    shown = [row for row in rows if row.rows]
    return page(
        "evaluation.html.j2", "viewer.js", record=record, rows=rows, total=total, shown=shown,
        outcomes=[o for o in MARKS if any(r.outcome == o for row in shown for r in row.rows)],
        plots=[row for row in rows if row.plot], hashes=hash_rows(record.results), max_items=share,
        facts=[(key, _fact(key, value)) for key, value in record.about.items() if value not in (None, "")],
    )  # fmt: skip


def figure(result: Result, value: float | None) -> str:
    """A value of the result's metric: a share in percent."""
    if not known(value):
        return units.ABSENT
    return f"{100 * value:.1f}{units.SPACE}%" if is_share(result) else units.number(value, 3)


def is_share(result: Result) -> bool:
    """Whether the figure is a share of 1, shown in percent."""
    bounded = all(known(v) and 0 <= v <= 1 for v in (result.value, result.low, result.high) if v is not None)
    return bounded and not any(word in result.metric for word in ("bits", "nats", "seconds", "bytes"))


def outcome(item: Item, share: bool) -> str:
    if item["score"] == 1 and share:
        return "right"
    if item["score"] == 0 and share:
        return "wrong"
    return "part" if share else "none"


def choose(items: Sequence[Item], n: int) -> list[Item]:
    """At most n items in their order: where there are more, as many that scored 0 as others, as far as there are."""
    if len(items) <= n:
        return list(items)
    wrong = [i for i, item in enumerate(items) if item["score"] == 0]
    rest = [i for i, item in enumerate(items) if item["score"] != 0]
    n_wrong = max(n - len(rest), min(len(wrong), (n + 1) // 2))
    return [items[i] for i in sorted([*wrong[:n_wrong], *rest[: n - n_wrong]])]


def hash_rows(results: Sequence[Result]) -> list[tuple[str, dict[str, str]]]:
    """(task, its hashes), and those that all share once under the name ""."""
    names = list(dict.fromkeys(name for result in results for name in result.hashes))
    common = {n: results[0].hashes[n] for n in names if len({r.hashes.get(n) for r in results}) == 1}
    own = [(r.task, {n: h for n, h in r.hashes.items() if n not in common}) for r in results]
    return [("", common)] * bool(common) + [(task, hashes) for task, hashes in own if hashes]


def _task_row(result: Result, anchor: str, items: list[Item], n: int) -> TaskRow:
    share = is_share(result)
    seconds, latency = result.cost.get("seconds"), result.cost.get("latency")
    if latency is None and known(seconds) and result.n:
        latency = seconds / result.n
    tokens = result.cost.get("prompt_tokens", 0.0) + result.cost.get("new_tokens", 0.0)
    top = 1.0 if share else max([abs(v) for v in (result.value, result.high) if known(v)], default=1.0) or 1.0
    bounded = known(result.value) and known(result.low) and known(result.high) and min(result.low, result.value) >= 0
    confidences, correct = choice_confidences(items)
    bins = reliability_bins(confidences, correct)
    error = expected_error(confidences, correct) if bins else 0.0
    says = f"expected calibration error {error:.3f} of {len(confidences):,} answers" if bins else ""
    return TaskRow(
        result=result, anchor=anchor, value=figure(result, result.value),
        interval=f"{figure(result, result.low)} – {figure(result, result.high)}" if known(result.low) else units.ABSENT,
        bar=tuple(100 * v / top for v in (result.low, result.value, result.high)) if bounded else None,  # pyright: ignore
        scale=f"0 to {figure(result, top)}", seconds=units.duration(seconds),
        tokens=units.count(tokens) if tokens else units.ABSENT, latency=units.duration(latency),
        figures=[(name, _with_interval(*numbers)) for name, numbers in result.figures.items()],
        plot=Markup(reliability_svg(bins, says)) if bins else None, calibration=says,
        rows=[_item_row(item, share) for item in choose(items, n)], n_items=len(items),
    )  # fmt: skip


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    interval = f" ({units.number(low, 3)} – {units.number(high, 3)})" if known(low) and known(high) else ""
    return units.number(value, 3) + interval


def _item_row(item: Item, share: bool) -> ItemRow:
    choices, kind = item.get("choices", []), outcome(item, share)
    rows = list[Choice]()
    if len(choices) > 1:
        shares = probabilities([logprob for _, logprob in choices])
        target = item["target"].strip()
        rows = [Choice(text, p, text.strip() == target) for (text, _), p in zip(choices, shares, strict=True)]
    score = "" if kind in ("right", "wrong") else f"{item['score']:.3g}"
    return ItemRow(item, kind, MARKS[kind], score, rows[:MAX_CHOICES])


def _fact(key: str, value: object) -> str:
    if known(value):
        return units.size(value) if key.endswith("bytes") else units.count(value)
    return str(value)
