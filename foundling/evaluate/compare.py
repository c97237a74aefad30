# SPDX-License-Identifier: Apache-2.0
"""Compare two evaluations, or two results of one task, item by item: what differs between subjects, freed of what
differs between items.

How a verdict comes about. A task that ran with several seeds is one task: each item counts by its mean over them. Each
task is tested by its paired differences: the exact McNemar test for scores of 0 and 1, the paired randomization test of
the mean for others. Where there are two tasks or more whose scores lie between 0 and 1, their mean is tested too. The
p-values are adjusted by Holm's procedure with weights, half of them for the mean and half for the tasks together. So
two subjects of which neither is better get another verdict than "same" in at most 5 of 100 comparisons, however many
tasks there are. That holds where an item is in one task alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from foundling.contracts.comparison import ChangedAnswer, EvaluationComparison, TaskComparison, Verdict
from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.errors import ConfigError, DataError, MismatchError
from foundling.evaluate.intervals import (
    bootstrap,
    holm,
    permutation_test,
    score_interval,
    sign_test,
    smallest_difference,
    tango,
)
from foundling.evaluate.judge import UNREAD
from foundling.limits import check_number, shown

ALPHA = 0.05
ACROSS = ("template", "backend", "prompt")
"""hashes that may differ where the user says so"""
MCNEMAR, RANDOMIZATION = "McNemar, exact", "paired randomization of the mean"
_MEANING = {
    "task": "items",
    "prompt": "rendered prompts",
    "template": "tokenizer or chat template",
    "backend": "library, dtype or kernels",
    "judge": "who judged the answers",
}
_SEED = re.compile(r"(.+), seed -?\d+", re.DOTALL)
_Scored: TypeAlias = "tuple[Result, Result, list[Item] | None, list[Item] | None]"


def compare(a: Result, b: Result, *, tolerance: float | None = None, across: Collection[str] = ()) -> TaskComparison:
    """b against a, the baseline, on one task, by the rules of `compare_evaluations`; items are paired by their place.
    MismatchError where they are not of the same task, items and prompts."""
    _check(tolerance, across)
    _require_comparable(a, b, across)
    pair = _pair(*_read_in_both(a, b, None, None))
    return _row(pair, pair.p_value, 1.0, tolerance)


def compare_evaluations(
    a: EvaluationRecord, b: EvaluationRecord, *, tolerance: float | None = None, across: Collection[str] = ()
) -> EvaluationComparison:
    """b against a, the baseline, on every task that both have.

    `tolerance`, in points (hundredths of a score between 0 and 1): differences of at most so much do not matter. "same"
    then means that the two are shown to be equal within it (two one-sided tests at 5 %; Schuirmann 1987), and
    "undecided" that the items are too few to tell, or that the figure is none that points fit. Without it "same" means
    that no difference was shown. `across` names hashes that may differ (ACROSS).

    MismatchError where the two have no task in common, other items, or other hashes; ConfigError for a bad argument;
    DataError for scores that are no numbers."""
    _check(tolerance, across)
    theirs = {(r.task, r.metric): r for r in b.results}
    pairs = [(r, theirs[r.task, r.metric]) for r in a.results if (r.task, r.metric) in theirs]
    if not pairs:
        raise MismatchError(
            f"the evaluations have no task in common: {_listed(a)} and {_listed(b)}; evaluate both on the same"
        )
    for x, y in pairs:
        _require_comparable(x, y, across)
    scored = [_read_in_both(x, y, a.items.get(x.task), b.items.get(y.task)) for x, y in pairs]
    seeds = _grouped([_pair(*each) for each in scored], without_seed)
    paired = [_pooled(name, group) for name, group in seeds]
    # two metrics of one task are of the same items: they count as one task in the mean
    shares = [_pooled(name, group) for name, group in _grouped([p for p in paired if p.share], lambda task: task)]
    mean = _Mean(shares) if len(shares) > 1 else None
    tests = [*([mean] if mean else []), *paired]
    weights = [0.5, *(0.5 / len(paired) for _ in paired)] if mean else [1 / len(paired)] * len(paired)
    adjusted = holm([test.p_value for test in tests], weights)
    rows = [_row(*each, tolerance) for each in zip(tests, adjusted, weights, strict=True)]
    notes = [f"{name}: each item counts once, by its mean over {len(group)} seeds" for name, group in seeds
             if len(group) > 1]  # fmt: skip
    if tolerance is not None and (others := [p.task for p in paired if not p.share]):
        notes.append(f"--tolerance is in points, and no scores between 0 and 1: {', '.join(others)}")
    return EvaluationComparison(
        a=a.subject, b=b.subject, verdict=_overall(rows, mean is not None), tasks=rows[1:] if mean else rows,
        overall=rows[0] if mean else None, tolerance=tolerance, rule=_rule(len(paired), mean is not None, tolerance),
        notes=_notes(a, b, pairs) + _left_out(pairs, scored) + notes,
    )  # fmt: skip


class _Paired:
    """The paired differences of one task, as gains of b: positive where b is better."""

    def __init__(
        self, task: str, metric: str, lower_is_better: bool, first: Any, second: Any, weights: Any, ids: Sequence[Any],
        changed: list[ChangedAnswer], share: bool | None = None,
    ) -> None:  # fmt: skip
        """`first`, `second`, `weights`: (n,) float64; `ids`: by which items of several seeds are the same"""
        self.task, self.metric, self.lower_is_better, self.ids, self.changed = (
            task,
            metric,
            lower_is_better,
            ids,
            changed,
        )
        self.n, self.first, self.second, self.own_weights = len(first), first, second, weights
        scores = np.concatenate([first, second])
        self.binary = bool(np.isin(scores, (0.0, 1.0)).all())
        within = bool(((scores >= 0) & (scores <= 1)).all())
        self.share = (self.binary or (not lower_is_better and within)) if share is None else share
        self.weights = weights / weights.mean()
        self.a, self.b = float((first * self.weights).mean()), float((second * self.weights).mean())
        self.sign = -1.0 if lower_is_better else 1.0
        self.raw = self.sign * (second - first)
        self.gains, self.losses = int((self.raw > 0).sum()), int((self.raw < 0).sum())
        self.exact = self.binary and bool((weights == weights[0]).all())
        self.test = MCNEMAR if self.exact else RANDOMIZATION
        self.gain = float((self.raw * self.weights).mean())
        self.p_value = sign_test(self.gains, self.losses) if self.exact else permutation_test([self.raw * self.weights])

    def interval(self, level: float) -> tuple[float, float]:
        """Of the gain of a share; of another figure at 95 % alone."""
        if self.exact:
            return tango(self.gains, self.losses, self.n, level=level)
        if self.share:
            return score_interval(self.raw.tolist(), self.weights.tolist(), level=level)
        return bootstrap((self.raw * self.weights).tolist(), self.weights.tolist()) or (self.gain, self.gain)

    def deviation(self) -> float:
        """Of the mean gain, times √n, with one changed item more than was seen: that none was seen among n items does
        not say that there is none."""
        values = self.raw * self.weights
        largest = float(np.abs(values).max()) or float(self.share)
        return math.sqrt((float((values**2).sum()) + largest**2) / (self.n + 1))


def _pair(a: Result, b: Result, mine: list[Item] | None, theirs: list[Item] | None) -> _Paired:
    _require_paired(a, b)
    scores, items = _in_order(a, b, mine, theirs)
    first, second = np.asarray(a.scores, np.float64), np.asarray(scores, np.float64)
    for name, values in (("first", first), ("second", second)):
        if not np.isfinite(values).all():
            at = int(np.argmin(np.isfinite(values)))
            raise DataError(f"task {a.task!r}: item {at} of the {name} evaluation has no finite score; score it again")
    gains = (second - first) * (-1 if a.lower_is_better else 1)
    ids = [x["id"] for x, _ in items] or range(len(first))
    weights = np.asarray(a.weights or [1.0] * len(first), np.float64)
    return _Paired(a.task, a.metric, a.lower_is_better, first, second, weights, ids, _changed(items, gains))


def without_seed(task: str) -> str:
    """The task that ran with several seeds (foundling evaluate --seeds)."""
    match = _SEED.fullmatch(task)
    return match[1] if match else task


def _grouped(paired: list[_Paired], name: Callable[[str], str]) -> list[tuple[str, list[_Paired]]]:
    groups: dict[tuple[str, str, bool], list[_Paired]] = {}
    by_metric = name is without_seed
    for pair in paired:
        key = name(pair.task), pair.metric if by_metric else "", pair.lower_is_better
        groups.setdefault(key, []).append(pair)
    return [(key[0] if len(group) > 1 else group[0].task, group) for key, group in groups.items()]


def _pooled(name: str, group: list[_Paired]) -> _Paired:
    """One task from several of the same items, each item by its weighted mean over them: its differences under two
    seeds are no two observations, and would be taken for them if each seed were tested apart."""
    if len(group) == 1:
        return group[0]
    by_id = all(not isinstance(pair.ids, range) for pair in group)
    sums = dict[Any, Any]()
    for pair in group:
        rows = np.stack([pair.first * pair.own_weights, pair.second * pair.own_weights, pair.own_weights], axis=1)
        for key, row in zip(pair.ids if by_id else range(pair.n), rows, strict=True):
            sums[key] = sums[key] + row if key in sums else row
    first, second, weights = np.stack(list(sums.values())).T
    changed = [replace(c, id=c.id + pair.task[len(name) :]) for pair in group for c in pair.changed]
    return _Paired(
        name, group[0].metric, group[0].lower_is_better, first / weights, second / weights, weights, list(sums),
        sorted(changed, key=lambda answer: answer.gain), all(pair.share for pair in group),
    )  # fmt: skip


class _Mean:
    """The mean over tasks, each with the same weight."""

    def __init__(self, tasks: list[_Paired]) -> None:
        self.tasks, self.task, self.metric = tasks, f"mean of {len(tasks)} tasks", "mean score"
        self.lower_is_better, self.changed, self.share, self.exact = False, list[ChangedAnswer](), True, False
        self.n = sum(task.n for task in tasks)
        self.sign, self.test = 1.0, RANDOMIZATION
        # a share of wrong answers, of which fewer are better, counts as one of right answers
        self.a = float(np.mean([1 - task.a if task.lower_is_better else task.a for task in tasks]))
        self.b = float(np.mean([1 - task.b if task.lower_is_better else task.b for task in tasks]))
        self.gains, self.losses = sum(t.gains for t in tasks), sum(t.losses for t in tasks)
        self.p_value = permutation_test([task.raw * task.weights for task in tasks])
        self.gain = float(np.mean([task.gain for task in tasks]))

    def interval(self, level: float) -> tuple[float, float]:
        """From those of the tasks (Zou & Donner 2008, "Construction of confidence limits about effect measures")."""
        ends = [task.interval(level) for task in self.tasks]
        below = math.hypot(*(task.gain - low for task, (low, _) in zip(self.tasks, ends, strict=True)))
        above = math.hypot(*(high - task.gain for task, (_, high) in zip(self.tasks, ends, strict=True)))
        return self.gain - below / len(ends), self.gain + above / len(ends)

    def deviation(self) -> float:
        spread = sum(task.deviation() ** 2 / task.n for task in self.tasks) / len(self.tasks) ** 2
        return math.sqrt(spread * self.n)


def _row(pair: Any, adjusted: float, weight: float, tolerance: float | None) -> TaskComparison:
    low = high = equivalence = smallest = None
    if pair.n > 1:
        low, high = _turned(pair, pair.interval(0.95))
        equivalence = _turned(pair, pair.interval(0.90)) if pair.share else None
        smallest = _smallest(pair, ALPHA * weight)
    return TaskComparison(
        task=pair.task, metric=pair.metric, n=pair.n, a=pair.a, b=pair.b, difference=pair.sign * pair.gain,
        low=low, high=high, equivalence=equivalence, p_value=pair.p_value, adjusted=adjusted, test=pair.test,
        gains=pair.gains, losses=pair.losses, smallest=smallest,
        verdict=_verdict(pair.gain, adjusted, equivalence, tolerance),
        lower_is_better=pair.lower_is_better, share=pair.share, changed=pair.changed,
    )  # fmt: skip


def _turned(pair: Any, ends: tuple[float, float]) -> tuple[float, float]:
    """As differences b − a."""
    low, high = ends
    return (low, high) if pair.sign > 0 else (-high, -low)


def _smallest(pair: Any, alpha: float) -> float | None:
    """None where even the largest possible difference would not be shown."""
    fewest = math.ceil(math.log2(2 / alpha))  # as many items, all changed to one side, have p = 2^(1 − items)
    smallest = smallest_difference(pair.deviation(), pair.n, alpha=alpha)
    if pair.exact:
        smallest = max(fewest / pair.n, smallest + 1 / pair.n)
    possible = fewest <= pair.n and (not pair.share or smallest <= 1)
    return smallest if possible and smallest > 0 else None


def _verdict(gain: float, adjusted: float, equivalence: tuple[float, float] | None, tolerance: float | None) -> Verdict:
    if tolerance is not None and equivalence and max(map(abs, equivalence)) <= tolerance / 100:
        return "same"
    if adjusted <= ALPHA:
        return "better" if gain > 0 else "worse"
    return "same" if tolerance is None else "undecided"  # also of figures that are no shares: points do not fit them


def _overall(rows: list[TaskComparison], mean: bool) -> Verdict:
    """A difference that was shown anywhere, the worse one first; else what the mean says, or without it the tasks."""
    order: tuple[Verdict, ...] = ("worse", "better", "undecided", "same")
    overall: Verdict = next(verdict for verdict in order if any(row.verdict == verdict for row in rows))
    return overall if overall in ("worse", "better") or not mean else rows[0].verdict


def _changed(items: list[tuple[Item, Item]], gains: Any) -> list[ChangedAnswer]:
    answers = [
        ChangedAnswer(x["id"], x["prompt"], x["target"], x["answer"], y["answer"], x["score"], y["score"], float(gain))
        for (x, y), gain in zip(items, gains if items else (), strict=True)
        if gain != 0
    ]
    return sorted(answers, key=lambda answer: answer.gain)


# --- what may be compared --------------------------------------------------------------------------------------------


def _check(tolerance: float | None, across: Collection[str]) -> None:
    if tolerance is not None:
        check_number(tolerance, "--tolerance", 0, 100)
    if unknown := [name for name in across if name not in ACROSS]:
        raise ConfigError(f"--across {shown(unknown[0])}: expected one or more of {', '.join(ACROSS)}")


def _require_comparable(a: Result, b: Result, across: Collection[str]) -> None:
    if a.lower_is_better != b.lower_is_better:
        raise MismatchError(f"task {a.task!r}: lower is better in one evaluation only; evaluate both by the same code")
    for name, meaning in _MEANING.items():
        if a.hashes.get(name) == b.hashes.get(name) or name in across:
            continue
        mine, other = (str(r.hashes.get(name, "none"))[:12] for r in (a, b))
        way = f"to compare all the same: --across {name}" if name in ACROSS else "evaluate both on the same"
        raise MismatchError(f"task {a.task!r}: different {name} ({meaning}; hash {mine} and {other}); {way}")


def _require_paired(a: Result, b: Result) -> None:
    if not a.scores or not b.scores:
        raise MismatchError(f"task {a.task!r}: no scores of items to pair; evaluate again with items")
    if len(a.scores) != len(b.scores):
        raise MismatchError(
            f"task {a.task!r}: {len(a.scores)} items in the first evaluation, {len(b.scores)} in the second; "
            "evaluate both on the same items"
        )
    if a.weights != b.weights or len(a.weights) not in (0, len(a.scores)):
        raise MismatchError(f"task {a.task!r}: the items weigh differently; evaluate both on the same items")


def _read_in_both(a: Result, b: Result, mine: list[Item] | None, theirs: list[Item] | None) -> _Scored:
    """Of a judge's win rates the items whose verdicts could be read in both: the others have no score in one of them.
    MismatchError where that cannot be told, or leaves none."""
    if not any((result.figures.get(UNREAD) or (0.0,))[0] for result in (a, b)):
        return a, b, mine, theirs
    if not mine or not theirs or len(mine) != len(a.scores) or len(theirs) != len(b.scores):
        raise MismatchError(
            f"task {a.task!r}: some verdicts could not be read, and without items the others have no pairs; "
            "compare evaluations with items"
        )
    ids = {item["id"] for item in mine} & {item["id"] for item in theirs}
    (a, mine), (b, theirs) = _only(a, mine, ids), _only(b, theirs, ids)
    if not ids:
        raise MismatchError(f"task {a.task!r}: no item has a verdict that could be read in both; use another judge")
    return a, b, mine, theirs


def _only(result: Result, items: list[Item], ids: set[str]) -> tuple[Result, list[Item]]:
    chosen = [i for i, item in enumerate(items) if item["id"] in ids]
    return replace(result, scores=[result.scores[i] for i in chosen]), [items[i] for i in chosen]


def _left_out(pairs: list[tuple[Result, Result]], scored: list[_Scored]) -> list[str]:
    """A note of each task with verdicts that could be read in one evaluation alone."""
    counts = [
        (x.task, len(x.scores) - len(a.scores), len(y.scores) - len(b.scores))
        for (x, y), (a, b, _, _) in zip(pairs, scored, strict=True)
    ]
    return [
        f"{task}: {first + second:,} items are left out: their verdict could be read in one evaluation only"
        for task, first, second in counts
        if first + second
    ]


def _in_order(
    a: Result, b: Result, mine: list[Item] | None, theirs: list[Item] | None
) -> tuple[Sequence[float], list[tuple[Item, Item]]]:
    """b's scores in the order of a's items, matched by id, and the pairs of items where both recorded them."""
    if not mine or not theirs or len(mine) != len(a.scores) or len(theirs) != len(b.scores):
        return b.scores, []
    by_id = {item["id"]: i for i, item in enumerate(theirs)}
    order = list(range(len(theirs)))
    if [item["id"] for item in mine] != [item["id"] for item in theirs]:
        absent = next((item["id"] for item in mine if item["id"] not in by_id), None)
        if absent is not None or len(by_id) < len(theirs) or len({item["id"] for item in mine}) < len(mine):
            what = "ids that are there twice" if absent is None else f"no item {shown(absent)} in the second"
            raise MismatchError(f"task {a.task!r}: the items differ ({what}); evaluate both on the same items")
        order = [by_id[item["id"]] for item in mine]
    return [b.scores[i] for i in order], [(item, theirs[i]) for item, i in zip(mine, order, strict=True)]


def _listed(record: EvaluationRecord) -> str:
    names = [repr(result.task) for result in record.results]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def _notes(a: EvaluationRecord, b: EvaluationRecord, pairs: list[tuple[Result, Result]]) -> list[str]:
    notes, both = list[str](), {(x.task, x.metric) for x, _ in pairs}
    for record, which in ((a, "first"), (b, "second")):
        if alone := sorted({r.task for r in record.results if (r.task, r.metric) not in both}):
            notes.append(f"in the {which} evaluation only, and not compared: {', '.join(alone)}")
    if all(x.hashes.get("model") and x.hashes.get("model") == y.hashes.get("model") for x, y in pairs):
        notes.append("both evaluations are of the same weights")
    for name in (*ACROSS, "code"):
        if differing := [x.task for x, y in pairs if x.hashes.get(name) != y.hashes.get(name)]:
            meaning = _MEANING.get(name, "what renders and scores")
            notes.append(f"different {name} ({meaning}) in {', '.join(differing)}: it may explain a difference")
    return notes


def _rule(n_tasks: int, mean: bool, tolerance: float | None) -> str:
    tests = (
        "1 test"
        if n_tasks == 1
        else f"{n_tasks + mean} tests, adjusted by Holm" + (", half of 5 % for the mean" if mean else "")
    )
    same = (
        '"same" means that no difference was shown: read it with the interval and the smallest difference that so many '
        "items would have shown with a probability of 80 %"
        if tolerance is None
        else f'"same" means shown to differ by at most {tolerance:g} points (90 % interval within them), "undecided" '
        "that neither this nor a difference was shown"
    )
    return f"{tests}: another verdict than same where nothing differs comes in at most 5 of 100 comparisons; {same}"
