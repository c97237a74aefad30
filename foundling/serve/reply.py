# SPDX-License-Identifier: Apache-2.0
"""The parts of an answer: ids, usage, log-probabilities and the events of a stream, as OpenAI's clients read them."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starlette.responses import JSONResponse

from foundling.decode.detokenize import visible_end
from foundling.decode.request import Request
from foundling.decode.text import TextStreamer
from foundling.serve.models import GenerativeModel, Price
from foundling.text.framing import AnswerDecoder

FINISH = {"end": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}
DONE = "data: [DONE]\n\n"


@dataclass
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    price: Price | None = None
    deterministic: bool = False
    """deterministic mode: `cached_tokens` is 0, since it depends on other requests"""

    @property
    def cost(self) -> float | None:
        """Dollars."""
        return self.price and self.price.cost(self.prompt_tokens, self.completion_tokens)

    def as_json(self) -> dict[str, Any]:
        total = self.prompt_tokens + self.completion_tokens
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": 0 if self.deterministic else self.cached_tokens},
        }  # fmt: skip
        if (cost := self.cost) is not None:
            usage["cost"] = round(cost, 10)
        return usage


@dataclass
class Head:
    """What each object of one answer begins with."""

    kind: str
    prefix: str
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.id or f"{self.prefix}-{secrets.token_hex(12)}"

    def as_json(self, kind: str | None = None) -> dict[str, Any]:
        return {"id": self.id, "object": kind or self.kind, "created": self.created, "model": self.model}


def head_of(kind: str, prefix: str, model: str, *, body: Any = None, created: int = 0) -> Head:
    """`body`: the request, where the same request has to get the same bytes."""
    if body is None:
        return Head(kind, prefix, model)
    digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()[:24]
    return Head(kind, prefix, model, f"{prefix}-{digest}", created)


def event(value: dict[str, Any]) -> str:
    """One event of a stream (text/event-stream)."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


class LargeJSON(JSONResponse):
    """For answers that may be large, made in a thread: json.dumps of the whole would hold the interpreter, and with it
    the event loop, until its last byte."""

    depth = 5
    """of what is written apart"""

    def render(self, content: Any) -> bytes:
        return "".join(_parts(content, self.depth)).encode()


def _parts(value: Any, depth: int) -> Iterator[str]:
    """The JSON of a value, that of its inner values apart."""
    if depth and isinstance(value, dict):
        for at, (name, inner) in enumerate(value.items()):
            yield f"{'{' if at == 0 else ','}{json.dumps(name)}:"
            yield from _parts(inner, depth - 1)
        yield "}" if value else "{}"
    elif depth and isinstance(value, list):
        for at, inner in enumerate(value):
            yield "[" if at == 0 else ","
            yield from _parts(inner, depth - 1)
        yield "]" if value else "[]"
    else:
        yield json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class TokenTexts:
    """The texts and bytes of single tokens of one answer."""

    def __init__(self, served: GenerativeModel, decode: AnswerDecoder) -> None:
        self.tokenizer, self.spellings, self.decode = served.tokenizer, served.spellings, decode
        self._cache: dict[int, str] = {}

    @cached_property
    def _pieces(self) -> AnswerDecoder:
        return AnswerDecoder(self.tokenizer, visible_end(self.decode) or self.tokenizer.encode("a"))

    def text(self, token: int) -> str:
        if token not in self._cache:
            special = token in self.tokenizer.special
            self._cache[token] = (self.tokenizer.backend.id_to_token(token) or "") if special else self._pieces([token])
        return self._cache[token]

    def content(self, tokens: Sequence[int], logprobs: Sequence[float], top: Sequence[dict[int, float]]) -> list[Any]:
        """`logprobs.content` of a chat; `token_id` is of this server alone."""
        return [
            self._entry(token, value) | {"top_logprobs": [self._entry(i, v) for i, v in others.items()]}
            for token, value, others in zip(tokens, logprobs, top, strict=True)
        ]

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        raw = list(self.spellings[token]) if token < len(self.spellings) else []
        return {"token": self.text(token), "logprob": finite(logprob), "bytes": raw, "token_id": token}


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI's own stand-in for a token that cannot follow."""
    return logprob if logprob > -9999.0 else -9999.0


class Text:
    """The text of one completion as it grows, of which `take` gives what is new and settled."""

    def __init__(self, request: Request) -> None:
        assert request.decode is not None
        self._parts: list[str] = []
        self._streamer = TextStreamer(request.decode, self._parts.append, request.stop_strings)
        self._ends = {*request.stop, *request.stop_tokens}

    def append(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if token not in self._ends:
                self._streamer.append(token)

    def finish(self, text: str) -> None:
        self._streamer.finish(text)

    def take(self) -> str:
        text = "".join(self._parts)
        self._parts.clear()
        return text
