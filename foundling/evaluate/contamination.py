# SPDX-License-Identifier: Apache-2.0
"""Contamination: which items of a task occur in a training corpus, and what the score is without them.

The rule is that of GPT-3 (Brown et al. 2020, appendix C): words in lower case without punctuation, and an item is
contaminated if any run of 13 of its words occurs in a document; runs that occur in more than 10 documents are common
phrases and do not count. A text of fewer words counts if all of it occurs in a row and no other item has it: what items
share is a source, a licence or an option. One pass over the documents, for all tasks; memory is bounded by the items.

What is looked for are the texts of an item's own row that the task reads, each apart: never the prompt, whose template
and solved examples are no part of the item and would hide a short one, or be taken for it."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from foundling.contracts.records import Item, Result
from foundling.errors import DataError
from foundling.evaluate.intervals import bootstrap, interval_of

N_WORDS = 13
MIN_WORDS = 5
"""of an item; a shorter one occurs by chance"""
COMMON = 10
"""documents, or items: a run of words in more of them is a phrase, an instruction, an option"""
_FACTOR = 0x9E3779B97F4A7C15  # odd, of no small order modulo 2^64
_WINDOW = 1 << 16  # words of a document in memory at once
_IDEOGRAPHS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_IDEOGRAPHS}]|[^\\W_{_IDEOGRAPHS}]+")  # scripts without spaces: each character is a word


class Overlap(NamedTuple):
    id: str
    matched: int
    """runs of words that occur in the corpus"""
    runs: int
    """that were looked for; 0 where the item is too short to be checked"""

    @property
    def share(self) -> float:
        return self.matched / self.runs if self.runs else 0.0


class Contamination(NamedTuple):
    items: list[Overlap]
    documents: int
    """read"""
    n_words: int

    @property
    def checked(self) -> int:
        return sum(item.runs > 0 for item in self.items)

    @property
    def contaminated(self) -> set[str]:
        return {item.id for item in self.items if item.matched}

    @property
    def share(self) -> float:
        """of the items that were checked"""
        return len(self.contaminated) / self.checked if self.checked else 0.0

    def __str__(self) -> str:
        short = len(self.items) - self.checked
        return (
            f"{len(self.contaminated):,} of {self.checked:,} items ({self.share:.1%}) share {self.n_words} words in a "
            f"row, or all of their words, with {self.documents:,} documents of the training data"
            + (f"; {short:,} items without {MIN_WORDS} words of their own were not checked" if short else "")
        )


def contaminated(
    items: Mapping[str, str | Sequence[str]], documents: Iterable[str], *, n_words: int = N_WORDS
) -> Contamination:
    """Looks for the items of one task, id -> its text or texts (see `texts_of_rows`), in the documents. An item is
    contaminated where one of its texts is.

    Runs of words that more than COMMON items share are not looked for: they are instructions, or options of every
    item; nor is a text of fewer than n_words that two items share. DataError for n_words below MIN_WORDS."""
    return contamination_of([items], documents, n_words=n_words)[0]


def contamination_of(
    tasks: Sequence[Mapping[str, str | Sequence[str]]], documents: Iterable[str], *, n_words: int = N_WORDS
) -> list[Contamination]:
    """`contaminated` of several tasks in one pass over the documents."""
    if n_words < MIN_WORDS:
        raise DataError(f"n_words is {n_words}; expected at least {MIN_WORDS}: shorter runs occur by chance")
    runs_of = [_rare({name: _runs_of(texts, n_words) for name, texts in items.items()}, n_words) for items in tasks]
    index = _Index({run for runs in runs_of for own in runs.values() for run in own})
    n_documents = 0
    for text in documents:
        n_documents += 1
        index.read(text)
    rare = {run for run, n in index.counts.items() if n <= COMMON}
    return [
        Contamination([Overlap(name, len(own & rare), len(own)) for name, own in runs.items()], n_documents, n_words)
        for runs in runs_of
    ]


def texts_of_rows(rows: Sequence[Any], names: Collection[str] = ()) -> dict[str, list[str]]:
    """id -> the texts of the row of each item: its fields, and the elements of lists of N_WORDS words or more (shorter
    ones are options, which occur by chance). `names`: the fields to take, () for all but the id; others are of no use
    to a task, such as a source or a licence. A row that is no dict counts as one field. DataError for ids that are
    there twice."""
    texts = dict[str, list[str]]()
    for i, row in enumerate(rows):
        fields = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
        read = fields if isinstance(fields, dict) else {"": fields}
        name = str(read.get("id", i))
        if name in texts:
            raise DataError(f"two items have the id {name!r}; give each its own")
        chosen = [
            value for key, value in read.items() if key != "id" and (key in names or not names or read is not fields)
        ]
        texts[name] = [text for value in chosen for text in _texts(value)]
    return texts


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from (text for text in _texts(inner) if len(list(islice(words(text), N_WORDS))) == N_WORDS)


def _runs_of(texts: str | Sequence[str], n_words: int) -> set[tuple[str, ...]]:
    each = [texts] if isinstance(texts, str) else texts
    return {run for text in each for run in _runs(list(words(text)), n_words)}


def _rare(runs: dict[str, set[tuple[str, ...]]], n_words: int) -> dict[str, set[tuple[str, ...]]]:
    """Without runs that more than COMMON items share, and without short texts that two share."""
    frequency = Counter(run for own in runs.values() for run in own)
    return {
        name: {run for run in own if frequency[run] <= (COMMON if len(run) >= n_words else 1)}
        for name, own in runs.items()
    }


def with_contamination(result: Result, items: Sequence[Item], measured: Contamination) -> Result:
    """The result with the figures "on clean items" and "on contaminated items" beside its own, and the share of
    contaminated ones. DataError where scores and items are not of the same task."""
    if len(items) != len(result.scores):
        raise DataError(f"task {result.task!r}: {len(result.scores)} scores and {len(items)} items; expected as many")
    dirty, figures = measured.contaminated, dict(result.figures)
    for name, in_corpus in (("on clean items", False), ("on contaminated items", True)):
        chosen = [i for i, item in enumerate(items) if (item["id"] in dirty) == in_corpus]
        scores = [result.scores[i] for i in chosen]
        if result.weights and scores:
            weights = [result.weights[i] for i in chosen]
            products = [score * weight for score, weight in zip(scores, weights, strict=True)]
            low, high = bootstrap(products, weights) or (None, None)
            figures[name] = (sum(products) / sum(weights), low, high)
        elif scores:
            low, high, _ = interval_of(scores)
            figures[name] = (sum(scores) / len(scores), low, high)
    figures["contaminated items, share"] = (measured.share, None, None)
    return replace(result, figures=figures)


def words(text: str) -> Iterator[str]:
    """In lower case, without punctuation, compatible characters taken for one another (NFKC)."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return (match[0] for match in _WORD.finditer(plain.lower()))


