# SPDX-License-Identifier: Apache-2.0
"""Read the texts of one file, a piece at a time: plain text, or one field of a file of rows (foundling/data/rows.py).

Bad data raises no error here. It is yielded as a `Skip`, and the source decides whether that is an error.
"""

import zlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO

from foundling.data.rows import LINES, first_object, read_rows
from foundling.data.streams import (
    PIECE_BYTES,
    Row,
    Skip,
    first_line,
    no_field,
    open_counted,
    suffix,
    unpacked,
    why_binary,
)

DEFAULT_FIELD = "text"


def is_rows(path: Path, field: str) -> bool:
    """True for a file of rows with fields, False for plain text.

    A .json file is rows where it begins as an array of objects, or as lines of them, and the first one has the field.
    Where it has not, it may be a file of settings, which is text like any other, unless a field was asked for by name.
    """
    if path.suffix.lower() == ".parquet" or suffix(path) in LINES:
        return True
    row = first_object(path)
    return row is not None and (field in row or field != DEFAULT_FIELD)


def read(path: Path, field: str, on_read: Callable[[int], object] = bool) -> Iterator[tuple[str, str] | Skip]:
    """Yield (label, text) or `Skip`; the label is "" for a whole file, "#row" or "@part", both counted from 1.

    `on_read` is called with the number of bytes of every read from the disk.
    """
    if is_rows(path, field):
        for row in read_rows(path, on_read, columns=(field,), like=f'{{"{field}": "…"}}'):
            text = row if isinstance(row, Skip) else _row_text(row, field)
            yield text if isinstance(text, Skip) else (row.label, text)  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        with open_counted(path, on_read) as file:
            yield from _plain(unpacked(path, file))
    except (OSError, EOFError, zlib.error) as error:
        yield Skip("unreadable", first_line(error), rest=True)


def _plain(stream: BinaryIO) -> Iterator[tuple[str, str] | Skip]:
    rest, offset = b"", 0
    for part in count(1):
        buffer = rest + stream.read(PIECE_BYTES + 1 - len(rest))
        last = len(buffer) <= PIECE_BYTES
        cut = len(buffer) if last else _border(buffer)
        if b"\0" in buffer:
            yield Skip("binary", why_binary(buffer if part == 1 else b""), rest=True)
            return
        try:
            text = buffer[:cut].decode()
        except UnicodeDecodeError as error:
            where = f"byte {offset + error.start:,} is not UTF-8"
            yield Skip("not UTF-8", f"{where}: convert it, for instance with iconv -f LATIN1 -t UTF-8", rest=True)
            return
        rest, offset = buffer[cut:], offset + cut
        del buffer
        yield "" if last and part == 1 else f"@{part}", text.removeprefix("\ufeff") if part == 1 else text
        if last:
            return


def _border(buffer: bytes) -> int:
    """Where to cut PIECE_BYTES + 1 bytes: after the last line end, else before the last UTF-8 character begins."""
    cut = buffer.rfind(b"\n", 0, PIECE_BYTES) + 1 or PIECE_BYTES
    while buffer[cut] & 0xC0 == 0x80 and cut > PIECE_BYTES - 4:
        cut -= 1
    return cut


def _row_text(row: Row, field: str) -> str | Skip:
    value = row.fields.get(field)
    if value is None:
        return no_field(field, f"{row.where} has the keys", list(row.fields))
    return as_text(value, field)


def as_text(value: object, field: str) -> str | Skip:
    """Apply the rules of a plain file to a value of a row. JSON can encode a lone surrogate, UTF-8 cannot; Parquet has
    texts whose type is bytes."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return Skip("not UTF-8", "a value is not UTF-8")
    if not isinstance(value, str):
        return Skip(f"field {field!r} is not text", f"it is of type {type(value).__name__}")
    if "\0" in value:
        return Skip("binary")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Skip("not UTF-8", "a lone surrogate is not a character")
    return value
