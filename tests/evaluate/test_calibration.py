# SPDX-License-Identifier: Apache-2.0
"""Calibration by hand, against independent sums, and on models whose calibration is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from foundling.errors import DataError
from foundling.evaluate.calibration import (
    as_figures,
    calibration,
    calibration_figures,
    fit_temperature,
)
from foundling.evaluate.subject import Continuation
from foundling.report.reliability import choice_confidences, expected_error
from tests.evaluate.records import items_of


def drawn(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of 4 classes, `sharpness` times too large, and truths that are drawn from the right ones."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (n, 4))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (shares.cumsum(1) < generator.random((n, 1))).sum(1)
    return sharpness * logits, truth


def test_two_items_by_hand() -> None:
    """Probabilities (0.8, 0.2) right and (0.6, 0.4) wrong."""
    measured = calibration(np.log([[0.8, 0.2], [0.6, 0.4]]).tolist(), [0, 1])
    assert measured.accuracy.value == 0.5 and measured.confidence == pytest.approx(0.7)
    assert measured.ece.value == pytest.approx((0.2 + 0.6) / 2), "two bins of one item"
    assert measured.ece_mass.value == pytest.approx(0.4)
    assert measured.brier.value == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert measured.nll.value == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    assert [b.n for b in measured.bins] == [1, 1]


def test_equal_mass_bins_against_a_loop() -> None:
    logprobs, truth = drawn(317, 2.0)
    measured = calibration(logprobs.tolist(), truth.tolist())
    shares = np.exp(logprobs) / np.exp(logprobs).sum(1, keepdims=True)
    order = np.argsort(shares.max(1), kind="stable")
    right = (shares.argmax(1) == truth)[order]
    cuts = [317 * i // 15 for i in range(16)]
    by_hand = sum(abs(right[a:b].sum() - shares.max(1)[order][a:b].sum()) for a, b in pairwise(cuts))
    assert measured.ece_mass.value == pytest.approx(by_hand / 317)


def test_a_calibrated_model_and_one_that_is_too_sure() -> None:
    calm, sure = (calibration(*(part.tolist() for part in drawn(1200, s))) for s in (1.0, 3.0))
    for measured in (calm, sure):
        for figure in (measured.ece, measured.brier, measured.nll, measured.ece_after):
            assert figure.value is not None and figure.low is not None and figure.high is not None
            assert figure.low < figure.high and figure.value < figure.high
    assert (
        calm.ece.value
        and calm.ece.value < calm.ece_calibrated < 0.05
        and calm.temperature == pytest.approx(1, abs=0.15)
    )
    assert sure.ece.low and sure.ece.low > 0.1 > sure.ece_calibrated and sure.temperature == pytest.approx(3, rel=0.1)
    assert sure.ece_after.value and sure.ece_after.value < 0.05
    assert sure.nll_after.value and calm.nll.value and sure.nll_after.value == pytest.approx(calm.nll.value, rel=0.03)


@pytest.mark.slow
def test_calibrated_models_stay_below_their_bound_in_95_of_100_cases() -> None:
    above = 0
    for seed in range(100):
        logprobs, truth = drawn(300, 1.0, seed)
        measured = calibration(logprobs.tolist(), truth.tolist())
        assert measured.ece.value is not None
        above += measured.ece.value > measured.ece_calibrated
    assert above <= 12, "5 are expected; 13 or more come with a probability of 0.1 %"


def test_the_temperature_against_scipy() -> None:
    logprobs, truth = drawn(500, 2.5)

    def loss(t: float) -> float:
        z = logprobs / t
        return float(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(500), truth]))

    theirs = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-6})
    assert fit_temperature(logprobs, truth) == pytest.approx(theirs.x, rel=1e-3)


def test_numbers_of_choices_may_differ() -> None:
    """A choice that an item lacks takes nothing from the others, at any temperature."""
    mixed = calibration([[-1.0, -2.0], [-1.0, -2.0, -3.0], [-0.5, -0.1]], [0, 2, 0])
    shares = [math.exp(-v) for v in (1, 2, 3)]
    expected = [
        shares[0] / sum(shares[:2]),
        shares[2] / sum(shares),
        math.exp(-0.5) / (math.exp(-0.5) + math.exp(-0.1)),
    ]
    assert mixed.nll.value == pytest.approx(-sum(map(math.log, expected)) / 3)


def test_impossible_classes() -> None:
    measured = calibration([[0.0, -math.inf], [-math.inf, 0.0]], [0, 0])
    assert measured.nll.value == pytest.approx(-math.log(1e-12) / 2) and measured.brier.value == pytest.approx(1.0)


def test_items_and_tasks_of_choices() -> None:
    items = items_of([1, 0, 1])
    measured = calibration([[logprob for _, logprob in item["choices"]] for item in items], [0, 0, 0])  # pyright: ignore
    assert measured.n == 3 and measured.accuracy.value == pytest.approx(2 / 3)
    confidences, correct = choice_confidences(items)
    assert measured.ece.value == pytest.approx(expected_error(confidences, correct)) and correct == [1, 0, 1]
    answers = [[Continuation(text, logprob, 1) for text, logprob in item["choices"]] for item in items]  # pyright: ignore
    figures = calibration_figures(lambda example: 0)([1, 2, 3], answers)
    assert figures == as_figures(measured) and figures["ECE"].value == measured.ece.value
    assert figures["NLL"].interval.startswith("percentile bootstrap")


def test_one_item_has_no_interval() -> None:
    measured = calibration([[-1.0, -2.0]], [0])
    assert measured.ece.low is None and measured.ece_after.value is not None


@pytest.mark.parametrize(
    ("rows", "truth", "says"),
    [
        ([], [], "at least 1"), ([[0.0, 1.0]], [0, 1], "expected as many"), ([[0.0, 1.0]], [2], "number 2"),
        ([[0.0, math.nan]], [0], "no numbers"), ([[-math.inf, -math.inf]], [0], "all 0"), ([[]], [0], "has 0 choices"),
        ([[0.0, 1.0]], [-1], "number -1"),
    ],
)  # fmt: skip
def test_bad_input(rows, truth, says) -> None:
    with pytest.raises(DataError, match=says):
        calibration(rows, truth)
