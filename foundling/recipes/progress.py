# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a program works: a live bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_EVERY = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if not rate else f"{rate * task.fields.get('scale', 1):,.0f} {task.fields.get('unit', '')}/s")


class Bar:
    """Progress in steps, with a figure beside it."""

    def __init__(self, show: Show, name: str, total: int, done: int, scale: float, unit: str) -> None:
        self.show, self.name, self.total, self.scale, self.unit = show, name, total, scale, unit
        self.done = self.first = done
        self.begin = self.last = time.monotonic()
        self.live: Progress | None = None
        if show.terminal:
            self.live = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), _Rate(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=show.console, transient=True,
            )  # fmt: skip
            self.task = self.live.add_task(name, total=total, completed=done, scale=scale, unit=unit, note="")
            self.live.start()

    def advance(self, note: str = "") -> None:
        self.done += 1
        if self.live:
            self.live.update(self.task, advance=1, note=note)
        elif self.show.on and time.monotonic() - self.last > PLAIN_EVERY:
            self.last = now = time.monotonic()
            rate = (self.done - self.first) / max(1e-9, now - self.begin)
            left = (self.total - self.done) / max(1e-9, rate)
            speed = f", {rate * self.scale:,.0f} {self.unit}/s" if self.unit else ""
            self.show.line(
                f"  {self.name} {self.done}/{self.total}{speed}, {left:.0f} s left{', ' + note if note else ''}"
            )


class Show:
    """Lines and phases. Phases are timed, so that a report can say where the minutes went."""

    def __init__(self, on: bool = True, age: float = 0.0) -> None:
        self.on = on
        self.console = Console(stderr=True, highlight=False)
        self.terminal = on and self.console.is_terminal and sys.stderr.isatty()
        self.born = time.monotonic() - age
        self.timeline: list[tuple[str, float]] = [("start", age)] if age else []

    @property
    def elapsed(self) -> float:
        """Seconds since the process (or, from Python, the call) began."""
        return time.monotonic() - self.born

    def line(self, text: str) -> None:
        if self.on:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str, text: str = "") -> Iterator[None]:
        if text:
            self.line(text)
        begin = time.monotonic()
        try:
            yield
        finally:
            self.timeline.append((name, round(time.monotonic() - begin, 2)))

    @contextmanager
    def bar(self, name: str, total: int, *, done: int = 0, scale: float = 1, unit: str = "") -> Iterator[Bar]:
        bar = Bar(self, name, total, done, scale, unit)
        try:
            yield bar
        finally:
            if bar.live:
                bar.live.stop()
