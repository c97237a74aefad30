# SPDX-License-Identifier: Apache-2.0
"""A process for programs that are not trusted, such as chat templates: what it may take of memory and processor time is
bounded by the system, whatever the program does. It is started once, and answers a call in a fraction of a millisecond.

JSON goes in and comes out. A call that exceeds a bound ends the process; the next call starts another.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from foundling import errors
from foundling.errors import FoundlingError

_BEGIN = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from foundling.runtime.limited import serve; serve()"
"""The modules come from where they come from here, and never from the working directory, which may be a model's."""
PATIENCE = 10
"""seconds that a process may wait for a processor, for each second that it may take of one"""


class LimitError(Exception):
    """The program took more than it may, or ended its process."""


class LimitedProcess:
    """`function`, as "module:name", in a process of its own; one for each process that calls, and any thread may."""

    def __init__(self, function: str, *, memory: int, seconds: int, answer: int, modules: Sequence[str] = ()) -> None:
        """`memory`: bytes beyond what the process takes when it is ready. `seconds`: of processor time for one call.
        `answer`: bytes of what a call returns. `modules`: what the function imports, so that no call waits for it."""
        self.function, self.memory, self.seconds, self.answer = function, memory, seconds, answer
        self.modules = list(modules)
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def call(self, value: Any) -> Any:
        """What the function returns for `value`; the FoundlingError that it raises, or LimitError."""
        data = json.dumps(value).encode()
        with self.lock:
            if self.process is None or self.pid != os.getpid() or self.process.poll() is not None:
                self._start()
            try:
                reply = self._exchange(data)
            except BaseException:
                self._stop()
                raise
            if reply["last"]:
                self._stop()
        if "error" in reply:
            raise getattr(errors, reply["error"])(reply["message"])
        return reply["value"]

    def close(self) -> None:
        """Ends the process; the next call starts another."""
        with self.lock:
            self._stop()

    def _start(self) -> None:
        arguments = [json.dumps(sys.path), self.function, str(self.memory), str(self.seconds), json.dumps(self.modules)]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BEGIN, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.pid = os.getpid()

    def _stop(self) -> None:
        process, self.process = self.process, None
        if process and process.stdin and process.stdout:
            process.kill()
            process.wait()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # of what was not sent
                process.stdin.close()

    def _exchange(self, data: bytes) -> dict[str, Any]:
        assert self.process and self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(len(data).to_bytes(8, "big") + data)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise LimitError("it ended its process") from None
        end = time.monotonic() + PATIENCE * (1 + self.seconds)
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            received, wanted = b"", 8
            while len(received) < wanted:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise LimitError(f"it takes over {self.seconds} s")
                part = os.read(self.process.stdout.fileno(), min(1 << 20, wanted - len(received)))
                if not part:
                    raise LimitError(f"it takes over {self.seconds} s or ends its process")
                received += part
                if wanted == 8 and len(received) == 8:
                    wanted += int.from_bytes(received, "big")
                    if wanted > self.answer + 8:
                        raise LimitError(f"it answers with over {self.answer:,} bytes")
        return json.loads(received[8:])


def serve() -> NoReturn:
    """The other side: answers until there is nobody to answer."""
    import resource

    _, _, function, memory, seconds, modules = sys.argv
    for module in json.loads(modules):
        importlib.import_module(module)
    module, _, name = function.partition(":")
    run, streams = getattr(importlib.import_module(module), name), (open(0, "rb"), open(1, "wb"))  # noqa: SIM115
    held = _address_space()
    if held:
        most = _within(held + int(memory), resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while len(size := streams[0].read(8)) == 8:
        value = json.loads(streams[0].read(int.from_bytes(size, "big")))
        end, hard = math.ceil(time.process_time()) + int(seconds), resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (_within(end, resource.RLIMIT_CPU), hard))  # SIGXCPU ends it
        try:
            reply: dict[str, Any] = {"value": run(value)}
        except FoundlingError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        # The limit that this process has inherited must not end a later call in its middle.
        reply["last"] = _within(math.ceil(time.process_time()) + int(seconds), resource.RLIMIT_CPU) == hard
        data = json.dumps(reply).encode()
        streams[1].write(len(data).to_bytes(8, "big") + data)
        streams[1].flush()
    sys.exit(0)


def _within(value: int, limit: int) -> int:
    """`value`, or less: only root may exceed the hard limit that a process has inherited (`ulimit -t`, `ulimit -v`)."""
    import resource

    hard = resource.getrlimit(limit)[1]
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _address_space() -> int:
    """Bytes that this process maps; 0 where the system does not say (macOS, which does not bound it either)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
