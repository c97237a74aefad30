# SPDX-License-Identifier: Apache-2.0
"""The process in which sandlock supervises one program; it runs by its path. Processes that lose their parent become
its children, so that none outlives it, and it ends when the process that started it does."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import warnings
from typing import Any


def main() -> None:
    options = json.loads(sys.argv[1])
    sys.path[:] = options["path"]
    import sandlock

    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    threading.Thread(target=_end_with_starter, args=(options["watched"],), daemon=True).start()
    if options["user"]:
        os.setgroups([])
        os.setresgid(*[options["user"]] * 3)
        os.setresuid(*[options["user"]] * 3)
        library.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: or its own /proc entry stays root's, which sandlock reads
    for number in (options["status"], options["watched"]):
        os.set_inheritable(number, False)
    mapped: dict[str, Any] = {"uid": 65534, "gid": 65534} if options["mapped"] else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the group has no effect
        sandbox = sandlock.Sandbox(
            fs_readable=options["readable"], fs_writable=options["writable"], fs_denied=options["denied"],
            cwd=options["folder"], clean_env=True, max_processes=options["processes"], name=options["name"], **mapped,
        )  # fmt: skip
        process = sandbox.popen(options["command"])
    os.write(options["status"], b"started\n")
    result = process.wait()
    _kill_children()
    ended = {sandlock.ExitReason.EXITED: result.exit_code, sandlock.ExitReason.SIGNALED: -result.signal}
    code = ended.get(result.reason, -signal.SIGKILL)
    os.write(options["status"], b"%d\n" % code)
    os._exit(0)


def _end_with_starter(watched: int) -> None:
    os.read(watched, 1)
    _kill_children()
    os._exit(1)


def _kill_children() -> None:
    """Of this process, until there is none; a killed process gives its own to this one."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = list[int]()
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", "rb") as file:
                children += map(int, file.read().split())
        if not children:
            return
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
