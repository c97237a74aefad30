# SPDX-License-Identifier: Apache-2.0
"""A server as a process: it loads its models, listens, and ends what runs before it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from foundling.errors import ConfigError, OutputError, render
from foundling.serve.options import ServeOptions
from foundling.serve.server import Server

HEADER_BYTES = 32 << 10
"""of the line and headers of a request"""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Uvicorn(uvicorn.Server):
    """Ends by our own rules: the first signal lets running requests finish and the process ends with exit code 0, the
    second ends them."""

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
                self.force_exit = True
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


def serve(
    server: Server, app: ASGIApp, listener: socket.socket, on_ready: Callable[[str], None] = lambda url: None
) -> None:
    """Loads every model, then answers until a signal stops it. Raises what loading raises."""
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def main() -> None:
        for name in list(server.pool.entries):
            await server.pool.load(name)
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES, limit_concurrency=server.options.max_connections,
            timeout_graceful_shutdown=int(max(1, server.options.shutdown_seconds)), timeout_keep_alive=30,
        )  # fmt: skip
        running = _Uvicorn(config, server)
        loop = asyncio.get_running_loop()
        server.stop = lambda: loop.call_soon_threadsafe(running.stop)
        on_ready(url)
        await running.serve(sockets=[listener])

    asyncio.run(main())
