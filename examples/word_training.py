# SPDX-License-Identifier: Apache-2.0
"""One training of word vectors on a text, by this library or by gensim: its time and scores."""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.corpora import WORK
from benchmarks.datasets import brown, entries
from examples.word2vec import Options, Text, train
from examples.word_scores import Vectors, analogies, questions, ratings, score, similarity, test_data
from foundling.errors import ConfigError, DataError

FOLDER = WORK / "words"
MIN_COUNT = 5
INSTALL = "pip install --no-deps --target DIR gensim==4.4.0 smart_open wrapt"
WORD = re.compile(r"\b(?:[a-z]{2,}(?:'[a-z]+)?|a|i)\b")
"""other single letters are abbreviations of the dictionary's grammar"""


def text_file(every: int = 1) -> Path:
    """The dictionary's entries and Brown's sentences in lower case, one a line; of these each `every`-th."""
    file = FOLDER / f"gcide-brown-{every}.txt"
    if not file.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        texts = [text for _, text in entries()] + [" ".join(words) for _, words, _ in brown()]
        lines = [" ".join(WORD.findall(text.lower())) for text in texts[::every]]
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text("\n".join(filter(None, lines)) + "\n", encoding="utf-8")
        unfinished.replace(file)
    return file


def read_sentences(file: Path) -> list[list[str]]:
    """DataError where the file cannot be read as text."""
    try:
        return [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text in UTF-8"
        raise DataError(f"{file}: {why}; give a text file with one sentence a line") from None


class Stopwatch:
    """Seconds on the clock and of the processor (all threads), and the number of processes that wanted one."""

    def __enter__(self) -> Stopwatch:
        self.clock, self.processor = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.clock = time.perf_counter() - self.clock
        self.processor = time.process_time() - self.processor

    def speed(self, n_words: int, o: Options) -> dict[str, Any]:
        """Of a training on a text of `n_words`."""
        read = n_words * o.epochs
        return {
            "seconds": round(self.clock, 2), "cpu seconds": round(self.processor, 2),
            "words/s": round(read / self.clock), "words/cpu-s": round(read / self.processor),
            "load": round(os.getloadavg()[0], 1), "threads": o.threads,
        }  # fmt: skip


def train_ours(file: Path, o: Options, save: Path | None = None, *, scored: bool = True) -> dict[str, Any]:
    with Stopwatch() as prepared:
        text = Text(read_sentences(file), MIN_COUNT)
    with Stopwatch() as trained:
        table = train(text, o)
    result = {"preparation (s)": round(prepared.clock, 1), **trained.speed(text.n_words, o)}
    if save:
        save_file({"vectors": table}, save)
        save.with_suffix(".txt").write_text("\n".join(text.words), encoding="utf-8")
    return result | (score(Vectors.of(text.words, table)) if scored else {})


def saved_vectors(file: Path) -> Vectors:
    return Vectors.of(file.with_suffix(".txt").read_text(encoding="utf-8").split("\n"), load_file(file)["vectors"])


def gensim_models(peers: Path | None) -> Any:
    """The package gensim.models, imported from `peers` if it is not installed. ConfigError where it is in neither."""
    if peers:
        sys.path.append(str(peers))
    try:
        return importlib.import_module("gensim.models")
    except ImportError:
        where = f"is not in {peers}" if peers else "is not installed"
        raise ConfigError(f"gensim {where}; {INSTALL}, and give --peers DIR") from None


def train_gensim(
    file: Path, o: Options, peers: Path | None, *, scored: bool = True, in_memory: bool = False
) -> dict[str, Any]:
    """With the same settings; `in_memory`: from lists of words, not from the file."""
    options = {
        "vector_size": o.width, "window": o.window, "negative": o.negatives, "sample": o.sample, "alpha": o.rate,
        "min_alpha": o.last_rate, "sg": int(not o.cbow), "hs": 0, "cbow_mean": 1, "min_count": MIN_COUNT,
        "workers": o.threads, "seed": o.seed,
    }  # fmt: skip
    model = gensim_models(peers).Word2Vec(**options)
    source: dict[str, Any] = {"corpus_file": str(file)}
    with Stopwatch() as prepared:
        if in_memory:
            source = {"corpus_iterable": read_sentences(file)}
        model.build_vocab(**source)
    n_words = model.corpus_total_words
    with Stopwatch() as trained:
        model.train(total_examples=model.corpus_count, total_words=n_words, epochs=o.epochs, **source)
    result = {"preparation (s)": round(prepared.clock, 1), **trained.speed(n_words, o)}
    table = torch.from_numpy(model.wv.vectors)
    return result | (score(Vectors.of(model.wv.index_to_key, table)) if scored else {})


def compare_scorers(file: Path, peers: Path | None, n_words: int = 10_000) -> dict[str, Any]:
    """The same vectors by our scorer and by gensim's own, over the most frequent words."""
    vectors, models = saved_vectors(file), gensim_models(peers)
    keyed = models.KeyedVectors(vectors.unit.shape[1])  # pyright: ignore[reportOptionalMemberAccess]
    keyed.add_vectors(vectors.words, vectors.unit.numpy())  # pyright: ignore[reportOptionalMemberAccess]
    theirs, _ = keyed.evaluate_word_analogies(str(test_data("questions-words.txt")), restrict_vocab=n_words)
    correlations = {
        name: round(float(keyed.evaluate_word_pairs(str(test_data(file)))[1][0]), 4)
        for name, file in (("WordSim", "wordsim353.tsv"), ("SimLex", "simlex999.txt"))
    }
    ours = analogies(vectors, questions(), n_words)
    return {
        "gensim": {"analogies %": round(100 * theirs, 3), **correlations},
        "ours": {
            "analogies %": round(100 * ours["accuracy"], 3),
            "WordSim": round(similarity(vectors, ratings("wordsim353.tsv"))["spearman"], 4),
            "SimLex": round(similarity(vectors, ratings("simlex999.txt"))["spearman"], 4),
        },
        "words": n_words, "questions": ours["questions"],
    }  # fmt: skip
