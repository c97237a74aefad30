# SPDX-License-Identifier: Apache-2.0
"""The law of labels finds what it was made from, and the planner says what it cannot know."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from foundling.errors import BudgetError
from foundling.plan.labels import (
    LabelLaw,
    Point,
    fit_law,
    load_points,
    plan_budget,
    plan_target,
    right_share,
    wrong_of_majority,
)

LAW = LabelLaw(0.93, 200, 0.9, 1.8, 0.01, 36, 4096, 32, 0.35)


def measured(noise: float = 0.0, seed: int = 0) -> list[Point]:
    draw = np.random.default_rng(seed)
    return [
        Point(labels, wrong, LAW.accuracy(labels, wrong) + draw.normal() * noise)
        for labels in (32, 128, 512, 2048, 4096) for wrong in (0.0, 0.1, 0.2, 0.35) for _ in range(3)
    ]  # fmt: skip


def test_the_law_is_found_again() -> None:
    law = fit_law(measured())
    for labels, wrong in ((100, 0.05), (1000, 0.0), (3000, 0.3)):
        assert law.accuracy(labels, wrong) == pytest.approx(LAW.accuracy(labels, wrong), abs=2e-3)
    assert (law.least_labels, law.most_labels, law.most_wrong, law.points) == (32, 4096, 0.35, 60)
    assert law.error < 3e-3
    noisy = fit_law(measured(noise=0.01))
    assert 0.008 < noisy.error < 0.013  # that of the measurements
    assert noisy.accuracy(1000, 0.1) == pytest.approx(LAW.accuracy(1000, 0.1), abs=0.01)


def test_labels_and_accuracy_are_inverse() -> None:
    for wrong in (0.0, 0.2):
        assert LAW.labels_for(LAW.accuracy(700, wrong), wrong) == pytest.approx(700)
    assert LAW.labels_for(0.95, 0) == math.inf == LAW.labels_for(0.8, 0.5)


def test_majorities_by_hand() -> None:
    assert wrong_of_majority(0.8, 1) == pytest.approx(0.2)
    assert wrong_of_majority(0.8, 3) == pytest.approx(0.2**3 + 3 * 0.8 * 0.2**2)  # 0.104
    assert right_share(0.8**2 + 0.2**2) == pytest.approx(0.8)


def test_plans_reach_the_target_with_the_fewest_labels() -> None:
    plans = plan_target(LAW, 0.8, 0.8)
    assert plans == sorted(plans, key=lambda plan: plan.labels) and len(plans) > 2
    for plan in plans:
        assert plan.accuracy >= 0.8 - 1e-9 and plan.labels == plan.pairs * plan.labellers
        assert LAW.accuracy(max(32, plan.pairs - 1), plan.wrong) < 0.8 or plan.pairs == 32
    best = plan_budget(LAW, 0.8, plans[0].labels)[0]
    assert best.accuracy >= plans[0].accuracy - 1e-9
    assert plan_budget(LAW, 0.8, 10**6)[0].pairs == LAW.most_labels  # more labels than the curve says anything of


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LAW.accuracy(5000, 0), "beyond the measured curve"),
        (lambda: LAW.accuracy(100, 0.4), "up to 35% wrong"),
        (lambda: plan_target(LAW, 0.9, 0.95), "lies beyond the measured curve, which reaches"),
        (lambda: plan_target(LAW, 0.55, 0.8), "lies beyond the measured curve"),
        (lambda: plan_target(LAW, 0.9, 1.5), "--target"),
        (lambda: plan_budget(LAW, 0.9, 10), "10 labels by labellers"),
        (lambda: right_share(0.5), "no more than chance"),
        (lambda: fit_law([Point(10, 0, 0.5)] * 20), "a fit needs"),
        (lambda: load_points(None), "no curve"),
    ],
)
def test_what_was_not_measured_is_refused(call, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        call()


def test_a_curve_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    file.write_text(json.dumps({"points": [point._asdict() for point in measured()]}))
    assert fit_law(load_points(file)) == fit_law(measured())
    for rows in ([], [{"labels": 1}], [{"labels": 0, "wrong": 0, "accuracy": 1}]):
        file.write_text(json.dumps({"points": rows}))
        with pytest.raises(BudgetError):
            load_points(file)
