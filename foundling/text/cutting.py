# SPDX-License-Identifier: Apache-2.0
"""Texts, and pairs of them, within a number of tokens: one way for training and for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foundling.errors import DataError
from foundling.text.tokenizer import Tokenizer

CHARS = 64
"""characters of a text that are encoded for each token there is room for, before the whole text is"""

Text = str | tuple[str, str]
"""a text, or a pair, which the tokenizer's own template joins"""


class Encoded(NamedTuple):
    ids: list[int]
    types: list[int]
    """0 for the first text of a pair and 1 for the second, where the tokenizer tells them apart"""
    cut: bool


def encode_within(tokenizer: Tokenizer, texts: Sequence[Text], longest: int) -> list[Encoded]:
    """Texts or pairs with the tokenizer's special tokens, at most `longest` tokens each: a text, or the longer of two,
    is cut where a token ends. DataError where there is no room for a text."""
    if longest < 1:
        raise DataError(f"there is room for {longest} tokens, and for none of a text")
    short = [_start(text, CHARS * longest) for text in texts]
    out = list[Encoded]()
    for text, start, encoding in zip(texts, short, tokenizer.encode_framed_batch(short), strict=True):
        if start != text and len(encoding.ids) < longest:
            encoding = tokenizer.encode_framed_batch([text])[0]
        cut = len(encoding.ids) > longest or start != text
        rest, over = start if len(encoding.ids) > longest else text, 0
        while (extra := len(encoding.ids) - longest) > 0:
            over += extra  # a text that ends elsewhere may have more tokens again
            rest = _shortened(tokenizer, rest, over)
            encoding, over = tokenizer.encode_framed_batch([rest])[0], 0
            if not any(rest):
                raise DataError(f"{longest} tokens leave no room for a text beside the special tokens")
        out.append(Encoded(encoding.ids, encoding.type_ids, cut))
    return out


def _start(text: Text, n: int) -> Text:
    return text[:n] if isinstance(text, str) else (text[0][:n], text[1][:n])


def _shortened(tokenizer: Any, text: Text, n: int) -> Text:
    """A text, or a pair, without its last `n` tokens, of a pair those of the longer one first (transformers'
    "longest_first")."""
    parts = [text] if isinstance(text, str) else list(text)
    encodings = [tokenizer.backend.encode(part, add_special_tokens=False) for part in parts]
    keep = [len(encoding.ids) for encoding in encodings]
    if sum(keep) <= n:
        return "" if isinstance(text, str) else ("", "")
    longest = len(keep) - 1 - int(np.argmax(keep[::-1]))
    others = sum(keep) - keep[longest]
    if len(keep) == 1 or keep[longest] - n >= others:
        keep[longest] -= n
    else:  # both to half of what is left
        left = sum(keep) - n
        keep[longest], keep[1 - longest] = left - left // 2, left // 2
    cuts = [
        part[: min(encoding.offsets[k - 1][1], len(part) - 1 if k < len(encoding.ids) else len(part))] if k else ""
        for part, encoding, k in zip(parts, encodings, keep, strict=True)
    ]
    return cuts[0] if isinstance(text, str) else (cuts[0], cuts[1])
