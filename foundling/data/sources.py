# SPDX-License-Identifier: Apache-2.0
"""Files and folders to documents: re-iterable, in a fixed order, never more than a piece of the data in memory."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundling.data.formats import Skip, is_rows, read
from foundling.errors import DataError

_EXPECTED = "expected UTF-8 text, .jsonl or .parquet, or a folder of them"


@dataclass(frozen=True)
class Document:
    """One text. `name` is the path below the source's root, with "#row" or "@part" (from 1) where a file holds many."""

    name: str
    text: str


class Source:
    """The documents of a file or of a folder and everything below it, in the order of their sorted paths.

    `field` names the text in rows of JSON lines and Parquet. Hidden files and __pycache__ are left out; whatever else
    holds no text is counted by its reason in `skipped`, which tells of the last complete iteration.

    Raises DataError: at once if there is no such path; while iterating if a single file cannot be read; at the end of
    an iteration that found no document at all.
    """

    def __init__(self, path: str | Path, field: str = "text"):
        self.path, self.field = Path(path), field
        self.skipped: Counter[str] = Counter()
        try:
            mode = self.path.stat().st_mode
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            why = getattr(error, "strerror", None) or error
            raise DataError(f"{str(path)!r} cannot be read ({why}): {_EXPECTED}") from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise DataError(f"{str(path)!r} is a pipe, socket or device, and data is read twice: {_EXPECTED}")
        self._is_file = stat.S_ISREG(mode)
        self.single_file = self._is_file and not is_rows(self.path)

    def __iter__(self) -> Iterator[Document]:
        skipped: Counter[str] = Counter()
        details: dict[str, str] = {}
        found = False
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

    def _outcomes(self) -> Iterator[Document | Skip]:
        for path in self._files():
            if isinstance(path, Skip):
                yield path
                continue
            name = path.name if self._is_file else path.relative_to(self.path).as_posix()
            name = os.fsencode(name).decode(errors="replace")  # a file name need not be UTF-8, what we print must
            for outcome in read(path, self.field):
                if not isinstance(outcome, Skip):
                    label, text = outcome
                    yield Document(name + label, text) if text and not text.isspace() else Skip("empty")
                elif outcome.rest and self._is_file:
                    raise DataError(f"{str(self.path)!r} cannot be read ({outcome.reason}): {outcome.detail}")
                else:
                    yield outcome

    def _files(self) -> Iterator[Path | Skip]:
        stack = [self.path]  # and not recursion: folders nest deeper than Python's stack
        while stack:
            path = stack.pop()
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
                    stack += [path / name for name in names if not self._left_out(name)]
            except OSError as error:
                yield Skip("unreadable", f"{path.name}: {error.strerror}")

    def _left_out(self, name: str) -> bool:
        return name.startswith(".") or name == "__pycache__"

    def _nothing(self, skipped: Counter[str], details: dict[str, str]) -> str:
        if not skipped:
            holds = "has no rows" if self._is_file else "holds no files (hidden ones are left out)"
            return f"{str(self.path)!r} {holds}: {_EXPECTED}"
        counts = ", ".join(f"{reason}: {n:,}" for reason, n in skipped.most_common())
        detail = "; ".join(details[reason] for reason, _ in skipped.most_common() if reason in details)
        return f"{str(self.path)!r} holds no text ({counts}): {detail or _EXPECTED}"
