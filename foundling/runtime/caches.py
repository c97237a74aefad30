# SPDX-License-Identifier: Apache-2.0
"""Cache directories of compiled code. What lies there is executed later, so nobody else may have written it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import grp
import logging
import os
import pwd
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("foundling")


class NotPrivate(Exception):
    """A directory that another user could have written to, or that cannot be made."""


def cache_directory(name: str) -> Path:
    """$XDG_CACHE_HOME/foundling/NAME, or ~/.cache/foundling/NAME; it need not exist. A relative value of the variable
    is ignored, as the XDG base directory specification asks."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache") / "foundling" / name


def private_directory(name: str) -> Path:
    """`cache_directory(name)`, made with mode 0700 where it is missing and checked with `make_private`. Where it is not
    private, a line in the log says why, and the result is a new temporary directory, removed when the process ends."""
    directory = cache_directory(name)
    try:
        make_private(directory)
        return directory
    except NotPrivate as error:
        logger.warning(f"{error}; what is compiled now is kept for this process only")
        return _temporary_directory(name)


def make_private(directory: Path) -> None:
    """Makes the directory, and foundling's directory around it, with mode 0700 where they are missing. NotPrivate where
    that fails, or where another user could have written, or could write, anything in it or put another in its place."""
    if not directory.is_absolute():
        raise NotPrivate(f"{directory} is not an absolute path")
    try:
        directory.parent.parent.mkdir(parents=True, exist_ok=True)
        directory.parent.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        check_private(directory)
    except OSError as error:
        raise NotPrivate(f"{error.filename or directory}: {error.strerror}") from error


def check_private(directory: Path) -> None:
    """NotPrivate with the reason, or the OSError of a directory that cannot be read."""
    status = os.lstat(directory)
    if stat.S_ISLNK(status.st_mode):
        raise NotPrivate(f"{directory} is a symbolic link")
    if not stat.S_ISDIR(status.st_mode):
        raise NotPrivate(f"{directory} is not a directory")
    if status.st_uid != os.getuid():
        raise NotPrivate(f"{directory} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotPrivate(f"{directory} is writable by other users; chmod go-w it or remove it")
    for parent in {*directory.parents, *directory.resolve().parents}:
        status = parent.stat()
        if status.st_uid not in (0, os.getuid()):
            raise NotPrivate(f"{parent} belongs to another user")
        if _writable_by_others(status):
            raise NotPrivate(f"{parent} is writable by other users; chmod go-w it")
    for entry in _entries(directory):  # those that came before the directory was closed to others
        with contextlib.suppress(FileNotFoundError):  # another process compiles there, and renames what is ready
            if entry.stat(follow_symlinks=False).st_uid not in (0, os.getuid()):
                raise NotPrivate(f"{entry.path} belongs to another user")


def _writable_by_others(status: os.stat_result) -> bool:
    """Whether others can rename what is in a directory. A sticky bit (/tmp) forbids it; a group with the user's own
    name has no other members (the convention of user private groups)."""
    if status.st_mode & stat.S_ISVTX:
        return False
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    try:
        return grp.getgrgid(status.st_gid).gr_name != pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return True


def _entries(directory: Path | str) -> Iterator[os.DirEntry[str]]:
    """All that lies in a directory, at any depth, but what is removed meanwhile."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield from _entries(entry.path)


@functools.cache
def _temporary_directory(name: str) -> Path:
    directory, process = Path(tempfile.mkdtemp(prefix=f"foundling-{name}-")), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not in a child that was forked
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return directory


def private_compiler_cache() -> Path:
    """Called before torch.compile: torch executes what its cache holds (pickles, shared objects, precompiled headers),
    and by default keeps it in /tmp under a name that another user can take first.

    TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR keep their values where those are private. Returns inductor's.
    """
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ[variable] = str(_private_or_ours(os.environ.get(variable), variable, name))
    directory = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)
    _move_default(directory)
    return Path(directory)


def _private_or_ours(given: str | None, variable: str, name: str) -> Path:
    if given:
        try:
            make_private(Path(os.path.abspath(given)))
            return Path(os.path.abspath(given))
        except NotPrivate as error:
            logger.warning(f"{variable} is not used: {error}")
    return private_directory(name)


def _move_default(directory: str) -> None:
    """Precompiled headers and some other caches ignore TORCHINDUCTOR_CACHE_DIR: they lie in `default_cache_dir()`, a
    function that several modules of inductor have imported."""
    import torch._inductor.codecache as codecache

    for name, module in list(sys.modules.items()):
        if name.startswith("torch._inductor.") and "default_cache_dir" in vars(module):
            module.default_cache_dir = lambda: directory  # pyright: ignore[reportAttributeAccessIssue]
    headers = os.path.join(directory, "precompiled_headers")
    codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = headers, os.path.join(headers, "locks")


def _is_news(record: logging.LogRecord) -> bool:
    """Drops what torch built for CUDA says on a machine with CUDA's files and no GPU, where the CPU is what is used."""
    return not str(record.msg).startswith("No CUDA runtime is found")
