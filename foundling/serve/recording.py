# SPDX-License-Identifier: Apache-2.0
"""Answers of models behind other APIs on disk, so that the same request is not asked again: one JSON line an answer,
{"key", "request", "answer", "date"}, as evaluate/recorded.py writes those of an evaluation."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundling.errors import DataError
from foundling.limits import MAX_LINE_BYTES
from foundling.runtime.files import cut_torn_line, output_errors

logger = logging.getLogger("foundling.serve")
BEGIN = b'{"key": '


class Recording:
    """May be used by any number of threads, and by several processes, each of which finds what it has written itself
    and what was there when it began. Its owner alone can read the file."""

    def __init__(self, path: Path) -> None:
        """DataError for a file of something else, OutputError for one that cannot be written."""
        self.path, self._lock = path, threading.Lock()
        with output_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._places: dict[str, tuple[int, int]] = {}
        """key -> (offset, length) of its line"""
        with self._alone():
            self._cut()
            self._read()

    def _read(self) -> None:
        end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                try:
                    value = json.loads(line)
                    key, _ = str(value["key"]), value["answer"]["choices"]
                except (ValueError, KeyError, TypeError) as error:
                    message = f"{self.path}, line {number}: no recorded answer ({error}); remove the line"
                    raise DataError(message) from None
                self._places[key] = end, len(line)
                end += len(line)

    def get(self, key: str) -> dict[str, Any] | None:
        """None for what was not recorded, or was damaged since."""
        with self._lock:
            place = self._places.get(key)
        if place is None:
            return None
        try:
            value = json.loads(os.pread(self._file, place[1], place[0]))
            if value["key"] == key:
                return value["answer"]
            problem = "it is of another request"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error)
        logger.error("%s: a recorded answer cannot be read (%s); the API is asked again", self.path, problem)
        with self._lock:
            self._places.pop(key, None)
        return None

    def put(self, key: str, request: Any, answer: dict[str, Any]) -> None:
        """An answer that fits in no line is not recorded. OutputError, and no part of the line, on a full disk."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        line = (json.dumps({"key": key, "request": request, "answer": answer, "date": date}) + "\n").encode()
        if len(line) >= MAX_LINE_BYTES:
            return
        with self._lock, output_errors(self.path), self._alone():
            if key not in self._places:
                self._cut()
                end = os.fstat(self._file).st_size
                try:
                    rest = line
                    while rest:  # a disk that is nearly full takes a part first
                        rest = rest[os.write(self._file, rest) :]
                except BaseException:
                    os.ftruncate(self._file, end)
                    raise
                self._places[key] = end, len(line)

    def _cut(self) -> None:
        """A line without an end, of a process that was killed."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            cut_torn_line(self.path, begin=BEGIN, what="recorded answer", max_bytes=MAX_LINE_BYTES)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes meanwhile; on a file system without locks the operator sees to that."""
        with suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)


def request_key(url: str, path: str, body: dict[str, Any]) -> str:
    """SHA-256 of whom is asked what."""
    return hashlib.sha256(json.dumps([url, path, body], sort_keys=True).encode()).hexdigest()
