# SPDX-License-Identifier: Apache-2.0
"""How many labels a reward model needs: a law fitted to measured accuracies, and what labellers who err leave of it.

accuracy(n, ε) = ½ + (A − ½) · xᵃ / (xᵃ + cᵃ), x = n · (1 − 2ε)ᵏ: n compared pairs, a share ε of which is labelled
wrongly. A label that is wrong with probability ε carries (1 − 2ε) of the signal, so k would be 2 for an ideal learner
(Natarajan et al. 2013, "Learning with noisy labels", theorem 3); it is fitted. The points are measured by
benchmarks/label_curve.py; the law says nothing beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foundling.errors import BudgetError
from foundling.limits import PLANNED_LABELS, check_number

LABELLERS = (1, 3, 5, 7, 9)
"""of an item; an even number ties"""
MIN_POINTS = 8
_NO_CURVE = (
    "no curve of accuracy against labels has been measured; run python -m benchmarks.label_curve, or give --curve"
)


class Point(NamedTuple):
    labels: int
    wrong: float
    """share of wrong labels"""
    accuracy: float
    """of the reward model on held-out pairs, whose labels are right"""


@dataclass(frozen=True)
class LabelLaw:
    top: float
    """A, the accuracy that endless labels reach"""
    half: float
    """c, right labels that reach half the way from ½ to it"""
    slope: float
    """a"""
    noise: float
    """k"""
    error: float
    """root mean square of measured − predicted, each cell of labels and share of wrong ones left out in turn"""
    points: int
    most_labels: int
    least_labels: int
    most_wrong: float

    def accuracy(self, labels: float, wrong: float) -> float:
        """BudgetError beyond what was measured."""
        if not self.least_labels <= labels <= self.most_labels or not 0 <= wrong <= self.most_wrong:
            raise BudgetError(
                f"{labels:,.0f} pairs with {wrong:.1%} wrong labels lie beyond the measured curve "
                f"({self.least_labels:,} to {self.most_labels:,} pairs, up to {self.most_wrong:.0%} wrong)"
            )
        theta = _theta(self.top, self.half, self.slope, self.noise)
        return float(_predict(theta, np.array([labels]), np.array([wrong]))[0])

    def labels_for(self, accuracy: float, wrong: float) -> float:
        """Pairs that reach an accuracy; infinite where none do, whatever was measured."""
        share = (accuracy - 0.5) / (self.top - 0.5)
        if share >= 1 or wrong >= 0.5:
            return math.inf
        return self.half * (max(share, 0) / (1 - share)) ** (1 / self.slope) / (1 - 2 * wrong) ** self.noise


# --- the fit ---------------------------------------------------------------------------------------------------------


def fit_law(points: Sequence[Point]) -> LabelLaw:
    """Least squares on the accuracies. BudgetError for points that say too little."""
    cells = sorted({(point.labels, point.wrong) for point in points})
    sizes, shares = {labels for labels, _ in cells}, {wrong for _, wrong in cells}
    if len(cells) < MIN_POINTS or len(sizes) < 3 or len(shares) < 2:
        raise BudgetError(
            f"the curve has {len(cells)} cells ({len(sizes)} numbers of labels, {len(shares)} shares of wrong ones); "
            f"a fit needs {MIN_POINTS} or more, of 3 numbers and 2 shares"
        )
    theta, misses = _fit(points), list[float]()
    for cell in cells:
        rest = [point for point in points if (point.labels, point.wrong) != cell]
        out = [point for point in points if (point.labels, point.wrong) == cell]
        misses += (_columns(out)[2] - _predict(_fit(rest, theta), *_columns(out)[:2])).tolist()
    top, half, slope, noise = _values(theta)
    error = math.sqrt(sum(miss**2 for miss in misses) / len(misses))
    return LabelLaw(top, half, slope, noise, error, len(points), max(sizes), min(sizes), max(shares))


def _columns(points: Sequence[Point]) -> tuple[Any, Any, Any]:
    return tuple(np.array(column, np.float64) for column in zip(*points, strict=True))  # pyright: ignore[reportReturnType]


def _values(theta: Any) -> tuple[float, float, float, float]:
    """A in (½, 1), c, a and k positive."""
    return (0.5 + 0.5 / (1 + math.exp(-theta[0])), *(math.exp(x) for x in theta[1:]))  # pyright: ignore[reportReturnType]


def _theta(top: float, half: float, slope: float, noise: float) -> Any:
    share = min(max(2 * top - 1, 1e-9), 1 - 1e-9)
    return np.array([math.log(share / (1 - share)), math.log(half), math.log(slope), math.log(noise)])


def _predict(theta: Any, labels: Any, wrong: Any) -> Any:
    top, half, slope, noise = _values(theta)
    # x^a / (x^a + c^a) = 1 / (1 + (c / x)^a), in logarithms
    exponent = slope * (math.log(half) - np.log(labels) - noise * np.log(np.maximum(1 - 2 * wrong, 1e-9)))
    return 0.5 + (top - 0.5) / (1 + np.exp(np.minimum(exponent, 700)))


def _fit(points: Sequence[Point], start: Any = None) -> Any:
    """Levenberg–Marquardt from several starts (Marquardt 1963), with a weak prior that keeps what few points do not
    decide: k at 2, a at 1, A near the best that was measured."""
    labels, wrong, accuracy = _columns(points)
    middle = float(np.exp(np.log(labels).mean()))
    prior = _theta(min(0.995, float(accuracy.max()) + 0.02), middle, 1.0, 2.0)
    starts = [prior + np.array([0, shift, 0, 0]) for shift in (-2.0, 0.0, 2.0)] if start is None else [start]
    weight = np.array([3e-3, 0.0, 3e-3, 3e-3])

    def residuals(theta: Any) -> Any:
        return np.concatenate([(_predict(theta, labels, wrong) - accuracy), weight * (theta - prior)])

    return min(
        (_least_squares(residuals, one) for one in starts), key=lambda theta: float((residuals(theta) ** 2).sum())
    )


def _least_squares(residuals: Any, theta: Any) -> Any:
    theta, damping, now = np.clip(theta, -20, 20), 1e-2, residuals(theta)
    for _ in range(300):
        steps = np.eye(len(theta)) * 1e-6
        jacobian = np.stack([(residuals(theta + step) - now) / 1e-6 for step in steps], 1)
        square = jacobian.T @ jacobian
        move = np.linalg.solve(
            square + damping * (np.diag(square.diagonal()) + 1e-12 * np.eye(len(theta))), -jacobian.T @ now
        )
        trial = np.clip(theta + np.clip(move, -2, 2), -20, 20)
        there = residuals(trial)
        if (there**2).sum() < (now**2).sum():
            small = np.abs(trial - theta).max() < 1e-9
            theta, now, damping = trial, there, damping / 3
            if small:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return theta


def load_points(path: Path | None) -> list[Point]:
    """BudgetError where nothing was measured."""
    from foundling.runtime.files import read_json

    if path is None or not path.is_file():
        raise BudgetError(_NO_CURVE)
    rows = read_json(path).get("points")
    if not isinstance(rows, list) or not rows:
        raise BudgetError(f"{path}: {_NO_CURVE}")
    try:
        points = [Point(int(row["labels"]), float(row["wrong"]), float(row["accuracy"])) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise BudgetError(f"{path}: its points have no labels, wrong and accuracy; measure them again") from None
    if not all(p.labels > 0 and 0 <= p.wrong < 0.5 and 0 <= p.accuracy <= 1 for p in points):
        raise BudgetError(f"{path}: a point lies outside of what can be measured; measure them again")
    return points


# --- the plan --------------------------------------------------------------------------------------------------------


def right_share(equal: float) -> float:
    """How often a labeller is right, where two give equal labels with probability `equal` and err independently:
    equal = q² + (1 − q)². BudgetError where they agree no more than chance."""
    check_number(equal, "the share of equal labels", 0, 1, BudgetError)
    if equal <= 0.5:
        raise BudgetError(f"labellers give equal labels in {equal:.1%}, no more than chance; no number of labels helps")
    return (1 + math.sqrt(2 * equal - 1)) / 2


def wrong_of_majority(right: float, k: int) -> float:
    """How often the majority of k labellers (odd) is wrong, who are right with probability `right` independently
    (Condorcet 1785)."""
    return sum(comb(k, j) * right**j * (1 - right) ** (k - j) for j in range((k + 1) // 2))


class LabelPlan(NamedTuple):
    labellers: int
    """of each pair"""
    pairs: int
    labels: int
    """all together"""
    wrong: float
    """share of pairs whose majority is wrong"""
    accuracy: float
    """of the reward model"""


def plan_target(law: LabelLaw, right: float, accuracy: float) -> list[LabelPlan]:
    """The ways to an accuracy, the fewest labels first. BudgetError where none lies within what was measured."""
    check_number(accuracy, "--target", 0.5, 1, BudgetError)
    plans, best = list[LabelPlan](), 0.5
    for k in LABELLERS:
        wrong = wrong_of_majority(right, k)
        if wrong > law.most_wrong:
            continue
        best = max(best, law.accuracy(law.most_labels, wrong))
        needed = max(law.labels_for(accuracy, wrong), law.least_labels)
        if needed <= law.most_labels:
            pairs = math.ceil(needed)
            plans.append(LabelPlan(k, pairs, pairs * k, wrong, law.accuracy(min(pairs, law.most_labels), wrong)))
    if not plans:
        raise BudgetError(
            f"--target {accuracy:g} lies beyond the measured curve, which reaches {best:.3f} with up to "
            f"{law.most_labels:,} pairs and labellers who are right in {right:.0%}; measure more, or aim lower"
        )
    return sorted(plans, key=lambda plan: plan.labels)


def plan_budget(law: LabelLaw, right: float, labels: int) -> list[LabelPlan]:
    """What so many labels reach, the best way first. BudgetError where no way lies within what was measured."""
    PLANNED_LABELS.check(labels, "--budget", BudgetError)
    plans = list[LabelPlan]()
    for k in LABELLERS:
        wrong, pairs = wrong_of_majority(right, k), min(labels // k, law.most_labels)
        if wrong <= law.most_wrong and pairs >= law.least_labels:
            plans.append(LabelPlan(k, pairs, pairs * k, wrong, law.accuracy(pairs, wrong)))
    if not plans:
        raise BudgetError(
            f"{labels:,} labels by labellers who are right in {right:.0%} lie beyond the measured curve "
            f"({law.least_labels:,} to {law.most_labels:,} pairs, up to {law.most_wrong:.0%} wrong)"
        )
    return sorted(plans, key=lambda plan: (-plan.accuracy, plan.labels))
