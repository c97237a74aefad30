# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a program works: a live bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foundling.errors import render

PLAIN_EVERY = 10.0
"""seconds between lines where there is no terminal"""


class Bar:
    """Progress in steps, with a figure beside it."""

    def __init__(self, progress: Progress, name: str, total: int, done: int, scale: float, unit: str) -> None:
        self.progress, self.name, self.total, self.scale, self.unit = progress, name, total, scale, unit
        self.done = self.first = done
        self.begin = self.last = time.monotonic()
        self.live: Any = None
        if progress.terminal:
            self.live, self.task = _live_bar(progress.console, name, total, done, scale, unit)

    def advance(self, note: str = "") -> None:
        self.done += 1
        if self.live:
            self.live.update(self.task, advance=1, note=note)
        elif self.progress.on and time.monotonic() - self.last > PLAIN_EVERY:
            self.last = now = time.monotonic()
            rate = (self.done - self.first) / max(1e-9, now - self.begin)
            left = (self.total - self.done) / max(1e-9, rate)
            speed = f", {rate * self.scale:,.0f} {self.unit}/s" if self.unit else ""
            self.progress.line(
                f"  {self.name} {self.done}/{self.total}{speed}, {left:.0f} s left{', ' + note if note else ''}"
            )


def _live_bar(console: Any, name: str, total: int, done: int, scale: float, unit: str) -> tuple[Any, Any]:
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text("" if not rate else f"{rate * scale:,.0f} {unit}/s")

    live = RichProgress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), Rate(),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console, transient=True,
    )  # fmt: skip
    task = live.add_task(name, total=total, completed=done, note="")
    live.start()
    return live, task


class Progress:
    """Lines and bars on stderr. `on=False` prints nothing."""

    def __init__(self, on: bool = True) -> None:
        from rich.console import Console

        self.on = on
        self.console = Console(stderr=True, highlight=False)
        self.terminal = on and self.console.is_terminal and sys.stderr.isatty()

    def line(self, text: str) -> None:
        """Control characters in `text` are made visible, so that no name can steer the terminal."""
        if self.on:
            self.console.print(render.terminal(text), markup=False, emoji=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int, *, done: int = 0, scale: float = 1, unit: str = "") -> Iterator[Bar]:
        bar = Bar(self, name, total, done, scale, unit)
        try:
            yield bar
        finally:
            if bar.live:
                bar.live.stop()
