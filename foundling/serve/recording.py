# SPDX-License-Identifier: Apache-2.0
"""Answers of models behind other APIs on disk, so that the same request is not asked again: one JSON line an answer,
{"key", "request", "answer", "date"}, as evaluate/recorded.py writes those of an evaluation."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foundling.errors import DataError
from foundling.limits import MAX_LINE_BYTES
from foundling.runtime.files import cut_torn_line, output_errors


class Recording:
    """May be used by any number of threads of one process. Its owner alone can read the file."""

    def __init__(self, path: Path) -> None:
        """DataError for a file of something else, OutputError for one that cannot be written."""
        self.path, self._lock = path, threading.Lock()
        with output_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        cut_torn_line(path, begin=b'{"key": ', what="recorded answer", max_bytes=MAX_LINE_BYTES)
        self._places: dict[str, tuple[int, int]] = {}
        """key -> (offset, length) of its line"""
        self._end = 0
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                try:
                    value = json.loads(line)
                    key, _ = str(value["key"]), value["answer"]["choices"]
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{path}, line {number}: no recorded answer ({error}); remove the line") from None
                self._places[key] = self._end, len(line)
                self._end += len(line)

    def get(self, key: str) -> dict[str, Any] | None:
        with self._lock:
            place = self._places.get(key)
        if place is None:
            return None
        return json.loads(os.pread(self._file, place[1], place[0]))["answer"]

    def put(self, key: str, request: Any, answer: dict[str, Any]) -> None:
        """An answer that fits in no line is not recorded."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        line = (json.dumps({"key": key, "request": request, "answer": answer, "date": date}) + "\n").encode()
        if len(line) >= MAX_LINE_BYTES:
            return
        with self._lock, output_errors(self.path):
            if key not in self._places:
                os.write(self._file, line)
                self._places[key] = self._end, len(line)
                self._end += len(line)

    def close(self) -> None:
        with self._lock:
            os.close(self._file)


def request_key(url: str, path: str, body: dict[str, Any]) -> str:
    """SHA-256 of whom is asked what."""
    return hashlib.sha256(json.dumps([url, path, body], sort_keys=True).encode()).hexdigest()
