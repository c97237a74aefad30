# SPDX-License-Identifier: Apache-2.0
"""What a run's figures say, in words and rows: the report and the model card show these and compute nothing."""

from collections.abc import Iterator
from itertools import pairwise
from math import sqrt
from typing import NamedTuple, TypeVar

from foundling.evaluate.report import units
from foundling.evaluate.report.run import Run, StepRecord
from foundling.evaluate.report.units import known

T = TypeVar("T")

MODEL = "this model"
BASELINE_NAMES = {
    "gzip": "gzip -9, each document alone",
    "xz": "xz -9e, each document alone",
    "xz_stream": "xz -9e, all documents in one stream",
    "ngram": "n-gram model, same training text",
}


class Prediction(NamedTuple):
    what: str
    predicted: str
    actual: str
    error: float | None
    """(predicted - actual) / actual."""


class Bar(NamedTuple):
    name: str
    share: float | None
    """Of the longest bar; None where there is no number to draw."""
    value: str
    ours: bool = False


class Point(NamedTuple):
    """Of the training curve."""

    step: int
    tokens: int
    seconds: float
    loss: float


class Throughput(NamedTuple):
    seconds: float
    tokens_per_second: float


def verdict(run: Run) -> str:
    params = f"{units.count(run.params)} parameters"
    measured, predicted = run.actual["bits_per_byte"], run.predicted["bits_per_byte"]
    if not known(measured):
        return f"{params}; held-out text was not measured."
    score = f"{params}, {units.number(measured)} bits per byte on held-out text"
    return f"{score}; predicted {units.number(predicted)}." if known(predicted) else f"{score}."


def standing(run: Run) -> str:
    """Which baselines the model beats and which it does not, or "" where nothing can be compared."""
    measured = run.actual["bits_per_byte"]
    scores = {name: value for name, value in run.baselines.items() if known(value)}
    if not known(measured) or not scores:
        return ""
    better = [_short(name) for name, value in scores.items() if measured < value]
    worse = [_short(name) for name, value in scores.items() if measured >= value]
    if not worse:
        return f"It needs fewer bits than {_listed(better)}."
    if not better:
        return f"It needs no fewer bits than {_listed(worse)}."
    return f"It needs fewer bits than {_listed(better)}, but no fewer than {_listed(worse)}."


def score_bars(run: Run) -> list[Bar]:
    """The model and its baselines, fewest bits first; those without a number last, with the reason."""
    measured = run.actual["bits_per_byte"]
    scores = {MODEL: measured if known(measured) else "not measured"} | run.baselines
    longest = max((value for value in scores.values() if known(value)), default=1.0) or 1.0
    bars = [
        Bar(baseline_name(name), value / longest, units.number(value, 3), name == MODEL)
        if known(value)
        else Bar(baseline_name(name), None, value if isinstance(value, str) else units.ABSENT, name == MODEL)
        for name, value in scores.items()
    ]
    return sorted(bars, key=lambda bar: float("inf") if bar.share is None else bar.share)


def phase_bars(run: Run) -> list[Bar]:
    total = sum(seconds for _, seconds in run.timeline if known(seconds)) or 1.0
    return [
        Bar(name, seconds / total, f"{units.duration(seconds)} · {units.percent(seconds / total)}")
        if known(seconds)
        else Bar(name, None, units.ABSENT)
        for name, seconds in run.timeline
    ]


def predictions(run: Run) -> list[Prediction]:
    def joules(cost):
        return cost["joules"]["value"] if cost["joules"] else None

    rows = [
        ("time", units.duration, run.predicted["seconds"], run.actual["seconds"]),
        ("peak memory", units.size, run.predicted["peak_bytes"], run.actual["peak_bytes"]),
        ("held-out loss, nats per token", _three_decimals, run.predicted["loss"], run.actual["loss"]),
        ("bits per byte", _three_decimals, run.predicted["bits_per_byte"], run.actual["bits_per_byte"]),
        ("energy", units.energy, joules(run.predicted), joules(run.actual)),
    ]
    return [Prediction(what, show(ahead), show(after), _error(ahead, after)) for what, show, ahead, after in rows]


def energies(run: Run) -> list[tuple[str, str, str]]:
    """(when, energy, what stands behind the number), predicted and actual, where there is a number."""
    costs = (("predicted", run.predicted["joules"]), ("actual", run.actual["joules"]))
    return [
        (when, units.energy(joules["value"]), joules["source"] or "source not stated")
        for when, joules in costs
        if joules and known(joules["value"])
    ]


def share_rows(run: Run) -> list[tuple[str, str, str, int]]:
    """(what, model, n-gram, n), each share with its 95 % interval."""
    return [
        (what, _with_interval(share["model"], share["n"]), _with_interval(share.get("ngram"), share["n"]), share["n"])
        for what, share in run.shares.items()
    ]


def curve(history: list[StepRecord], n: int) -> list[Point]:
    """At most `n` points: each the end of some neighbouring steps, at their mean loss. Non-finite losses fall."""
    points = [
        Point(record["step"], record["tokens"], record["seconds"], record["loss"])
        for record in history
        if known(record["loss"])
    ]
    return [group[-1]._replace(loss=sum(p.loss for p in group) / len(group)) for group in _groups(points, n)]


def throughput(history: list[StepRecord], n: int) -> list[Throughput]:
    """Tokens per second over at most `n` equal spans of steps, each at its end. The clock must have moved."""
    ends = [group[-1] for group in _groups(history, n + 1)]
    return [
        Throughput(b["seconds"], (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]))
        for a, b in pairwise(ends)
        if known(a["seconds"]) and known(b["seconds"]) and b["seconds"] > a["seconds"]
    ]


def baseline_name(name: str) -> str:
    return BASELINE_NAMES.get(name, name)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share seen in n tries (Wilson 1927): unlike ± it stays inside 0 and 1."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _with_interval(share: float | None, n: int) -> str:
    if not known(share) or n < 1:
        return units.ABSENT
    low, high = wilson(share, n)
    return f"{100 * share:.0f}{units.SPACE}% ({100 * low:.0f}–{100 * high:.0f})"


def _groups(records: list[T], n: int) -> Iterator[list[T]]:
    """Consecutive, non-empty, at most n, as equal as they can be."""
    n = min(n, len(records))
    edges = [len(records) * i // n for i in range(n + 1)] if n else []
    return (records[a:b] for a, b in pairwise(edges))


def _error(predicted: float | None, actual: float | None) -> float | None:
    return (predicted - actual) / actual if known(predicted) and known(actual) and actual else None


def _three_decimals(value: float | None) -> str:
    return units.number(value, 3)


def _short(name: str) -> str:
    return {"gzip": "gzip", "xz": "xz", "xz_stream": "xz over one stream", "ngram": "the n-gram model"}.get(name, name)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
