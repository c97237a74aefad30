# SPDX-License-Identifier: Apache-2.0
"""The files of a data set: one file, or a folder and everything below it, in the order of their sorted paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from foundling.data.streams import Skip
from foundling.errors import DataError


class Files:
    """A file, or the files of a folder. Hidden files, __pycache__, model directories and the directory `exclude` (the
    output of a run, which may lie inside its data) are not visited. `bytes_read` counts the bytes that `count` is told.

    Raises DataError, which ends with `expected`, if the path does not exist or is a pipe, socket or device.
    """

    def __init__(self, path: str | Path, expected: str, exclude: str | Path | None = None) -> None:
        self.path, self.expected = Path(path), expected
        self.bytes_read = 0
        try:
            mode = self.path.stat().st_mode
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise DataError(f"{str(path)!r} cannot be read ({why}): {expected}") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{str(path)!r} is a pipe, socket or device, which cannot be read again: {expected}")
        self.is_file = stat.S_ISREG(mode)
        self._excluded = None if exclude is None else self._below(Path(exclude))

    def file_bytes(self) -> int:
        """The size of all files, from their metadata alone."""
        return sum(path.stat().st_size for path in self.paths() if isinstance(path, Path))

    def count(self, n: int) -> None:
        self.bytes_read += n

    def name(self, path: Path) -> str:
        """The path below the root. A file name need not be UTF-8, what is printed must."""
        name = path.name if self.is_file else path.relative_to(self.path).as_posix()
        return os.fsencode(name).decode(errors="replace")

    def paths(self) -> Iterator[Path | Skip]:
        stack = [self.path]  # not recursion: folders nest deeper than Python's stack
        while stack:
            path = stack.pop()
            if path == self._excluded:
                continue
            try:
                mode = path.stat().st_mode
                if stat.S_ISREG(mode):
                    yield path
                elif not stat.S_ISDIR(mode):
                    yield Skip("special file")
                elif path.is_symlink() and path != self.path:
                    yield Skip("symlinked folder")
                else:
                    names = sorted(os.listdir(path), reverse=True)
                    if path != self.path and _is_output(path, names):
                        yield Skip("model directory")
                        continue
                    stack += [path / name for name in names if not self._left_out(name)]
            except OSError as error:
                yield Skip("unreadable", f"{path.name}: {error.strerror}")

    def _below(self, exclude: Path) -> Path | None:
        """`exclude` as the walk will meet it; None where it is not below the source."""
        root, excluded = self.path.resolve(), exclude.resolve()
        inside = excluded != root and excluded.is_relative_to(root)
        return self.path / excluded.relative_to(root) if inside else None

    def _left_out(self, name: str) -> bool:
        return name.startswith(".") or name == "__pycache__"


def _is_output(path: Path, names: list[str]) -> bool:
    """Whether a folder is what a run has written or is writing: a model directory is no data for the next one."""
    marks = (path / "run" / mark for mark in ("journal.json", "request.json"))  # request.json: of version 0.1
    return "foundling.json" in names or ("run" in names and any(mark.is_file() for mark in marks))