def _runs(parts: Sequence[str], n_words: int) -> set[tuple[str, ...]]:
    """Of n_words each; the whole of a shorter text."""
    if len(parts) < n_words:
        return {tuple(parts)} if len(parts) >= MIN_WORDS else set()
    return {tuple(parts[i : i + n_words]) for i in range(len(parts) - n_words + 1)}


class _Index:
    """Runs that are looked for, and in how many documents each was seen. A run is looked up by a hash of 64 bits, as
    sums over arrays; what matches is compared word by word."""

    def __init__(self, runs: set[tuple[str, ...]]) -> None:
        self.counts = Counter[tuple[str, ...]]()
        self.code = {word: _code(word) for run in runs for word in run}
        self.by_length: dict[int, tuple[Any, dict[int, list[tuple[str, ...]]]]] = {}
        for length in {len(run) for run in runs}:
            table = dict[int, list[tuple[str, ...]]]()
            for run in runs:
                if len(run) == length:
                    table.setdefault(functools.reduce(self._next, run, 0), []).append(run)
            self.by_length[length] = np.array(sorted(table), np.uint64), table
        self.longest = max(self.by_length, default=1)

    def _next(self, total: int, word: str) -> int:
        return (total * _FACTOR + self.code[word]) & 0xFFFFFFFFFFFFFFFF

    def read(self, text: str) -> None:
        seen, stream, carried = set[tuple[str, ...]](), words(text), list[str]()
        while new := list(islice(stream, _WINDOW)):
            parts = carried + new
            carried = parts[len(parts) - self.longest + 1 :] if self.longest > 1 else []
            codes = np.array([self.code.get(word, 0) for word in parts], np.uint64)
            if not codes.any():
                continue
            for length, (sorted_hashes, table) in self.by_length.items():
                if len(parts) < length:
                    continue
                hashes = _hashes(codes, length)
                place = np.searchsorted(sorted_hashes, hashes).clip(max=len(sorted_hashes) - 1)
                for at in np.flatnonzero(sorted_hashes[place] == hashes).tolist():
                    run = tuple(parts[at : at + length])
                    if run in table[int(hashes[at])]:
                        seen.add(run)
        self.counts.update(seen)


def _code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()) | 1


def _hashes(codes: Any, length: int) -> Any:
    """Of each run of `length` words, modulo 2^64, by Horner's rule."""
    total = np.zeros(len(codes) - length + 1, np.uint64)
    for i in range(length):
        total = total * np.uint64(_FACTOR) + codes[i : len(codes) - length + 1 + i]
    return total
