# SPDX-License-Identifier: Apache-2.0
"""Real servers on free ports: uvicorn in a thread, with small random models and a real tokenizer."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import openai
import torch

import foundling
from foundling.models import build, family
from foundling.serve.app import build_app, watch_metrics
from foundling.serve.keys import KeyFile, KeyStore
from foundling.serve.models import GenerativeModel, Price, load_served
from foundling.serve.options import ServeOptions
from foundling.serve.pool import ModelPool
from foundling.serve.run import listen, serve
from foundling.serve.server import Server
from foundling.text import Tokenizer

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
    lines: list[str] = field(default_factory=list)
    """of its log"""

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
    routers: Callable[[Server], Sequence[Any]] = lambda server: (),
    **options: Any,
) -> Iterator[Live]:
    """Serves name -> directory until the block ends. `adapters`: model -> {name: directory}; `options`: of
    ServeOptions; `routers`: further routes of a server."""
    chosen = ServeOptions(**({"port": 0} | options))
    store = KeyStore(keys, KeyFile(key_file) if key_file else None)
    pool = ModelPool(chosen, dict(prices or {}))
    for name, directory in models.items():
        pool.add(name, str(directory), {k: str(v) for k, v in (adapters or {}).get(name, {}).items()})
    judge: Any = load_served("reward", str(reward), chosen) if reward else None
    server = Server(chosen, pool, store, reward=judge)
    watch_metrics(server)
    lines: list[str] = []
    listener = listen(chosen)
    app = build_app(server, routers(server), lines.append)
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
        yield Live(server, host, port, keys[0] if keys else None, loops[0], lines)
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
    if errors:
        raise errors[0]
