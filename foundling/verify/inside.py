# SPDX-License-Identifier: Apache-2.0
"""The first program inside a sandbox: gives up what is left to give up, writes the files, starts the interpreter.

It runs by its path, without site-packages and without the rest of this package, and imports what is built in, so that
it starts within milliseconds. With a payload it is process 1 of a process namespace, which no process inside can kill:
it reports how the program ended, and its own end ends everything that is still running. Without, it becomes the
program.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    options = json.loads(sys.argv[1])
    if "payload" not in options:
        _become(options)
    import _signal  # pyright: ignore[reportMissingImports]

    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # which process 1 does not receive from inside
    with open(options["payload"], "rb") as stream:
        header = json.loads(stream.readline())
        contents = [(name, stream.read(size)) for name, size in header]
    child = os.fork()
    if not child:
        if options["user"]:
            os.setgroups([])
            os.setresgid(*[options["user"]] * 3)
            os.setresuid(*[options["user"]] * 3)
        os.umask(0o077)
        for name, content in contents:
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "wb") as file:
                file.write(content)
        _become(options)
    while True:
        pid, status = os.wait()
        if pid == child:
            os.write(options["status"], b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)


def _become(options: dict[str, Any]) -> None:
    """The interpreter under the limits, with the three standard streams and nothing else open."""
    status = options.get("status", 3)
    os.closerange(3, status)
    os.closerange(status + 1, 4096)
    for name, value in options["limits"].items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
    if filter_program := options.get("filter"):
        _install(bytes.fromhex(filter_program))
    if "status" in options:  # all that can fail before the program starts has been done
        os.set_inheritable(status, False)
        os.write(status, b"started\n")
    os.execve(options["command"][0], options["command"], options["environment"])


def _install(program: bytes) -> None:
    """Installs a seccomp filter in this process and what it becomes (prctl(2))."""
    import ctypes

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]

    library = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, mode = 38, 22, 2
    compiled = Program(len(program) // 8, program)
    if library.prctl(no_new_privileges, 1, 0, 0, 0) or library.prctl(seccomp, mode, ctypes.byref(compiled), 0, 0):
        raise OSError(ctypes.get_errno(), "the seccomp filter cannot be installed")


if __name__ == "__main__":
    main()
