# SPDX-License-Identifier: Apache-2.0
"""What a run's figures say, in words and rows: the report and the model card show these and compute nothing."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, TypeVar

from foundling.contracts.records import Result, RunRecord, Sample, StepRecord
from foundling.report import units
from foundling.report.units import known

T = TypeVar("T")

MODEL = "this model"
BASELINE_NAMES = {
    "gzip": "gzip -9, each document alone",
    "xz": "xz -9e, each document alone",
    "xz_stream": "xz -9e, all documents in one stream",
    "ngram": "n-gram model, same training text",
}
SHORT_NAMES = {"gzip": "gzip", "xz": "xz", "xz_stream": "xz over one stream", "ngram": "the n-gram model"}
SUBJECT_NAMES = {"model": MODEL, "ngram": "n-gram model", "held_out": "held-out text"}
PROPORTIONS = {"share", "accuracy"}
"""metrics shown in percent"""
FOLD_LINES, FOLD_CHARACTERS = 5, 360
"""of a sample, before it folds"""


class Prediction(NamedTuple):
    what: str
    predicted: str
    actual: str
    error: float | None
    """actual / predicted - 1"""


class Bar(NamedTuple):
    name: str
    share: float | None
    """of the longest bar; None where there is no number to draw"""
    value: str
    ours: bool = False


class Point(NamedTuple):
    """of the training curve"""

    step: int
    tokens: int
    seconds: float
    loss: float


class Throughput(NamedTuple):
    seconds: float
    tokens_per_second: float


class Fold(NamedTuple):
    """A sample in two parts, of which the first is always visible."""

    prompt: str
    text: str
    more_prompt: str
    more_text: str
    n_lines: int
    """of the whole"""


class ResultRow(NamedTuple):
    task: str
    values: list[str]
    """one a subject, each with its interval"""
    n: str


def measured(run: RunRecord) -> float | None:
    """The main metric on held-out data."""
    return run.actual.get(run.metric.key)


def predicted(run: RunRecord) -> float | None:
    return run.predicted.get(run.metric.key)


def prediction_words(run: RunRecord) -> str:
    """A sentence on the prediction of the main metric: a number, or that there is none."""
    if not known(predicted(run)):
        return f"There is {run.no_prediction}."
    return f"Predicted before the first step: {units.number(predicted(run), 3)}."


def verdict(run: RunRecord) -> str:
    """The run in one sentence."""
    params = f"{units.count(run.params)} parameters"
    if not known(measured(run)):
        return f"{params}; not measured on held-out data."
    score = f"{params}, {units.number(measured(run))} {run.metric.name} on held-out data"
    ahead = f"predicted {units.number(predicted(run))}" if known(predicted(run)) else run.no_prediction
    return f"{score}; {ahead}."


def standing(run: RunRecord) -> str:
    """Which baselines the model beats and which it does not, or "" where nothing can be compared."""
    ours = measured(run)
    scores = {name: value for name, value in run.baselines.items() if known(value)}
    if not known(ours) or not scores:
        return ""
    sign = 1 if run.metric.lower_is_better else -1
    beaten = [_short(name) for name, value in scores.items() if sign * ours < sign * value]
    rest = [_short(name) for name, value in scores.items() if sign * ours >= sign * value]
    if not rest:
        return f"Better than {_listed(beaten)}."
    if not beaten:
        return f"Not better than {_listed(rest)}."
    return f"Better than {_listed(beaten)}; not better than {_listed(rest)}."


def score_bars(run: RunRecord) -> list[Bar]:
    """The model and its baselines, the best first; those without a number last, with the reason."""
    ours = measured(run)
    scores = {MODEL: ours if known(ours) else "not measured"} | run.baselines
    longest = max((abs(value) for value in scores.values() if known(value)), default=1.0) or 1.0
    numbers = {name: value for name, value in scores.items() if known(value)}
    best_first = sorted(numbers.items(), key=lambda item: item[1] if run.metric.lower_is_better else -item[1])
    bars = [
        Bar(baseline_name(name), abs(value) / longest, units.number(value, 3), name == MODEL)
        for name, value in best_first
    ]
    return bars + [
        Bar(baseline_name(name), None, reason if isinstance(reason, str) else units.ABSENT, name == MODEL)
        for name, reason in scores.items()
        if name not in numbers
    ]


def phase_bars(run: RunRecord) -> list[Bar]:
    total = sum(seconds for _, seconds in run.timeline if known(seconds)) or 1.0
    return [
        Bar(name, seconds / total, f"{units.duration(seconds)} · {units.percent(seconds / total)}")
        if known(seconds)
        else Bar(name, None, units.ABSENT)
        for name, seconds in run.timeline
    ]


def predictions(run: RunRecord) -> list[Prediction]:
    """A row for each figure that was predicted or measured; the main metric has one always."""

    def joules(cost):
        return cost["joules"]["value"] if cost.get("joules") else None

    def figure(key):
        return run.predicted.get(key), run.actual.get(key)

    rows = [
        ("time", units.duration, *figure("seconds")),
        ("peak memory", units.size, *figure("peak_bytes")),
        (f"held-out loss, {run.loss_unit}", _three_decimals, *figure("loss")),
        (run.metric.name, _three_decimals, *figure(run.metric.key)),
        ("energy", units.energy, joules(run.predicted), joules(run.actual)),
    ]
    if run.metric.key == "loss":
        del rows[2]
    return [
        Prediction(what, show(ahead), show(after), _error(ahead, after))
        for what, show, ahead, after in rows
        if known(ahead) or known(after) or what == run.metric.name
    ]


def energies(run: RunRecord) -> list[tuple[str, str, str]]:
    """(when, energy, what stands behind the number), predicted and actual, where there is a number."""
    costs = (("predicted", run.predicted.get("joules")), ("actual", run.actual.get("joules")))
    return [
        (when, units.energy(joules["value"]), joules["source"] or "source not stated")
        for when, joules in costs
        if joules and known(joules["value"])
    ]


def subjects(run: RunRecord) -> list[str]:
    """What the run's results are of, in order of appearance."""
    return list(dict.fromkeys(result.subject for result in run.results))


