# SPDX-License-Identifier: Apache-2.0
"""Streams of events: their end, errors that come after their beginning, and what a client is charged that leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import Request as HTTPRequest
from starlette.responses import StreamingResponse

from foundling.serve.errors import as_api_error
from foundling.serve.reply import DONE, Usage, event
from foundling.serve.server import Server

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event_stream(server: Server, http: HTTPRequest, events: AsyncGenerator[str], usage: Usage) -> StreamingResponse:
    """The status is sent already when an error comes here, so it is an event of its own, after which nothing comes."""

    async def body() -> AsyncGenerator[str]:
        try:
            async with asyncio.timeout(server.options.request_timeout), contextlib.aclosing(events):
                async for one in events:
                    yield one
            yield DONE
        except Exception as error:
            yield event(as_api_error(error).body)
        finally:
            server.account(http, usage)

    return StreamingResponse(body(), media_type="text/event-stream", headers=HEADERS)
