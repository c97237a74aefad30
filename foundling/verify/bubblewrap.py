# SPDX-License-Identifier: Apache-2.0
"""Confinement by namespaces, with bubblewrap: the program sees a file system of its own in memory, with the interpreter
read-only in it, and no process, network or host name of this machine. When its first process ends, the kernel ends all
the others."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from foundling.verify import interpreter
from foundling.verify.supervise import Launch, Limits
from foundling.verify.syscalls import Machine, filter_program

FOLDER = "/program"
_INSIDE = "/inside.py"


def executable() -> str | None:
    return shutil.which("bwrap")


def launch(target: Machine, code: str, stdin: bytes, files: Mapping[str, bytes], limits: Limits) -> Launch:
    """The interpreter on `code` in FOLDER, of which nothing is on this machine's disk."""
    bwrap, user = executable(), interpreter.free_user()
    assert bwrap
    contents = {interpreter.MAIN: code.encode("utf-8", "surrogatepass"), **files}
    header = json.dumps([(name, len(content)) for name, content in contents.items()]).encode()
    payload = sealed(header + b"\n" + b"".join(contents.values()))
    rules = sealed(filter_program(target, metadata=True))
    config = sealed(interpreter.environment_config().encode())
    status, report = os.pipe()
    descriptors = [status, report, payload, rules, config]
    bounds = interpreter.resource_limits(limits)
    if user or _counts_in_namespace():
        bounds["NPROC"] = limits.processes + (0 if user else 1)  # process 1 has the same user
    options = {
        "payload": payload, "status": report, "user": user, "limits": bounds,
        "command": interpreter.command(interpreter.LINK, interpreter.MAIN),
        "environment": interpreter.environment(FOLDER),
    }  # fmt: skip
    command = [
        bwrap, *_namespaces(user), *_mounts(limits, config), "--seccomp", str(rules), "--chdir", FOLDER, "--",
        interpreter.EXECUTABLE, "-I", "-S", "-B", _INSIDE, json.dumps(options),
    ]  # fmt: skip
    descriptors.append(source := sealed(stdin))
    return Launch(command, status, source, [report, payload, rules, config], 1, _space, descriptors=descriptors)


def _namespaces(user: int | None) -> list[str]:
    """As root, the program gets a user number that nobody has; else a user namespace, in which it has no other."""
    own = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if user else ["--unshare-user"]
    return [
        *own, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--hostname", "sandbox", "--as-pid-1", "--die-with-parent", "--new-session", "--clearenv",
    ]  # fmt: skip


def _mounts(limits: Limits, config: int) -> list[str]:
    words, made = list[str](), {"/"}

    def parents(path: str) -> None:
        for folder in reversed(Path(path).parents):
            if str(folder) not in made:
                made.add(str(folder))
                words.extend(["--perms", "0755", "--dir", str(folder)])

    for path in interpreter.readable():
        parents(path)
        if os.path.islink(path):
            words.extend(["--symlink", os.readlink(path), path])
        else:
            words.extend(["--ro-bind", path, path])
            made.add(path)
    for path in interpreter.hidden():
        words.extend(["--tmpfs", path, "--remount-ro", path])
    parents("/dev/null")
    for device in ("null", "random", "urandom"):  # /dev/zero, mapped, is memory that nobody counts
        words.extend(["--dev-bind", f"/dev/{device}", f"/dev/{device}"])
    parents(interpreter.LINK)
    words.extend(["--symlink", interpreter.EXECUTABLE, interpreter.LINK])
    words.extend(["--perms", "0444", "--ro-bind-data", str(config), interpreter.CONFIG])
    words.extend(["--ro-bind", str(interpreter.INSIDE), _INSIDE])
    # a little more than the limit: who fills it is stopped, and said to have
    size = limits.disk + (1 << 20)
    words.extend(["--perms", "1777", "--size", str(size), "--tmpfs", FOLDER])
    return [*words, "--remount-ro", "/"]


def _space(below: list[int]) -> tuple[int, int]:
    """Of the file system in memory, seen through one of its processes; (0, 0) where none can be looked through."""
    for process in below:
        try:
            about = os.statvfs(f"/proc/{process}/root{FOLDER}")
        except OSError:
            continue
        return (about.f_blocks - about.f_bfree) * about.f_frsize, about.f_files - about.f_ffree
    return 0, 0


def _counts_in_namespace() -> bool:
    """Whether a limit on processes counts those of a user namespace (Linux 5.14), or all of the user."""
    try:
        return tuple(map(int, platform.release().split("-")[0].split(".")[:2])) >= (5, 14)
    except ValueError:
        return False


def sealed(content: bytes) -> int:
    """A file in memory that nobody can change, open at its beginning. Writing it cannot wait for a reader, as writing
    to a pipe can."""
    number = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(number, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(number, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
    return number
