# SPDX-License-Identifier: Apache-2.0
"""Child processes that start after the imports: forked from one server that has imported torch and all of foundling.

A fresh interpreter needs some five seconds until `foundling raise` begins; a fork needs a hundredth of one. What a fork
shares with its siblings is the imports and the hash seed: a test of either takes a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import pkgutil
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVER: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")  # macOS forks badly
"""Its `Process` and `Queue` are used as those of multiprocessing."""
SERVER.set_forkserver_preload(["tests.preload"])


def start() -> None:
    """Starts the server; called before the first test, so that it inherits no directory or variable of a test.

    It finds `tests.preload` through its working directory: Python 3.11 gives it no sys.path, and ignores a module to
    preload that it cannot import.
    """
    if sys.platform == "linux":
        with contextlib.chdir(ROOT):
            forkserver.ensure_running()


def leave_group() -> None:
    """destroy_process_group where no model is held any more: a DDP reducer that outlives the group would keep the GIL
    and wait for a thread that waits for the GIL (pytorch/pytorch#56297)."""
    import torch.distributed as dist

    gc.collect()
    dist.destroy_process_group()


def import_everything() -> None:
    """Runs in the server alone. What is not there, or needs what is not there, is imported by its user."""
    import foundling

    for module in pkgutil.walk_packages(foundling.__path__, "foundling."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in ("matplotlib.pyplot", "torch._dynamo", "torch.distributed.fsdp", "tests.contract.cases"):
        importlib.import_module(name)
    for name in ("pandas", "matplotlib.backends.backend_svg", "_strptime"):  # by pyarrow and others at their first use
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _enter(folder: str, cwd: str, env: dict[str, str], before: Callable[[], None] | None, command: list[str]) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, (name, mode) in enumerate((("in", "r"), ("out", "w"), ("err", "w"))):
        with open(f"{folder}/{name}", mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # multiprocessing's server ignores it
    if before:
        before()
    if command[0] == "foundling":
        from foundling.cli import main

        sys.argv = command
        main(command[1:])
    else:
        sys.argv, sys.path[0:0] = command, [str(Path(command[0]).resolve().parent)]
        runpy.run_path(command[0], run_name="__main__")


class Forked:
    """The part of subprocess.Popen that tests use; `command` is ["foundling", …] or [a Python file, …].

    before: a function of a module, called in the child first.
    """

    def __init__(
        self,
        command: list[str],
        *,
        cwd: str | Path | None = None,
        env: dict[str, str] | None = None,
        input: str | bytes = "",
        before: Callable[[], None] | None = None,
    ) -> None:
        self.args = command
        self.folder = Path(tempfile.mkdtemp(prefix="forked-"))
        (self.folder / "in").write_bytes(input if isinstance(input, bytes) else input.encode())
        env = dict(os.environ if env is None else env)
        args = (str(self.folder), str(cwd or os.getcwd()), env, before, command)
        self.process = SERVER.Process(target=_enter, args=args)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        # a process that has ended is reaped by the server, whether or not its exit code has arrived here
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        try:
            self.wait(timeout)
            out, error = ((self.folder / name).read_text(errors="surrogateescape") for name in ("out", "err"))
            return out, error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def run(command: list[str], timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with captured text: `command` in a fork."""
    process = Forked(command, **options)
    out, error = process.communicate(timeout)
    return subprocess.CompletedProcess(command, process.returncode or 0, out, error)
