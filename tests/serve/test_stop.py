# SPDX-License-Identifier: Apache-2.0
"""`foundling serve` in a process of its own: signals end it as they should, and a full pipe does not stop it."""

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from foundling.serve.key_file import KeyFile
from tests.e2e.tools import environment, start
from tests.serve.clients import ask, payload
from tests.serve.commands import Serving

LONG = {"prompt": "the cat", "max_tokens": 200, "stream": True, "n": 4}


def test_a_signal_lets_running_requests_finish(directories) -> None:
    with Serving(directories["tiny"]) as running:
        process, port = running.process, running.port

        async def main() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(payload("/v1/completions", LONG))
            got = await reader.read(200)
            assert got.startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            # an idle connection ends, and no other is taken once the socket is closed
            while True:
                try:
                    status, headers, _ = await ask(port, payload("/v1/completions", {"prompt": "a", "max_tokens": 1}))
                except (OSError, AssertionError):
                    break
                assert status == 200 or (status == 503 and headers["retry-after"])
            while part := await reader.read(1 << 16):
                got += part
            assert got.count(b'"finish_reason":"length"') == 4 and b"[DONE]" in got
            writer.close()

        asyncio.run(main())
        assert process.wait(60) == 0
        error = (process.folder / "err").read_text()
        assert "Traceback" not in error and all(json.loads(line) for line in error.splitlines() if line[:1] == "{")


def test_a_second_signal_ends_it_at_once(directories) -> None:
    with Serving(directories["tiny"]) as running:
        process, port = running.process, running.port

        async def main() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(payload("/v1/completions", LONG | {"n": 16}))
            assert (await reader.read(200)).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGINT)
            await asyncio.sleep(0.05)
            process.send_signal(signal.SIGINT)
            writer.close()

        asyncio.run(main())
        assert process.wait(60) == 128 + signal.SIGINT
        assert "Traceback" not in (process.folder / "err").read_text()


def test_a_kill_leaves_nothing_half_written(directories, tmp_path: Path) -> None:
    """Keys and what was charged to them survive; the next server starts from the same file."""
    file = KeyFile(tmp_path / "keys.sqlite", create=True)
    key = file.create("anna", tokens=1_000_000)
    before = {path.name: path.read_bytes() for path in directories["tiny"].iterdir()}
    acknowledged = 0

    async def main(port: int, process: Any) -> int:
        done = 0

        async def client() -> None:
            nonlocal done
            while True:
                body = {"prompt": "a", "max_tokens": 2}
                try:
                    status, _, _ = await ask(port, payload("/v1/completions", body, key=key))
                except (OSError, AssertionError):
                    return
                assert status == 200
                done += 1
                if done == 30:
                    process.send_signal(signal.SIGKILL)

        await asyncio.gather(*(client() for _ in range(6)))
        return done

    for n_kills in (1, 2):
        with Serving(directories["tiny"], "--keys", file.path) as running:
            acknowledged += asyncio.run(main(running.port, running.process))
        (record,) = file.records()
        # what is charged last, of each of the six clients, may be lost; nothing is charged twice
        assert abs(record.requests - acknowledged) <= 6 * n_kills, (record, acknowledged)
        assert record.prompt_tokens == record.requests * 2
        with sqlite3.connect(file.path) as db:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert {path.name: path.read_bytes() for path in directories["tiny"].iterdir()} == before


@pytest.mark.slow  # an interpreter of its own
def test_a_full_pipe_does_not_stop_it(directories) -> None:
    """Nobody reads its log: it answers all the same, and ends when it is told to."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write, b"x" * 1024)
    os.set_blocking(write, True)
    line = [sys.executable, "-m", "foundling", "serve", str(directories["tiny"]), "--port", "0"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=write, text=True, env=environment())
    try:
        assert process.stdout
        match = re.search(r":(\d+)", process.stdout.readline())
        assert match
        for _ in range(50):
            status, _, _ = asyncio.run(ask(int(match[1]), payload("/v1/completions", {"prompt": "a", "max_tokens": 1})))
            assert status == 200
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
        process.communicate()
        os.close(read)
        os.close(write)


def test_it_ends_while_it_loads(directories) -> None:
    """By a signal after it has taken its port, and before it has loaded all of its models."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("serve", *(f"m{i}={directories['tiny']}" for i in range(200)), "--port", port)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    out, error = process.communicate()
    assert "serving" not in out and "Traceback" not in error and process.returncode == 128 + signal.SIGTERM
