# SPDX-License-Identifier: Apache-2.0
"""Items that were planted in a corpus are seen, others are not; against a plain search."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.contracts.records import Result
from foundling.errors import DataError
from foundling.evaluate.contamination import COMMON, _Index, contaminated, with_contamination, words
from foundling.evaluate.intervals import wilson
from tests.evaluate.records import items_of

VOCABULARY = ["river", "boat", "stone", "house", "rain", "field", "town", "seven", "quiet", "old", "falls", "carries"]


def text(n: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices([f"{w}{i}" for w in VOCABULARY for i in range(9)], k=n))


def test_planted_items_are_seen_whatever_their_spelling() -> None:
    items = {f"q{i}": text(30, i) for i in range(20)}
    items["short"], items["tiny"] = "Seven quiet boats carry stone.", "a river"
    documents = [text(400, 100 + i) for i in range(50)]
    documents[3] += " " + items["q4"].upper().replace(" ", ",  ") + "!"
    documents[7] = f"before {' '.join(items['q5'].split()[10:23])} after"  # 13 words of it
    documents[8] = f"before {' '.join(items['q6'].split()[10:22])} after"  # 12
    documents[9] += "\n“Seven—quiet boats\ncarry stone”; a river"
    overlap = contaminated(items, documents)
    assert overlap.contaminated == {"q4", "q5", "short"} and overlap.documents == 50
    by_id = {item.id: item for item in overlap.items}
    assert by_id["q4"][1:] == (18, 18) and by_id["q5"][1:] == (1, 18) and by_id["tiny"].runs == 0
    assert (
        overlap.checked == 21 and overlap.share == pytest.approx(3 / 21) and by_id["q5"].share == pytest.approx(1 / 18)
    )
    assert str(overlap) == (
        "3 of 21 items (14.3%) share 13 words in a row with 50 documents of the training data; "
        "1 items of fewer than 5 words were not checked"
    )


def test_common_phrases_and_templates_do_not_count() -> None:
    template = "answer the following question with one of the letters a b c or d please now"
    items = {f"q{i}": f"{template} {text(20, i)}" for i in range(COMMON + 1)}
    assert not contaminated(items, [template + " and more"]).contaminated
    licence = text(20, 99)
    assert contaminated({"x": licence}, [licence] * COMMON).contaminated == {"x"}
    assert not contaminated({"x": licence}, [licence] * (COMMON + 1)).contaminated
    assert contaminated({"x": licence}, [f"{licence} {licence}"] * COMMON).contaminated, (
        "documents are counted, not places"
    )


def test_long_documents_are_read_in_windows() -> None:
    item = text(13, 1)
    for before in (65_530, 65_536, 131_071):
        assert contaminated({"x": item}, [f"{'z ' * before}{item}"]).contaminated, before


def test_scripts_without_spaces() -> None:
    question = "中国的首都是哪座城市请回答这个问题"
    assert contaminated({"x": question}, [f"他说{question}然后"]).contaminated
    assert not contaminated({"x": question}, ["中国的首都是北京请回答这个问题"]).contaminated
    assert list(words("Ｆｕｌｌ WIDTH_a, naïve 2,5")) == ["full", "width", "a", "naïve", "2", "5"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab ", max_size=40), min_size=1, max_size=6), st.lists(st.text("ab ", max_size=80), max_size=6))
def test_against_a_plain_search(texts: list[str], documents: list[str]) -> None:
    runs = {tuple(t.split()) for t in texts if t.split()}
    index = _Index(runs)
    for document in documents:
        index.read(document)
    for run in runs:
        expected = sum(f" {' '.join(run)} " in f" {' '.join(d.split())} " for d in documents)
        assert index.counts[run] == expected


def test_scores_on_clean_items_stand_beside_all() -> None:
    items = [{**item, "prompt": text(20, i)} for i, item in enumerate(items_of([1, 1, 1, 0]))]
    overlap = contaminated(items, [items[0]["prompt"], items[1]["prompt"]])  # pyright: ignore[reportArgumentType]
    result = Result("t", "accuracy", 0.75, 4, scores=[1.0, 1.0, 1.0, 0.0])
    figures = with_contamination(result, items, overlap).figures  # pyright: ignore[reportArgumentType]
    assert figures["on clean items"] == (0.5, *wilson(0.5, 2)) and figures["on contaminated items"][0] == 1.0
    assert figures["contaminated items, share"] == (0.5, None, None)
    weighted = replace(result, weights=[1.0, 1.0, 3.0, 1.0])
    assert with_contamination(weighted, items, overlap).figures["on clean items"][0] == 0.75  # pyright: ignore
    clean = with_contamination(result, items, contaminated(items, [])).figures  # pyright: ignore[reportArgumentType]
    assert "on contaminated items" not in clean and clean["on clean items"][0] == 0.75


def test_bad_input() -> None:
    items = items_of([1, 0])
    with pytest.raises(DataError, match="'q0'"):
        contaminated([items[0], items[0]], [])
    with pytest.raises(DataError, match="at least 5"):
        contaminated({"x": "a"}, [], n_words=4)
    with pytest.raises(DataError, match="2 scores and 1 items"):
        with_contamination(Result("t", "m", 0.5, 2, scores=[1.0, 0.0]), items[:1], contaminated(items[:1], []))
    assert contaminated({}, ["text"]).share == 0.0
