# SPDX-License-Identifier: Apache-2.0
"""Tags of words: the spans that they describe, and the first token of each word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from foundling.text.tokenizer import Tokenizer

OUTSIDE = "O"
PREFIXES = ("B", "I", "E", "S", "L", "U")


class Span(NamedTuple):
    kind: str
    start: int
    """of its first word"""
    end: int
    """after its last word"""


def _split(tag: str) -> tuple[str, str]:
    """(prefix, type): B-PER and PER-B are of PER, PER alone is as I-PER; L and U of BILOU are E and S of IOBES."""
    if tag in (OUTSIDE, ""):
        return OUTSIDE, ""
    if tag in PREFIXES:  # without a type
        first, kind = tag, ""
    else:
        first, dash, kind = tag.partition("-")
        if not dash or first not in PREFIXES:
            first, kind = "I", tag
    return {"L": "E", "U": "S"}.get(first, first), kind


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence, of tags in BIO (IOB1 and IOB2), IOBES, BILOU or types alone, by the rules of conlleval
    (Tjong Kim Sang & De Meulder 2003), which seqeval takes too: a tag that continues nothing of its type begins a
    span."""
    spans, start, before, kind = list[Span](), None, OUTSIDE, ""
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, current = _split(tag)
        changes = current != kind
        if start is not None and (before in "ES" or prefix in "BSO" or changes):
            spans.append(Span(kind, start, at))
            start = None
        if start is None and prefix != OUTSIDE:
            start = at
        before, kind = prefix, current
    return spans


def has_spans(labels: Sequence[str]) -> bool:
    """Whether tags describe spans: one of them is for what is outside."""
    return OUTSIDE in labels


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids of the words, joined by spaces, with the special tokens around a text; and for each word the place of its
    first token among them, -1 for a word of which no token is left."""
    (ids, spans), start, at, firsts = tokenizer.spans(" ".join(words)), 0, 0, list[int]()
    for word in words:
        while at < len(ids) and spans[at][1] <= start:
            at += 1
        firsts.append(at if at < len(ids) and spans[at][0] < start + len(word) else -1)
        start += len(word) + 1
    return ids, firsts
