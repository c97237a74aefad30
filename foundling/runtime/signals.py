# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP in one place: the first one raises Interrupted, or is noted and raised at the end of a
block; the second ends the process at once, whatever it is doing.

A signal that the process was started with as ignored (nohup, a background job of a script) stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from foundling.errors import Interrupted

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Heard:
    """`number` is the signal that has come, None before. `finishing`: it is only noted from now on."""

    number: int | None = None
    finishing = False


_outermost: Heard | None = None


@contextmanager
def raising() -> Iterator[None]:
    """The first signal raises Interrupted wherever the main thread is; in another thread nothing changes."""

    def interrupt(heard: Heard, number: int) -> None:
        if not heard.finishing:
            raise Interrupted(number)

    with _handled(interrupt):
        yield


def noted() -> int | None:
    """The signal that has come and been noted only; for a part of a step that takes minutes."""
    return _outermost.number if _outermost else None


def finish() -> None:
    """For what is left to do when a command has ended, to print its result: the first signal is too late for it."""
    if _outermost:
        _outermost.finishing = True


@contextmanager
def deferred() -> Iterator[Heard]:
    """The first signal is noted in `number`, and raises Interrupted at the end of the block; at its beginning, if one
    came before and a library took the exception for a failure of its own."""
    if _outermost and _outermost.number is not None:
        raise Interrupted(_outermost.number)
    with _handled(lambda heard, number: None) as heard:
        yield heard
    if heard.number is not None:
        raise Interrupted(heard.number)


@contextmanager
def _handled(on_first: Callable[[Heard, int], None]) -> Iterator[Heard]:
    global _outermost
    heard = Heard()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def handle(number: int, _: object) -> None:
        heard.number = number
        if _outermost:
            _outermost.number = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        on_first(heard, number)

    inner = _outermost is not None
    _outermost = _outermost or heard
    before = {n: found for n in HEARD if (found := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield heard
    finally:
        if not inner:
            _outermost = None
        if not inner or heard.number is None:
            for number, handler in before.items():
                signal.signal(number, handler)
