# SPDX-License-Identifier: Apache-2.0
"""Text of tokens that arrive one by one, without decoding all of them again for each."""

from __future__ import annotations

from collections.abc import Callable
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
        self.stream = DecodeStream(ids=self.tokens, skip_special_tokens=True)
        self.fallback: FullDecoder | None = None
        # a stream cannot complete a character that the prompt has begun
        if self.tokenizer.decode(self.tokens).endswith(REPLACEMENT):
            self.fallback = FullDecoder(answer)

    def append(self, token: int) -> str:
        if self.fallback:
            return self.fallback.append(token)
        self.tokens.append(token)
        try:
            chunk = self.stream.step(self.tokenizer.backend, token)
        except Exception:  # bytes that form no character change the text before them: a stream cannot take it back
            answered = self.tokens[self.n_prompt :]
            self.fallback = FullDecoder(self.answer, answered)
            return self.answer(answered)
        if chunk is None:  # the token ends inside a character, or has no text
            context = self.tokenizer.decode(self.tokens[self.n_context : self.n_decoded])
            return self.text + self.tokenizer.decode(self.tokens[self.n_context :])[len(context) :]
        self.text += chunk
        self.n_context, self.n_decoded = self.n_decoded, len(self.tokens)
        return self.text


def incremental_decoder(decode: Callable[[list[int]], str]) -> IncrementalDecoder:
    """For `decode`, ids → text: by the tokenizers library where it is an AnswerDecoder, or the method of a
    foundling.text.Tokenizer."""
    owner = getattr(decode, "__self__", None)
    if isinstance(owner, Tokenizer) and getattr(decode, "__func__", None) is Tokenizer.decode:
        return StreamDecoder(AnswerDecoder(owner))
    return StreamDecoder(decode) if isinstance(decode, AnswerDecoder) else FullDecoder(decode)
