# SPDX-License-Identifier: Apache-2.0
"""Bytes of HTTP as no client library writes them."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from tests.serve.servers import Live


def connect(live: Live, timeout: float = 30.0) -> socket.socket:
    return socket.create_connection((live.host, live.port), timeout=timeout)


def request(path: str = "/v1/completions", body: bytes = b"", *lines: str, method: str = "POST", live: Live) -> bytes:
    """One request. Without a line for its length, the body has one."""
    lines = (f"{method} {path} HTTP/1.1", f"Host: {live.host}:{live.port}", "Content-Type: application/json", *lines)
    if live.key:
        lines += (f"Authorization: Bearer {live.key}",)
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
        lines += (f"Content-Length: {len(body)}",)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def completion(live: Live, **fields: Any) -> bytes:
    body = {"model": "tiny", "prompt": "the cat", "max_tokens": 200} | fields
    return request("/v1/completions", json.dumps(body).encode(), live=live)


def answer(live: Live, data: bytes, seconds: float = 30.0) -> bytes:
    """All that the server sends until it closes or is done with an answer whose length it names."""
    with connect(live, seconds) as connection:
        connection.sendall(data)
        return read(connection)


def read(connection: socket.socket) -> bytes:
    """One answer."""
    got = b""
    while True:
        try:
            part = connection.recv(1 << 16)
        except ConnectionResetError:
            return got
        got += part
        if not part or _complete(got):
            return got


def _complete(got: bytes) -> bool:
    head, blank, body = got.partition(b"\r\n\r\n")
    if not blank:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return body.endswith(b"0\r\n\r\n")


def status(got: bytes) -> int:
    return int(got.split(b" ", 2)[1])


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Until it holds; it fails after so long that only a server that hangs comes there."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
