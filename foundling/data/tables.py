# SPDX-License-Identifier: Apache-2.0
"""Rows of text tables: CSV and TSV with a header (RFC 4180), and CoNLL, a token a line with its tag."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from foundling.data.streams import LINE_BYTES, PIECE_BYTES, Row, Skip, shown_names, why_binary

DELIMITERS = (",", ";", "\t", "|")
HEAD_BYTES = 1 << 16
"""of a file, from which the delimiter is detected"""
SENTENCE_TOKENS = 1 << 16
"""of a CoNLL file: more lines without a blank one between them are not sentences"""


def read_table(stream: io.BufferedReader, delimiter: str | None) -> Iterator[Row | Skip]:
    """The rows of a CSV file by the names in its first line; a quoted field may contain line breaks. `delimiter` None:
    the one of DELIMITERS that divides the first lines most evenly. Between tabs, quotes are ordinary characters where
    this makes the lines even and RFC 4180 does not. A row of another length than the header is a `Skip`."""
    buffered = io.BufferedReader(stream, HEAD_BYTES)  # pyright: ignore[reportArgumentType]
    head = buffered.peek(HEAD_BYTES)
    if b"\0" in head:
        yield Skip("binary", why_binary(head), rest=True)
        return
    dialect = _detect(head.decode("utf-8-sig", "replace"), delimiter)
    lines = _Lines(io.TextIOWrapper(buffered, "utf-8-sig", "surrogateescape", newline=""))
    csv.field_size_limit(max(csv.field_size_limit(), LINE_BYTES))  # the library's own is 128 KiB, for all readers
    reader = csv.reader(lines, strict=True, **dialect)
    header: list[str] | None = None
    number = 0
    while True:
        number, lines.size = number + 1, 0
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Skip("not CSV", f"line {reader.line_num} is not CSV ({error})", rest=lines.size > LINE_BYTES)
            if lines.size > LINE_BYTES:
                return
            continue
        if not any(values):
            continue
        if header is None:
            header, number = [name.strip() for name in values], 0
            if len(set(header)) < len(header) or not all(header):
                shown = shown_names(header)
                yield Skip("no header", f"the first line must name every column once; it is {shown}", rest=True)
                return
        elif len(values) != len(header):
            yield Skip(
                f"row without {len(header)} fields", f"row {number} has {len(values)}, the header has {len(header)}"
            )
        elif any("\udc80" <= sign <= "\udcff" for value in values for sign in value if sign > "\ud7ff"):
            yield Skip(
                "not UTF-8", f"row {number} is not UTF-8: convert it, for instance with iconv -f LATIN1 -t UTF-8"
            )
        else:
            yield Row(f"row {number}", dict(zip(header, values, strict=True)))


class _Lines:
    """The lines of a file. csv.Error once those of one row, whose reader sets `size` to 0, are over LINE_BYTES."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file, self.size = file, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline(LINE_BYTES + 1 - self.size)
        self.size += len(line)
        if self.size > LINE_BYTES:
            raise csv.Error(f"a row is over {LINE_BYTES >> 20} MiB; is a quote left open?")
        if not line:
            raise StopIteration
        return line


def _detect(head: str, delimiter: str | None) -> dict[str, Any]:
    """The options of csv.reader for a file that begins with `head`: those under which the header has several columns,
    most rows are as long as it, and of these those with most columns."""
    lines = head.splitlines(keepends=True)
    lines = lines[:-1] if len(head) > HEAD_BYTES // 4 and len(lines) > 1 else lines  # the last one is incomplete
    signs = (delimiter,) if delimiter else DELIMITERS
    options: list[dict[str, Any]] = [{"delimiter": sign, "quoting": csv.QUOTE_MINIMAL} for sign in signs]
    if "\t" in signs:
        options.append({"delimiter": "\t", "quoting": csv.QUOTE_NONE})

    def rank(option: dict[str, Any]) -> tuple[bool, float, int]:
        share, width = _evenness(lines, option)
        return width > 1, share, width

    return max(options, key=rank)  # of equal ones the first


def _evenness(lines: Sequence[str], options: dict[str, Any]) -> tuple[float, int]:
    """The share of rows that have as many fields as the first, and this number."""
    reader, widths, bad = csv.reader(lines, strict=True, **options), list[int](), 0
    while True:
        try:
            if values := next(reader):
                widths.append(len(values))
        except StopIteration:
            break
        except csv.Error:
            bad += 1
    width = widths[0] if widths else 0
    return sum(n == width for n in widths) / max(1, len(widths) + bad), width


def read_conll(stream: Any, *, universal: bool = False) -> Iterator[Row | Skip]:
    """Sentences as {"tokens": […], "tags": […]}, divided by blank lines: of each line the first column and the last,
    between tabs or, where there is none, spaces. `universal` (CoNLL-U): the second column and the fourth, without
    ranges of words and empty nodes. Lines that begin with "# " or "-DOCSTART-" are skipped. A sentence with a line of
    one column or more than SENTENCE_TOKENS is a `Skip`."""
    tokens, tags, bad, first = list[str](), list[str](), "", 1
    number = 0
    while line := stream.readline(PIECE_BYTES):
        number += 1
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
        except UnicodeDecodeError:
            text, bad = "?", bad or f"line {number} is not UTF-8"
        if b"\0" in line:
            yield Skip("binary", why_binary(b""), rest=True)
            return
        if text.strip():
            if text.startswith(("# ", "-DOCSTART-")) or (universal and text.startswith("#")):
                continue
            parts = text.split("\t") if "\t" in text else text.split()
            first = first if tokens or bad else number
            if universal and not parts[0].isdigit() and len(parts) == 10:
                continue
            if len(parts) < (4 if universal else 2) or len(tokens) == SENTENCE_TOKENS:
                bad = bad or f"line {number} has no token and tag, or the sentence has no end"
                continue
            tokens.append(parts[1 if universal else 0])
            tags.append(parts[3 if universal else -1])
            continue
        if tokens or bad:
            yield _sentence(tokens, tags, bad, first)
        tokens, tags, bad = [], [], ""
    if tokens or bad:
        yield _sentence(tokens, tags, bad, first)


def _sentence(tokens: list[str], tags: list[str], bad: str, line: int) -> Row | Skip:
    if bad:
        return Skip("not UTF-8" if "UTF-8" in bad else "not CoNLL", bad)
    return Row(f"line {line}", {"tokens": tokens, "tags": tags})
