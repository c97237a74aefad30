# SPDX-License-Identifier: Apache-2.0
"""Documents of files and folders: re-iterable, in a fixed order, with at most one piece of a file in memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundling.data.files import Files
from foundling.data.formats import DEFAULT_FIELD, is_rows, read
from foundling.data.streams import Skip
from foundling.errors import DataError

_EXPECTED = "expected UTF-8 text, .jsonl, .parquet or a .json array of objects, or a folder of them"


@dataclass(frozen=True)
class Document:
    """One text. `name` is the path below the source's root, with "#row" or "@part" (from 1) where a file holds many."""

    name: str
    text: str


class Source(Files):
    """The documents of a file, or of a folder and everything below it, in the order of their sorted paths.

    `field` names the text in rows of JSON and Parquet. Everything else that contains no text is counted by its reason
    in `skipped`, which describes the last complete iteration. `bytes_read` counts the bytes read from files over all
    iterations.

    Raises DataError: at once if the path does not exist; while iterating if a single file cannot be read; at the end
    of an iteration that found no document.
    """

    def __init__(self, path: str | Path, field: str = DEFAULT_FIELD, exclude: str | Path | None = None):
        super().__init__(path, _EXPECTED, exclude)
        self.field = field
        self.skipped: Counter[str] = Counter()
        self.single_file = self.is_file and not is_rows(self.path, field)
        if self.single_file and field != DEFAULT_FIELD:
            raise DataError(
                f"{str(path)!r} has no field {field!r}: it is plain text; leave out --field, or give .jsonl, .parquet "
                "or a .json array of objects"
            )

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
        for path in self.paths():
            if isinstance(path, Skip):
                yield path
                continue
            name = self.name(path)
            self._has_rows = self._has_rows or (self.field != DEFAULT_FIELD and is_rows(path, self.field))
            for outcome in read(path, self.field, self.count):
                if not isinstance(outcome, Skip):
                    label, text = outcome
                    yield Document(name + label, text) if text and not text.isspace() else Skip("empty")
                elif outcome.rest and self.is_file:
                    raise DataError(f"{str(self.path)!r} cannot be read ({outcome.reason}): {outcome.detail}")
                else:
                    yield outcome

    def _nothing(self, skipped: Counter[str], details: dict[str, str]) -> str:
        if not skipped:
            why = "has no rows" if self.is_file else "holds no files (hidden ones are skipped)"
            return f"{str(self.path)!r} {why}: {_EXPECTED}"
        counts = ", ".join(f"{reason}: {n:,}" for reason, n in skipped.most_common())
        detail = "; ".join(details[reason] for reason, _ in skipped.most_common() if reason in details)
        return f"{str(self.path)!r} holds no text ({counts}): {detail or _EXPECTED}"
