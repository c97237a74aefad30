# SPDX-License-Identifier: Apache-2.0
"""Streams of events: their end, errors that come after their beginning, and what a client is charged that leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

from starlette.requests import Request as HTTPRequest
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from foundling.serve.errors import as_api_error
from foundling.serve.generation import Meter, UpdateStream, by_index, took_too_long, until_gone
from foundling.serve.models import GenerativeModel
from foundling.serve.reply import DONE, Usage, event
from foundling.serve.server import Server, record_of

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Closes(Protocol):
    def aclose(self) -> Coroutine[Any, Any, None]: ...


async def event_stream(
    server: Server, http: HTTPRequest, served: GenerativeModel, meter: Meter,
    events_of: Callable[[UpdateStream], AsyncGenerator[str]],
) -> StreamingResponse:  # fmt: skip
    """An answer in events, whose computing has begun. The status is sent before a later error, which is therefore an
    event of its own, after which nothing comes."""
    limit = server.options.request_timeout
    deadline = record_of(http).begin + limit
    updates = served.worker.stream(meter.requests, meter.take)
    if server.options.deterministic:
        updates = by_index(updates)
    try:
        stream = await until_gone(http, UpdateStream.begin(updates), limit)
    except BaseException:
        await updates.aclose()
        if meter.begun:
            server.account(http, meter.usage)
        raise
    return send_events(server, http, events_of(stream), stream, meter.usage, deadline)


def send_events(
    server: Server, http: HTTPRequest, events: AsyncGenerator[str], source: _Closes, usage: Usage, deadline: float
) -> StreamingResponse:
    """Any events, and their end. `source`, what they are made of, is closed at the end in any case; `deadline`: by the
    monotonic clock."""
    limit = server.options.request_timeout

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

    def __init__(self, body: AsyncGenerator[str], updates: _Closes, charge: Callable[[], None]) -> None:
        super().__init__(body, media_type="text/event-stream", headers=HEADERS)
        self.body, self.updates, self.charge = body, updates, charge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.body.aclose()
            await self.updates.aclose()
            self.charge()
