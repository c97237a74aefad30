# SPDX-License-Identifier: Apache-2.0
"""Servers with files and jobs on free ports: `foundling serve` as a process, or in a thread, which is cheap."""

import json
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai

from foundling.serve.job_options import JobOptions
from foundling.serve.jobs import ServerState, jobs_router
from foundling.serve.models import Price
from tests.e2e.tools import start
from tests.serve.servers import serving


def chats(n: int = 60, answer: str = "yes") -> bytes:
    chance = random.Random(n)
    rows = [
        {"messages": [{"role": "user", "content": f"{i}: {chance.choice(['Oslo', 'Rome', 'Lima'])}"},
                      {"role": "assistant", "content": f"{i} {answer}"}]}
        for i in range(n)
    ]  # fmt: skip
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Clients:
    """Of a server at `url`."""

    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def http(self, key: str = "none") -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=120)


@contextmanager
def served(base: Path, state: Path | None = None, keys: Sequence[str] = (), **options: Any) -> Iterator[Clients]:
    """A server in a thread, with the model `base` at a price, until the block ends. `options`: of JobOptions."""
    stored = ServerState(JobOptions(state, **options)) if state else None

    def routers(server: Any) -> Sequence[Any]:
        return [jobs_router(server, stored)]

    with serving({"base": base}, keys=keys, prices={"base": Price(1, 2)}, routers=routers) as live:
        clients = Clients()
        clients.url = live.url
        yield clients


class Serving(Clients):
    """The command, answering at `url` once it is constructed."""

    def __init__(self, *args: object) -> None:
        self.process = start("serve", *args, "--port", "0")
        out = self.process.folder / "out"
        while " at http://" not in (text := out.read_text() if out.exists() else ""):
            if self.process.poll() is not None:
                raise AssertionError(self.process.communicate())
            time.sleep(0.02)
        self.url = text.partition(" at ")[2].split()[0]

    def stop(self) -> tuple[int, str]:
        """The exit code and what it wrote to stderr, after SIGTERM."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, error = self.process.communicate(timeout=120)
        return self.process.returncode or 0, error

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def refusal(response: httpx2.Response, status: int) -> str:
    """The message of an error, whose body is as OpenAI's clients read it."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error["message"]
