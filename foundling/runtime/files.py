# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written aside, fsynced, renamed, and known by their SHA-256."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from foundling.errors import BusyError, OutputError, WeightsError
from foundling.limits import JSON_BYTES, JSON_DEPTH

STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)
"""of JSON, or the rest of a file where one does not end"""

SPACE_FACTOR, SPACE_MARGIN = 1.02, 8 << 20
"""of what is known to be written: headers and blocks of a file system; reports, tokenizers and logs"""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says of a full or read-only disk into one line."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path}: cannot be written ({reason}); free some space or choose another --out") from error
    except SafetensorError as error:  # its way of passing on what the system said
        if "I/O error" not in str(error):
            raise
        raise OutputError(f"{path}: cannot be written ({error}); free some space or choose another --out") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Atomically, fsynced; an existing file is replaced only by a complete one."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path, max_bytes: int = JSON_BYTES.high) -> dict[str, Any]:
    try:
        found = path.stat()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        raise WeightsError(f"{path}: not a file")
    if found.st_size > max_bytes:
        raise WeightsError(f"{path}: over {max_bytes >> 20} MiB, not a configuration")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    if not is_shallow(data):
        raise WeightsError(f"{path}: nested deeper than {JSON_DEPTH.high}, not a configuration")
    try:
        value = json.loads(data.decode("utf-8"))
    except ValueError:
        raise WeightsError(f"{path}: damaged, not JSON") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: damaged, not a JSON object")
    return value


def is_shallow(data: bytes) -> bool:
    """Whether JSON has at most JSON_DEPTH arrays and objects inside each other. Seen before it is parsed, and without
    recursion, whose limit depends on the interpreter and on the caller's stack: each round takes the innermost
    brackets away. (What is no JSON may pass; the parser refuses it.)"""
    brackets = STRING.sub(b"", data).translate(_ROUND, delete=_OTHERS)
    for _ in range(JSON_DEPTH.high):
        if b"()" not in brackets:
            break
        brackets = brackets.replace(b"()", b"")
    opened = brackets.count(b"(")
    return opened <= JSON_DEPTH.high and b"()" not in brackets


_ROUND = bytes.maketrans(b"[]{}", b"()()")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def require_free(path: Path) -> None:
    """OutputError if `path` holds anything already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path}: exists and is not empty; choose another directory")


def require_space(path: Path, n_bytes: int, *, usage: Callable[[Path], Any] = shutil.disk_usage) -> None:
    """OutputError unless the file system of `path` has space for `n_bytes` and a margin. A full disk loses nothing
    either (see write_directory), but is met late. `usage`: as shutil.disk_usage."""
    place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    try:
        free = usage(place).free
    except OSError:  # a file system that does not say
        return
    needed = int(n_bytes * SPACE_FACTOR) + SPACE_MARGIN
    if needed > free:
        raise OutputError(
            f"{path}: about {needed / 1e6:,.0f} MB will be written, {free / 1e6:,.0f} MB are free; free some space or "
            "choose another place"
        )


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """`fill` writes into a directory aside, which then takes the name `path`; `path` must not exist or be empty."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_free(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            fill(aside)
            for file in aside.rglob("*"):
                fsync_path(file)
            fsync_path(aside)
            os.replace(aside, path)
            fsync_path(path.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def clear(directory: Path) -> None:
    """Removes a directory with all that is in it; nothing where there is none. OutputError where it cannot be."""
    with output_errors(directory):
        if directory.exists():
            shutil.rmtree(directory)


def publish(source: Path, target: Path, last: str) -> None:
    """Moves the files of `source` into the directory `target`, the one named `last` at the end: a reader who finds it
    finds all."""
    with output_errors(target):
        files = sorted(p for p in source.rglob("*") if p.is_file())
        for file in files:
            fsync_path(file)
        for file in sorted(files, key=lambda p: p == source / last):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if file == source / last:
                fsync_path(target)
            os.replace(file, place)
        fsync_path(target)
        shutil.rmtree(source)


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """One writer a directory; the lock goes with the process however it ends."""
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(
                f"{directory}: another process is writing here; wait for it or choose another --out"
            ) from None
        yield
    finally:
        os.close(handle)