def subject_name(name: str) -> str:
    return SUBJECT_NAMES.get(name, name)


def result_rows(run: RunRecord) -> list[ResultRow]:
    """A row a task, a column a subject; n is that of the first subject unless they differ."""
    tasks: dict[tuple[str, str], dict[str, Result]] = {}
    for result in run.results:
        tasks.setdefault((result.task, result.metric), {})[result.subject] = result
    rows = []
    for (task, metric), by_subject in tasks.items():
        values = [
            _with_interval(by_subject[subject]) if subject in by_subject else units.ABSENT for subject in subjects(run)
        ]
        counts = list(dict.fromkeys(units.count(result.n) for result in by_subject.values()))
        rows.append(ResultRow(task if metric in PROPORTIONS else f"{task}, {metric}", values, " / ".join(counts)))
    return rows


def intervals(run: RunRecord) -> str:
    """How the intervals of the results were computed, each way once."""
    return "; ".join(dict.fromkeys(result.interval for result in run.results if result.interval))


def fold(sample: Sample) -> Fold:
    """Cuts after FOLD_LINES lines or FOLD_CHARACTERS characters."""
    prompt, whole = sample["prompt"], sample["prompt"] + sample["text"]
    lines = whole.split("\n")
    cut = min(sum(len(line) + 1 for line in lines[:FOLD_LINES]), FOLD_CHARACTERS)
    if len(whole) - cut < 40 and len(lines) <= FOLD_LINES + 1:  # not worth a click
        cut = len(whole)
    return Fold(
        prompt[:cut], whole[len(prompt) : cut], prompt[cut:], whole[max(cut, len(prompt)) :], len(whole.splitlines())
    )


def curve(history: list[StepRecord], n: int) -> list[Point]:
    """At most `n` points: each the end of some neighbouring steps, at their mean loss. Non-finite losses fall out."""
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


def _with_interval(result: Result) -> str:
    if not known(result.value) or result.n < 1:
        return units.ABSENT
    bounded = known(result.low) and known(result.high)
    if result.metric in PROPORTIONS:
        value = f"{100 * result.value:.0f}{units.SPACE}%"
        return f"{value} ({100 * result.low:.0f}–{100 * result.high:.0f})" if bounded else value  # pyright: ignore
    value = units.number(result.value, 3)
    return f"{value} ({units.number(result.low, 3)}–{units.number(result.high, 3)})" if bounded else value


def _groups(records: list[T], n: int) -> Iterator[list[T]]:
    """Consecutive, non-empty, at most n, as equal as they can be."""
    n = min(n, len(records))
    edges = [len(records) * i // n for i in range(n + 1)] if n else []
    return (records[a:b] for a, b in pairwise(edges))


def _error(ahead: float | None, after: float | None) -> float | None:
    return after / ahead - 1 if known(ahead) and known(after) and ahead else None


def _three_decimals(value: float | None) -> str:
    return units.number(value, 3)


def _short(name: str) -> str:
    return SHORT_NAMES.get(name, name)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
