# SPDX-License-Identifier: Apache-2.0
"""A server on the loopback device that answers by a function: real sockets, real HTTP."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Seen:
    """A request, as it came."""

    path: str
    headers: dict[str, str]
    """names in lower case"""
    body: Any


@dataclass
class Reply:
    body: Any = b""
    """bytes as they are, anything else as JSON"""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """a Content-Length that is wrong"""
    drip: float = 0.0
    """seconds between single bytes"""


def chat(text: Any, **more: Any) -> dict[str, Any]:
    """An answer of /chat/completions as OpenAI documents it."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1764240000, "model": "m-2026-01-01",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}, "system_fingerprint": "fp_1",
    } | more  # fmt: skip


def echo(tokens: list[str], logprobs: list[float | None], tops: list[Any] | None = None, offsets: Any = None) -> Any:
    """An answer of /completions with `echo` and `logprobs`."""
    body = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}
    return {
        "model": "m", "usage": {"prompt_tokens": len(tokens) - 1, "completion_tokens": 1},
        "choices": [{"text": "".join(tokens), "logprobs": body, "finish_reason": "length"}],
    }  # fmt: skip


@dataclass
class Server:
    url: str
    requests: list[Seen] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    """a client closed its connection before the answer was whole"""


@contextmanager
def serving(answer: Callable[[Seen, int], Any], certificate: Path | None = None) -> Iterator[Server]:
    """`answer(request, its number)` gives a Reply, or the JSON of one. `certificate`: with its key, for https."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.path, headers, json.loads(body))
            with lock:
                server.requests.append(seen)
                number = len(server.requests) - 1
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                value = answer(seen, number)
            finally:
                with lock:
                    server.at_once -= 1
            reply = value if isinstance(value, Reply) else Reply(value)
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            kind = {"Content-Type": "application/json"} if not isinstance(reply.body, bytes) else {}
            for name, text in (kind | reply.headers).items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data) if reply.length is None else reply.length))
            self.end_headers()
            try:
                for at in range(0, len(data), 1 if reply.drip else len(data)):
                    self.wfile.write(data[at : at + 1] if reply.drip else data)
                    self.wfile.flush()
                    if reply.drip and closing.wait(reply.drip):
                        break
            except OSError:
                server.left.set()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    closing = threading.Event()

    class Listening(ThreadingHTTPServer):
        request_queue_size = 128  # of 5, connections beyond wait a second each

    http = Listening(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}")
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        server.url = f"https://localhost:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        closing.set()
        http.shutdown()
        thread.join()
        http.server_close()
