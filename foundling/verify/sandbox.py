# SPDX-License-Identifier: Apache-2.0
"""Runs a program that a model wrote, so that it can harm nothing: see docs/verification.md for what is stopped and how.

Two ways to confine it, each proven by running a program that tries to get out before the first use in a process:
bubblewrap (namespaces) and sandlock (Landlock). Where neither works, nothing runs: SandboxError.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal as signals
import socket
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from foundling import limits as allowed
from foundling.errors import ConfigError, SandboxError, render
from foundling.limits import check_number, shown
from foundling.verify import bubblewrap, interpreter, landlock, supervise, syscalls
from foundling.verify.supervise import Limits

Backend = Literal["bubblewrap", "sandlock"]
Reason = Literal["exited", "signal", "time", "memory", "output", "processes", "disk"]
LANDLOCK_ABI = 6
"""of Linux 6.12: the first in which signals and abstract sockets are bounded"""
_LAUNCH = {"bubblewrap": bubblewrap.launch, "sandlock": landlock.launch}


@dataclass(frozen=True)
class Outcome:
    """How a program ended. `stdout` and `stderr` have bytes that are not UTF-8 as U+FFFD. `reason`: "exited" by itself
    with `exit_code`, "signal" by a `signal`, or the limit for which it was stopped. `seconds`: of wall-clock time, the
    start of the sandbox included."""

    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    reason: Reason
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit code 0. The program decides that: it is no proof that it did
        anything."""
        return self.reason == "exited" and self.exit_code == 0


def run(
    code: str, *, stdin: str | bytes = "", timeout: float = 10.0, memory: int = 512 << 20,
    files: Mapping[str, str | bytes] | None = None, processes: int = 16, output: int = 1 << 20, disk: int = 32 << 20,
    max_files: int = 1000, backend: Backend | None = None,
) -> Outcome:  # fmt: skip
    """Runs Python code in a fresh interpreter and a fresh folder that holds `files` (path in the folder → content).

    `timeout` in seconds; `memory`, `output` (each of stdout and stderr) and `disk` in bytes; `processes` counts threads
    as well. All processes of the program together may take that much. `backend`: the better one that works here.
    Any thread may call. Raises ConfigError for a value out of its limits, SandboxError where nothing confines."""
    limits = checked_limits(timeout, memory, processes, output, disk, max_files)
    contents = _contents(files or {}, limits)
    text = stdin.encode("utf-8", "surrogatepass") if isinstance(stdin, str) else stdin
    allowed.SANDBOX_INPUT.check(1 + len(code) + len(text), "code and stdin together")
    return _run(choose() if backend is None else _require(backend), code, text, contents, limits)


def checked_limits(
    timeout: float = 10.0, memory: int = 512 << 20, processes: int = 16, output: int = 1 << 20, disk: int = 32 << 20,
    max_files: int = 1000,
) -> Limits:  # fmt: skip
    """The limits of `run`. ConfigError for a value that is out of its own."""
    return Limits(
        check_number(timeout, "timeout", *allowed.SANDBOX_SECONDS), allowed.SANDBOX_MEMORY.check(memory, "memory"),
        allowed.SANDBOX_PROCESSES.check(processes, "processes"), allowed.SANDBOX_OUTPUT.check(output, "output"),
        allowed.SANDBOX_DISK.check(disk, "disk"), allowed.SANDBOX_FILES.check(max_files, "max_files"),
    )  # fmt: skip


def _require(backend: str) -> str:
    if backend not in _LAUNCH:
        raise ConfigError(f"backend is {shown(backend)}; expected one of {', '.join(_LAUNCH)}")
    if reason := unusable(backend):
        raise SandboxError(f"{backend} does not confine here, and nothing was run: {reason}")
    return backend


def _contents(files: Mapping[str, str | bytes], limits: Limits) -> dict[str, bytes]:
    result, folders = dict[str, bytes](), set[str]()
    for name, content in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) in (".", interpreter.MAIN) or "\0" in name:
            raise ConfigError(f"file {shown(name)}: expected a path in the program's folder, other than main.py")
        if not _is_storable(path):
            raise ConfigError(f"file {shown(name)}: expected UTF-8, up to 255 bytes a part and {_PATH:,} together")
        result[str(path)] = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        folders |= {str(folder) for folder in path.parents} - {"."}
    for name in folders & {*result, interpreter.MAIN}:
        raise ConfigError(f"file {shown(name)} is the folder of another one as well; choose another name")
    size, n_files = sum(map(len, result.values())), len(result) + len(folders)
    if n_files >= limits.files or size > limits.disk:
        raise ConfigError(
            f"{n_files:,} files and folders of {size:,} bytes; expected fewer than max_files={limits.files:,} and at "
            f"most disk={limits.disk:,} bytes"
        )
    return result


_PATH = 2048
"""bytes; the system's limit, 4096, is for the path of the folder as well"""


def _is_storable(path: PurePosixPath) -> bool:
    try:
        parts = [part.encode() for part in path.parts]
    except UnicodeEncodeError:  # a surrogate
        return False
    return max(map(len, parts)) <= 255 and sum(map(len, parts)) + len(parts) <= _PATH


