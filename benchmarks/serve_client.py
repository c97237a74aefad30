# SPDX-License-Identifier: Apache-2.0
"""Clients of a server of streams, as cheap as can be: bytes and their times are noted, and read once all have come.

python -m benchmarks.serve_client HOST:PORT CLIENTS < bodies       one JSON body of /v1/completions a line

Prints one JSON object: seconds of all requests, processor time of this process meanwhile, of each request its number of
tokens and its text, and quantiles of the times to the first token and between tokens.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

END = b"\r\n0\r\n\r\n"
"""of a body in chunks"""


@dataclass(eq=False)
class Answer(asyncio.Protocol):
    """One request over a connection of its own."""

    request: bytes
    done: asyncio.Future[None]
    begin: float = 0.0
    parts: list[tuple[float, bytes]] = field(default_factory=list)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.begin = transport, time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parts.append((time.perf_counter(), data))
        if data.endswith(END) or (data == END[2:] and self.parts[-2][1].endswith(END[:2])):
            self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
            self.transport.close()

    def events(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Seconds since the request, and what came. SystemExit for an answer that is no stream."""
        times, whole = [], bytearray()
        for at, data in self.parts:
            whole += data
            times.append((len(whole), at - self.begin))
        head, _, body = bytes(whole).partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0] + b" ":
            raise SystemExit(f"the server answered {bytes(whole)[:400]!r}")
        place, part = len(head) + 4, 0
        while body:
            size, _, rest = body.partition(b"\r\n")
            n = int(size, 16)
            place += len(size) + 2 + n + 2
            for line in rest[:n].splitlines():
                if line.startswith(b"data: {"):
                    while times[part][0] < place - 2:
                        part += 1
                    yield times[part][1], json.loads(line[6:])
            body = rest[n + 2 :]


def read(answer: Answer) -> tuple[list[float], str, int]:
    """The times at which text came, the text, and the number of its events with a token."""
    times, parts, n_tokens = [], [], 0
    for at, event in answer.events():
        if "error" in event:
            raise SystemExit(f"the server answered {event}")
        if usage := event.get("usage"):
            n_tokens = usage["completion_tokens"]
        for choice in event["choices"]:
            if choice["text"]:
                times.append(at)
                parts.append(choice["text"])
    return times, "".join(parts), n_tokens


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    return {"p50": round(cuts[49] * 1000, 2), "p99": round(cuts[98] * 1000, 2)}


def request_of(address: str, body: str) -> bytes:
    content = body.encode()
    lines = ["POST /v1/completions HTTP/1.1", f"Host: {address}", "Content-Type: application/json",
             f"Content-Length: {len(content)}"]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + content


async def measure(address: str, bodies: Sequence[str], clients: int) -> dict[str, Any]:
    """Each client sends its next request when its last one is answered."""
    loop, (host, port) = asyncio.get_running_loop(), address.split(":")
    requests = [request_of(address, body) for body in bodies]
    answers: list[Answer] = []
    waiting = iter(requests)

    async def client() -> None:
        for request in waiting:
            answer = Answer(request, loop.create_future())
            answers.append(answer)
            await loop.create_connection(lambda answer=answer: answer, host, int(port))
            await answer.done

    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    order = {request: number for number, request in enumerate(requests)}
    answers.sort(key=lambda answer: order[answer.request])
    results = [read(answer) for answer in answers]
    gaps = [b - a for times, *_ in results for a, b in zip(times, times[1:], strict=False)]
    return {
        "seconds": seconds, "cpu": cpu, "tokens": [n for *_, n in results], "texts": [text for _, text, _ in results],
        "first_ms": quantiles([times[0] for times, *_ in results]), "between_ms": quantiles(gaps),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], sys.stdin.read().splitlines(), int(sys.argv[2])))))
