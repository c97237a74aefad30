# SPDX-License-Identifier: Apache-2.0
"""A label server in a thread, on a free port."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foundling.data.label_book import LabelBook
from foundling.data.labels import LabelFile, read_items, read_judgements
from foundling.evaluate.labels import label_report
from foundling.serve.label import serve_labels
from foundling.serve.options import ServeOptions
from foundling.serve.run import listen
from foundling.serve.server import Server


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Labelling:
    """A server that answers at `url`, which ends with its token."""

    def __init__(self, url: str, out: Path, book: LabelBook) -> None:
        self.url, self.out, self.book = url, out, book
        _, _, self.netloc, self.token, _ = url.split("/")
        self.port = int(self.netloc.rpartition(":")[2])

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def http(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] = {}, token: str | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, value (JSON where it is), headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | dict(headers)
        try:
            connection.request(method, f"/{self.token if token is None else token}/{path}", data, sent)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        value = json.loads(answer) if "json" in response.headers.get("content-type", "") else answer
        return response.status, value, {name.lower(): value for name, value in response.getheaders()}

    def item(self, query: str = "") -> dict[str, Any]:
        status, value, _ = self.http("GET", f"item{query}")
        assert status == 200, value
        return value

    def judge(self, view: Mapping[str, Any], id: str, **more: Any) -> tuple[int, Any]:
        seen = (view["judgement"] or {}).get("id")
        body = {"item": view["item"], "id": id, "seen": seen, "state": "judged", "seconds": 1.5} | more
        return self.http("POST", "judge", body)[:2]


@contextlib.contextmanager
def labelling(data: Path, out: Path, labeller: str = "anna", task: Any = None, port: int = 0) -> Iterator[Labelling]:
    book = LabelBook(read_items(data, task), LabelFile(out), labeller)
    options, ready, urls, servers = ServeOptions(port=port), threading.Event(), list[str](), list[Server]()

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    def run() -> None:
        serve_labels(
            book, options, listen(options), on_ready=on_ready, on_server=servers.append,
            agreement=lambda: label_report(read_judgements(out)),
        )  # fmt: skip

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Labelling(urls[0], out, book)
    finally:
        servers[0].stop()
        thread.join(60)
        assert not thread.is_alive(), "the server did not stop"
