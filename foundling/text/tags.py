# SPDX-License-Identifier: Apache-2.0
"""Tags of words: the spans that they describe, and the first token of each word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class EncodedWords(NamedTuple):
    ids: list[int]
    """of the words, joined by spaces, with the special tokens around a text"""
    firsts: list[int | None]
    """where the first token of each word is among them; None of a word that has none of its own, or is cut off"""
    cut: bool


def encode_words(
    tokenizer: Tokenizer, sentences: Sequence[Sequence[str]], longest: int | None = None
) -> list[EncodedWords]:
    """Sentences of words for a tagger, in training and inference. One of over `longest` tokens is cut before a word."""
    _, last = tokenizer.frame
    out = list[EncodedWords]()
    encodings = tokenizer.encode_framed_batch([" ".join(words) for words in sentences])
    for words, encoding in zip(sentences, encodings, strict=True):
        ids, firsts = list(encoding.ids), _first_tokens(words, encoding)
        cut = longest is not None and len(ids) > longest
        if longest is not None and cut:
            room = longest - len(last)
            room = max([at for at in firsts if at is not None and at <= room], default=0)  # a word begins there
            ids = [*ids[:room], *last]
            firsts = [at if at is not None and at < room else None for at in firsts]
        out.append(EncodedWords(ids, firsts, cut))
    return out


def _first_tokens(words: Sequence[str], encoding: Any) -> list[int | None]:
    firsts, token, start = list[int | None](), -1, 0
    special, offsets = encoding.special_tokens_mask, encoding.offsets  # each is made anew when it is asked for
    for word in words:
        at = token + 1
        while at < len(special) and (special[at] or offsets[at][1] <= start):
            at += 1
        if at < len(special) and offsets[at][0] < start + len(word):
            firsts.append(at)
            token = at
        else:
            firsts.append(None)
        start += len(word) + 1
    return firsts
