# SPDX-License-Identifier: Apache-2.0
"""The two JSONL files that verifying takes: tasks with their identifiers, and samples that answer them. Both are read
line by line; what is wrong is said with the number of its line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foundling.errors import DataError
from foundling.limits import SAMPLE_BYTES, SAMPLE_LINES, shown


def read_tasks(path: str | Path, required: Sequence[str] = (), key: str = "task_id") -> dict[str, dict[str, Any]]:
    """identifier -> task, in the file's order. DataError for a line that is no JSON object, lacks `key` or one of
    `required`, or repeats an identifier, and for a file without tasks."""
    tasks: dict[str, dict[str, Any]] = {}
    for where, row in read_rows(path):
        name = _identifier(row, key, where)
        for field in required:
            if field not in row:
                raise DataError(f"{where}: the task {shown(name)} lacks the field {field!r}")
        if name in tasks:
            raise DataError(f"{where}: the {key} {shown(name)} occurs twice; give each task its own")
        tasks[name] = row
    if not tasks:
        raise DataError(f"{path}: the file has no tasks")
    return tasks


def read_samples(
    path: str | Path, tasks: Mapping[str, Any], field: str = "completion", key: str = "task_id"
) -> list[dict[str, Any]]:
    """The samples in the file's order; a task may have several. DataError for a line that is no JSON object, names a
    task that `tasks` lacks, or has no text in `field`, and for a file without samples."""
    samples = []
    for where, row in read_rows(path):
        name = _identifier(row, key, where)
        if name not in tasks:
            raise DataError(f"{where}: the {key} {shown(name)} is not in the tasks")
        if not isinstance(row.get(field), str):
            raise DataError(f"{where}: the sample has no text in the field {field!r}")
        samples.append({**row, key: name})
    if not samples:
        raise DataError(f"{path}: the file has no samples")
    return samples


def _identifier(row: dict[str, Any], key: str, where: str) -> str:
    """A text or a whole number, as text."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: the field {key!r} is {shown(value)}; expected a text or a whole number")
    return str(value)


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object)"""
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(SAMPLE_BYTES.high + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > SAMPLE_BYTES.high:
                    raise DataError(f"{where}: the line has over {SAMPLE_BYTES.high:,} bytes")
                SAMPLE_LINES.check(number, f"the lines of {path}", DataError)
                if line.strip():
                    yield where, _object(line, where)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise DataError(f"{where}: the line is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError):
        raise DataError(f"{where}: the JSON is too deep, or has too long a number") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, met {shown(row)}")
    return row
