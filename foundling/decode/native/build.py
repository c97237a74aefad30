# SPDX-License-Identifier: Apache-2.0
"""Compiles program.cpp and its headers, once per machine, into the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from foundling.runtime.caches import NotPrivate, cache_directory, make_private

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
logger = logging.getLogger("foundling")


class NativeUnavailable(Exception):
    """Native code cannot be used; callers raise a user error or fall back to torch."""


def is_built() -> bool:
    """Whether the library is compiled already. Raises NativeUnavailable without a compiler."""
    return _is_trusted(_library_file(_compiler(), _sources()))


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads the library. If it is not built yet, logs a line and compiles it, which takes about ten seconds.

    Raises NativeUnavailable with the reason. It loads nothing that another user could have written: the directory is
    private (`make_private`), and a file in it that is not is compiled anew."""
    sources, compiler = _sources(), _compiler()
    try:
        file = _library_file(compiler, sources)
        make_private(file.parent)
        if not _is_trusted(file):
            why = f", since others could have written {file.name}" if os.path.lexists(file) else ""
            logger.warning(f"compiling native code with {compiler} into {file.parent}: about ten seconds, once{why}")
            _compile(compiler, sources, file)
        return ctypes.CDLL(str(file))
    except NotPrivate as error:
        raise NativeUnavailable(str(error)) from None
    except subprocess.CalledProcessError as error:
        first = (error.stderr or b"").decode(errors="replace").strip().splitlines()[:1]
        raise NativeUnavailable(f"{compiler} could not compile: {first[0] if first else 'no message'}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeUnavailable(f"native code could not be compiled or loaded: {error}") from None


def _is_trusted(file: Path) -> bool:
    """Whether it is there, a file of this user (or of root) that no other can write."""
    try:
        status = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022


def _compile(compiler: str, sources: dict[str, bytes], file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        for name, text in sources.items():
            (Path(temporary) / name).write_bytes(text)
        command = [compiler, *FLAGS, f"{temporary}/program.cpp", "-o", f"{temporary}/program.so"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        os.chmod(f"{temporary}/program.so", 0o700)  # whatever the umask
        os.replace(f"{temporary}/program.so", file)


def _compiler() -> str:
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("g++")
    if compiler is None:
        raise NativeUnavailable("no C++ compiler (g++) found")
    return compiler


def _sources() -> dict[str, bytes]:
    package = resources.files("foundling.decode.native")
    files = sorted(package.iterdir(), key=lambda file: file.name)
    return {file.name: file.read_bytes() for file in files if file.name.endswith((".cpp", ".h"))}


def _library_file(compiler: str, sources: dict[str, bytes]) -> Path:
    """The name hashes all that the machine code depends on, since different machines may share a home directory."""
    cpu = platform.machine() + platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            cpu += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    parts = (*sources.values(), _version(compiler), " ".join(FLAGS).encode(), cpu.encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    return cache_directory("native") / f"program-{digest}.so"


@functools.cache
def _version(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeUnavailable(f"{compiler} does not run: {error}") from None
