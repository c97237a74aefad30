# SPDX-License-Identifier: Apache-2.0
"""Fill-in-the-middle (Bavarian et al. 2022, sections 3 and 4.2), so that a causal model learns to infill.

A text is cut at two places and its middle is moved to the end, behind a special token.
"""

from __future__ import annotations

import hashlib

from foundling.errors import ConfigError
from foundling.text import Tokenizer

CHARACTERS_PER_TOKEN = 3
"""An estimate: a piece is half a window long, so that most pieces are whole in one window."""


def middle_out(text: str) -> tuple[str, str, str]:
    """Return (prefix, middle, suffix), cut at two places that the hash of the text chooses."""
    digest = hashlib.sha256(text.encode()).digest()
    places = (int.from_bytes(digest[at : at + 8], "little") % (len(text) + 1) for at in (0, 8))
    first, second = sorted(places)
    return text[:first], text[first:second], text[second:]


def chosen(text: str, rate: float) -> bool:
    """True for a share `rate` of all texts, by hash: the same texts in any order."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[24:], "little") < rate * (1 << 64)


def encode(texts: list[str], tokenizer: Tokenizer, rate: float, seq_len: int) -> list[list[int]]:
    """Return the ids of each text. Chosen texts are cut into pieces, each one rearranged, with eos between them.

    Raises ConfigError for a tokenizer without the special tokens.
    """
    if tokenizer.fim is None:
        raise ConfigError("the tokenizer has no tokens for fill-in-the-middle; train one here, or set fim_rate to 0")
    before, after, middle = tokenizer.fim
    size = max(8, CHARACTERS_PER_TOKEN * seq_len // 2)
    plain = tokenizer.encode_batch(["" if chosen(text, rate) else text for text in texts])
    for number, text in enumerate(texts):
        if not chosen(text, rate):
            continue
        parts = [part for at in range(0, len(text), size) for part in middle_out(text[at : at + size])]
        ids = tokenizer.encode_batch(parts)
        plain[number] = []
        for p, m, s in zip(ids[::3], ids[1::3], ids[2::3], strict=True):
            separator = [tokenizer.eos] if plain[number] else []
            plain[number] += [*separator, before, *p, after, *s, middle, *m]
    return plain
