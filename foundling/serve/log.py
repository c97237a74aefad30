# SPDX-License-Identifier: Apache-2.0
"""The log of requests, written by a thread of its own: a terminal or pipe that takes nothing must not stop a server."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable

MAX_LINES = 10_000


class LogWriter:
    """Call it with a line. Lines beyond MAX_LINES that wait are dropped, and how many they were is written later."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._lines = queue.Queue[str | None](MAX_LINES)
        self.n_dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.n_dropped += 1

    def close(self, seconds: float = 2.0) -> bool:
        """Writes what waits, within these seconds; whether it could. If not, the thread still waits inside a write, and
        whatever else writes there would wait as well."""
        try:
            self._lines.put(None, timeout=seconds)
        except queue.Full:
            return False
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write(line)
            if self.n_dropped:
                n, self.n_dropped = self.n_dropped, 0
                self._write(json.dumps({"dropped_lines": n}))
