# SPDX-License-Identifier: Apache-2.0
"""A real server with tiny models, and a real browser before it. A console error or an exception in the page fails the
test, unless it expects it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, sync_playwright

import foundling
from foundling.runtime.mode import evaluation_mode
from foundling.serve.models import GenerativeModel, Price
from foundling.serve.playground import playground_router
from foundling.text import Tokenizer
from tests.contract.cases import case
from tests.serve.servers import Live, serving

TEXTS = ["the model reads a token and the model learns " * 3, "slow losses fall and rise again: 3, 2, 1, 0\n{}[]"]


class Proxy:
    """Passes bytes on to a server until `cut`, which breaks every connection that it has and refuses further ones."""

    def __init__(self, port: int, own: int = 0) -> None:
        self.target, self.sockets = port, list[socket.socket]()
        self.listener = socket.create_server(("127.0.0.1", own))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [client, server]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def cut(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self.sockets:
            with contextlib.suppress(OSError):  # it has ended already
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`chatty`, which was taught to answer, and `plain`, which continues texts; of random weights."""
    root = tmp_path_factory.mktemp("served")
    tokenizer = Tokenizer.train(TEXTS, 320).with_chat_template()
    for seed, (name, about) in enumerate((("chatty", {"recipe": {"objective": {"kind": "chat"}}}), ("plain", {}))):
        torch.manual_seed(seed)
        fields = case("llama").family.module.sized(320, 2048, 32, 2) | {"tie_embeddings": True}
        model = foundling.build("llama", **fields)
        with torch.no_grad():
            model.embedding.weight.mul_(
                0.2
            )  # of torch's own initialisation, which is so large that every token is certain
            # no answer ends by chance, and few have parts of characters
            parts = [i for i in range(320) if "\ufffd" in tokenizer.piece(i)]
            model.embedding.weight[[*tokenizer.special, *parts]] = 0.0
        foundling.save(model, root / name, tokenizer=tokenizer, about=about)
    return {name: root / name for name in ("chatty", "plain")}


def paged(models: dict[str, Path], **options: Any) -> contextlib.AbstractContextManager[Live]:
    """A server with the page."""
    prices = {"chatty": Price(1.0, 2.0)}
    return serving(models, prices=prices, routers=lambda server: [playground_router(server)], **options)


@torch.no_grad()
def next_logits(served: GenerativeModel, tokens: Sequence[int]) -> torch.Tensor:
    """(V,) float32 logits of the token after these, by the model itself; −inf for rows that stand for no token."""
    model = served.model
    with evaluation_mode(model):
        logits = model.logits(model(torch.tensor([list(tokens)])).hidden[:, -1:])[0, 0].float()
    logits[list(served.no_rows)] = float("-inf")
    return logits


@pytest.fixture(scope="session")
def site(models: dict[str, Path]) -> Iterator[Live]:
    with paged(models) as live:
        yield live


@pytest.fixture(scope="module")  # while it is there, its event loop is that of the main thread: no asyncio.run
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "the tests of the page need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watch:
    """What a page complains of."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        self.expected: list[str] = []

    def follow(self, page: Page) -> None:
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(f"{error} {error.stack}"))

    def expect(self, text: str) -> None:
        self.expected.append(text)

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self.complaints if not any(part in text for part in self.expected)]


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    assert not watch.unexpected


@pytest.fixture
def page(browser: Browser, site: Live, watch: Watch) -> Iterator[Page]:
    """The page of `site`, opened anew."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    watch.follow(page)
    visit(page, site.url)
    yield page
    context.close()


def visit(page: Page, url: str) -> Page:
    page.set_default_timeout(15_000)
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    return page


def set_options(page: Page, *, max_tokens: int = 16, seed: int | None = 1, temperature: float | None = None) -> None:
    page.click(".options > summary")
    page.fill("#max-tokens", str(max_tokens))
    page.fill("#seed", "" if seed is None else str(seed))
    page.click(".options > summary")
    if temperature is not None:
        page.locator("#inspector").get_by_label("Temperature, exact").fill(str(temperature))


def ask(page: Page, text: str) -> Any:
    """Sends a message and waits for the end of the answer: its article."""
    page.fill("#draft", text)
    page.press("#draft", "Enter")
    return finished(page)


def finished(page: Page) -> Any:
    page.wait_for_selector("#messages[aria-busy=false] article.assistant:last-child .facts")
    page.wait_for_selector("#send:visible")
    return page.locator("article.assistant").last


def show_tokens(article: Any) -> Any:
    """The tokens of an answer."""
    article.get_by_role("button", name="Tokens", exact=True).click()
    return article.locator(".token")
