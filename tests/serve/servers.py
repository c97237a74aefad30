# SPDX-License-Identifier: Apache-2.0
"""Real servers on free ports: uvicorn in a thread, with small random models and a real tokenizer."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import openai
import torch
from fastapi import FastAPI

import foundling
from foundling.adapt.heads import HeadOptions, add_head
from foundling.models import build, family
from foundling.runtime.rng import generator
from foundling.serve.app import build_app, watch_metrics
from foundling.serve.guard import Guard
from foundling.serve.keys import KeyFile, KeyStore
from foundling.serve.models import GenerativeModel, Price, load_served
from foundling.serve.options import ServeOptions
from foundling.serve.pool import ModelPool
from foundling.serve.run import listen, serve
from foundling.serve.server import Server
from foundling.text import Tokenizer
from tests.decode.test_fill import word_pieces

TEXTS = ["the cat sat on the mat and the dog sat on the log", "a small text about cats and dogs, sat at a table"]
KEY = "a-key-for-tests"


def save_model(
    path: Path, name: str = "llama", *, seed: int = 0, max_seq_len: int = 256, d_model: int = 32,
    tokens: Sequence[str] = (),
) -> Path:  # fmt: skip
    """A random model of a family with a tokenizer that has a chat template and tokens for filling in the middle. Its
    head prefers some tokens by far, so that greedy texts do not hang on the last bit, and never a special token: an
    answer ends where the request says. `tokens`: further special ones."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    tokenizer = tokenizer.with_tokens(tokens) if tokens else tokenizer
    torch.manual_seed(seed)
    model: Any = build(name, **family(name).module.sized(tokenizer.vocab_size, max_seq_len, d_model, 2))
    with torch.no_grad():
        head = getattr(model, "head", None)
        weight = model.embedding.weight if head is None else head.weight
        weight.mul_(3 if head is None else 30)
        weight[sorted(tokenizer.special)] = 0
    foundling.save(model, path, tokenizer=tokenizer)
    return path


def save_encoder(path: Path, labels: Sequence[str] = ()) -> Path:
    """A random BERT that embeds, or with labels classifies."""
    tokenizer = word_pieces(path.with_name(path.name + "-words"))
    torch.manual_seed(0)
    model: Any = build("bert", **family("bert").module.sized(150, 32, 64, 2))
    if labels:
        add_head(model, HeadOptions("classify", tuple(labels)), generator("head"))
        with torch.no_grad():
            for weight in model.score.parameters():
                weight.normal_(0, 0.3 if weight.ndim == 2 else 0)
    return foundling.save(model.eval(), path, tokenizer=tokenizer)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    """names in lower case"""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Live:
    """A server that answers. `key`: what its clients send, if anything."""

    server: Server
    host: str
    port: int
    key: str | None
    loop: asyncio.AbstractEventLoop
    guard: Guard
    lines: list[str] = field(default_factory=list)
    """of its log"""

    @property
    def app(self) -> FastAPI:
        assert isinstance(self.guard.app, FastAPI)
        return self.guard.app

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official client, which tries once."""
        options = {"max_retries": 0, "timeout": 60.0} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key or "none", **options)

    def http(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, headers: Mapping[str, str] = {},
        timeout: float = 60.0,
    ) -> Reply:  # fmt: skip
        """One request. `body`: bytes as they are, or a value to send as JSON. `key`: "" sends none."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        key = self.key if key is None else key
        sent = {"Content-Type": "application/json"} if data is not None else {}
        sent |= {"Authorization": f"Bearer {key}"} if key else {}
        try:
            connection.request(method, path, data, sent | dict(headers))
            response = connection.getresponse()
            body_read = response.read()
            return Reply(response.status, {n.lower(): v for n, v in response.getheaders()}, body_read)
        finally:
            connection.close()

    def post(self, path: str, **body: Any) -> Reply:
        return self.http("POST", path, body)

    def call(self, function: Callable[[], Awaitable[Any]], timeout: float = 60.0) -> Any:
        """What a coroutine returns that runs in the server's event loop."""

        async def run() -> Any:
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(timeout)

    def line(self, reply: Reply | None = None) -> dict[str, Any]:
        """What the log says of a request, or of the last one: it is written after the answer."""
        for _ in range(1000):
            lines = [json.loads(line) for line in list(self.lines)]
            for one in reversed(lines):
                if reply is None or one["id"] == reply.headers["x-request-id"]:
                    return one
            time.sleep(0.01)
        raise AssertionError("the log has no such line")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name and labels in /metrics."""
        total = 0.0
        for line in self.http("GET", "/metrics").body.decode().splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total += float(match[2])
        return total

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Inside, a computation runs that all others without an engine wait for."""
        entered, leave = threading.Event(), threading.Event()

        def compute() -> None:
            entered.set()
            leave.wait(60)

        done = asyncio.run_coroutine_threadsafe(self.server.in_turn(compute), self.loop)
        assert entered.wait(60)
        try:
            yield
        finally:
            leave.set()
            done.result(60)

    def model(self, name: str) -> GenerativeModel:
        served = self.server.pool.get(name, GenerativeModel)
        assert isinstance(served, GenerativeModel)
        return served


@contextlib.contextmanager
def serving(
    models: Mapping[str, Path | str],
    *,
    keys: Sequence[str] = (),
    key_file: Path | None = None,
    adapters: Mapping[str, Mapping[str, Path | str]] | None = None,
    reward: Path | str | None = None,
    prices: Mapping[str, Price] | None = None,
    prepare: Callable[[Server], None] = lambda server: None,
    routers: Callable[[Server], Sequence[Any]] = lambda server: (),
    **options: Any,
) -> Iterator[Live]:
    """Serves name -> directory until the block ends. `adapters`: model -> {name: directory}; `options`: of
    ServeOptions; `prepare` gets the server before its routes are made; `routers`: further routes of it."""
    chosen = ServeOptions(**({"port": 0} | options))
    store = KeyStore(keys, KeyFile(key_file) if key_file else None)
    pool = ModelPool(chosen, dict(prices or {}))
    for name, directory in models.items():
        pool.add(name, str(directory), {k: str(v) for k, v in (adapters or {}).get(name, {}).items()})
    judge: Any = load_served("reward", str(reward), chosen) if reward else None
    server = Server(chosen, pool, store, reward=judge)
    watch_metrics(server)
    prepare(server)
    lines: list[str] = []
    listener = listen(chosen)
    app = build_app(server, routers(server), lines.append)
    assert isinstance(app, Guard)
    ready, loops, errors = threading.Event(), [], []

    def on_ready(url: str) -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()

    def main() -> None:
        try:
            serve(server, app, listener, on_ready)
        except BaseException as error:
            errors.append(error)
            ready.set()

    thread = threading.Thread(target=main, name="server", daemon=True)
    thread.start()
    assert ready.wait(120)
    if errors:
        raise errors[0]
    host, port = listener.getsockname()[:2]
    try:
        yield Live(server, host, port, keys[0] if keys else None, loops[0], app, lines)
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
    if errors:
        raise errors[0]
