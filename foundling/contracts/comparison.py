# SPDX-License-Identifier: Apache-2.0
"""What the comparison of two evaluations says, as plain data: the terminal, the JSON object and the page are written
from it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["better", "worse", "same", "undecided"]


@dataclass(frozen=True)
class ChangedAnswer:
    """An item that the two subjects score differently."""

    id: str
    prompt: str
    target: str
    a: str
    """the answer of the first subject"""
    b: str
    a_score: float
    b_score: float
    gain: float
    """b's score − a's, or the reverse where lower is better"""


@dataclass(frozen=True)
class TaskComparison:
    """One task, or the mean over tasks. All differences are those of the second subject from the first."""

    task: str
    metric: str
    n: int
    """items; of the mean over tasks all items together"""
    a: float
    b: float
    difference: float
    """b − a, in the unit of the metric"""
    low: float | None
    high: float | None
    """95 % interval of the difference: Tango's of scores of 0 and 1, a score interval of others between 0 and 1, else a
    paired bootstrap"""
    equivalence: tuple[float, float] | None
    """90 % interval of the difference, which lies within ± tolerance where the two are shown to be equal; None where
    scores are not between 0 and 1"""
    p_value: float
    """two-sided, of no difference"""
    adjusted: float
    """the p-value times what the number of tests costs (weighted Holm); a difference is shown at 0.05 or below"""
    test: str
    gains: int
    """items on which b is better"""
    losses: int
    smallest: float | None
    """the smallest difference that so many items would have shown with a probability of 80 %; None where they could
    show none that is possible"""
    verdict: Verdict
    lower_is_better: bool = False
    share: bool = False
    """scores lie between 0 and 1: differences are shown in points"""
    changed: list[ChangedAnswer] = field(default_factory=list)
    """the largest losses first, the smallest gains last; empty where no items were recorded"""


@dataclass(frozen=True)
class EvaluationComparison:
    a: str
    """name of the first subject, the baseline"""
    b: str
    verdict: Verdict
    """of b against a: "worse" where the mean or any task is, whatever else is better"""
    tasks: list[TaskComparison]
    overall: TaskComparison | None
    """the mean over tasks whose scores lie between 0 and 1, where there are two such tasks or more"""
    tolerance: float | None
    """in points: differences of at most so much do not matter"""
    rule: str
    """how verdicts come about, in words"""
    notes: list[str] = field(default_factory=list)
