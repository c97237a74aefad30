# SPDX-License-Identifier: Apache-2.0
"""What all readers of texts and rows share: files opened with limits, and `Skip` for what was not read."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

PIECE_BYTES = 8 * 2**20
LINE_BYTES = 64 * 2**20
# Text compresses 3 to 20 times, gzip at most 1,032 times: a ratio in between marks a decompression bomb.
GUNZIP_RATIO = 200
GUNZIP_FREE_BYTES = 64 * 2**20
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Skip:
    """A row or file that was not read. `reason` is counted, `detail` explains it; `rest`: reading of the file stops."""

    reason: str
    detail: str = ""
    rest: bool = False


class Row(NamedTuple):
    where: str
    """"line 3", "element 3" or "row 3", from 1"""
    fields: dict[str, Any]

    @property
    def label(self) -> str:
        return "#" + self.where.rpartition(" ")[2]


def suffix(path: Path) -> str:
    """In lower case, without .gz"""
    return Path(path.name.lower().removesuffix(".gz")).suffix


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


def open_counted(path: Path, on_read: Callable[[int], object]) -> io.BufferedReader:
    return io.BufferedReader(_CountedFile(path, on_read))


def unpacked(path: Path, file: Any) -> Any:
    """The content of a file, which is gzip if its name ends so."""
    is_gzip = path.suffix.lower() == ".gz"
    return io.BufferedReader(_Gunzip(file, path.stat().st_size)) if is_gzip else file


def begins_array(stream: io.BufferedReader) -> bool:
    return stream.peek(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


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


def no_field(field: str, have: str, names: list[str], rest: bool = False) -> Skip:
    detail = f"{have} {shown_names(names)}: choose the one that holds the text with --field"
    return Skip(f"no field {field!r}", detail, rest)


def shown_names(names: Sequence[str]) -> str:
    """As messages list them, in one line of bounded length."""
    shown = ", ".join(repr(str(name)[:60]) for name in names[:_NAMES_SHOWN])
    return (shown + (", …" if len(names) > _NAMES_SHOWN else "")) or "(none)"


def why_binary(start: bytes) -> str:
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it looks like UTF-16: convert it with iconv -f UTF-16 -t UTF-8"
    return "it contains NUL bytes, so it is not text: give UTF-8 text, .jsonl or .parquet"


def first_line(error: BaseException) -> str:
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (message.splitlines() or [type(error).__name__])[0]
