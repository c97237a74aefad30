# SPDX-License-Identifier: Apache-2.0
"""Samples of text, chosen by hash: they depend on the texts and the wanted share alone, never on their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from foundling.data.ingest import Corpus
from foundling.data.sources import Document

MAX_PART = 4
"""No document or piece of one is longer than this fraction (1/MAX_PART) of a sample."""
MIN_PIECE_CHARS = 2_000
MIN_SPAN_CHARS = 1_000
_ONE = 1 << 64


def subsample_docs(documents: Iterable[Document], share: float, total_bytes: int) -> Iterator[Document]:
    """Yield about `share` of the text of `documents`, which are `total_bytes` of UTF-8 in all; never nothing.

    A document is chosen whole if its hash falls below `share`. One that is longer than a quarter of the sample is cut
    into pieces of at most that length, and `share` of its pieces are chosen by their own hash. So a single large file
    gives its share as well as many small ones do.
    """
    limit = int(share * _ONE)
    max_chars = max(MIN_PIECE_CHARS, int(share * total_bytes) // MAX_PART)
    nearest: tuple[int, Document] | None = None  # the smallest hash of what was not chosen
    empty = True
    for document in documents:
        pieces = [document.text] if share >= 1 else cut(document.text, max_chars)
        rank = _number(document.text, 8)
        # n · share pieces on average, rounded by the text's hash; a single piece: chosen if rank < limit
        n_chosen = len(pieces) if share >= 1 else (len(pieces) * limit + _ONE - 1 - rank) >> 64
        if not n_chosen:
            if empty and (nearest is None or rank < nearest[0]):
                nearest = rank, replace(document, text=pieces[0])
            continue
        empty, nearest = False, None
        ranked = sorted(range(len(pieces)), key=lambda i: _number(pieces[i], 8)) if n_chosen < len(pieces) else None
        for i in sorted(ranked[:n_chosen]) if ranked else range(len(pieces)):
            yield document if len(pieces) == 1 else replace(document, text=pieces[i])
    if nearest:
        yield nearest[1]


def cut(text: str, max_chars: int) -> list[str]:
    """Cut `text` into pieces of at most `max_chars`, after a line end where the second half of a piece has one."""
    pieces, start = [], 0
    while len(text) - start > max_chars:
        border = text.rfind("\n", start + max_chars // 2, start + max_chars) + 1
        stop = border or start + max_chars
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]]


def sample_spans(documents: Iterable[Document], share: float) -> Iterator[str]:
    """Yield one span of each document: `share` of it, at least MIN_SPAN_CHARS, from a place that its hash chooses."""
    for document in documents:
        length = min(len(document.text), max(MIN_SPAN_CHARS, int(len(document.text) * share)))
        start = _number(document.text, 16) % (len(document.text) - length + 1)
        yield document.text[start : start + length]


def sample_text(corpus: Corpus, n_bytes: int) -> Iterator[str]:
    """Yield about n_bytes of training text: an eighth of each of eight times as many documents."""
    share = min(1.0, n_bytes / max(1, corpus.train_bytes))
    wider = min(1.0, 8 * share)
    documents = subsample_docs(corpus.train(), wider, corpus.train_bytes)
    yield from _up_to(2 * n_bytes, sample_spans(documents, share / wider))


def sample_documents(corpus: Corpus, n_bytes: int) -> Iterator[str]:
    """Yield about n_bytes of training text in whole documents; of few, large ones, pieces."""
    share = min(1.0, n_bytes / max(1, corpus.train_bytes))
    documents = subsample_docs(corpus.train(), share, corpus.train_bytes)
    yield from _up_to(2 * n_bytes, (document.text for document in documents))


def _up_to(n_chars: int, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield text[:n_chars]
        n_chars -= len(text)
        if n_chars <= 0:
            return


def _number(text: str, at: int) -> int:
    """64 bits of the SHA-256 of the text, from byte `at`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[at : at + 8], "little")
