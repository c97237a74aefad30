# SPDX-License-Identifier: Apache-2.0
"""The pages of an evaluation and of a comparison: what was measured is on them, untrusted text does nothing, and they
are bounded."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from foundling.contracts.records import Item
from foundling.errors import OutputError
from foundling.evaluate.calibration import calibration_figures
from foundling.evaluate.compare import compare_evaluations
from foundling.evaluate.subject import Continuation
from foundling.report.comparison import comparison_html, headline, rows, write_comparison_page
from foundling.report.evaluation import MAX_ITEMS, choose, evaluation_html, hash_rows, write_evaluation_page
from foundling.report.reliability import (
    choice_confidences,
    expected_error,
    probabilities,
    reliability_bins,
    reliability_svg,
)
from tests.evaluate.records import evaluation, items_of

NASTY = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e"


class Page(HTMLParser):
    """Tags, ids, items by outcome, and what would load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.outcomes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.loads += [f"{tag} {n}" for n, v in values.items() if n in ("src", "srcset") or n[:2] == "on"]
        self.loads += [v for n, v in values.items() if n == "href" and not v.startswith("#")]
        self.ids += [v for n, v in values.items() if n == "id"]
        self.links += [v[1:] for n, v in values.items() if n == "href"]
        self.outcomes += [v for n, v in values.items() if n == "data-outcome"]


def test_what_was_measured_is_on_the_page() -> None:
    record = evaluation({"arc easy": [1, 1, 0, 1], "wiki": [1.25, 0.5]}, lower=["wiki"])
    record = replace(
        record, results=[replace(record.results[0], figures={"Brier": (0.25, 0.1, 0.4)}), record.results[1]]
    )
    text = evaluation_html(record)
    page = Page(text)
    assert "75.0\xa0%" in text and "30.1\xa0% – 95.4\xa0%" in text, "Wilson of 3 of 4"
    assert "0.875" in text and "bits per byte, lower is better" in text and "Brier 0.250 (0.100 – 0.400)" in text
    assert "4.00\xa0s" not in text and "4\xa0s, 60 tokens read" in text and "0.5\xa0s" in text, "costs"
    assert page.outcomes == ["right", "right", "wrong", "right"] and page.tags.count("svg") == 1
    assert set(page.links) <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert "t" * 16 in text and "Question 2:" in text and "nothing was left out" in text
    # e⁻¹ of e⁻¹ + e⁻² is 0.731
    assert text.count("73.1 %") == 3


