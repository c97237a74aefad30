# SPDX-License-Identifier: Apache-2.0
"""What the command line says, and where: the only place that writes to stdout and stderr (tests/test_layers.py).

Results go to stdout, messages to stderr; both pass through the renderer of untrusted text, except what a model wrote
where stdout is no terminal. Either may be closed, full,
without a reader, or in an encoding that lacks most characters. What stdout cannot take is an error, since a result is
missing then. What stderr cannot take is dropped: a run does not end because its terminal was closed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from foundling.errors import FoundlingError, render

MAX_LINE = 1_000_000
"""characters of a line that is read from stdin"""


class StdoutError(FoundlingError, OSError):
    """stdout takes no more: a disk is full, or its reader has gone. The files that a command wrote are complete."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout cannot be written ({error.strerror}); files that were written are complete")
        self.reader_gone = isinstance(error, BrokenPipeError)


def say(text: object = "", *, end: str = "\n", lines: bool = False, limit: int = render.LIMIT) -> None:
    """Prints a line of the result. `lines`: line breaks in the text stay. `limit` 0: however long it is."""
    with _stdout():
        sys.stdout.write(render.terminal(text, limit=limit, lines=lines) + end)


def say_text(text: str, *, end: str = "\n") -> None:
    """Prints a text that was asked for, whole, and at once: what a model wrote, or a script. A file or a pipe gets it
    as it is: what it could do to a terminal, it does to none there."""
    if sys.stdout.isatty():
        say(text, end=end, lines=True, limit=0)
    else:
        with _stdout():
            sys.stdout.write(text + end)
    flush()


def say_json(value: Any) -> None:
    """Prints one JSON object."""
    with _stdout():
        sys.stdout.write(render.json(value, encoding=sys.stdout.encoding or "utf-8") + "\n")


def flush() -> None:
    """Writes what was said. Without it, Python would at its exit, and fail with a traceback and exit code 120."""
    with _stdout():
        sys.stdout.flush()


@contextlib.contextmanager
def _stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _discard_stdout()
        raise StdoutError(error) from None


def note(text: object, *, end: str = "\n", lines: bool = False) -> None:
    """Prints a message on stderr: one line, or a block of `lines`."""
    shown = render.terminal(text, lines=True, limit=render.BLOCK_LIMIT) if lines else render.message(text)
    with contextlib.suppress(OSError):
        sys.stderr.write(shown + end)
        sys.stderr.flush()


def read_line() -> str:
    """The next line of stdin, "" at its end. Bytes that are not of its encoding become U+FFFD; a line longer than
    MAX_LINE comes in parts."""
    return sys.stdin.readline(MAX_LINE)


class _Dropping(io.FileIO):
    """A file that takes everything, and loses what it cannot write."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


class _Notices(logging.Handler):
    """What the library has to say (a compilation that takes a while) is one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"note: {record.getMessage()}")


@contextlib.contextmanager
def standard_streams(debug: bool = False) -> Iterator[None]:
    """Makes the three streams usable, whatever they are. Warnings and logs of libraries are for their developers: they
    are shown with `debug`, and where PYTHONWARNINGS or TORCH_LOGS ask for them."""
    _open_closed()
    stderr = sys.stderr
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if _number(stderr) == 2:
        raw = io.BufferedWriter(_Dropping(2, "w", closefd=False))  # pyright: ignore[reportArgumentType]
        sys.stderr = io.TextIOWrapper(raw, stderr.encoding, "backslashreplace", line_buffering=True)
    if not debug:  # read when torch is imported
        os.environ.setdefault("TORCH_LOGS", "-all")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    handler, silent, ours = _Notices(), logging.NullHandler(), logging.getLogger("foundling")
    ours.addHandler(handler)
    if not debug:
        logging.getLogger().addHandler(silent)  # or Python prints the messages of loggers without a handler
    try:
        with warnings.catch_warnings():
            if not debug and not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr = stderr
        ours.removeHandler(handler)
        logging.getLogger().removeHandler(silent)


def _number(stream: Any) -> int | None:
    """Of the file that a stream writes to; None where it is no file, as in a test."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _open_closed() -> None:
    """A standard stream that is closed becomes /dev/null, or the next file that is opened would take its number and
    whatever is printed by a library."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _discard_stdout() -> None:
    """What is still to be written to stdout is lost, or Python would try again at its exit."""
    null, number = os.open(os.devnull, os.O_WRONLY), _number(sys.stdout)
    if number is not None:
        os.dup2(null, number)
    os.close(null)
