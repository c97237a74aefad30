# SPDX-License-Identifier: Apache-2.0
"""Chats and completions of models behind other APIs: the request as it is sent there, the answer as it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from foundling.errors import FoundlingError
from foundling.serve.errors import APIError
from foundling.serve.generation import UpdateStream, check_logprobs, check_n, until_gone
from foundling.serve.models import GenerativeModel
from foundling.serve.protocol import ChatBody, CompletionBody
from foundling.serve.reply import Usage, event
from foundling.serve.server import Server
from foundling.serve.streams import send_events
from foundling.serve.upstream import UpstreamModel
from foundling.serve.whole import Assembler, reply_whole

logger = logging.getLogger("foundling.serve")
HEADER = "x-foundling-recorded"
"""hit: the answer was recorded before; miss: it was asked for now, and recorded"""
NOT_SENT = {"model", "user", "metadata", "store", "stream", "stream_options"}
CHARS_PER_TOKEN = 4
"""where an API counts no tokens, a key is charged for the characters"""


@dataclass
class Forwarded:
    """One request."""

    served: UpstreamModel
    path: str
    body: dict[str, Any]
    usage: Usage
    key: str
    chunks: Assembler = field(default_factory=Assembler)


def upstream_of(server: Server, name: str | None, http: HTTPRequest) -> UpstreamModel | None:
    """The model behind another API that a request means; None where it means another one."""
    remotes = [one for one in server.pool.remotes.values() if isinstance(one, UpstreamModel)]
    if name is None and not any(isinstance(one, GenerativeModel) for one in server.pool.loaded):
        name = next((one.name for one in remotes), None)
    if name is None or name not in server.pool.remotes:
        return None
    return server.model(name, http, UpstreamModel)


async def forward(
    server: Server, served: UpstreamModel, body: ChatBody | CompletionBody, http: HTTPRequest
) -> Response:
    _check(server, body)
    sent = body.model_dump(exclude_unset=True, exclude_none=True, by_alias=True, exclude=NOT_SENT)
    rename = served.subject.rename
    sent = {"model": served.subject.model} | {rename.get(name, name): value for name, value in sent.items()}
    path = "/chat/completions" if isinstance(body, ChatBody) else "/completions"
    n_chars = len(json.dumps(sent.get("messages", sent.get("prompt", "")), ensure_ascii=False))
    usage = Usage(prompt_tokens=n_chars // CHARS_PER_TOKEN, price=served.price)
    await _reserve(server, http, body, sent, usage)
    one = Forwarded(served, path, sent, usage, served.key(path, sent))
    recording, headers = served.recording, dict[str, str]()
    if recording:
        answer = await asyncio.to_thread(recording.get, one.key)  # None where it cannot be read
        headers = {HEADER: "miss" if answer is None else "hit"}
        if answer is not None:
            server.metrics.upstream.labels(served.name, "recorded").inc()
            free = Usage(price=served.price)
            return reply_whole(server, http, body, _named(one, answer, free), free, headers)
    server.metrics.upstream.labels(served.name, "asked").inc()
    if body.stream:
        streamed = sent | {"stream": True, "stream_options": {"include_usage": True}}
        deadline = time.monotonic() + server.options.request_timeout
        begun: Any = UpdateStream.begin(cast("Any", served.stream(path, streamed)))
        chunks: Any = await until_gone(http, begun, server.options.request_timeout)
        response = send_events(server, http, _events(one, body, chunks), chunks, usage, deadline)
        response.headers.update(headers)
        return response
    try:
        answer = await until_gone(http, served.ask(path, sent), server.options.request_timeout)
    except APIError as error:
        if error.code == "timeout":
            server.account(http, usage)
        raise
    except BaseException:  # its client has left: the API has read the prompt all the same
        server.account(http, usage)
        raise
    _count(one, answer)
    server.account(http, usage)
    await _record(one, answer)
    return reply_whole(server, http, body, _named(one, answer, usage), usage, headers)


async def _reserve(
    server: Server, http: HTTPRequest, body: ChatBody | CompletionBody, sent: dict[str, Any], usage: Usage
) -> None:
    """As quota.py: the API is asked for no more tokens than the key has left."""
    n, limit = body.n, body.limit if isinstance(body, ChatBody) else body.max_tokens
    if isinstance(body, CompletionBody):
        n = (body.best_of or n) * len(body.prompts)
    most = server.options.max_tokens if limit is None else limit
    allowed = await server.check_quota(http, usage, [most] * n)
    if allowed and min(allowed) < most:
        names = [name for name in sent if name in ("max_tokens", "max_completion_tokens")]
        sent.update(dict.fromkeys(names or ["max_tokens"], min(allowed)))


def _check(server: Server, body: ChatBody | CompletionBody) -> None:
    """The limits of this server hold for what it passes on too."""
    options, n_top = server.options, body.logprobs
    check_n(body.n, options)
    if isinstance(body, ChatBody):
        n_top, limit = ((body.top_logprobs or 0) if body.logprobs else None), body.limit
    else:
        limit = body.max_tokens
        check_n(body.best_of or body.n, options, "best_of")
        if len(body.prompts) > options.max_prompts:
            message = f"{len(body.prompts)} prompts; this server allows {options.max_prompts}"
            raise APIError(400, message, param="prompt")
    check_logprobs(n_top, options, "logprobs", bool(body.logit_bias))
    if limit is not None and limit > options.max_tokens:
        raise APIError(400, f"max_tokens is {limit:,}; this server allows {options.max_tokens:,}", param="max_tokens")


def _named(one: Forwarded, answer: dict[str, Any], usage: Usage) -> dict[str, Any]:
    """Under the name and the price of this server."""
    kind = "chat.completion" if one.path == "/chat/completions" else "text_completion"
    return answer | {"object": kind, "model": one.served.name, "usage": _usage(answer.get("usage"), usage)}


def _usage(counted: Any, usage: Usage) -> dict[str, Any]:
    own = usage.as_json()
    if not isinstance(counted, dict):
        return own
    cost = {"cost": own["cost"]} if "cost" in own else {}
    return {name: value for name, value in counted.items() if name != "cost"} | cost


def _count(one: Forwarded, answer: dict[str, Any]) -> None:
    """What a key is charged: what the API counted, or else by the characters."""
    counted = answer.get("usage")
    counts = [counted.get(name) if isinstance(counted, dict) else None
              for name in ("prompt_tokens", "completion_tokens")]  # fmt: skip
    if all(isinstance(count, int) and 0 <= count < 1 << 40 for count in counts):
        one.usage.prompt_tokens, one.usage.completion_tokens = counts  # pyright: ignore[reportAttributeAccessIssue]
    else:
        one.usage.completion_tokens = len(json.dumps(answer.get("choices"))) // CHARS_PER_TOKEN


async def _record(one: Forwarded, answer: dict[str, Any]) -> None:
    """Where that fails the client gets its answer all the same, which is paid for."""
    if one.served.recording:
        try:
            await asyncio.to_thread(one.served.recording.put, one.key, one.body, answer)
        except FoundlingError as error:
            logger.error("%s: an answer is not recorded: %s", one.served.name, error)


async def _events(
    one: Forwarded, body: ChatBody | CompletionBody, chunks: AsyncGenerator[dict[str, Any]]
) -> AsyncGenerator[str]:
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    blank = {"usage": None} if include_usage else {}
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            one.chunks.add(chunk)
            one.usage.completion_tokens += len(json.dumps(chunk.get("choices"))) // 64  # replaced at the end
            if chunk.get("choices"):
                rest = {name: value for name, value in chunk.items() if name != "usage"}
                yield event(rest | {"model": one.served.name} | blank)
    answer = one.chunks.answer()
    if answer is None:
        raise APIError(502, f"the API behind {one.served.name} broke off its answer", code="bad_gateway")
    _count(one, answer)
    await _record(one, answer)
    if include_usage:
        head = one.chunks.head | {"model": one.served.name, "choices": []}
        yield event(head | {"usage": _usage(answer["usage"], one.usage)})
