# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of ours as llguidance reads one: the bytes of every row of the model, and how a text is encoded."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import decoders

from foundling.errors import DataError
from foundling.text.tokenizer import Tokenizer

ANCHORS = ("\n", "a", ".")
"""texts that a continuation is encoded after, so that no tokenizer takes it for the beginning of a text"""


class Vocabulary:
    """The attributes and the call that llguidance's TokenizerWrapper expects."""

    def __init__(self, tokenizer: Tokenizer, n_rows: int, ends: Sequence[int]) -> None:
        """`n_rows`: the width of the model's logits; a row without a token has no bytes and is never allowed. `ends`:
        ids that end an answer; like special tokens they are no part of any text."""
        self.tokenizer = tokenizer
        self.spells_spaces = _spells_spaces(tokenizer)
        spelled = (tokenizer.spellings() if self.spells_spaces else _spell_in_context(tokenizer))[:n_rows]
        self.tokens = spelled + [b""] * (n_rows - len(spelled))
        self.special_token_ids = sorted(i for i in {*tokenizer.special, *ends} if i < n_rows)
        self.eos_token_id = next(i for i in ends if i < n_rows)
        self.bos_token_id: int | None = None
        self.hidden = frozenset(self.special_token_ids)
        self.id_of = {token: i for i, token in reversed([*enumerate(self.tokens)]) if token and i not in self.hidden}
        self.longest = max(map(len, self.id_of), default=1)
        self.anchors = [(anchor, ids) for anchor in ANCHORS if (ids := tokenizer.encode(anchor))]

    def __call__(self, text: bytes | str) -> list[int]:
        """The ids of a text that continues another, as the tokenizer encodes it; where it cannot spell these bytes
        (they are no text, or it changes them), the longest tokens from the left."""
        data = text if isinstance(text, bytes) else text.encode()
        try:
            string = data.decode()
            ids = self.tokenizer.encode(string)
            if self.spell(ids) == data:
                return ids
            for anchor, before in self.anchors:
                ids = self.tokenizer.encode(anchor + string)
                if ids[: len(before)] == before and self.spell(ids[len(before) :]) == data:
                    return ids[len(before) :]
        except (UnicodeDecodeError, DataError):
            pass
        return self._encode_greedily(data)

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of the ids together, without special tokens."""
        return b"".join(self.tokens[i] if i < len(self.tokens) else b"\xff" for i in ids)

    def _encode_greedily(self, data: bytes) -> list[int]:
        """Bytes that no token spells are left out; llguidance then finds that the ids are not the text."""
        ids, at = list[int](), 0
        while at < len(data):
            for end in range(min(len(data), at + self.longest), at, -1):
                if (token := self.id_of.get(data[at:end])) is not None:
                    ids.append(token)
                    at = end
                    break
            else:
                at += 1
        return ids


def _spell_in_context(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each token adds to a text after another token. WordPiece puts spaces between words."""
    before = next(i for i in sorted(tokenizer.ids - tokenizer.special) if tokenizer.decode([i]).strip())
    start = tokenizer.backend.decode([before])
    return [
        tokenizer.backend.decode([before, i], skip_special_tokens=False).removeprefix(start).encode()
        if i in tokenizer.ids
        else b""
        for i in range(tokenizer.vocab_size)
    ]


def _spells_spaces(tokenizer: Tokenizer) -> bool:
    """Whether the tokens themselves have the spaces: by bytes, or as ▁ (SentencePiece)."""
    decoder = tokenizer.backend.decoder
    return bool(tokenizer.byte_ids) or isinstance(decoder, decoders.ByteLevel | decoders.Metaspace | decoders.Sequence)
