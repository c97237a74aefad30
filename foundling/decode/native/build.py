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
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
logger = logging.getLogger("foundling")


class NativeUnavailable(Exception):
    """Native code cannot be used; callers raise a user error or fall back to torch."""


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "foundling"


def is_built() -> bool:
    """Whether the library is compiled already. Raises NativeUnavailable without a compiler."""
    return _library_file(_compiler(), _sources()).exists()


@functools.cache
def load_library() -> ctypes.CDLL:
    """Loads the library. If it is not built yet, logs a line and compiles it, which takes about ten seconds.

    Raises NativeUnavailable with the reason. It never loads from a directory that other users may write to."""
    sources, compiler = _sources(), _compiler()
    try:
        file = _library_file(compiler, sources)
        directory = file.parent
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not hasattr(os, "getuid"):
            raise NativeUnavailable("this system cannot say who may write to the cache")
        status = directory.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise NativeUnavailable(f"{directory} is writable by other users")
        if not file.exists():
            logger.warning(f"compiling native code with {compiler} into {directory}: about ten seconds, once")
            _compile(compiler, sources, file)
        return ctypes.CDLL(str(file))
    except subprocess.CalledProcessError as error:
        first = (error.stderr or b"").decode(errors="replace").strip().splitlines()[:1]
        raise NativeUnavailable(f"{compiler} could not compile: {first[0] if first else 'no message'}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeUnavailable(f"native code could not be compiled or loaded: {error}") from None


def _compile(compiler: str, sources: dict[str, bytes], file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent) as temporary:
        for name, text in sources.items():
            (Path(temporary) / name).write_bytes(text)
        command = [compiler, *FLAGS, f"{temporary}/program.cpp", "-o", f"{temporary}/program.so"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
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
    return cache_directory() / f"program-{digest}.so"


@functools.cache
def _version(compiler: str) -> bytes:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeUnavailable(f"{compiler} does not run: {error}") from None
