# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities that /completions echoes (tokens as texts, with offsets) as spans of the bytes of the text."""

from __future__ import annotations

import math
import re
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from foundling.limits import shown

_ESCAPED = re.compile(r"(?:\\x[0-9a-fA-F]{2})+")
NO_ECHO = (
    "no log-probabilities of the prompt (`echo` with `logprobs` of /completions); the server cannot score texts: "
    "use a task that generates, or another server, such as vLLM"
)


class Echo(NamedTuple):
    """`logprobs` of a choice."""

    tokens: list[str]
    logprobs: list[float | None]
    """None for a first token, which nothing comes before"""
    greedy: list[bool]
    offsets: list[int] | None
    """in characters of the echoed text"""

    @classmethod
    def of(cls, value: Any) -> Echo:
        """ValueError for what is no such object."""
        tokens, logprobs = (
            value.get(name) if isinstance(value, dict) else None for name in ("tokens", "token_logprobs")
        )
        if not isinstance(tokens, list) or not isinstance(logprobs, list) or not tokens:
            raise ValueError(NO_ECHO)
        if len(tokens) != len(logprobs) or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"{len(tokens):,} tokens with {len(logprobs):,} log-probabilities; expected one for each")
        for number in logprobs:
            if number is not None and (
                isinstance(number, bool) or not isinstance(number, int | float) or not number <= 0
            ):
                raise ValueError(f"a log-probability is {shown(number)}; expected a number of at most 0")
        tops, offsets = value.get("top_logprobs"), value.get("text_offset")
        tops = tops if isinstance(tops, list) and len(tops) == len(tokens) else [None] * len(tokens)
        greedy = [_is_greedy(number, top) for number, top in zip(logprobs, tops, strict=True)]
        whole = isinstance(offsets, list) and len(offsets) == len(tokens) and all(isinstance(o, int) for o in offsets)
        return cls(tokens, logprobs, greedy, offsets if whole else None)


class TokenSpan(NamedTuple):
    begin: int
    end: int
    """in bytes of the text"""
    logprob: float | None
    greedy: bool


def spans_of_echo(echo: Echo, text: str) -> list[TokenSpan]:
    """The tokens of `text`, in order, each with the bytes that it covers. A token for the beginning of a text that the
    server adds, and the token that was generated after the text, are left out.

    The bytes of the tokens decide where they join to the text; else the offsets. ValueError where neither fits, with
    all that was echoed: the caller removes the key, then cuts."""
    sizes = [len(_bytes_of(token)) for token in echo.tokens]
    joined = b"".join(map(_bytes_of, echo.tokens))
    whole = text.encode()
    for first in (0, 1):  # 1: a token such as <s> stands before
        if first and (len(sizes) < 2 or echo.logprobs[0] is not None):
            break
        ends = list(accumulate(sizes[first:]))
        if joined[sum(sizes[:first]) :].startswith(whole) and (len(whole) in ends or not whole):
            rows = zip([0, *ends], ends, echo.logprobs[first:], echo.greedy[first:], strict=False)
            return [TokenSpan(*row) for row in rows if row[0] < len(whole)]
    if echo.offsets is not None:
        return _spans_of_offsets(echo, echo.offsets, text)
    raise ValueError(f"the echoed tokens are not those of the text (they are {''.join(echo.tokens)!r})")


def _spans_of_offsets(echo: Echo, offsets: list[int], text: str) -> list[TokenSpan]:
    """Tokens that are no text, such as a part of a character, still have their place: they share the next one's."""
    fits = offsets[0] == 0 and offsets[-1] <= len(text) and all(a <= b for a, b in pairwise(offsets))
    for token, offset in zip(echo.tokens, offsets, strict=True):
        plain = "\ufffd" not in token and not token.startswith("bytes:") and offset < len(text)
        fits = fits and (not plain or text.startswith(token, offset))
    if not fits:
        raise ValueError("the offsets of the echoed tokens do not fit the text")
    places = [0, *accumulate(len(character.encode()) for character in text)]
    begins = [places[offset] for offset in offsets]
    ends = list[int]()
    for begin, after in zip(reversed(begins), reversed([*begins[1:], places[-1]]), strict=True):
        ends.append(ends[-1] if after == begin and ends else after)
    ends.reverse()
    rows = zip(begins, ends, echo.logprobs, echo.greedy, strict=True)
    return [TokenSpan(*row) for row in rows if row[0] < places[-1]]


def _bytes_of(token: str) -> bytes:
    """OpenAI writes a token that is no whole character as bytes:\\xe2\\x80, with what is ASCII as itself."""
    if not token.startswith("bytes:") or not _ESCAPED.search(token):
        return token.encode("utf-8", "surrogatepass")
    return b"".join(
        bytes.fromhex(part.replace("\\x", "")) if _ESCAPED.fullmatch(part) else part.encode()
        for part in re.split(r"((?:\\x[0-9a-fA-F]{2})+)", token.removeprefix("bytes:"))
    )


def _is_greedy(number: float | None, top: Any) -> bool:
    values = [v for v in top.values() if isinstance(v, int | float)] if isinstance(top, dict) else []
    return number is not None and bool(values) and number >= max(values) and math.isfinite(number)
