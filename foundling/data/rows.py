# SPDX-License-Identifier: Apache-2.0
"""Read the rows of one file, one at a time: JSON lines, JSON arrays, CSV, CoNLL, Parquet; all but the last gzipped too.

Bad data raises no error here. It is yielded as a `Skip`, and the caller decides whether that is an error.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from foundling.data.streams import (
    LINE_BYTES,
    PIECE_BYTES,
    Row,
    Skip,
    begins_array,
    first_line,
    no_field,
    open_counted,
    suffix,
    unpacked,
    why_binary,
)
from foundling.data.tables import read_conll, read_table

LIKE = '{"text": "…"}'
LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
CONLL = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".tags")
SUFFIXES = (".parquet", *LINES, ".json", *TABLES, *CONLL)
_SCAN, _SPACE = json.JSONDecoder().raw_decode, re.compile(r"[ \t\n\r]*")
_ROWS_AT_ONCE = 64


def read_rows(
    path: Path,
    on_read: Callable[[int], object] = bool,
    *,
    columns: Sequence[str] | None = None,
    like: str = LIKE,
    conll: bool = False,
) -> Iterator[Row | Skip]:
    """Yield the rows of a file whose name has one of SUFFIXES; a file of another name is one `Skip`.

    Of Parquet only `columns` are read, if they are named. `like` is the example of a row in messages. `conll`: a file
    of lines is read as CoNLL, whatever its name (else by its name alone). `on_read` is called with the number of bytes
    of every read from the disk.
    """
    kind = suffix(path)
    try:
        with open_counted(path, on_read) as file:
            if kind == ".parquet":
                yield from _parquet(file, columns)
                return
            stream = unpacked(path, file)
            if kind in CONLL or (conll and kind not in (*LINES, ".json", ".csv")):
                yield from read_conll(stream, universal=kind == ".conllu")
            elif kind in TABLES:
                yield from read_table(stream, "\t" if kind == ".tsv" else None)
            elif kind in LINES or (kind == ".json" and not begins_array(stream)):
                yield from _json_lines(stream, like)
            elif kind == ".json":
                yield from _json_array(stream, like)
            else:
                yield Skip("not a file of rows", f"expected one of {', '.join(SUFFIXES)}", rest=True)
    except (OSError, EOFError, zlib.error) as error:
        yield Skip("unreadable", first_line(error), rest=True)


def first_object(path: Path) -> dict[str, Any] | None:
    """The first object of a .json file that is an array of objects or an object a line, else None."""
    if suffix(path) != ".json":
        return None
    try:
        with open(path, "rb") as file:
            stream = unpacked(path, file)
            row = next(iter(_Elements(stream))) if begins_array(stream) else json.loads(stream.readline(LINE_BYTES))
    except (ValueError, RecursionError, OSError, EOFError, StopIteration, zlib.error):
        return None
    return row if isinstance(row, dict) else None


# --- JSON ------------------------------------------------------------------------------------------------------------


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


def _json_array(stream: BinaryIO, like: str) -> Iterator[Row | Skip]:
    row = 0
    try:
        for row, value in enumerate(_Elements(stream), 1):
            yield _row(value, f"element {row}", like)
    except UnicodeDecodeError:
        yield Skip("not UTF-8", f"element {row + 1} is not UTF-8", rest=True)
    except (ValueError, RecursionError) as error:
        yield Skip("not JSON", f"element {row + 1} is not JSON ({error})", rest=True)


def _json_lines(stream: BinaryIO, like: str) -> Iterator[Row | Skip]:
    for row in count(1):
        line = stream.readline(LINE_BYTES + 1)
        if not line:
            return
        if len(line) > LINE_BYTES:
            if b"\0" in line:  # of a sparse file, there may be a terabyte of it
                yield Skip("binary", why_binary(b""), rest=True)
                return
            while line and not line.endswith(b"\n"):
                line = stream.readline(PIECE_BYTES)
            yield Skip(f"line over {LINE_BYTES // 2**20} MiB")
            continue
        if row == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line and not line.isspace():
            yield _json_line(line, f"line {row}", like)


def _json_line(line: bytes, where: str, like: str) -> Row | Skip:
    try:
        return _row(json.loads(line.decode()), where, like)
    except UnicodeDecodeError:
        return Skip("not UTF-8", f"{where} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Skip("not JSON", f"{where} is not JSON ({error}): give one object a line, like {like}")


def _row(value: Any, where: str, like: str) -> Row | Skip:
    if not isinstance(value, dict):
        return Skip("row is not an object", f"{where} is not an object like {like}")
    return Row(where, value)


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(file: BinaryIO, columns: Sequence[str] | None) -> Iterator[Row | Skip]:
    import pyarrow as pa  # here, because only Parquet needs it
    import pyarrow.parquet as pq

    try:
        # Buffered and without read-ahead, else pyarrow keeps whole row groups in memory.
        with pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
            names, number = table.schema_arrow.names, count(1)
            if missing := [name for name in columns or () if name not in names]:
                yield no_field(missing[0], "it has the columns", names, rest=True)
                return
            selected = None if columns is None else list(columns)
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=selected, use_threads=False):
                for fields in _dicts(batch):
                    where = f"row {next(number)}"
                    yield fields if isinstance(fields, Skip) else Row(where, fields)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Skip("damaged Parquet", f"{first_line(error)}; write or fetch it again", rest=True)


def _dicts(batch: Any) -> Iterator[dict[str, Any] | Skip]:
    """Rows of a record batch. Parquet does not check that its strings are UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for at in range(batch.num_rows):
        try:
            yield batch.slice(at, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield Skip("not UTF-8", "a value is not UTF-8")
