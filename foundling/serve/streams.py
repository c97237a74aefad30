# SPDX-License-Identifier: Apache-2.0
"""Streams of events: their end, errors that come after their beginning, and what a client is charged that leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from foundling.serve.errors import as_api_error
from foundling.serve.generation import Meter, by_index, took_too_long
from foundling.serve.models import GenerativeModel
from foundling.serve.reply import DONE, Usage, event
from foundling.serve.server import Server, record_of
from foundling.serve.worker import Update

T = TypeVar("T")
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


async def event_stream(
    server: Server, http: HTTPRequest, served: GenerativeModel, meter: Meter,
    events_of: Callable[[AsyncGenerator[Update]], AsyncGenerator[str]],
) -> StreamingResponse:  # fmt: skip
    """An answer in events, whose computing has begun. The status is sent before a later error, which is therefore an
    event of its own, after which nothing comes."""
    updates = served.worker.stream(meter.requests, meter.take)
    if server.options.deterministic:
        updates = by_index(updates)
    try:
        first = await anext(updates)  # what a request is refused with is known before the stream begins
    except BaseException:
        if meter.begun:
            server.account(http, meter.usage)
        raise
    return send_events(server, http, events_of(after(first, updates)), updates, meter.usage)


async def after(first: T, rest: AsyncGenerator[T]) -> AsyncGenerator[T]:
    yield first
    async for one in rest:
        yield one


def send_events(
    server: Server, http: HTTPRequest, events: AsyncGenerator[str], source: AsyncGenerator[Any], usage: Usage
) -> StreamingResponse:
    """Any events, and their end. `source`, what they are made of, is closed at the end in any case: it has begun, or
    that would do nothing."""
    limit = server.options.request_timeout
    deadline = record_of(http).begin + limit

    async def body() -> AsyncGenerator[str]:
        try:
            async with contextlib.aclosing(events):
                while (one := await _next(events, deadline, limit)) is not None:
                    yield one
            yield DONE
        except Exception as error:
            yield event(as_api_error(error, record_of(http).id).body)

    return _EventStream(body(), source, lambda: server.account(http, usage))


async def _next(events: AsyncGenerator[str], deadline: float, limit: float) -> str | None:
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await anext(events, None)
    except TimeoutError:
        raise took_too_long(limit) from None


class _EventStream(StreamingResponse):
    """Cancels what is computed and charges what was, however it ends: its generator may never begin where the client
    leaves early."""

    def __init__(self, body: AsyncGenerator[str], source: AsyncGenerator[Any], charge: Callable[[], None]) -> None:
        super().__init__(body, media_type="text/event-stream", headers=HEADERS)
        self.body, self.source, self.charge = body, source, charge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body.aclose()
            await self.source.aclose()
            self.charge()
