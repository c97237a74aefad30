# SPDX-License-Identifier: Apache-2.0
"""Chats and completions through the answer cache, where the server has one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from prometheus_client import Counter, Gauge
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from foundling.decode.embed import TextEmbedder
from foundling.errors import ConfigError
from foundling.serve.answer_cache import AnswerCache, CacheOptions, Query
from foundling.serve.forward import upstream_of
from foundling.serve.protocol import ChatBody, CompletionBody
from foundling.serve.reply import Usage
from foundling.serve.server import Server, record_of
from foundling.serve.whole import Assembler, reply_whole

B = TypeVar("B", ChatBody, CompletionBody)
HEADER = "x-foundling-cache"


def use_answer_cache(server: Server, options: CacheOptions, embedder: TextEmbedder | None = None) -> None:
    """ConfigError in deterministic mode: the usage of a cached answer says that it is one, so its bytes differ."""
    if server.options.deterministic:
        raise ConfigError("an answer cache and deterministic bytes exclude each other; leave out one of them")
    cache = server.answer_cache = AnswerCache(options, server.in_turn, embedder)
    registry, name = server.metrics.registry, "foundling_answer_cache"
    count = Counter(f"{name}_requests", "requests by what the answer cache had", ("result",), registry=registry)
    cache.on_result = lambda result: count.labels(result).inc()
    for part, about, value in (
        ("hit_ratio", "share of requests that were answered from the cache", lambda: cache.hit_ratio),
        ("bytes", "bytes of the texts and answers in the cache", lambda: cache.answers.n_bytes),
        ("answers", "answers in the cache", lambda: len(cache.answers.responses)),
    ):
        Gauge(f"{name}_{part}", about, registry=registry).set_function(value)


async def cached(
    server: Server, body: B, http: HTTPRequest, create: Callable[[Server, B, HTTPRequest], Awaitable[Response]]
) -> Response:
    """What `create` makes of the request, or made before. A cached answer is not charged."""
    cache = server.answer_cache
    if cache is None:
        return await create(server, body, http)
    served = upstream_of(server, body.model, http) or server.generative(body.model, http)
    query = cache.query(body, record_of(http).caller, served)
    if query is None:
        return await create(server, body, http)
    free = Usage(price=served.price)
    await server.check_quota(http, free)
    answer = await cache.get(query)
    if answer is not None:
        again = await asyncio.to_thread(_again, answer)
        return await reply_whole(server, http, body, again, free, {HEADER: "hit"})
    response = await create(server, body, http)
    response.headers[HEADER] = "miss"
    if isinstance(response, StreamingResponse):
        response.body_iterator = _cached_events(cache, query, http, response.body_iterator)
    elif isinstance(response, JSONResponse):
        await cache.put(query, bytes(response.body))
    return response


async def _cached_events(cache: AnswerCache, query: Query, http: HTTPRequest, events: Any) -> AsyncGenerator[Any]:
    """The same events, whose answer is cached before the last one is sent: the client may leave then, or ask again."""
    chunks = Assembler()
    async with contextlib.aclosing(events):
        async for one in events:
            chunks.add_event(one)
            if chunks.done and (answer := chunks.answer()) is not None:
                usage = record_of(http).usage
                answer["usage"] = answer["usage"] or (usage and usage.as_json())
                await cache.put(query, await asyncio.to_thread(lambda: json.dumps(answer).encode()))
            yield one


def _again(data: bytes) -> dict[str, Any]:
    """A stored answer under a new id; its usage says that all of the prompt was cached, and that it costs nothing."""
    answer = json.loads(data)
    usage = answer["usage"] or {}
    usage = usage | {"prompt_tokens_details": {"cached_tokens": usage.get("prompt_tokens", 0)}}
    usage |= {"cost": 0.0} if "cost" in usage else {}
    prefix = str(answer["id"]).partition("-")[0]
    return answer | {"id": f"{prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "usage": usage}
