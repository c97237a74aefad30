# SPDX-License-Identifier: Apache-2.0
"""Chats and completions of models behind other APIs: the request as it is sent there, the answer as it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from foundling.errors import FoundlingError
from foundling.serve.errors import APIError
from foundling.serve.generation import check_logprobs, check_n
from foundling.serve.models import GenerativeModel
from foundling.serve.protocol import ChatBody, CompletionBody
from foundling.serve.recording import request_key
from foundling.serve.reply import Usage, event
from foundling.serve.server import Server
from foundling.serve.streams import after, send_events
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
    chunks: Assembler = field(default_factory=Assembler)

    @property
    def key(self) -> str:
        """Of its recorded answer."""
        return request_key(self.served.subject.endpoint.url, self.path, self.body)


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
    one = Forwarded(served, path, sent, Usage(prompt_tokens=n_chars // CHARS_PER_TOKEN, price=served.price))
    headers = dict[str, str]()
    if (recording := served.recording) is not None:
        answer = await asyncio.to_thread(lambda: recording.get(one.key))  # None where it cannot be read
        headers = {HEADER: "miss" if answer is None else "hit"}
        if answer is not None:
            server.metrics.upstream.labels(served.name, "recorded").inc()
            one.usage = Usage(price=served.price)
            return await reply_whole(server, http, body, _named(one, answer), one.usage, headers)
    await _reserve(server, http, body, one)
    server.metrics.upstream.labels(served.name, "asked").inc()
    try:
        if body.stream:
            chunks = served.stream(path, sent | {"stream": True, "stream_options": {"include_usage": True}})
            events = _events(one, body, after(await anext(chunks), chunks))
            response = send_events(server, http, events, chunks, one.usage)
            response.headers.update(headers)
            return response
        answer = await served.ask(path, sent)
    except asyncio.CancelledError:  # its client has left, or its time is over: the API has read the prompt all the same
        server.account(http, one.usage)
        raise
    _count(one, answer)
    server.account(http, one.usage)
    await _record(one, answer)
    return await reply_whole(server, http, body, _named(one, answer), one.usage, headers)


async def _reserve(server: Server, http: HTTPRequest, body: ChatBody | CompletionBody, one: Forwarded) -> None:
    """As quota.py: the API is asked for no more tokens than the key has left."""
    n, limit = body.n, body.limit if isinstance(body, ChatBody) else body.max_tokens
    if isinstance(body, CompletionBody):
        n = (body.best_of or n) * len(body.prompts)
    most = server.options.max_tokens if limit is None else limit
    allowed = await server.check_quota(http, one.usage, [most] * n)
    if allowed and min(allowed) < most:
        names = [name for name in one.body if name in ("max_tokens", "max_completion_tokens")]
        default = one.served.subject.rename.get("max_tokens", "max_tokens")
        one.body.update(dict.fromkeys(names or [default], min(allowed)))


def _check(server: Server, body: ChatBody | CompletionBody) -> None:
    """The limits of this server hold for what it passes on too."""
    options, limit = server.options, body.limit if isinstance(body, ChatBody) else body.max_tokens
    check_n(body.n, options)
    if isinstance(body, ChatBody) and body.best_of is not None:
        raise APIError(400, "best_of of a chat is for models of this server, not for one behind an API: leave it out",
                       param="best_of")  # fmt: skip
    if isinstance(body, CompletionBody):
        check_n(body.best_of or body.n, options, "best_of")
        if len(body.prompts) > options.max_prompts:
            message = f"{len(body.prompts)} prompts; this server allows {options.max_prompts}"
            raise APIError(400, message, param="prompt")
    check_logprobs(body, options)
    if limit is not None and limit > options.max_tokens:
        raise APIError(400, f"max_tokens is {limit:,}; this server allows {options.max_tokens:,}", param="max_tokens")


def _named(one: Forwarded, answer: dict[str, Any]) -> dict[str, Any]:
    """Under the name and the price of this server."""
    kind = "chat.completion" if one.path == "/chat/completions" else "text_completion"
    return answer | {"object": kind, "model": one.served.name, "usage": _usage(answer.get("usage"), one.usage)}


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
    if (recording := one.served.recording) is not None:
        try:
            await asyncio.to_thread(lambda: recording.put(one.key, one.body, answer))
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
