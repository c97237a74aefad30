# SPDX-License-Identifier: Apache-2.0
"""Retrieval: queries, documents, and which documents are relevant to each query.

Documents are ranked by the cosine of their vectors with the query's. BM25 ranks the same documents beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log2
from typing import Any, NamedTuple

import numpy as np

from foundling.errors import DataError
from foundling.evaluate.baselines.bm25 import BM25
from foundling.evaluate.intervals import interval_of
from foundling.evaluate.metrics import Figure
from foundling.evaluate.subject import Prompt, Vector
from foundling.evaluate.task import Task
from foundling.limits import DOCUMENTS

DEPTH = 1000
"""documents of a ranking that are kept; a relevant one below counts as not retrieved"""
SHOWN = 10
_QUERIES = 64
"""queries that are compared with all documents at once"""


class Ranking(NamedTuple):
    """The first DEPTH documents of a query, best first."""

    ids: list[str]
    scores: list[float]
    n_prompt: int = 0
    """tokens of the query; the first ranking of a task counts those of the documents too"""
    n_tokens: int = 0

    def __str__(self) -> str:
        lines = zip(self.ids[:SHOWN], self.scores[:SHOWN])
        return "\n".join(f"{i}. {name} ({score:.4f})" for i, (name, score) in enumerate(lines, 1))


def rank(queries: Sequence[Vector], documents: Sequence[Vector], ids: Sequence[str]) -> list[Ranking]:
    """By cosine, of equal ones the first. DataError where vectors differ in length or are damaged."""
    texts, corpus = _matrix(queries), _matrix(documents)
    if texts.shape[1] != corpus.shape[1]:
        raise DataError(f"queries have vectors of {texts.shape[1]} numbers, documents of {corpus.shape[1]}")
    out = list[Ranking]()
    for start in range(0, len(texts), _QUERIES):
        for row in texts[start : start + _QUERIES] @ corpus.T:
            out.append(ranking(row, ids, queries[len(out)].n_prompt))
    n_documents = sum(vector.n_prompt for vector in documents)
    return [one._replace(n_prompt=one.n_prompt + n_documents * (i == 0)) for i, one in enumerate(out)]


def ranking(scores: Any, ids: Sequence[str], n_prompt: int = 0) -> Ranking:
    best = np.argsort(-scores, kind="stable")[:DEPTH]
    return Ranking([ids[int(i)] for i in best], [float(scores[i]) for i in best], n_prompt)


def _matrix(vectors: Sequence[Vector]) -> Any:
    rows = [vector.array() for vector in vectors]
    if len({len(row) for row in rows}) != 1:
        raise DataError("recorded vectors differ in length; remove the file of recorded answers")
    matrix = np.stack(rows)
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)


# --- metrics ----------------------------------------------------------------------------------------------------------


def recall(ids: Sequence[str], relevant: Sequence[str], k: int) -> float:
    """The share of the relevant documents that are among the first k."""
    return len({*ids[:k]} & {*relevant}) / len({*relevant})


def ndcg(ids: Sequence[str], relevant: Sequence[str], k: int) -> float:
    """Σ 1 / log2(1 + rank) of the relevant ones among the first k, divided by what the best order reaches (Järvelin &
    Kekäläinen 2002, with grades 0 and 1)."""
    right = {*relevant}
    gains = [1 / log2(place + 1) for place in range(1, k + 1)]
    return sum(g for g, name in zip(gains, ids) if name in right) / sum(gains[: len(right)])


def reciprocal_rank(ids: Sequence[str], relevant: Sequence[str]) -> float:
    """1 / the rank of the first relevant one, 0 where none is among `ids`."""
    right = {*relevant}
    return next((1 / place for place, name in enumerate(ids, 1) if name in right), 0.0)


MEASURES: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "nDCG@10": lambda ids, relevant: ndcg(ids, relevant, 10),
    "recall@1": lambda ids, relevant: recall(ids, relevant, 1),
    "recall@10": lambda ids, relevant: recall(ids, relevant, 10),
    "recall@100": lambda ids, relevant: recall(ids, relevant, 100),
    "MRR": reciprocal_rank,
}


def retrieval_task(
    name: str,
    items: Sequence[dict[str, Any]],
    documents: Sequence[tuple[str, str]],
    query: Callable[[dict[str, Any]], Prompt],
    relevant: Callable[[dict[str, Any]], Sequence[str]],
    measure: str = "nDCG@10",
) -> Task[dict[str, Any]]:
    """`documents` (id, text), `relevant` the ids for an item. The figures are all MEASURES, those of BM25 on the same
    queries, and how much the model exceeds it, each with its interval over queries.

    DataError for an item without a relevant document, or one that is not there."""
    DOCUMENTS.check(len(documents), f"the number of documents of task {name!r}", DataError)
    known_ids = {document for document, _ in documents}
    for row in items:
        if missing := [one for one in relevant(row) if one not in known_ids]:
            raise DataError(f"task {name!r}, row {row.get('id')!r}: no document has the id {missing[0]!r}")
        if not relevant(row):
            raise DataError(f"task {name!r}, row {row.get('id')!r}: no relevant document; name at least one")
    ids = [document for document, _ in documents]

    def figures(examples: Sequence[dict[str, Any]], answers: Sequence[Ranking]) -> dict[str, Figure]:
        index = BM25([text for _, text in documents])
        lexical = [ranking(index.scores(str(query(row))), ids) for row in examples]
        right = [relevant(row) for row in examples]
        ours, theirs = _values(answers, right), _values(lexical, right)
        differences = [a - b for a, b in zip(ours[measure], theirs[measure], strict=True)]
        return {
            **{key: _figure(values) for key, values in ours.items() if key != measure},
            **{f"BM25: {key}": _figure(values) for key, values in theirs.items()},
            f"{measure} above BM25": _figure(differences),
        }

    return Task(
        name, items, query, lambda row, answer: MEASURES[measure](answer.ids, relevant(row)), metric=measure,
        documents=documents, figures=figures, target=lambda row: ", ".join(relevant(row)),
    )  # fmt: skip


def _values(rankings: Sequence[Ranking], right: Sequence[Sequence[str]]) -> Mapping[str, list[float]]:
    return {key: [of(r.ids, names) for r, names in zip(rankings, right, strict=True)] for key, of in MEASURES.items()}


def _figure(values: Sequence[float]) -> Figure:
    return Figure(sum(values) / len(values), *interval_of(values))
