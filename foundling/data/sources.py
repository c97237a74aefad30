# SPDX-License-Identifier: Apache-2.0
"""Documents of files and folders: re-iterable, in a fixed order, with at most one piece of a file in memory."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundling.data.formats import DEFAULT_FIELD, Skip, is_rows, read
from foundling.errors import DataError

_EXPECTED = "expected UTF-8 text, .jsonl, .parquet or a .json array of objects, or a folder of them"


@dataclass(frozen=True)
class Document:
    """One text. `name` is the path below the source's root, with "#row" or "@part" (from 1) where a file holds many."""

    name: str
    text: str


class Source:
    """The documents of a file, or of a folder and everything below it, in the order of their sorted paths.

    `field` names the text in rows of JSON and Parquet. Hidden files, __pycache__ and the directory `exclude`
    (the output of a run, which may lie inside its data) are not visited. Everything else that contains no text is
    counted by its reason in `skipped`, which describes the last complete iteration. `bytes_read` counts the bytes
    read from files over all iterations.

    Raises DataError: at once if the path does not exist; while iterating if a single file cannot be read; at the end
    of an iteration that found no document.
    """

    def __init__(self, path: str | Path, field: str = DEFAULT_FIELD, exclude: str | Path | None = None):
        self.path, self.field = Path(path), field
        self.skipped: Counter[str] = Counter()
        self.bytes_read = 0
        try:
            mode = self.path.stat().st_mode
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise DataError(f"{str(path)!r} cannot be read ({why}): {_EXPECTED}") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{str(path)!r} is a pipe, socket or device, which cannot be read again: {_EXPECTED}")
        self._is_file = stat.S_ISREG(mode)
        self.single_file = self._is_file and not is_rows(self.path, field)
        if self.single_file and field != DEFAULT_FIELD:
            raise DataError(
                f"{str(path)!r} has no field {field!r}: it is plain text; leave out --field, or give .jsonl, .parquet "
                "or a .json array of objects"
            )
        self._excluded = None if exclude is None else self._below(Path(exclude))

    def file_bytes(self) -> int:
        """The size of all files, from their metadata alone."""
        return sum(path.stat().st_size for path in self._files() if isinstance(path, Path))

    def __iter__(self) -> Iterator[Document]:
        skipped: Counter[str] = Counter()
        details: dict[str, str] = {}
        found, self._has_rows = False, False
        for outcome in self._outcomes():
            if isinstance(outcome, Skip):
                skipped[outcome.reason] += 1
                if outcome.detail:
                    details.setdefault(outcome.reason, outcome.detail)
            else:
                found = True
                yield outcome
        self.skipped = skipped
        if not found:
            raise DataError(self._nothing(skipped, details))
        if self.field != DEFAULT_FIELD and not self._has_rows:
            raise DataError(
                f"{str(self.path)!r} has no field {self.field!r}: all files are plain text; leave out --field"
            )

    def _outcomes(self) -> Iterator[Document | Skip]:
        for path in self._files():
            if isinstance(path, Skip):
                yield path
                continue
            name = path.name if self._is_file else path.relative_to(self.path).as_posix()
            name = os.fsencode(name).decode(errors="replace")  # a file name need not be UTF-8, what we print must
            self._has_rows = self._has_rows or (self.field != DEFAULT_FIELD and is_rows(path, self.field))
            for outcome in read(path, self.field, self._count):
                if not isinstance(outcome, Skip):
                    label, text = outcome
                    yield Document(name + label, text) if text and not text.isspace() else Skip("empty")
                elif outcome.rest and self._is_file:
                    raise DataError(f"{str(self.path)!r} cannot be read ({outcome.reason}): {outcome.detail}")
                else:
                    yield outcome

    def _count(self, n: int) -> None:
        self.bytes_read += n

    def _below(self, exclude: Path) -> Path | None:
        """`exclude` as the walk will meet it; None where it is not below the source."""
        root, excluded = self.path.resolve(), exclude.resolve()
        inside = excluded != root and excluded.is_relative_to(root)
        return self.path / excluded.relative_to(root) if inside else None

    def _files(self) -> Iterator[Path | Skip]:
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

    def _left_out(self, name: str) -> bool:
        return name.startswith(".") or name == "__pycache__"

    def _nothing(self, skipped: Counter[str], details: dict[str, str]) -> str:
        if not skipped:
            why = "has no rows" if self._is_file else "holds no files (hidden ones are skipped)"
            return f"{str(self.path)!r} {why}: {_EXPECTED}"
        counts = ", ".join(f"{reason}: {n:,}" for reason, n in skipped.most_common())
        detail = "; ".join(details[reason] for reason, _ in skipped.most_common() if reason in details)
        return f"{str(self.path)!r} holds no text ({counts}): {detail or _EXPECTED}"


def _is_output(path: Path, names: list[str]) -> bool:
    """Whether a folder is what a run has written or is writing: a model directory is no data for the next one."""
    marks = (path / "run" / mark for mark in ("journal.json", "request.json"))  # request.json: of version 0.1
    return "foundling.json" in names or ("run" in names and any(mark.is_file() for mark in marks))
