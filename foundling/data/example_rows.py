# SPDX-License-Identifier: Apache-2.0
"""The examples of a source, one at a time: rows of files, or plain texts in pieces, read by a detected layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from foundling.data.datasets import BUILTIN, open_data, open_rows, part_of
from foundling.data.files import Files
from foundling.data.formats import read
from foundling.data.kinds import Columns, Kind
from foundling.data.layouts import SAMPLE_ROWS, Layout, detect
from foundling.data.rows import SUFFIXES, first_object, read_rows
from foundling.data.sampling import cut
from foundling.data.sources import Document
from foundling.data.streams import Skip, suffix
from foundling.errors import DataError
from foundling.limits import EXAMPLE_CHARS

PIECES, PIECE_CHARS = 64, (1_000, 16_000)
"""A text is cut at lines into pieces of 1/64 of the source, within these bounds, so that some of one book can be held
out."""
_EXPECTED = "expected .jsonl, .json, .csv, .tsv, .parquet, .conll or UTF-8 text, or a folder of them"


class ExampleRows:
    """The rows of a file or a folder, or of a data set: "builtin:NAME" of a task or of text, or any iterable of
    documents.

    Iterating yields an example as a `Document`: its name, and its fields as JSON with sorted keys. What is no example
    is counted in `skipped`. `layout` is detected at once, from the first rows, unless that of other rows is given.
    Raises DataError where the source, or the only file, cannot be read, ConfigError where the columns are unclear.
    """

    def __init__(
        self,
        source: str | Path | Iterable[Document],
        kind: Kind | None = None,
        columns: Columns | None = None,
        exclude: Path | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.source, self.kind = source, kind
        self.skipped: Counter[str] = Counter()
        self.details: dict[str, str] = {}
        self.files: Files | None = None
        self._built_in: list[dict[str, Any]] | None = None
        self._plain, self._piece_chars = True, PIECE_CHARS[1]
        if isinstance(source, str) and source.startswith(BUILTIN):
            part = part_of(source)
            if part is None or part.kind == "text":
                self.source = open_data(source)
            else:
                self._built_in, self._plain = open_rows(source), False
        elif isinstance(source, str | Path):
            self.files = Files(source, _EXPECTED, exclude)
            self._plain = self._are_plain(self.files)
            least, most = PIECE_CHARS
            self._piece_chars = min(max(self.files.file_bytes() // PIECES, least), most)
        if self._plain and kind not in (None, "text"):
            raise DataError(f"{self.name} is plain text, which is read --as text; --as {kind} needs rows: {_EXPECTED}")
        self._rows = self._read()
        self._first = list(islice(self._rows, SAMPLE_ROWS))
        if not self._first:
            raise DataError(self.nothing())
        kind = "text" if self._plain else kind
        self.layout = layout or detect([fields for _, fields, _ in self._first], kind, columns)

    @property
    def name(self) -> str:
        if self.files:
            return repr(str(self.files.path))
        return repr(self.source) if self._built_in is not None else "the data set"

    @property
    def bytes_read(self) -> int:
        return self.files.bytes_read if self.files else 0

    def file_bytes(self) -> int:
        return self.files.file_bytes() if self.files else 0

    def __iter__(self) -> Iterator[Document]:
        """May be called once."""
        for name, row, continues in chain(self._first, self._rows):
            fields = self.layout.convert(row)
            if isinstance(fields, Skip):
                self._count(fields)
                continue
            pieces = cut(fields["text"], self._piece_chars) if self.layout.kind == "text" else []
            for number, piece in enumerate(pieces, 1):
                goes_on = {"continues": True} if continues or number < len(pieces) else {}
                yield Document(f"{name}@{number}" if len(pieces) > 1 else name, _json({"text": piece} | goes_on))
            if not pieces:
                text = _json(fields)
                if len(text) > EXAMPLE_CHARS.high:
                    self._count(Skip(f"over {EXAMPLE_CHARS.high:,} characters", f"{name}: {EXAMPLE_CHARS.way}"))
                else:
                    yield Document(name, text)

    def nothing(self) -> str:
        """The message, where there is no example."""
        counts = ", ".join(f"{reason}: {n:,}" for reason, n in self.skipped.most_common())
        detail = "; ".join(self.details[reason] for reason, _ in self.skipped.most_common(3) if reason in self.details)
        why = f" ({counts}): {detail or _EXPECTED}" if counts else f": {_EXPECTED}"
        return f"{self.name} has no row that can be used{why}"

    def _are_plain(self, files: Files) -> bool:
        return not any(isinstance(path, Path) and self._has_rows(path) for path in files.paths())

    def _has_rows(self, path: Path) -> bool:
        if self.kind == "tag" and suffix(path) in (".txt", ""):  # CoNLL has no suffix of its own
            return True
        return suffix(path) in SUFFIXES and (suffix(path) != ".json" or first_object(path) is not None)

    def _read(self) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
        """Names, rows, and whether a row is a part of a text that continues in the next one."""
        if self._built_in is not None:
            yield from ((f"{self.source}#{n}", row, False) for n, row in enumerate(self._built_in, 1))
            return
        if self.files is None:
            assert not isinstance(self.source, str | Path)
            yield from ((document.name, {"text": document.text}, False) for document in self.source)
            self.skipped.update(getattr(self.source, "skipped", {}))
            return
        for path in self.files.paths():
            if isinstance(path, Skip):
                self._count(path)
                continue
            name = self.files.name(path)
            if self._has_rows(path):
                for row in read_rows(path, self.files.count, conll=self.kind == "tag"):
                    if not isinstance(row, Skip):
                        yield name + row.label, row.fields, False
                    else:
                        self._count(row)
            elif self._plain or self.kind == "text":
                yield from self._read_text(path, name, self.files.count)
            else:
                self._count(Skip("not a file of rows"))

    def _read_text(
        self, path: Path, name: str, on_read: Callable[[int], object]
    ) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
        """A file of plain text in parts, each once it is known whether another follows."""
        before: tuple[str, str] | None = None
        for part in read(path, "text", on_read):
            if before is not None:
                yield name + before[0], {"text": before[1]}, True
            before = None
            if isinstance(part, Skip):
                self._count(part)
            else:
                before = part
        if before is not None:
            yield name + before[0], {"text": before[1]}, False

    def _count(self, skip: Skip) -> None:
        if skip.rest and self.files and self.files.is_file:
            raise DataError(f"{self.name} cannot be read ({skip.reason}): {skip.detail}")
        self.skipped[skip.reason] += 1
        if skip.detail:
            self.details.setdefault(skip.reason, skip.detail)


def _json(fields: Mapping[str, Any]) -> str:
    """Text as it is but for lone surrogates, which the shards cannot keep."""
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True, default=str)
    return text.encode(errors="replace").decode()
