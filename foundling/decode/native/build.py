# SPDX-License-Identifier: Apache-2.0
"""program.cpp and its headers, compiled once a machine and kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")


class Unavailable(Exception):
    """Why there is no native code here; never reaches a user."""


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "foundling"


def _compiler() -> str:
    found = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("g++")
    if found is None:
        raise Unavailable("no C++ compiler (g++) found")
    return found


def _sources() -> dict[str, bytes]:
    here = resources.files("foundling.decode.native")
    files = sorted(here.iterdir(), key=lambda file: file.name)
    return {file.name: file.read_bytes() for file in files if file.name.endswith((".cpp", ".h"))}


def _identity(sources: dict[str, bytes], compiler: str) -> str:
    """What the machine code depends on; a home directory may be shared by different machines."""
    cpu = platform.machine() + platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            cpu += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    said = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    parts = (*sources.values(), said, " ".join(FLAGS).encode(), cpu.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled program; Unavailable says why there is none. Only what is our own and nobody else may write to is
    loaded."""
    sources, compiler = _sources(), _compiler()
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not hasattr(os, "getuid"):
            raise Unavailable("who may write to the cache cannot be told on this system")
        status = directory.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise Unavailable(f"{directory} can be written to by others")
        made = directory / f"program-{_identity(sources, compiler)}.so"
        if not made.exists():
            with tempfile.TemporaryDirectory(dir=directory) as work:
                for name, text in sources.items():
                    (Path(work) / name).write_bytes(text)
                command = [compiler, *FLAGS, f"{work}/program.cpp", "-o", f"{work}/program.so"]
                subprocess.run(command, check=True, capture_output=True, timeout=300)
                os.replace(f"{work}/program.so", made)
        return ctypes.CDLL(str(made))
    except subprocess.CalledProcessError as error:
        first = (error.stderr or b"").decode(errors="replace").strip().splitlines()[:1]
        raise Unavailable(f"{compiler} could not compile: {first[0] if first else 'no message'}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"native code could not be made: {error}") from None
