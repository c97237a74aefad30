# SPDX-License-Identifier: Apache-2.0
"""Read the texts of one file, a piece at a time: plain text, JSON lines, JSON arrays, Parquet; all but the last gzipped
too.

Bad data raises no error here. It is yielded as a `Skip`, and the source decides whether that is an error.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

PIECE_BYTES = 8 * 2**20
LINE_BYTES = 64 * 2**20
# Text compresses 3 to 20 times, gzip at most 1,032 times: a ratio in between marks a decompression bomb.
GUNZIP_RATIO = 200
GUNZIP_FREE_BYTES = 64 * 2**20
DEFAULT_FIELD = "text"
_SCAN, _SPACE = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")
_ROWS_AT_ONCE = 64
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Skip:
    """A row or file that was not read. `reason` is counted, `detail` explains it; `rest`: reading of the file stops."""

    reason: str
    detail: str = ""
    rest: bool = False


def is_rows(path: Path, field: str) -> bool:
    """True for a file of rows with fields, False for plain text.

    A .json file is rows where it begins as an array of objects, or as lines of them, and the first one has the field.
    Where it has not, it may be a file of settings, which is text like any other, unless a field was asked for by name.
    """
    if path.suffix.lower() == ".parquet" or _is_json_lines(path):
        return True
    row = _first_row(path)
    return row is not None and (field in row or field != DEFAULT_FIELD)


class _CountedFile(io.FileIO):
    """A file opened for reading that reports the number of bytes of every read."""

    def __init__(self, path: Path, on_read: Callable[[int], object]):
        super().__init__(path)
        self._on_read = on_read

    def readinto(self, buffer, /) -> int:
        n = super().readinto(buffer) or 0
        self._on_read(n)
        return n

    def readall(self) -> bytes:
        data = super().readall() or b""
        self._on_read(len(data))
        return data


def read(path: Path, field: str, on_read: Callable[[int], object] = bool) -> Iterator[tuple[str, str] | Skip]:
    """Yield (label, text) or `Skip`; the label is "" for a whole file, "#row" or "@part", both counted from 1.

    `on_read` is called with the number of bytes of every read from the disk.
    """
    try:
        with io.BufferedReader(_CountedFile(path, on_read)) as file:
            if path.suffix.lower() == ".parquet":
                yield from _parquet(file, field)
                return
            stream = _unpacked(path, file)
            if not is_rows(path, field):
                yield from _plain(stream)
            elif not _is_json_lines(path) and _begins_array(stream):
                yield from _json_array(stream, field)
            else:
                yield from _json_lines(stream, field)
    except (OSError, EOFError, zlib.error) as error:
        yield Skip("unreadable", _first_line(error), rest=True)


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _is_json_lines(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def _unpacked(path: Path, file: Any) -> Any:
    return io.BufferedReader(_Gunzip(file, path.stat().st_size)) if _is_gzip(path) else file


def _begins_array(stream: io.BufferedReader) -> bool:
    return stream.peek(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _first_row(path: Path) -> dict[str, Any] | None:
    """The first object of a .json file that is an array of objects or an object a line, else None."""
    if not path.name.lower().removesuffix(".gz").endswith(".json"):
        return None
    try:
        with open(path, "rb") as file:
            stream = _unpacked(path, file)
            row = next(iter(_Elements(stream))) if _begins_array(stream) else json.loads(stream.readline(LINE_BYTES))
    except (ValueError, RecursionError, OSError, EOFError, StopIteration, zlib.error):
        return None
    return row if isinstance(row, dict) else None


class _Gunzip(io.RawIOBase):
    """The content of a gzip stream; OSError once it is GUNZIP_RATIO times larger than the file."""

    def __init__(self, file: BinaryIO, file_bytes: int):
        self._inner = gzip.GzipFile(fileobj=file)
        self._left = max(GUNZIP_FREE_BYTES, GUNZIP_RATIO * file_bytes)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        n = self._inner.readinto(buffer)
        self._left -= n
        if self._left < 0:
            raise OSError(f"it unpacks to over {GUNZIP_RATIO} times its size: unpack it yourself if that is intended")
        return n


def _plain(stream: BinaryIO) -> Iterator[tuple[str, str] | Skip]:
    rest, offset = b"", 0
    for part in count(1):
        buffer = rest + stream.read(PIECE_BYTES + 1 - len(rest))
        last = len(buffer) <= PIECE_BYTES
        cut = len(buffer) if last else _border(buffer)
        if b"\0" in buffer:
            yield Skip("binary", _why_binary(buffer if part == 1 else b""), rest=True)
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


def _why_binary(start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it looks like UTF-16: convert it with iconv -f UTF-16 -t UTF-8"
    return "it contains NUL bytes, so it is not text: give UTF-8 text, .jsonl or .parquet"


class _Elements:
    """The elements of a JSON array, one in memory at a time. Iterating raises ValueError where it is not one or an
    element is over LINE_BYTES, RecursionError where one is nested too deep."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decode = stream, codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at = "", 0

    def __iter__(self) -> Iterator[Any]:
        sign = self._next_sign()
        if sign != "[":
            raise ValueError("not an array")
        self._at += 1
        if self._next_sign() == "]":
            return
        while sign != "]":
            yield self._value()
            sign = self._next_sign()
            if sign not in ("]", ","):
                raise ValueError("no comma after an element")
            self._at += 1

    def _fill(self) -> bool:
        """Reads more; False at the end."""
        data = self._stream.read(max(1 << 16, len(self._text) - self._at))  # doubling: an element is scanned anew
        self._text, self._at = self._text[self._at :] + self._decode(data, not data), 0
        return bool(data)

    def _next_sign(self) -> str:
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._at < len(self._text) or not self._fill():
                return self._text[self._at : self._at + 1]

    def _value(self) -> Any:
        self._next_sign()
        while True:
            try:
                value, end = _SCAN(self._text, self._at)
                if end < len(self._text) or not self._fill():  # else a number may go on
                    self._at = min(end, len(self._text))
                    return value
            except ValueError:
                if len(self._text) - self._at > LINE_BYTES or not self._fill():
                    raise


