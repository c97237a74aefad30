# SPDX-License-Identifier: Apache-2.0
"""What every request passes before a route sees it: limits of size, the host that it names, the key, the limits of the
key; and what is noted of it afterwards. Plain ASGI, so that nothing is buffered twice."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foundling.runtime.files import is_shallow
from foundling.serve.errors import APIError, ClientGone, as_api_error, busy, log_internal
from foundling.serve.keys import ANYONE, Caller
from foundling.serve.login import session_token
from foundling.serve.server import Record, Server
from foundling.serve.sessions import Sessions

logger = logging.getLogger("foundling.serve")
OPEN = {"/health"}
"""the only route that asks for no key"""
GENERATES = {"/v1/chat/completions", "/v1/completions"}
LOGIN = "/login"
HEADER_BYTES = 32 << 10
"""of the line and headers of a request"""
LOGIN_BYTES = 4096
"""of what anybody may send"""
CLOSE = {"Connection": "close"}
UPLOADS = "/v1/files"
BODY_SECONDS = 30.0
"""that a client has to send a body in"""
SECURITY = [
    (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"),
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
     b"require-trusted-types-for 'script'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"),
]  # fmt: skip
LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    def __init__(
        self, app: ASGIApp, server: Server, sessions: Sessions, log: Callable[[str], None] | None = None
    ) -> None:
        """`log` takes a line of JSON for each request."""
        self.app, self.server, self.sessions, self.log = app, server, sessions, log
        self.n_running = 0
        own = server.options.host.lower()
        self.hosts = LOCAL_HOSTS | {f"[{own}]" if ":" in own else own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        record = Record(f"req_{secrets.token_hex(8)}", ANYONE)
        scope["foundling.record"] = record
        status, started, end = 0, False, time.monotonic

        async def send_with_headers(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                names = {name for name, _ in message["headers"]}
                more = [(name, value) for name, value in SECURITY if name not in names]
                message["headers"] = [*message["headers"], *more, (b"x-request-id", record.id.encode())]
            await send(message)

        self.server.metrics.connections.inc()
        self.n_running += 1
        try:
            await self._answer(scope, receive, send_with_headers, record)
        except ClientGone:
            status = 499
        except Exception as error:
            if not started:
                await as_api_error(error, record.id).response()(scope, receive, send_with_headers)
            elif status != 500:  # else it is answered and logged already
                log_internal(error, record.id)
        except asyncio.CancelledError:
            status = status or 499
            raise
        finally:
            self.n_running -= 1
            self.server.metrics.connections.dec()
            self.server.settle(record)
            self._note(scope, record, status, end() - record.begin)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        headers = dict(scope["headers"])
        n_bytes = (
            len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        )
        if n_bytes > HEADER_BYTES:
            raise APIError(431, f"the headers are larger than {HEADER_BYTES:,} bytes", headers=CLOSE)
        path, method = scope["path"], scope["method"]
        if self.n_running > self.server.options.max_connections and path not in OPEN:
            raise busy("the server answers as many requests as it may; try again later", 2.0, "overloaded", 503)
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # a proxy may see another end of this request than we do, and let a second one pass inside it
            raise APIError(400, "send either Content-Length or Transfer-Encoding", headers=CLOSE)
        self._check_host(scope, headers)
        if path not in OPEN and not (path == LOGIN and method == "POST"):
            caller = self._identify(headers, scope)
            if caller is None:
                if path == "/" and method == "GET":
                    scope["foundling.login"] = True
                    await self.app(scope, receive, send)
                    return
                code = "invalid_api_key"
                raise APIError(401, "send a valid key: Authorization: Bearer KEY", code=code,
                               headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
            record.caller = caller
        if self.server.stopping and path not in OPEN:
            raise APIError(503, "the server is stopping", code="unavailable", headers={"Retry-After": "5"})
        if path in GENERATES and method == "POST":
            self.server.check_queues()
        with nullcontext() if path in OPEN or path == LOGIN else self.server.limiter.enter(record.caller):
            await self.app(scope, await self._bounded(scope, receive, headers), send)

    def _check_host(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """A page of another site must not ask through a browser: neither by a name that it points here (DNS
        rebinding), nor from its own origin."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self.server.options.loopback and host and _without_port(host) not in self.hosts:
            raise APIError(403, "this server answers to localhost alone; see --host")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and scope["method"] != "GET" and origin.partition("://")[2] != host:
            raise APIError(403, "requests from pages of other origins are refused")

    def _identify(self, headers: dict[bytes, bytes], scope: Scope) -> Caller | None:
        """By the header, or by the cookie of a page that has logged in."""
        keys = self.server.keys
        if not keys.required:
            return ANYONE
        value = headers.get(b"authorization", b"").decode("latin-1")
        if value:
            scheme, _, key = value.partition(" ")
            return keys.identify(key.strip()) if scheme.lower() == "bearer" else None
        token = session_token(headers.get(b"cookie", b"").decode("latin-1"))
        key = self.sessions.key_of(token) if token else None
        return keys.identify(key) if key else None

    async def _bounded(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes]) -> Receive:
        """Reads the whole body, which has a limit, before anything is done with it. Uploads go through in parts."""
        options, upload = self.server.options, scope["path"] == UPLOADS and scope["method"] == "POST"
        limit = options.max_upload if upload else LOGIN_BYTES if scope["path"] == LOGIN else options.max_body
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > limit:
            raise _too_large(limit)
        if upload:
            return _counted(receive, limit)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise APIError(408, f"the body did not come within {BODY_SECONDS:g} s", headers=CLOSE) from None
        if not is_shallow(bytes(body)):
            raise APIError(400, "the body has too many arrays and objects inside each other")
        return _replayed(bytes(body), receive)

    def _note(self, scope: Scope, record: Record, status: int, seconds: float) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or (scope["path"] if scope["path"] in OPEN else "other")
        self.server.metrics.count_request(path, status, seconds)
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "id": record.id, "method": scope["method"],
            "route": path, "status": status, "ms": round(seconds * 1000, 1), "key": record.caller.name,
        }  # fmt: skip
        if record.model:
            line["model"] = record.model
        if record.usage and record.charged:
            line |= {"prompt_tokens": record.usage.prompt_tokens, "completion_tokens": record.usage.completion_tokens}
            if record.usage.cost is not None:
                line["dollars"] = round(record.usage.cost, 8)
        if self.log and scope["path"] not in OPEN:
            self.log(json.dumps(line))


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _too_large(limit: int) -> APIError:
    return APIError(413, f"the request is larger than {limit:,} bytes, which is the limit")


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _counted(receive: Receive, limit: int) -> Receive:
    n = 0

    async def count() -> Message:
        nonlocal n
        message = await receive()
        n += len(message.get("body", b""))
        if n > limit:
            raise _too_large(limit)
        return message

    return count
