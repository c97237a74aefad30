# SPDX-License-Identifier: Apache-2.0
"""Items that were planted in a corpus are seen, others are not; against a plain search."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundling.contracts.records import Result
from foundling.errors import DataError
from foundling.evaluate.contamination import (
    COMMON,
    N_WORDS,
    _Index,
    contaminated,
    texts_of_rows,
    with_contamination,
    words,
)
from foundling.evaluate.evaluation import evaluate
from foundling.evaluate.intervals import wilson
from foundling.evaluate.subject import GeneratedText, Refusals
from foundling.evaluate.task import Task
from foundling.evaluate.task_file import load_task
from foundling.recipes.progress import Progress
from tests.evaluate.records import items_of

VOCABULARY = ["river", "boat", "stone", "house", "rain", "field", "town", "seven", "quiet", "old", "falls", "carries"]


class Fixed(Refusals):
    """Always writes the same."""

    name, hashes = "fixed", {"model": "f" * 64}

    def generate(self, requests):
        yield from ((i, GeneratedText("yes")) for i in range(len(requests)))


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
        "3 of 21 items (14.3%) share 13 words in a row, or all of their words, with 50 documents of the training data; "
        "1 items without 5 words of their own were not checked"
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
    texts = texts_of_rows([{"id": item["id"], "text": item["prompt"]} for item in items])
    overlap = contaminated(texts, [items[0]["prompt"], items[1]["prompt"]])
    result = Result("t", "accuracy", 0.75, 4, scores=[1.0, 1.0, 1.0, 0.0])
    figures = with_contamination(result, items, overlap).figures  # pyright: ignore[reportArgumentType]
    assert figures["on clean items"] == (0.5, *wilson(0.5, 2)) and figures["on contaminated items"][0] == 1.0
    assert figures["contaminated items, share"] == (0.5, None, None)
    weighted = replace(result, weights=[1.0, 1.0, 3.0, 1.0])
    assert with_contamination(weighted, items, overlap).figures["on clean items"][0] == 0.75  # pyright: ignore
    clean = with_contamination(result, items, contaminated(texts, [])).figures  # pyright: ignore[reportArgumentType]
    assert "on contaminated items" not in clean and clean["on clean items"][0] == 0.75


def test_the_texts_of_rows() -> None:
    long = text(N_WORDS, 1)
    rows = [{"id": 7, "question": "Who?", "options": ["a b c d e f", long], "more": {"why": "x"}, "answer": 1}, "plain"]
    assert texts_of_rows(rows) == {"7": ["Who?", long, "x"], "1": ["plain"]}
    assert texts_of_rows(rows, ("options", "id", "absent")) == {"7": [long], "1": ["plain"]}


def test_what_items_share_does_not_count_where_it_is_short() -> None:
    """A source of six words that ten items name; one of 13 words is a passage, and counts up to COMMON items."""
    source, own = text(6, 1), text(6, 2)
    items = {f"q{i}": [text(6, 10 + i), source] for i in range(10)}
    assert contaminated(items | {"x": own}, [f"He reads {source} and {own}."]).contaminated == {"x"}
    alone = contaminated(dict.fromkeys("ab", source), [source])
    assert alone.checked == 0 and "2 items without 5 words of their own were not checked" in str(alone)
    passage = text(N_WORDS, 3)
    assert contaminated(dict.fromkeys("ab", passage), [passage]).contaminated == {"a", "b"}


def test_fields_that_a_task_does_not_read_are_not_looked_for(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "q": text(20, i), "source": text(20, 40 + i)} for i in range(4)]
    task = Task("t", rows, lambda row: row["q"], lambda row, answer: 1.0)
    corpus, bar = Documents([rows[0]["q"], rows[1]["source"], rows[2]["source"]]), Progress(on=False)
    shares = [
        evaluate(Fixed(), [replace(task, fields=fields)], tmp_path / "a", bar=lambda *n: bar.bar(*n), corpus=corpus)
        .results[0].figures["contaminated items, share"][0]
        for fields in (("q",), ("source",), ())
    ]  # fmt: skip
    assert shares == [1 / 4, 2 / 4, 3 / 4]


class Documents:
    """Counts how often it is read."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.n_reads = texts, 0

    def __call__(self) -> list[str]:
        self.n_reads += 1
        return self.texts


@pytest.mark.parametrize("shots", [0, 2])
def test_short_items_in_a_template_with_and_without_solved_examples(tmp_path, shots: int) -> None:
    """Two questions of six words were planted, and the solved examples stand in the corpus as well: the items that
    are contaminated are the two, under each of two seeds, and the corpus is read once."""
    rows = [{"id": f"q{i}", "q": text(6, i), "a": f"answer{i}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = [{"id": f"s{i}", "q": text(9, 50 + i), "a": "yes"} for i in range(2)]
    (tmp_path / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    spec = {
        "name": "t", "kind": "generate", "data": "rows.jsonl", "prompt": "Question: {q} Answer:", "answer": "{a}",
        "few_shot": {"n": shots, "data": "shown.jsonl"}, "max_tokens": 2,
    }  # fmt: skip
    (tmp_path / "t.yaml").write_text(json.dumps(spec))
    tasks = [load_task(tmp_path / "t.yaml", seed=seed, named=True) for seed in (0, 1)]
    corpus = Documents([f"It asks {rows[2]['q']}, and then {rows[5]['q']}.", *(row["q"] + " yes" for row in shown)])
    bar = Progress(on=False)
    record = evaluate(Fixed(), tasks, tmp_path / "a.jsonl", bar=lambda name, n: bar.bar(name, n), corpus=corpus)
    assert corpus.n_reads == 1
    for result in record.results:
        assert result.figures["contaminated items, share"][0] == 2 / 8
    assert sum("2 of 8 items (25.0%)" in note for note in record.notes) == 2


def test_bad_input() -> None:
    items = items_of([1, 0])
    with pytest.raises(DataError, match="'q0'"):
        texts_of_rows([{"id": "q0", "text": "a"}, {"id": "q0", "text": "b"}])
    with pytest.raises(DataError, match="at least 5"):
        contaminated({"x": "a"}, [], n_words=4)
    with pytest.raises(DataError, match="2 scores and 1 items"):
        with_contamination(Result("t", "m", 0.5, 2, scores=[1.0, 0.0]), items[:1], contaminated({"q0": "a"}, []))
    assert contaminated({}, ["text"]).share == 0.0