def _json_array(stream: BinaryIO, field: str) -> Iterator[tuple[str, str] | Skip]:
    row = 0
    try:
        for row, value in enumerate(_Elements(stream), 1):
            text = _row_text(value, f"element {row}", field)
            yield text if isinstance(text, Skip) else (f"#{row}", text)
    except UnicodeDecodeError:
        yield Skip("not UTF-8", f"element {row + 1} is not UTF-8", rest=True)
    except (ValueError, RecursionError) as error:
        yield Skip("not JSON", f"element {row + 1} is not JSON ({error})", rest=True)


def _json_lines(stream: BinaryIO, field: str) -> Iterator[tuple[str, str] | Skip]:
    for row in count(1):
        line = stream.readline(LINE_BYTES + 1)
        if not line:
            return
        if len(line) > LINE_BYTES:
            if b"\0" in line:  # of a sparse file, there may be a terabyte of it
                yield Skip("binary", _why_binary(b""), rest=True)
                return
            while line and not line.endswith(b"\n"):
                line = stream.readline(PIECE_BYTES)
            yield Skip(f"line over {LINE_BYTES // 2**20} MiB")
            continue
        if row == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line and not line.isspace():
            text = _json_text(line, row, field)
            yield text if isinstance(text, Skip) else (f"#{row}", text)


def _json_text(line: bytes, row: int, field: str) -> str | Skip:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return Skip("not UTF-8", f"line {row} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Skip("not JSON", f'line {row} is not JSON ({error}): give one object a line, like {{"{field}": "…"}}')
    return _row_text(value, f"line {row}", field)


def _row_text(value: Any, where: str, field: str) -> str | Skip:
    if not isinstance(value, dict):
        return Skip("row is not an object", f'{where} is not an object like {{"{field}": "…"}}')
    if value.get(field) is None:
        return _no_field(field, f"{where} has the keys", list(value))
    return _checked(value[field], field)


def _checked(text: object, field: str) -> str | Skip:
    """Apply the rules of a plain file to the text of a row. JSON can encode a lone surrogate, UTF-8 cannot."""
    if not isinstance(text, str):
        return Skip(f"field {field!r} is not text", f"it is of type {type(text).__name__}")
    if "\0" in text:
        return Skip("binary")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Skip("not UTF-8", "a lone surrogate is not a character")
    return text


def _no_field(field: str, have: str, names: list[str], rest: bool = False) -> Skip:
    shown = ", ".join(repr(name[:60]) for name in names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    detail = f"{have} {shown or '(none)'}: choose the one that holds the text with --field"
    return Skip(f"no field {field!r}", detail, rest)


def _parquet(file: BinaryIO, field: str) -> Iterator[tuple[str, str] | Skip]:
    import pyarrow as pa  # here, because only Parquet needs it
    import pyarrow.parquet as pq

    try:
        # Buffered and without read-ahead, else pyarrow keeps whole row groups in memory.
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
            schema = table.schema_arrow
            if field not in schema.names:
                yield _no_field(field, "it has the columns", schema.names, rest=True)
                return
            kind = schema.field(schema.names.index(field)).type
            row = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[field], use_threads=False):
                column = batch.column(0)
                if pa.types.is_dictionary(kind):
                    column = column.dictionary_decode()
                if not _is_bytes(column.type):
                    yield Skip(f"field {field!r} is not text", f"the column {field!r} is of type {kind}", rest=True)
                    return
                # As bytes, for Parquet does not check that its strings are UTF-8.
                for raw in column.cast(pa.large_binary()).to_pylist():
                    row += 1
                    text = _parquet_text(raw, field)
                    yield text if isinstance(text, Skip) else (f"#{row}", text)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Skip("damaged Parquet", f"{_first_line(error)}; write or fetch it again", rest=True)


def _is_bytes(kind) -> bool:
    import pyarrow.types as types

    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in (*tests, types.is_string_view, types.is_binary_view))


def _parquet_text(raw: bytes | None, field: str) -> str | Skip:
    if raw is None:
        return Skip(f"no field {field!r}", "its value is null")
    try:
        return _checked(raw.decode(), field)
    except UnicodeDecodeError:
        return Skip("not UTF-8", "a value is not UTF-8")


def _first_line(error: BaseException) -> str:
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (message.splitlines() or [type(error).__name__])[0]
