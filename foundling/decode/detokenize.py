# SPDX-License-Identifier: Apache-2.0
"""Text of tokens that arrive one by one, without decoding all of them again for each."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from tokenizers.decoders import DecodeStream

from foundling.text import Tokenizer
from foundling.text.framing import AnswerDecoder

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 16
"""tokens of the prompt that an answer is decoded after"""


class IncrementalDecoder(Protocol):
    def append(self, token: int) -> str:
        """The text of all tokens so far; the last character is U+FFFD while its bytes are incomplete."""
        ...


class FullDecoder:
    """Calls `decode` on all tokens each time: for functions of which nothing is known."""

    def __init__(self, decode: Callable[[list[int]], str], tokens: list[int] | None = None) -> None:
        self.decode, self.tokens = decode, tokens or []

    def append(self, token: int) -> str:
        self.tokens.append(token)
        return self.decode(self.tokens)


def visible_end(answer: AnswerDecoder) -> list[int]:
    """The end of the prompt, from some text on; all of it where it has none."""
    n = CONTEXT
    while n < len(answer.prompt) and not answer.tokenizer.decode(answer.prompt[-n:]):
        n *= 2
    return answer.prompt[-n:]


class StreamDecoder:
    """Decodes a window of the last few tokens by the tokenizers library."""

    def __init__(self, answer: AnswerDecoder) -> None:
        self.answer, self.tokenizer = answer, answer.tokenizer
        self.tokens, self.text = visible_end(answer), ""
        self.n_prompt = self.n_decoded = len(self.tokens)
        self.n_context = 0
        """tokens[n_prompt:n_decoded] are in `text`, the last of them from n_context on"""
        last = next((i for i in reversed(self.tokens) if i not in self.tokenizer.special), None)
        self.prompt_in_bytes, self.in_bytes = last in self.tokenizer.byte_ids, False
        """whether the last token with a text is a byte, in a tokenizer that falls back to bytes"""
        self.stream = DecodeStream(ids=self.tokens, skip_special_tokens=True)
        self.fallback: FullDecoder | None = None
        # a stream cannot complete a character that the prompt has begun, nor take back a space
        if self.tokenizer.cleans or self.tokenizer.decode(self.tokens).endswith(REPLACEMENT):
            self.fallback = FullDecoder(answer)

    def append(self, token: int) -> str:
        if self.fallback:
            return self.fallback.append(token)
        self.tokens.append(token)
        if token in self.tokenizer.byte_ids or (self.in_bytes and token in self.tokenizer.special):
            if len(self.tokens) == self.n_prompt + 1 and self.prompt_in_bytes:
                self.fallback = FullDecoder(self.answer)
                return self.fallback.append(token)
            self.in_bytes = True  # one wrong byte spoils all others of its run: a stream would have passed them on
            return self.text + self._undecoded()
        if self.in_bytes:
            self.in_bytes, self.text = False, self.text + self._undecoded()
            if self.tokenizer.decode(self.tokens[self.n_decoded :]):
                self.n_context = self.n_decoded
            self.n_decoded = len(self.tokens)
            self.stream = DecodeStream(ids=self.tokens[self.n_context :], skip_special_tokens=True)
            return self.text
        try:
            chunk = self.stream.step(self.tokenizer.backend, token)
        except Exception:  # bytes that form no character change the text before them: a stream cannot take it back
            answered = self.tokens[self.n_prompt :]
            self.fallback = FullDecoder(self.answer, answered)
            return self.answer(answered)
        if chunk is None:  # the token ends inside a character, or has no text
            return self.text + self._undecoded()
        self.text += chunk
        self.n_context, self.n_decoded = self.n_decoded, len(self.tokens)
        return self.text

    def _undecoded(self) -> str:
        """The text of the tokens that `text` leaves out."""
        context = self.tokenizer.decode(self.tokens[self.n_context : self.n_decoded])
        return self.tokenizer.decode(self.tokens[self.n_context :])[len(context) :]


class MarkedDecoder:
    """Ids of an answer -> its text, in which the special tokens of `marks` (id -> text) are written out."""

    def __init__(self, decode: AnswerDecoder, marks: Mapping[int, str]) -> None:
        self.decode, self.marks, self.tokenizer = decode, marks, decode.tokenizer

    def __call__(self, ids: Sequence[int]) -> str:
        places = [at for at, i in enumerate(ids) if i in self.marks]
        if not places:
            return self.decode(ids)
        text = self.decode(ids[: places[0]])
        for at, end in zip(places, [*places[1:], len(ids)], strict=True):
            text += self.marks[ids[at]] + self.tokenizer.decode(ids[at + 1 : end])
        return text


class MarkedStream:
    """Of a MarkedDecoder: what stands between two marks is a text of its own."""

    def __init__(self, decode: MarkedDecoder) -> None:
        self.decode = decode
        self.before, self.text, self.stream = "", "", StreamDecoder(decode.decode)

    def append(self, token: int) -> str:
        mark = self.decode.marks.get(token)
        if mark is None:
            self.text = self.stream.append(token)
        else:
            self.before += self.text + mark
            self.text, self.stream = "", StreamDecoder(AnswerDecoder(self.decode.tokenizer))
        return self.before + self.text


class SpellingDecoder:
    """Ids -> the text of their bytes by `spell`, without those of `left_out` but for `marks` (id -> text)."""

    def __init__(
        self, spell: Callable[[Sequence[int]], bytes], left_out: Collection[int], marks: Mapping[int, str] | None = None
    ) -> None:
        self.spell, self.left_out = spell, frozenset(left_out)
        self.marks = {i: text.encode() for i, text in (marks or {}).items()}

    def bytes_of(self, token: int) -> bytes:
        if token in self.marks:
            return self.marks[token]
        return b"" if token in self.left_out else self.spell([token])

    def __call__(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")


class SpellingStream:
    """Of a SpellingDecoder: bytes that are no whole character yet are one U+FFFD, as in a text that ends there."""

    def __init__(self, decode: SpellingDecoder) -> None:
        self.decode, self.text = decode, ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def append(self, token: int) -> str:
        self.text += self.decoder.decode(self.decode.bytes_of(token))
        return self.text + (REPLACEMENT if self.decoder.getstate()[0] else "")


def incremental_decoder(decode: Callable[[list[int]], str]) -> IncrementalDecoder:
    """For `decode`, ids → text: by the tokenizers library where it is an AnswerDecoder, marked or not, or the method of
    a foundling.text.Tokenizer; byte by byte where it spells them."""
    if isinstance(decode, MarkedDecoder):
        return MarkedStream(decode)
    if isinstance(decode, SpellingDecoder):
        return SpellingStream(decode)
    owner = getattr(decode, "__self__", None)
    if isinstance(owner, Tokenizer) and getattr(decode, "__func__", None) is Tokenizer.decode:
        return StreamDecoder(AnswerDecoder(owner))
    return StreamDecoder(decode) if isinstance(decode, AnswerDecoder) else FullDecoder(decode)
