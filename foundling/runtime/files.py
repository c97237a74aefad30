# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written aside, fsynced, renamed, and known by their SHA-256."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from foundling.errors import BusyError, DataError, OutputError, WeightsError, render
from foundling.limits import JSON_BYTES, JSON_DEPTH, shown

STRING = re.compile(rb'"(?:[^"\\]+|\\.)*+"?', re.DOTALL)
"""of JSON, or the rest of a file where one does not end"""

SPACE_FACTOR, SPACE_MARGIN = 1.02, 8 << 20  # headers and blocks of a file system; reports, tokenizers and logs


def sha256(path: Path) -> str:
    """OSError where `path` is not a file: a pipe would be waited for."""
    digest, handle = hashlib.sha256(), os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    with open(handle, "rb") as file:
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


def cut_torn_line(path: Path, *, begin: bytes, what: str, max_bytes: int) -> None:
    """Cuts off a last line without an end, which a killed process left. `begin`: how a line that may be cut begins,
    `what`: its name. DataError, and no change, for another last line and for one over `max_bytes`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), max_bytes, max(0, size - max_bytes))
    if not tail or tail.endswith(b"\n"):
        return
    at = tail.rfind(b"\n") + 1
    if not at and size > max_bytes:
        raise DataError(f"{path}: its last line is longer than {max_bytes:,} bytes; choose another file")
    if not begin.startswith(tail[at : at + len(begin)]):
        raise DataError(f"{path}: its last line has no end and is no {what}; choose another file")
    with output_errors(path):
        os.truncate(path, size - len(tail) + at)


# --- written aside ----------------------------------------------------------------------------------------------------

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""what flock says on a file system without locks"""
_TEMPORARY = re.compile(r"\..+\.\d+\.foundling\.tmp")


@contextmanager
def temporary(path: Path, *, directory: bool = False) -> Iterator[Path]:
    """A new file or directory beside `path`, `.NAME.PID.foundling.tmp`, removed at the end unless it was renamed.

    It is locked for as long as this process lives; by that `remove_abandoned` knows it from one that a killed process
    has left."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.foundling.tmp")
    handle = _create_locked(aside, directory)
    try:
        yield aside
    finally:
        with suppress(FileNotFoundError):
            # once it is renamed, its name is free for a waiting thread, or for a process of equal number in a container
            if os.path.samestat(os.fstat(handle), os.lstat(aside)):
                _remove(aside)
        os.close(handle)


def _create_locked(aside: Path, directory: bool) -> int:
    for _ in range(100):
        try:
            if directory:
                aside.mkdir()
            else:
                os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:  # of a killed process that had the same number, of another thread, or being removed
            if not _remove_if_abandoned(aside):
                time.sleep(0.01)
            continue
        try:
            handle = _open_locked(aside)
        except OSError:  # a file system without locks: nobody will remove it
            return os.open(aside, os.O_RDONLY)
        if handle is not None:  # else another process took it for abandoned before it was locked
            return handle
    raise BusyError(f"{aside}: another thread or process is writing here; wait for it")


def _open_locked(path: Path) -> int | None:
    """A handle that holds the lock of `path`; None where another one does, or there is no such file any more."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_if_abandoned(path: Path) -> bool:
    try:
        handle = _open_locked(path)
    except OSError:
        return False
    if handle is None:
        return not path.exists()
    try:
        _remove(path)
    finally:
        os.close(handle)
    return not path.exists()


def is_temporary(path: Path) -> bool:
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_abandoned(directory: Path) -> None:
    """Removes what `temporary` made in `directory` for processes that were killed; nothing else."""
    try:
        found = [Path(entry) for entry in os.scandir(directory) if is_temporary(Path(entry))]
    except OSError:
        return
    for path in found:
        _remove_if_abandoned(path)


def rename_new(source: Path, target: Path) -> None:
    """Renames a file to a name that is free. FileExistsError where it is not, whoever took it and when."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def write_bytes(path: Path, data: bytes) -> None:
    """Atomically, fsynced; an existing file is replaced only by a complete one."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as aside:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (render.inert_json(text) + "\n").encode())


