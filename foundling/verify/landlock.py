# SPDX-License-Identifier: Apache-2.0
"""Confinement by Landlock and seccomp, with the package sandlock: no privilege and no namespaces, but Linux 6.12.

The supervisor of sandlock runs in a process of its own (sandlock_helper.py), so that neither its faults nor its end
reach the caller. The program has a temporary folder on this machine's disk.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from foundling.verify import interpreter, processes
from foundling.verify.bubblewrap import sealed
from foundling.verify.supervise import Launch, Limits
from foundling.verify.syscalls import Machine, filter_program

_HELPER = Path(__file__).with_name("sandlock_helper.py")


def installed() -> bool:
    return importlib.util.find_spec("sandlock") is not None


def launch(target: Machine, code: str, stdin: bytes, files: Mapping[str, bytes], limits: Limits) -> Launch:
    """The interpreter on `code` in a new temporary folder."""
    # As root: a user of its own where it can reach the interpreter, else root without capabilities (a user namespace).
    user = interpreter.free_user()
    reachable = all(interpreter.is_open_to_others(path) for path in interpreter.readable())
    mapped = os.geteuid() == 0 and not (user and reachable)
    place = Path(tempfile.mkdtemp(prefix="foundling-sandbox-"))
    folder, environment = place / "program", place / "python"
    try:
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").symlink_to(interpreter.EXECUTABLE)
        (environment / "pyvenv.cfg").write_text(interpreter.environment_config(), encoding="utf-8")
        shutil.copyfile(interpreter.INSIDE, environment / "inside.py")
        folder.mkdir()
        for name, content in {interpreter.MAIN: code.encode("utf-8", "surrogatepass"), **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if user and not mapped:
            place.chmod(0o711)
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, user, user)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    bounds = interpreter.resource_limits(limits)
    if user and not mapped:
        bounds["NPROC"] = limits.processes
    status, report = os.pipe()
    watched, alive = os.pipe()
    inner = {
        "limits": bounds, "filter": filter_program(target, metadata=False).hex(),
        "command": interpreter.command(str(environment / "bin" / "python"), interpreter.MAIN),
        "environment": interpreter.environment(str(folder)),
    }  # fmt: skip
    options = {
        "path": sys.path, "status": report, "watched": watched, "user": None if mapped else user, "mapped": mapped,
        "readable": [*interpreter.readable(), str(environment), "/dev/urandom", "/dev/random"],
        "writable": [str(folder), "/dev/null"], "denied": interpreter.hidden(), "folder": str(folder),
        "processes": limits.processes, "name": f"foundling-{secrets.token_hex(8)}",
        "command": [interpreter.EXECUTABLE, "-I", "-S", "-B", str(environment / "inside.py"), json.dumps(inner)],
    }  # fmt: skip
    device = folder.stat().st_dev

    def space(below: list[int]) -> tuple[int, int]:
        n_bytes, n_files = processes.folder_size(str(folder), limits.files)
        return n_bytes + processes.unlinked_bytes(below, device), n_files

    source = sealed(stdin)
    return Launch(
        [sys.executable, "-I", str(_HELPER), json.dumps(options)], status, source, [report, watched], 0, space,
        descriptors=[status, report, watched, alive, source], folder=str(place),
    )  # fmt: skip
