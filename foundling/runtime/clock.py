# SPDX-License-Identifier: Apache-2.0
"""Time: since the process or a call began, and by phase."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager


def process_age() -> float:
    """Seconds since this process was started, its imports included; 0 where the kernel does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime", encoding="ascii") as file:
            return max(0.0, float(file.read().split()[0]) - started)
    except (OSError, ValueError, IndexError):
        return 0.0


class Clock:
    """Seconds since a beginning, and how they divide into named phases."""

    def __init__(self, age: float = 0.0) -> None:
        """`age`: seconds that have passed already, such as `process_age()`."""
        self._start = time.monotonic() - age
        self.timeline: list[tuple[str, float]] = [("start", round(age, 2))] if age else []

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._start

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.timeline.append((name, round(time.monotonic() - start, 2)))

    def seconds_by_phase(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for name, seconds in self.timeline:
            totals[name] = round(totals.get(name, 0.0) + seconds, 2)
        return totals
