# SPDX-License-Identifier: Apache-2.0
"""Compare two evaluations, or two results of one task, item by item: what differs between subjects, freed of what
differs between items.

How a verdict comes about. Each task is tested by its paired differences: the exact McNemar test for scores of 0 and 1,
the paired randomization test of the mean for others. Where there are two tasks or more whose scores lie between 0 and
1, their mean is tested too. The p-values are adjusted by Holm's procedure with weights, half of them for the mean and
half for the tasks together. So two subjects of which neither is better get another verdict than "same" in at most 5 of
100 comparisons, however many tasks there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from foundling.contracts.comparison import ChangedAnswer, EvaluationComparison, TaskComparison, Verdict
from foundling.contracts.records import EvaluationRecord, Item, Result
from foundling.errors import ConfigError, DataError, MismatchError
from foundling.evaluate.intervals import (
    RESAMPLES,
    bootstrap,
    holm,
    permutation_test,
    sign_test,
    smallest_difference,
)
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
}
_CHUNK = 1 << 20


class Comparison(NamedTuple):
    difference: float
    """mean of a's score − b's, over the items"""
    low: float | None
    high: float | None
    """95 %: percentile bootstrap over pairs; None for fewer than two items"""
    p_value: float
    """two-sided, of no difference: exact McNemar for 0/1 scores, the sign test for others (both drop ties)"""
    n: int
    wins: int
    """items on which a is better"""
    losses: int
    test: str


def compare(a: Result, b: Result) -> Comparison:
    """Pairs the scores of a and b by item. MismatchError where they are not of the same task, items and prompts."""
    for name in ("task", "prompt"):
        if a.hashes.get(name) != b.hashes.get(name):
            raise MismatchError(f"the results are of different {name}s ({a.task!r}, {b.task!r}); run both on the same")
    if len(a.scores) != len(b.scores) or not a.scores:
        raise MismatchError(f"one result has scores of {len(a.scores)} items, the other of {len(b.scores)}")
    differences = [float(x) - float(y) for x, y in zip(a.scores, b.scores, strict=True)]
    better = [-d if a.lower_is_better else d for d in differences]
    wins, losses = sum(d > 0 for d in better), sum(d < 0 for d in better)
    low, high = bootstrap(differences) or (None, None)
    return Comparison(
        difference=sum(differences) / len(differences),
        low=low,
        high=high,
        p_value=sign_test(wins, losses),
        n=len(differences),
        wins=wins,
        losses=losses,
        test=MCNEMAR if _is_binary(a, b) else "sign test, exact",
    )


def compare_evaluations(
    a: EvaluationRecord, b: EvaluationRecord, *, tolerance: float | None = None, across: Collection[str] = ()
) -> EvaluationComparison:
    """b against a, the baseline, on every task that both have.

    `tolerance`, in points (hundredths of a score between 0 and 1): differences of at most so much do not matter. "same"
    then means that the two are shown to be equal within it (two one-sided tests at 5 %; Schuirmann 1987), and
    "undecided" that the items are too few to tell. Without it "same" means that no difference was shown. `across`
    names hashes that may differ (ACROSS).

    MismatchError where the two have no task in common, other items, or other hashes; ConfigError for a bad argument;
    DataError for scores that are no numbers."""
    if tolerance is not None:
        check_number(tolerance, "--tolerance", 0, 100)
    if unknown := [name for name in across if name not in ACROSS]:
        raise ConfigError(f"--across {shown(unknown[0])}: expected one or more of {', '.join(ACROSS)}")
    theirs = {(r.task, r.metric): r for r in b.results}
    pairs = [(r, theirs[r.task, r.metric]) for r in a.results if (r.task, r.metric) in theirs]
    if not pairs:
        raise MismatchError(
            f"the evaluations have no task in common: {_listed(a)} and {_listed(b)}; evaluate both on the same"
        )
    for x, y in pairs:
        _require_comparable(x, y, across)
    paired = [_Paired(x, y, *_in_order(x, y, a.items.get(x.task), b.items.get(y.task))) for x, y in pairs]
    shares = [p for p in paired if p.share]
    mean = _Mean(shares) if len(shares) > 1 else None
    tests = [*([mean] if mean else []), *paired]
    weights = [0.5, *(0.5 / len(paired) for _ in paired)] if mean else [1 / len(paired)] * len(paired)
    adjusted = holm([test.p_value for test in tests], weights)
    rows = [_row(*each, tolerance) for each in zip(tests, adjusted, weights, strict=True)]
    return EvaluationComparison(
        a=a.subject, b=b.subject, verdict=_overall(rows, mean is not None), tasks=rows[1:] if mean else rows,
        overall=rows[0] if mean else None, tolerance=tolerance, rule=_rule(len(paired), mean is not None, tolerance),
        notes=_notes(a, b, pairs),
    )  # fmt: skip


class _Paired:
    """The paired differences of one task, as gains of b: positive where b is better."""

    def __init__(self, a: Result, b: Result, scores: Sequence[float], items: list[tuple[Item, Item]]) -> None:
        self.task, self.metric, self.lower_is_better, self.items = a.task, a.metric, a.lower_is_better, items
        first, second = np.asarray(a.scores, np.float64), np.asarray(scores, np.float64)
        for name, values in (("first", first), ("second", second)):
            if not np.isfinite(values).all():
                at = int(np.argmin(np.isfinite(values)))
                raise DataError(
                    f"task {a.task!r}: item {at} of the {name} evaluation has no finite score; score it again"
                )
        self.n, self.binary = len(first), _is_binary(a, b)
        self.share = self.binary or (not a.lower_is_better and bool(((first >= 0) & (first <= 1)).all())
                                     and bool(((second >= 0) & (second <= 1)).all()))  # fmt: skip
        weights = np.asarray(a.weights or [1.0] * self.n)
        self.weights = weights / weights.mean()
        self.a, self.b = float((first * self.weights).mean()), float((second * self.weights).mean())
        self.sign = -1.0 if a.lower_is_better else 1.0
        self.raw = self.sign * (second - first)
        self.gains, self.losses = int((self.raw > 0).sum()), int((self.raw < 0).sum())
        self.test = MCNEMAR if self.binary and not a.weights else RANDOMIZATION
        exact = self.test == MCNEMAR
        self.p_value = sign_test(self.gains, self.losses) if exact else permutation_test([self.raw * self.weights])

    @property
    def gain(self) -> float:
        return float((self.raw * self.weights).mean())

    def draws(self) -> Any:
        """The gain of resamples of the items, (RESAMPLES,). Items of one gain and weight are drawn together where there
        are few such kinds, as for scores of 0 and 1. Half a gain and half a loss are added to these (as Agresti & Min
        2005 do for paired proportions): that none was seen among n items does not say that there is none."""
        generator, parts = np.random.default_rng(0), list[Any]()
        items = np.stack([self.raw * self.weights, self.weights])
        kinds, counts = np.unique(items, axis=1, return_counts=True)
        few = 4 * len(counts) < self.n or self.binary
        if few and self.share:
            kinds = np.concatenate([kinds, [[self.largest, -self.largest], [1.0, 1.0]]], axis=1)
            counts = np.concatenate([counts, [0.5, 0.5]])
        rows = max(1, _CHUNK // (len(counts) if few else self.n))
        for start in range(0, RESAMPLES, rows):
            size = min(rows, RESAMPLES - start)
            if few:
                drawn = generator.multinomial(self.n, counts / counts.sum(), size=size)
                top, bottom = drawn @ kinds[0], drawn @ kinds[1]
            else:
                top, bottom = items[:, generator.integers(self.n, size=(size, self.n))].sum(-1)
            parts.append(top / bottom)
        return np.concatenate(parts)

    @property
    def largest(self) -> float:
        """Of the differences; 1 for scores between 0 and 1 of which none differs."""
        return float(np.abs(self.raw * self.weights).max()) or float(self.share)

    def deviation(self) -> float:
        """Of the mean gain, times √n, with one changed item more than was seen (see `draws`)."""
        values = self.raw * self.weights
        return math.sqrt((float((values**2).sum()) + self.largest**2) / (self.n + 1))


class _Mean:
    """The mean over tasks, each with the same weight, items resampled within tasks."""

    def __init__(self, tasks: list[_Paired]) -> None:
        self.tasks, self.task, self.metric = tasks, f"mean of {len(tasks)} tasks", "mean score"
        self.lower_is_better, self.items, self.share, self.binary = False, list[Any](), True, False
        self.n = sum(task.n for task in tasks)
        self.sign, self.test = 1.0, RANDOMIZATION
        # a share of wrong answers, of which fewer are better, counts as one of right answers
        self.a = float(np.mean([1 - task.a if task.lower_is_better else task.a for task in tasks]))
        self.b = float(np.mean([1 - task.b if task.lower_is_better else task.b for task in tasks]))
        self.gains, self.losses = sum(t.gains for t in tasks), sum(t.losses for t in tasks)
        self.p_value = permutation_test([task.raw * task.weights for task in tasks])
        self.gain = float(np.mean([task.gain for task in tasks]))

    def draws(self) -> Any:
        return np.mean([task.draws() for task in self.tasks], axis=0)

    def deviation(self) -> float:
        spread = sum(task.deviation() ** 2 / task.n for task in self.tasks) / len(self.tasks) ** 2
        return math.sqrt(spread * self.n)


def _row(pair: Any, adjusted: float, weight: float, tolerance: float | None) -> TaskComparison:
    low = high = equivalence = smallest = None
    if pair.n > 1:
        ends = np.quantile(pair.draws(), [0.025, 0.05, 0.95, 0.975])
        low, near, far, high = sorted(float(end) * pair.sign for end in ends)
        equivalence = (near, far)
        alpha = ALPHA * weight
        smallest = smallest_difference(pair.deviation(), pair.n, alpha=alpha) or None
        if smallest and pair.test == MCNEMAR:  # fewer discordant items than the first number show nothing at all
            smallest = max(math.ceil(math.log2(2 / alpha)) / pair.n, smallest + 1 / pair.n)
    return TaskComparison(
        task=pair.task, metric=pair.metric, n=pair.n, a=pair.a, b=pair.b, difference=pair.sign * pair.gain,
        low=low, high=high, equivalence=equivalence, p_value=pair.p_value, adjusted=adjusted, test=pair.test,
        gains=pair.gains, losses=pair.losses, smallest=smallest,
        verdict=_verdict(pair.gain, adjusted, equivalence, tolerance if pair.share else None),
        lower_is_better=pair.lower_is_better, share=pair.share, changed=_changed(pair),
    )  # fmt: skip


def _verdict(gain: float, adjusted: float, equivalence: tuple[float, float] | None, tolerance: float | None) -> Verdict:
    if tolerance is not None and equivalence and max(map(abs, equivalence)) <= tolerance / 100:
        return "same"
    if adjusted <= ALPHA:
        return "better" if gain > 0 else "worse"
    return "same" if tolerance is None else "undecided"


def _overall(rows: list[TaskComparison], mean: bool) -> Verdict:
    """A difference that was shown anywhere, the worse one first; else what the mean says, or without it the tasks."""
    order: tuple[Verdict, ...] = ("worse", "better", "undecided", "same")
    overall: Verdict = next(verdict for verdict in order if any(row.verdict == verdict for row in rows))
    return overall if overall in ("worse", "better") or not mean else rows[0].verdict


def _changed(pair: Any) -> list[ChangedAnswer]:
    answers = [
        ChangedAnswer(x["id"], x["prompt"], x["target"], x["answer"], y["answer"], x["score"], y["score"], float(gain))
        for (x, y), gain in zip(pair.items, pair.raw if pair.items else (), strict=True)
        if gain != 0
    ]
    return sorted(answers, key=lambda answer: answer.gain)


# --- what may be compared --------------------------------------------------------------------------------------------


def _require_comparable(a: Result, b: Result, across: Collection[str]) -> None:
    if a.lower_is_better != b.lower_is_better:
        raise MismatchError(f"task {a.task!r}: lower is better in one evaluation only; evaluate both by the same code")
    for name, meaning in _MEANING.items():
        if a.hashes.get(name) == b.hashes.get(name) or name in across:
            continue
        mine, other = (str(r.hashes.get(name, "none"))[:12] for r in (a, b))
        way = f"to compare all the same: --across {name}" if name in ACROSS else "evaluate both on the same"
        raise MismatchError(f"task {a.task!r}: different {name} ({meaning}; hash {mine} and {other}); {way}")
    if not a.scores or not b.scores:
        raise MismatchError(f"task {a.task!r}: no scores of items to pair; evaluate again with items")
    if len(a.scores) != len(b.scores):
        raise MismatchError(
            f"task {a.task!r}: {len(a.scores)} items in the first evaluation, {len(b.scores)} in the second; "
            "evaluate both on the same items"
        )
    if a.weights != b.weights or len(a.weights) not in (0, len(a.scores)):
        raise MismatchError(f"task {a.task!r}: the items weigh differently; evaluate both on the same items")


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


def _is_binary(a: Result, b: Result) -> bool:
    return all(score in (0, 1) for score in (*a.scores, *b.scores))


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
