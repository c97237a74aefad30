# SPDX-License-Identifier: Apache-2.0
"""A server as a process: it loads its models, listens, and ends what runs before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from foundling.errors import ConfigError, OutputError, render
from foundling.serve.guard import HEADER_BYTES
from foundling.serve.options import ServeOptions
from foundling.serve.server import Server

LATE = 5.0
"""seconds that a client has, beyond the limit of a request, to read the end of its answer"""
HEADER_SECONDS = 30.0
"""that a connection has for the header of its next request"""
SWITCH_SECONDS = 0.001
"""after which an engine's thread lets the event loop run; Python's own 0.005 adds up over the turns of a request"""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Protocol(H11Protocol):
    """Closes a connection on which no request comes in time, however slowly its bytes drip, and those that are far
    beyond what the server may answer."""

    options = ServeOptions()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.timer: asyncio.TimerHandle | None = None
        self.access_log = False  # paths may contain anything; the guard's log has routes
        self.app: Any = partial(self._run_app, self.app)
        self.unsent = 0
        if len(self.connections) > 2 * self.options.max_connections + 64:  # the guard refuses requests long before
            transport.abort()
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_nothing()

    def on_response_complete(self) -> None:
        self._expect_request()
        super().on_response_complete()

    async def _run_app(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """A client that does not read, or sends a file a byte at a time, would hold its request for ever; so would what
        an answer that broke off has left."""
        cycle = self.cycle
        try:
            async with asyncio.timeout(self.options.request_timeout + LATE):
                await app(scope, receive, send)
        except TimeoutError:
            pass
        finally:
            if not cycle.response_complete:
                self.transport.abort()

    def _expect_request(self) -> None:
        self._expect_nothing()
        self.unsent = self.transport.get_write_buffer_size()
        self.timer = self.loop.call_later(HEADER_SECONDS, self._abort_idle)

    def _abort_idle(self) -> None:
        """Unless the client still takes the last answer, however slowly."""
        if 0 < self.transport.get_write_buffer_size() < self.unsent:
            self._expect_request()
        else:
            self.transport.abort()

    def _expect_nothing(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Uvicorn(uvicorn.Server):
    """Ends by our own rules: the first signal lets running requests finish and the process ends with exit code 0, the
    second ends it at once."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self.foundling = server

    def stop(self) -> None:
        self.foundling.stopping = self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(128 + number)  # nothing of ours is half-written when a process ends anywhere
            self.stop()

        before = {number: signal.signal(number, stop) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def check_exposure(options: ServeOptions, has_keys: bool) -> None:
    """ConfigError where other machines could ask without a key."""
    if not options.loopback and not has_keys:
        raise ConfigError(
            f"--host {options.host} lets other machines connect; give --api-key or --keys, or leave --host out"
        )


def listen(options: ServeOptions) -> socket.socket:
    """OutputError where the address cannot be taken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        where = render.terminal(f"{options.host}:{options.port}")
        raise OutputError(f"{where}: {reason}; choose another --port or --host") from None
    return listener


def _allow_files(n: int) -> None:
    """Each connection is an open file, of which many systems allow 1,024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = n if hard == resource.RLIM_INFINITY else min(n, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def serve(
    server: Server, app: ASGIApp, listener: socket.socket, on_ready: Callable[[str], None] = lambda url: None
) -> None:
    """Loads every model, then answers until a signal stops it. Raises what loading raises."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def main() -> None:
        for name in list(server.pool.entries):
            await server.pool.load(name)
        protocol = type("Protocol", (_Protocol,), {"options": server.options})
        _allow_files(2 * server.options.max_connections + 512)
        # the guard notes every error: what is left for this log are tracebacks of requests that were cut
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = uvicorn.Config(
            app, http=protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=int(max(1, server.options.shutdown_seconds)), timeout_keep_alive=30,
        )  # fmt: skip
        running = _Uvicorn(config, server)
        loop = asyncio.get_running_loop()
        server.n_connections = lambda: len(running.server_state.connections)
        server.stop = lambda: loop.call_soon_threadsafe(running.stop)
        on_ready(url)
        await running.serve(sockets=[listener])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(interval)