def read_json(path: Path, max_bytes: int = JSON_BYTES.high) -> dict[str, Any]:
    value = _read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: damaged, not a JSON object")
    return value


def read_json_list(path: Path, max_bytes: int = JSON_BYTES.high) -> list[Any]:
    value = _read_json(path, max_bytes)
    if not isinstance(value, list):
        raise WeightsError(f"{path}: damaged, not a JSON list")
    return value


def _read_json(path: Path, max_bytes: int) -> Any:
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
        return parse_json(data.decode("utf-8"), path)
    except WeightsError:
        raise
    except ValueError:
        raise WeightsError(f"{path}: damaged, not JSON") from None


def parse_json(text: str | bytes, path: Path) -> Any:
    """ValueError for what is no JSON; WeightsError, with `path`, for an object with one key twice: of two values Python
    and other programs would each choose one."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
            raise WeightsError(f"{path}: key {shown(twice)} is there twice; remove one")
        return found

    return json.loads(text, object_pairs_hook=once)


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


def require_name(path: Path) -> None:
    """OutputError for a path that is not UTF-8: safetensors, tokenizers and Arrow could not read what is there."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise OutputError(f"{path}: its name is not UTF-8; choose another") from None


def require_free(path: Path) -> None:
    """OutputError if `path` holds anything already, or has a name that not every library can open."""
    require_name(path)
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
    """`fill` writes into a directory aside, which then takes the name `path`; `path` must not exist or be empty. What
    killed processes have left beside `path` is removed."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_free(path)
        remove_abandoned(path.parent)
        with temporary(path, directory=True) as aside:
            fill(aside)
            for file in aside.rglob("*"):
                fsync_path(file)
            fsync_path(aside)
            os.replace(aside, path)
        fsync_path(path.parent)


def remove_files(directory: Path, patterns: Iterable[str]) -> None:
    """Removes the files under `directory` that match one of `patterns`, in their order, then the folders that this
    leaves empty, `directory` among them. What matches none stays. OutputError where one cannot be removed."""
    with output_errors(directory):
        folders = [directory]
        for pattern in patterns:
            for parent in Path(pattern).parents[:-1]:
                folders += [folder for folder in directory.glob(str(parent)) if folder.is_dir()]
            for file in list(directory.glob(pattern)):
                if file.is_symlink() or not file.is_dir():
                    file.unlink(missing_ok=True)
        for folder in sorted(set(folders), key=lambda path: -len(path.parts)):
            remove_abandoned(folder)
            with suppress(OSError):  # it holds something else, or is not there
                folder.rmdir()


_NOT_OURS = "{}: is not of this run, and was not changed; move it away, then continue with --resume"


def publish(source: Path, target: Path, hashes: Mapping[str, str], last: Sequence[str]) -> None:
    """Moves the files named in `hashes` (SHA-256) from the directory `source` into `target`, those of `last` at the end
    and in its order. A file that is there already must be the same one, moved by a process that was killed.

    OutputError, before anything is moved, where `target` has another file of one of these names."""
    with output_errors(target):
        for name, digest in hashes.items():
            place = target / name
            if os.path.lexists(place) and not (place.is_file() and sha256(place) == digest):
                raise OutputError(_NOT_OURS.format(place))
        for name in sorted(hashes, key=lambda name: last.index(name) if name in last else -1):
            place = target / name
            if place.exists():
                (source / name).unlink(missing_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if name in last:
                fsync_path(target)
            try:
                rename_new(source / name, place)
            except FileExistsError:
                raise OutputError(
                    f"{place}: is not of this run, and was not changed; move it away, then continue"
                ) from None
        fsync_path(target)


@contextmanager
def lock(directory: Path) -> Iterator[bool]:
    """One writer a directory; the lock goes with the process however it ends. Yields whether there is a lock: some
    file systems have none, and what is written there is written all the same."""
    require_name(directory)
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{directory}: another process is writing here; wait for it or choose another --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise OutputError(f"{directory}: cannot be locked ({error.strerror}); choose another --out") from error
            locked = False
        yield locked
    finally:
        os.close(handle)
