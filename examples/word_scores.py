# SPDX-License-Identifier: Apache-2.0
"""How word vectors are scored: analogies (a is to b as c is to d), similarity beside people's, nearest neighbours.

The analogies and the ratings are data files of gensim's tests; they are fetched by name and hash, and only read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.fetch import fetch

Question = tuple[str, str, str, str]
BATCH = 256


def test_data(name: str) -> Path:
    return fetch("gensim") / "gensim" / "test" / "test_data" / name


def questions() -> dict[str, list[Question]]:
    """section -> questions of questions-words.txt (Mikolov et al. 2013), in lower case."""
    sections: dict[str, list[Question]] = {}
    section = ""
    for line in test_data("questions-words.txt").read_text(encoding="utf-8").lower().splitlines():
        if line.startswith(":"):
            section = line[1:].strip()
        else:
            a, b, c, d = line.split()
            sections.setdefault(section, []).append((a, b, c, d))
    return sections


def ratings(name: str) -> list[tuple[str, str, float]]:
    """(word, word, mean rating) of a file, in lower case."""
    lines = test_data(name).read_text(encoding="utf-8").lower().splitlines()
    rows = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return [(a, b, float(rating)) for a, b, rating in rows]


@dataclass
class Vectors:
    words: list[str]
    """the most frequent first"""
    unit: Tensor | None
    """(V, D), each of length 1; None for one-hot vectors, which need no table"""

    def __post_init__(self) -> None:
        self.index = {word: at for at, word in reversed(list(enumerate(self.words)))}

    @classmethod
    def of(cls, words: list[str], vectors: Tensor) -> Vectors:
        return cls(words, normalize(vectors.float(), dim=1))

    def analogy_scores(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """(n,) ids each -> (n, V) inner products of all words with b − a + c."""
        if self.unit is not None:
            return (self.unit[b] - self.unit[a] + self.unit[c]) @ self.unit.T
        scores = torch.zeros(len(a), len(self.words))
        for sign, ids in ((-1.0, a), (1.0, b), (1.0, c)):
            scores.scatter_add_(1, ids[:, None], torch.full((len(ids), 1), sign))
        return scores

    def similarity(self, a: str, b: str) -> float:
        if self.unit is None:
            return float(a == b)
        return float(self.unit[self.index[a]] @ self.unit[self.index[b]])

    def _cosines(self, plus: list[str], minus: list[str]) -> Tensor:
        """(V,) of all words with the sum of `plus` without `minus`; −1 for those given."""
        assert self.unit is not None
        query = self.unit[[self.index[word] for word in plus]].sum(0)
        query = query - self.unit[[self.index[word] for word in minus]].sum(0)
        cosines = self.unit @ normalize(query, dim=0)
        cosines[[self.index[word] for word in plus + minus]] = -1
        return cosines

    def nearest(self, plus: list[str], minus: list[str], n: int) -> list[tuple[str, float]]:
        """The `n` words nearest to the sum of `plus` without `minus`, by cosine; those given are left out."""
        best = self._cosines(plus, minus).topk(n)
        return [(self.words[int(at)], round(float(value), 3)) for value, at in zip(best.values, best.indices)]

    def rank(self, word: str, plus: list[str], minus: list[str]) -> int:
        """1 for the nearest."""
        cosines = self._cosines(plus, minus)
        return 1 + int((cosines > cosines[self.index[word]]).sum())


def credit(scores: Tensor, answers: Tensor) -> Tensor:
    """(n, V), (n,) -> 1 where the answer alone has the largest score, 1/k where it shares it with k - 1 others: what a
    guess among them is worth."""
    best = scores.max(1, keepdim=True).values
    ties = (scores == best).sum(1)
    return (scores.gather(1, answers[:, None]) == best).squeeze(1) / ties


def analogies(vectors: Vectors, sections: dict[str, list[Question]], n_words: int = 300_000) -> dict[str, float]:
    """Accuracy of 3CosAdd, as gensim's evaluate_word_analogies has it: questions with a word outside the `n_words` most
    frequent ones are left out, and the answer is the nearest word to b − a + c that is none of the three."""
    covered = [q for part in sections.values() for q in part if all(vectors.index.get(w, n_words) < n_words for w in q)]
    right = torch.zeros(len(covered))
    for at in range(0, len(covered), BATCH):
        a, b, c, d = torch.tensor([[vectors.index[w] for w in q] for q in covered[at : at + BATCH]]).T
        scores = vectors.analogy_scores(a, b, c)
        scores[:, n_words:] = -torch.inf
        scores.scatter_(1, torch.stack([a, b, c], 1), -torch.inf)
        right[at : at + BATCH] = credit(scores, d)
    return {"accuracy": float(right.mean()), "questions": len(covered)}


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]


def spearman(x: list[float], y: list[float]) -> float:
    """Correlation of the ranks; 0 where one side is constant, and so says nothing."""
    a, b = (ranks(np.asarray(v)) - (len(v) + 1) / 2 for v in (x, y))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def similarity(vectors: Vectors, rows: list[tuple[str, str, float]]) -> dict[str, float]:
    """Spearman's correlation of cosines with people's ratings, over the pairs whose words both have vectors."""
    covered = [row for row in rows if row[0] in vectors.index and row[1] in vectors.index]
    cosines = [vectors.similarity(a, b) for a, b, _ in covered]
    return {"spearman": spearman(cosines, [rating for _, _, rating in covered]), "pairs": len(covered)}


def score(vectors: Vectors) -> dict[str, float]:
    """Percent right of semantic analogies (countries, currencies, family) and of syntactic ones (the sections whose
    names begin with gram), of both, and correlations with WordSim-353 and SimLex-999."""
    sections = questions()
    kinds = {
        "semantic": {name: part for name, part in sections.items() if not name.startswith("gram")},
        "syntactic": {name: part for name, part in sections.items() if name.startswith("gram")},
    }
    parts = {kind: analogies(vectors, chosen) for kind, chosen in kinds.items()}
    n = sum(part["questions"] for part in parts.values())
    right = sum(part["accuracy"] * part["questions"] for part in parts.values())
    result = {f"{kind} %": round(100 * part["accuracy"], 2) for kind, part in parts.items()}
    result |= {"analogies %": round(100 * right / n, 3), "questions": n}
    for name, file in (("WordSim", "wordsim353.tsv"), ("SimLex", "simlex999.txt")):
        agreement = similarity(vectors, ratings(file))
        result |= {name: round(agreement["spearman"], 4), f"{name} pairs": agreement["pairs"]}
    return result
