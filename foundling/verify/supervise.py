# SPDX-License-Identifier: Apache-2.0
"""Runs a confined program from outside: reads its output up to a limit, looks every few milliseconds at what its
processes take together, and leaves none of them behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from foundling.verify import processes

INTERVAL = 0.01
"""seconds between two looks"""
_CHUNK = 1 << 16
GRACE = 10.0
"""seconds in which a sandbox whose program has ended must end itself"""


@dataclass(frozen=True)
class Limits:
    """What one run may take, all its processes together where nothing else is said."""

    timeout: float = 10.0
    """seconds of wall-clock time; each process may take as many of processor time"""
    memory: int = 512 << 20
    """bytes of memory; each process may map as many"""
    processes: int = 16
    """processes and threads"""
    output: int = 1 << 20
    """bytes of stdout, and as many of stderr"""
    disk: int = 32 << 20
    """bytes of files"""
    files: int = 1000
    """files and folders"""
    open_files: int = 64
    """open files of a process"""


@dataclass
class Launch:
    """A command that confines and runs a program.

    `status`: a file number that gives the line "started" when the program starts and its exit code when it ends, −n for
    signal n. `skip`: how many processes below the command are not the program's. `space`: (bytes, files) that the
    program has written, by the list of its processes. `descriptors` are closed and `folder` is removed at the end."""

    command: Sequence[str]
    status: int
    stdin: int
    pass_fds: Sequence[int]
    skip: int
    space: Callable[[list[int]], tuple[int, int]]
    environment: dict[str, str] = field(default_factory=dict)
    descriptors: list[int] = field(default_factory=list)
    folder: str = ""


class Ended(NamedTuple):
    """`status`: exit code, −n for signal n, None where nobody said. `reason`: the limit that was exceeded, or ""."""

    stdout: bytes
    stderr: bytes
    started: bool
    status: int | None
    reason: str
    seconds: float


def run(launch: Launch, limits: Limits) -> Ended:
    """Starts the command, waits for its end or for the first exceeded limit, and kills what is left."""
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            launch.command, stdin=launch.stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
            env=launch.environment, pass_fds=launch.pass_fds, start_new_session=True,
        )  # fmt: skip
        for number in launch.pass_fds:  # their other ends are inside now
            os.close(number)
            launch.descriptors.remove(number)
        try:
            watch = _Watch(process, launch, limits, started)
            try:
                reason = watch.until_end()
            finally:
                _end(process)
            reason = watch.read_rest() or reason
        finally:
            assert process.stdout and process.stderr
            process.stdout.close()
            process.stderr.close()
        started_program, status = watch.status()
        stdout, stderr = watch.texts
        return Ended(bytes(stdout), bytes(stderr), started_program, status, reason, watch.seconds)
    finally:
        for number in launch.descriptors:
            os.close(number)
        if launch.folder:
            _remove(launch.folder)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills everything below the command, waits for it, and kills the command where it does not end by itself."""
    processes.kill_below(process.pid)
    try:
        process.wait(GRACE if process.poll() is None else None)
    except subprocess.TimeoutExpired:
        processes.kill_below(process.pid)
        process.kill()
        process.wait()


def _remove(folder: str) -> None:
    """Also what the program has made unreadable. Nothing runs any more that could put a link in the way."""
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                with contextlib.suppress(OSError):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


class _Watch:
    def __init__(self, process: subprocess.Popen[bytes], launch: Launch, limits: Limits, started: float) -> None:
        assert process.stdout and process.stderr
        self.process, self.launch, self.limits, self.started = process, launch, limits, started
        self.streams = [process.stdout.fileno(), process.stderr.fileno()]
        self.texts = [bytearray(), bytearray()]
        self.lines = b""
        self.seconds = 0.0

    def until_end(self) -> str:
        """The limit that was exceeded; "" where the command has ended."""
        with contextlib.closing(_Ends(self.process.pid)) as ends, selectors.DefaultSelector() as selector:
            if ends.number is not None:
                selector.register(ends.number, selectors.EVENT_READ)
            for number in self.streams:
                os.set_blocking(number, False)
                selector.register(number, selectors.EVENT_READ)
            look = 0.0
            while True:
                ready = [key.fd for key, _ in selector.select(INTERVAL)]
                for number in self.streams:
                    if number in ready and self._read(number) == b"":
                        selector.unregister(number)
                now = time.monotonic()
                self.seconds = now - self.started
                if any(len(text) > self.limits.output for text in self.texts):
                    return "output"
                if self.process.poll() is not None:
                    return ""
                if self.seconds > self.limits.timeout:
                    return "time"
                if now >= look:
                    if reason := self._exceeded():
                        return reason
                    look = time.monotonic() + INTERVAL

    def _read(self, number: int) -> bytes | None:
        """One part, no more than what is one byte too much; b"" at the end, None where nothing is there yet."""
        text = self.texts[self.streams.index(number)]
        try:
            part = os.read(number, min(_CHUNK, self.limits.output + 1 - len(text)))
        except BlockingIOError:
            return None
        text += part
        return part

    def _exceeded(self) -> str:
        below = processes.descendants(self.process.pid)[self.launch.skip :]
        processes.prefer_for_oom(below)
        usage = processes.usage(below)
        if usage.threads > self.limits.processes:
            return "processes"
        if usage.memory > self.limits.memory:
            exact = processes.proportional_memory(below)
            if exact is None or exact > self.limits.memory:
                return "memory"
        n_bytes, n_files = self.launch.space(below)
        return "disk" if n_bytes > self.limits.disk or n_files > self.limits.files else ""

    def read_rest(self) -> str:
        """What the pipes still hold. All writers have ended."""
        for number, text in zip(self.streams, self.texts, strict=True):
            while len(text) <= self.limits.output and self._read(number):
                pass  # None, where somebody else has the pipe, is the end as well
            if len(text) > self.limits.output:
                del text[self.limits.output :]
                return "output"
        return ""

    def status(self) -> tuple[bool, int | None]:
        """Whether the program started, and its exit code."""
        os.set_blocking(self.launch.status, False)
        text = b""
        with contextlib.suppress(OSError):
            text = os.read(self.launch.status, 64)
        started, _, code = text.partition(b"\n")
        return started == b"started", int(code) if code else None


class _Ends:
    """A file number that becomes readable when a process ends; None on kernels before 5.3."""

    def __init__(self, pid: int) -> None:
        self.number = None
        with contextlib.suppress(OSError, AttributeError):
            self.number = os.pidfd_open(pid)

    def close(self) -> None:
        if self.number is not None:
            os.close(self.number)