def test_untrusted_text_is_shown_and_does_nothing() -> None:
    item = Item(id=NASTY, prompt=NASTY, target=NASTY, answer=NASTY, score=0.0, choices=[(NASTY, -1.0), ("b", -2.0)])
    record = evaluation({NASTY: [0.0]}, subject=NASTY)
    record = replace(
        record, items={NASTY: [item, {**item, "choices": [], "cut": True}]}, notes=[NASTY], command=NASTY,
        settings={NASTY: NASTY}, machine={NASTY: NASTY}, about={NASTY: NASTY}, created=NASTY,
        results=[replace(record.results[0], metric=NASTY, hashes={NASTY: NASTY}, figures={NASTY: (1.0, None, None)})],
    )  # fmt: skip
    better = replace(record, items={NASTY: [{**item, "score": 1.0}]})
    better = replace(better, results=[replace(record.results[0], scores=[1.0])])
    comparison = compare_evaluations(replace(record, items={NASTY: [item]}), better)
    assert comparison.tasks[0].changed
    for text in (evaluation_html(record), comparison_html(comparison)):
        page = Page(text)
        assert not page.loads and page.tags.count("script") == 1 and "img" not in page.tags
        assert "\x1b" not in text and "\u202e" not in text and "\\u202e" in text
        script = re.findall(r"<script>(.*?)</script>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
        assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_the_page_is_bounded() -> None:
    record = evaluation({f"t{i}": [1] * 900 + [0] * 10 for i in range(4)})
    long = replace(
        record, items={t: [{**i, "prompt": "x" * 100_000 + "?"} for i in items] for t, items in record.items.items()}
    )
    text = evaluation_html(long)
    page = Page(text)
    assert len(page.outcomes) == 4 * MAX_ITEMS and page.outcomes.count("wrong") == 40 and len(text) < 4_000_000
    assert "200 on this page" in text and "characters before) …" in text
    many = evaluation({f"t{i}": [1, 0] * 50 for i in range(100)})
    assert len(Page(evaluation_html(many)).outcomes) == 2_000


def test_items_are_chosen_in_their_order() -> None:
    items = items_of([1, 0, 1, 1, 0, 0, 0])
    assert [i["id"] for i in choose(items, 4)] == ["q0", "q1", "q2", "q4"]
    assert [i["id"] for i in choose(items, 6)] == ["q0", "q1", "q2", "q3", "q4", "q5"]
    assert choose(items, 7) == items and [i["score"] for i in choose(items_of([1] * 9), 3)] == [1, 1, 1]


def test_a_page_without_items_and_without_results() -> None:
    for record in (evaluation({"wiki": [1.5]}, lower=["wiki"]), evaluation({})):
        page = Page(evaluation_html(record))
        assert "script" not in page.tags and "details" not in page.tags and "svg" not in page.tags


def test_hashes_that_all_share_stand_once() -> None:
    record = evaluation({"a": [1], "b": [1]})
    results = [record.results[0], replace(record.results[1], hashes={**record.results[1].hashes, "task": "other"})]
    shared, *own = hash_rows(results)
    assert shared[0] == "" and "task" not in shared[1] and own == [("a", {"task": "t" * 64}), ("b", {"task": "other"})]


def test_the_comparison_in_words_and_rows() -> None:
    a, b = {"t": [1] * 40 + [0] * 5, "u": [1, 0] * 20}, {"t": [0] * 30 + [1] * 15, "u": [1, 0] * 20}
    comparison = compare_evaluations(evaluation(a, subject="old"), evaluation(b, subject="new"))
    assert headline(comparison) == "new against old: worse on mean of 2 tasks, t"
    first, second, mean = rows(comparison)
    assert (first.task, first.n, first.a, first.b, first.better, first.worse) == ("t", "45", "88.9", "33.3", "5", "30")
    assert first.difference.startswith("-55.6 [") and first.p == "< 0.001" and first.verdict == "worse"
    assert second.difference.startswith("+0.0 [") and second.verdict == "same" and mean.task == "mean of 2 tasks"
    page = Page(comparison_html(comparison))
    assert page.outcomes == ["wrong"] * 30 + ["right"] * 5 and set(page.links) <= set(page.ids)
    same = compare_evaluations(evaluation({"t": [1, 0]}), evaluation({"t": [1, 0]}))
    assert headline(same) == "a against a: same: no difference shown" and not Page(comparison_html(same)).outcomes


def test_reliability_by_hand() -> None:
    """Of 15 bins, 0.2 is the upper end of the third and 0.99 in the last."""
    bins = reliability_bins([0.2, 0.19, 0.99, 0.97, 1.0], [0, 1, 1, 1, 0])
    assert [(b.n, b.low) for b in bins] == [(2, pytest.approx(2 / 15)), (3, pytest.approx(14 / 15))]
    assert bins[0].accuracy == 0.5 and bins[0].confidence == pytest.approx(0.195)
    error = expected_error([0.2, 0.19, 0.99, 0.97, 1.0], [0, 1, 1, 1, 0])
    assert error == pytest.approx((2 * abs(0.5 - 0.195) + 3 * abs(2 / 3 - 2.96 / 3)) / 5)
    drawing = reliability_svg(bins)
    assert drawing.count("<title>") == 2 and "confidence 0.99, right 0.67, 3 items" in drawing
    assert reliability_bins([0.0], [0.0])[0].low == 0 and reliability_svg([]).startswith("<svg")


def test_the_page_and_the_figures_take_confidence_by_one_rule() -> None:
    """Also of answers that are chosen by log-probability per byte: 'bbbb' is preferred there, and 'a' is likelier."""
    answers = [[Continuation("a", -1.0, 1), Continuation("bbbb", -2.0, 1)]]
    items = [Item(id="1", prompt="", target="bbbb", answer="bbbb", score=1.0, choices=[("a", -1.0), ("bbbb", -2.0)])]
    confidences, correct = choice_confidences(items)
    assert confidences == [pytest.approx(1 / (1 + math.exp(-1)))] and correct == [0.0]
    figures = calibration_figures(lambda example: 1)([None], answers)
    assert figures["ECE"].value == pytest.approx(expected_error(confidences, correct))
    page = evaluation_html(evaluation({"t": [1]}))
    assert "expected calibration error" in page
    assert choice_confidences([{**items[0], "target": "c"}, {**items[0], "choices": [("", -3.0)]}]) == ([], [])
    assert probabilities([-math.inf, -math.inf]) == [0.5, 0.5]


def test_pages_that_cannot_be_written(tmp_path) -> None:
    record = evaluation({"t": [1, 0]})
    write_evaluation_page(record, tmp_path / "e.html")
    write_comparison_page(compare_evaluations(record, record), tmp_path / "c.html")
    assert {p.name for p in tmp_path.iterdir()} == {"e.html", "c.html"}
    with pytest.raises(OutputError, match="cannot be written"):
        write_evaluation_page(record, tmp_path / "none" / "e.html")
