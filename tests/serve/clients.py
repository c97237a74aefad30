# SPDX-License-Identifier: Apache-2.0
"""Many clients at once, of which some leave, without threads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

NO_LINGER = struct.pack("ii", 1, 0)
"""a close that sends RST"""


def payload(
    path: str, body: Any = None, *, key: str | None = None, method: str = "POST", host: str = "localhost"
) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", f"Content-Length: {len(data)}"]
    lines += ["Content-Type: application/json"] + ([f"Authorization: Bearer {key}"] if key else [])
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def ask(port: int, data: bytes, seconds: float = 120.0) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request; the body of a stream without its chunks' lengths."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            await writer.drain()
            got = await reader.read()
        finally:
            writer.close()
    head, blank, body = got.partition(b"\r\n\r\n")
    assert blank, f"the server closed a connection without an answer: {got!r}"
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        assert body.endswith(b"0\r\n\r\n"), "a stream was cut"
        body = re.sub(rb"(^|\r\n)[0-9a-f]+\r\n", b"", body)
    return int(first.split()[1]), headers, body


@dataclass
class Outcome:
    statuses: dict[int, int] = field(default_factory=dict)
    health: list[float] = field(default_factory=list)
    """seconds of each answer of /health"""
    rss: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the start, bytes)"""

    def percentile(self, share: float) -> float:
        return sorted(self.health)[min(len(self.health) - 1, int(share * len(self.health)))]

    async def ask_once(self, port: int, draw: random.Random, max_tokens: int) -> int:
        """The status of a request, half of them for streams: a whole answer, or 429 or 503 with Retry-After."""
        stream = draw.random() < 0.5
        prompt = "the cat " * draw.randrange(1, 30) + str(draw.random())
        body = {"prompt": prompt, "max_tokens": max_tokens, "stream": stream, "n": draw.choice([1, 1, 2])}
        status, headers, answer = await ask(port, payload("/v1/completions", body))
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            assert answer.strip().endswith(b"data: [DONE]") if stream else "usage" in json.loads(answer)
            assert b'"error"' not in answer
        else:
            assert status in (429, 503) and int(headers["retry-after"]) >= 1, (status, headers, answer)
            assert json.loads(answer)["error"]["message"]
        return status

    async def watch(self, port: int, until: float, process: Any = None) -> None:
        """Times /health, and the memory of a process, until then."""
        begin = time.monotonic()
        while time.monotonic() < until:
            sent = time.monotonic()
            status, _, _ = await ask(port, payload("/health", method="GET"))
            assert status == 200
            self.health.append(time.monotonic() - sent)
            if process is not None:
                self.rss.append((time.monotonic() - begin, process.memory_info().rss))
            await asyncio.sleep(0.05)


async def overload(port: int, n_clients: int, seconds: float, max_tokens: int, process: Any = None) -> Outcome:
    """`n_clients` ask again and again, half of them for streams, each as soon as it has an answer. Every answer has to
    be whole, or to be 429 or 503 with Retry-After."""
    outcome, begin = Outcome(), time.monotonic()

    async def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() - begin < seconds:
            if await outcome.ask_once(port, draw, max_tokens) != 200:
                await asyncio.sleep(draw.random() * 0.2)

    await asyncio.gather(outcome.watch(port, begin + seconds, process), *(client(n) for n in range(n_clients)))
    return outcome


async def arrivals(port: int, rate: float, seconds: float, max_tokens: int, process: Any = None) -> Outcome:
    """As `overload`, but `rate` requests a second come whether others are answered or not, each of another client."""
    outcome, begin, draw = Outcome(), time.monotonic(), random.Random(0)
    asking = set[asyncio.Task[None]]()
    watching = asyncio.create_task(outcome.watch(port, begin + seconds, process))
    at = begin
    while at < begin + seconds:
        at += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        task = asyncio.create_task(outcome.ask_once(port, draw, max_tokens))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(watching, *asking)
    return outcome


async def leave(port: int, draw: random.Random) -> str:
    """One client that leaves somewhere on the way; where it did."""
    where = draw.choice(["in the header", "in the body", "before the first token", "in the stream", "while it waits"])
    stream = where == "in the stream" or draw.random() < 0.5
    body = {"prompt": "the dog " + str(draw.random()), "max_tokens": 150, "stream": stream, "n": draw.choice([1, 2])}
    data = payload("/v1/completions", body)
    if where == "in the header":
        data = data[: draw.randrange(1, data.index(b"\r\n\r\n"))]
    elif where == "in the body":
        data = data[: draw.randrange(data.index(b"\r\n\r\n") + 4, len(data))]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        if where == "in the stream":
            await reader.read(draw.randrange(1, 4000))
        elif where == "while it waits":
            await asyncio.sleep(draw.random() * 0.05)
        if draw.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            writer.transport.abort()
    writer.close()
    return where


async def leave_all(port: int, n: int, at_once: int, seed: int = 0) -> dict[str, int]:
    """n clients that leave; how many left where."""
    gate, draw, counts = asyncio.Semaphore(at_once), random.Random(seed), dict[str, int]()

    async def one(seed: int) -> None:
        async with gate:
            where = await leave(port, random.Random(seed))
            counts[where] = counts.get(where, 0) + 1

    await asyncio.gather(*(one(draw.getrandbits(32)) for _ in range(n)))
    return counts