def _run(backend: str, code: str, stdin: bytes, files: dict[str, bytes], limits: Limits) -> Outcome:
    target = syscalls.machine()
    assert target
    ended = supervise.run(_LAUNCH[backend](target, code, stdin, files, limits), limits)
    stdout, stderr = (text.decode("utf-8", "replace") for text in (ended.stdout, ended.stderr))
    status, reason = ended.status, ended.reason
    if not ended.started and reason in ("", "output"):
        raise SandboxError(f"{backend} failed, and nothing was run: {render.message(stderr.strip() or stdout.strip())}")
    if status == -signals.SIGXCPU:
        reason = "time"
    if reason:
        return Outcome(stdout, stderr, None, None, reason, ended.seconds)  # pyright: ignore[reportArgumentType]
    if status is None:  # the kernel ended the whole sandbox: the machine ran out of memory
        return Outcome(stdout, stderr, None, signals.SIGKILL, "signal", ended.seconds)
    if status < 0:
        return Outcome(stdout, stderr, None, -status, "signal", ended.seconds)
    return Outcome(stdout, stderr, status, None, "exited", ended.seconds)


# --- which one -------------------------------------------------------------------------------------------------------

_probed = dict[str, str | None]()
"""what the first program in each backend reached, or why it did not run; None where all is well. A failure stays as
well: probing takes seconds, and another result in the same process would be an accident."""
_lock = threading.Lock()


def choose() -> Backend:
    """bubblewrap where it works: the program sees no file of this machine and no process of it, and the kernel ends all
    of its processes at once. Else sandlock. SandboxError where neither does, with what is missing."""
    reasons = list[str]()
    for backend in _LAUNCH:
        reason = unusable(backend)
        if reason is None:
            return backend  # pyright: ignore[reportReturnType]
        reasons.append(f"{backend}: {reason}")
    raise SandboxError(f"nothing confines model-written code on this machine, so it is not run. {'. '.join(reasons)}")


def unusable(backend: str) -> str | None:
    """Why a backend does not confine here; None where a program inside has tried to get out, and failed."""
    with _lock:
        if backend not in _probed:
            if reason := _missing(backend):
                return reason
            _probed[backend] = _escapes(backend)
        return _probed[backend]


def _missing(backend: str) -> str | None:
    if platform.system() != "Linux":
        return f"needs Linux; this is {platform.system()}"
    if syscalls.machine() is None:
        return f"the filter of system calls knows {', '.join(syscalls.MACHINES)}; this is {platform.machine()}"
    if not os.path.exists("/proc/thread-self/children"):
        return "needs /proc with the children of each process (CONFIG_PROC_CHILDREN), to see what a program takes"
    if backend == "bubblewrap":
        return None if bubblewrap.executable() else "not installed (apt install bubblewrap, dnf install bubblewrap)"
    if not landlock.installed():
        return "not installed (pip install 'foundling[verify]')"
    if (version := landlock_version()) < LANDLOCK_ABI:
        has = f"this kernel ({platform.release()}) has {version or 'none'}"
        return f"needs Landlock ABI {LANDLOCK_ABI} (Linux 6.12); {has}"
    return None


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 where it has none or a filter refuses to say (landlock_create_ruleset(2))."""
    return max(0, ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), 1))


_PROBE = """
import json, os, socket
target = json.loads(input())
def possible(action):
    try:
        action()
        return True
    except OSError:
        return False
escapes = [name for name, action in {
    "read a file": lambda: open(target["file"]).close(),
    "write a file": lambda: open(target["file"], "a").close(),
    "connect to a port": lambda: socket.create_connection(("127.0.0.1", target["port"]), 1),
    "signal a process": lambda: os.kill(target["process"], 0),
    "make a namespace": lambda: os.close(os.open("/proc/self/ns/user", os.O_RDONLY)),
}.items() if possible(action)]
print(json.dumps({"escapes": escapes + ["see a variable"] * ("FOUNDLING_PROBE" in os.environ)}))
"""


def _escapes(backend: str) -> str | None:
    """Runs a program that tries to reach a file, a port, a process and a variable that are there, and says what it
    reached or why it did not run."""
    with (
        tempfile.TemporaryDirectory(prefix="foundling-probe-") as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        canary = Path(folder) / "canary"
        canary.write_text("untouched", encoding="ascii")
        for path in (folder, canary):  # nothing but the sandbox stands before them
            os.chmod(path, 0o777)
        target = {"file": str(canary), "port": server.getsockname()[1], "process": os.getpid()}
        try:
            outcome = _run(backend, _PROBE, json.dumps(target).encode(), {}, Limits(timeout=20))
        except SandboxError as error:
            return str(error)
        except OSError as error:
            return f"{error.strerror or error}"
        try:
            escapes = json.loads(outcome.stdout)["escapes"]
        except (ValueError, KeyError, TypeError):
            return f"a first program did not run: {outcome.reason}, {render.message(outcome.stderr.strip()[-300:])}"
    return f"a program in it could {', '.join(escapes)}" if escapes else None
