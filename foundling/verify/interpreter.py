# SPDX-License-Identifier: Apache-2.0
"""The Python that runs inside a sandbox: this one's standard library without its packages, and no variable of this
process."""

from __future__ import annotations

import functools
import math
import os
import secrets
import sys
import sysconfig
from pathlib import Path

from foundling.verify.supervise import Limits

MAIN = "main.py"
"""the name of the program in its folder"""
EXECUTABLE = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
INSIDE = Path(__file__).with_name("inside.py")
# A virtual environment without packages (PEP 405): the interpreter finds its standard library, and no site-packages are
# on its path.
LINK = "/python/bin/python"
CONFIG = "/python/pyvenv.cfg"


def environment_config() -> str:
    return f"home = {os.path.dirname(EXECUTABLE)}\ninclude-system-site-packages = false\n"


def command(executable: str, script: str) -> list[str]:
    """-s and -E: no packages and variables of a user; -B: the library is read-only. The script's folder is on the path,
    so that a program can import its own files."""
    return [executable, "-s", "-E", "-B", "-X", "utf8", script]


def environment(folder: str) -> dict[str, str]:
    # a thread's arena would take 64 MiB of the address space
    return {"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "2"}


def resource_limits(limits: Limits) -> dict[str, int]:
    """For setrlimit(2), without the prefix RLIMIT_. They hold for each process."""
    return {
        "AS": limits.memory, "CPU": math.ceil(limits.timeout), "FSIZE": limits.disk, "NOFILE": limits.open_files,
        "CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0, "SIGPENDING": 1024, "STACK": 8 << 20,
    }  # fmt: skip


@functools.cache
def readable() -> list[str]:
    """What Python needs to start: the interpreter, its library, the shared libraries of the system. Links are among
    them, and lead to what is."""
    prefix = os.path.realpath(sys.base_prefix)
    libraries = [os.path.join(prefix, "lib"), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    # for a link in the path that the interpreter was built with
    libraries.append(os.path.join(sys.base_prefix, "lib"))
    system = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"]
    result = list[str]()
    for path in [*system, *libraries, EXECUTABLE]:
        covered = any(path == other or path.startswith(other + "/") for other in result)
        if os.path.exists(path) and not covered:
            result.append(path)
    return result


@functools.cache
def hidden() -> list[str]:
    """Folders of packages among what is readable."""
    names = {sysconfig.get_path(name, vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
             for name in ("purelib", "platlib")}  # fmt: skip
    places = [*names, "/usr/lib/python3/dist-packages", f"/usr/local/lib/python{sys.version_info[0]}/dist-packages"]
    inside = [path for path in sorted(places) if any(path.startswith(other + "/") for other in readable())]
    return [path for path in inside if os.path.isdir(path) and not os.path.islink(path)]


def free_user() -> int | None:
    """A user number that nobody has, other for each run; None where this process cannot take another one."""
    if os.geteuid():
        return None
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    first, _, length = max(ranges, key=lambda part: part[2])
    low, high = max(first, 1 << 30 if length > 1 << 31 else 20_000), min(first + length, 1 << 31)
    return low + secrets.randbelow(high - low) if high - low > 1000 else None


def is_open_to_others(path: str) -> bool:
    """Whether a user who owns nothing can read what is at `path`."""
    if not all(os.stat(folder).st_mode & 0o001 for folder in Path(path).parents):
        return False
    return bool(os.stat(path).st_mode & 0o004)
