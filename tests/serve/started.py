# SPDX-License-Identifier: Apache-2.0
"""Real servers on free ports, with an encoder, a classifier and a decoder that have random weights."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import torch
import uvicorn

import foundling
from foundling.adapt.heads import HeadOptions, add_head
from foundling.models import build, family
from foundling.runtime.rng import generator
from foundling.serve.app import build_app, watch_metrics
from foundling.serve.key_file import KeyFile
from foundling.serve.keys import KeyStore
from foundling.serve.options import ServeOptions
from foundling.serve.pool import ModelPool
from foundling.serve.server import Server
from foundling.text import Tokenizer
from tests.decode.test_fill import word_pieces

TEXTS = ["the cat sat on the mat and the dog sat on the log", "a small text about cats and dogs, sat at a table"]


def save_decoder(path: Path, max_seq_len: int = 256) -> Path:
    """A random decoder whose head prefers some tokens by far, and never a special one."""
    tokenizer = Tokenizer.train(TEXTS, 320)
    torch.manual_seed(0)
    model: Any = build("llama", **family("llama").module.sized(tokenizer.vocab_size, max_seq_len, 32, 2))
    with torch.no_grad():
        weight = model.embedding.weight if getattr(model, "head", None) is None else model.head.weight
        weight.mul_(3 if getattr(model, "head", None) is None else 30)
        weight[sorted(tokenizer.special)] = 0
    return foundling.save(model, path, tokenizer=tokenizer)


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


@dataclass
class Started:
    server: Server
    url: str
    loop: asyncio.AbstractEventLoop
    keys: Sequence[str] = ()
    lines: list[str] = field(default_factory=list)
    """of its log"""
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    def client(self, key: str | None = None) -> openai.OpenAI:
        """The official client, which tries once."""
        key = key or (self.keys[0] if self.keys else "none")
        if key not in self.clients:
            self.clients[key] = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        return self.clients[key]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name and labels in /metrics."""
        headers = {"Authorization": f"Bearer {self.keys[0]}"} if self.keys else {}
        text = httpx2.get(f"{self.url}/metrics", headers=headers).text
        total = 0.0
        for line in text.splitlines():
            match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total += float(match[2])
        return total

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Inside, a computation runs that all others without an engine wait for."""
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            leave.wait(60)

        done = asyncio.run_coroutine_threadsafe(self.server.in_turn(hold), self.loop)
        assert entered.wait(60)
        try:
            yield
        finally:
            leave.set()
            done.result(60)


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Returns once it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@contextlib.contextmanager
def started(
    models: Mapping[str, Path],
    *,
    keys: Sequence[str] = (),
    key_file: KeyFile | None = None,
    prepare: Callable[[Server], None] = lambda server: None,
    **options: Any,
) -> Iterator[Started]:
    """Serves name -> directory until the block ends. `prepare` gets the server before its routes are made; `options`:
    of ServeOptions."""
    chosen = ServeOptions(**({"port": 0} | options))
    pool = ModelPool(chosen)
    for name, directory in models.items():
        pool.add(name, str(directory))
    server, lines = Server(chosen, pool, KeyStore(keys, key_file)), list[str]()
    watch_metrics(server)
    prepare(server)
    app, errors, ready = build_app(server, log=lines.append), list[BaseException](), threading.Event()
    config = uvicorn.Config(app, port=0, http="h11", ws="none", lifespan="on", log_config=None)
    runner, loops = uvicorn.Server(config), list[asyncio.AbstractEventLoop]()

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        for name in list(pool.entries):
            await pool.load(name)
        serving = asyncio.create_task(runner.serve())
        while not runner.started and not serving.done():
            await asyncio.sleep(0.005)
        ready.set()
        await serving

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    assert ready.wait(60)
    if errors:
        raise errors[0]
    port = runner.servers[0].sockets[0].getsockname()[1]
    live = Started(server, f"http://127.0.0.1:{port}", loops[0], keys, lines)
    try:
        yield live
    finally:
        for client in live.clients.values():
            client.close()
        runner.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
