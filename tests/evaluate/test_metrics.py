# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-learn and scipy, and spans worked by hand after conlleval."""

from __future__ import annotations

import numpy as np
import pytest

from foundling.errors import DataError
from foundling.evaluate import metrics
from foundling.text.tags import has_spans, spans_of

sk = pytest.importorskip("sklearn.metrics")
RNG = np.random.default_rng(3)
TRUTH = RNG.choice(["a", "b", "c"], 200, p=[0.6, 0.3, 0.1]).tolist()
FOUND = [t if RNG.random() < 0.7 else str(RNG.choice(["a", "b", "d"])) for t in TRUTH]
VALUES = (RNG.integers(0, 9, 60) + 0.5).tolist()
GUESSES = [v + float(RNG.normal(0, 2)) for v in VALUES]


def known(figure: metrics.Figure) -> tuple[float, float, float]:
    value, low, high, method = figure
    assert value is not None and low is not None and high is not None and method
    return value, low, high


def test_labels_as_scikit_learn_counts_them() -> None:
    close = pytest.approx
    assert metrics.accuracy(TRUTH, FOUND).value == close(sk.accuracy_score(TRUTH, FOUND))
    assert metrics.macro_f1(TRUTH, FOUND).value == close(sk.f1_score(TRUTH, FOUND, average="macro", zero_division=0))
    assert metrics.micro_f1(TRUTH, FOUND).value == close(sk.f1_score(TRUTH, FOUND, average="micro"))
    some = ["a", "b"]
    assert metrics.micro_f1(TRUTH, FOUND, some).value == close(sk.f1_score(TRUTH, FOUND, labels=some, average="micro"))
    assert metrics.matthews(TRUTH, FOUND).value == close(sk.matthews_corrcoef(TRUTH, FOUND))
    labels = ["a", "b", "c", "d"]
    assert metrics.confusion(TRUTH, FOUND, labels) == sk.confusion_matrix(TRUTH, FOUND, labels=labels).tolist()
    expected = sk.precision_recall_fscore_support(TRUTH, FOUND, labels=labels, zero_division=0)
    for index, figures in enumerate(metrics.per_class(TRUTH, FOUND, labels).values()):
        assert figures == close(tuple(float(column[index]) for column in expected))
    assert metrics.matthews(["a", "b"], ["a", "a"]).value == 0, "a constant"
    for figure in (metrics.accuracy, metrics.macro_f1, metrics.matthews):
        value, low, high = known(figure(TRUTH, FOUND))
        assert low < value < high and high - low < 0.3
    (_, *narrow), (_, *wide) = known(metrics.macro_f1(TRUTH * 4, FOUND * 4)), known(metrics.macro_f1(TRUTH, FOUND))
    assert narrow[1] - narrow[0] == close((wide[1] - wide[0]) / 2, rel=0.25), "four times the items"


def test_values_as_scikit_learn_and_scipy_count_them() -> None:
    stats = pytest.importorskip("scipy.stats")
    close = pytest.approx
    assert metrics.mae(VALUES, GUESSES).value == close(sk.mean_absolute_error(VALUES, GUESSES))
    assert metrics.rmse(VALUES, GUESSES).value == close(sk.mean_squared_error(VALUES, GUESSES) ** 0.5)
    assert metrics.r_squared(VALUES, GUESSES).value == close(sk.r2_score(VALUES, GUESSES))
    assert metrics.spearman(VALUES, GUESSES).value == close(stats.spearmanr(VALUES, GUESSES)[0])
    for figure in (metrics.mae, metrics.rmse, metrics.r_squared, metrics.spearman):
        value, low, high = known(figure(VALUES, GUESSES))
        assert low < value < high
    assert (
        metrics.r_squared([1.0, 1.0], [1.0, 2.0]).value is None
        and metrics.spearman([1.0, 1.0], [1.0, 2.0]).value is None
    )
    assert metrics.spearman([1.0, 2.0], [3.0, 4.0]).value == close(1)


def test_texts() -> None:
    assert metrics.exact_match(["a b", "c"], [" a b\n", "C"]).value == 0.5
    for truth, found in (([], []), (["a"], [])):
        with pytest.raises(DataError, match="at least one"):
            metrics.accuracy(truth, found)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # IOB2
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # IOB1
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),  # IOB1, two that touch
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),  # another type begins anew
        ("B-PER I-PER E-PER S-LOC", [("PER", 0, 3), ("LOC", 3, 4)]),  # IOBES
        ("E-PER E-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("S-PER I-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER L-PER U-LOC", [("PER", 0, 2), ("LOC", 2, 3)]),  # BILOU
        ("PER PER O LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # types alone
        ("B I O B B", [("", 0, 2), ("", 3, 4), ("", 4, 5)]),  # without types
        ("O O", []),
        ("", []),
    ],
)
def test_spans_by_the_rules_of_conlleval(tags: str, spans: list[tuple[str, int, int]]) -> None:
    assert spans_of(tags.split()) == spans
    assert has_spans(["O", "B-PER"]) and not has_spans(["NN", "VB"])


def test_spans_count_where_type_and_both_ends_are_right() -> None:
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O"], ["O", "O"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC", "B-LOC"], ["O", "O"]]
    # 3 true, 4 predicted, 1 right: precision 1/4, recall 1/3
    assert metrics.span_f1(truth, found).value == pytest.approx(2 / 7)
    assert metrics.span_f1([["O"]], [["O"]]).value is None
    with pytest.raises(DataError, match="as many"):
        metrics.span_f1([["O"]], [["O", "O"]])
