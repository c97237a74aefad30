# SPDX-License-Identifier: Apache-2.0
"""Tasks and samples as JSON lines (gzipped where the name ends in .gz), and verdicts that are written as they come: a
verification that was stopped goes on where it was, and a sample that was judged once is not judged again."""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from foundling.errors import BusyError, DataError
from foundling.limits import VERIFY_LINE, VERIFY_LINES, shown
from foundling.runtime.files import cut_torn_line, is_shallow, output_errors

Task = TypeVar("Task")


class Sample(NamedTuple):
    """`line`: of its file, from 1. `text`: what the model wrote."""

    line: int
    task_id: str
    text: str


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty. DataError, with the line, for what is no object."""
    try:
        with _open(path) as file:
            number = 0
            while line := file.readline(VERIFY_LINE.high + 1):
                number += 1
                if len(line) > VERIFY_LINE.high:
                    raise DataError(f"{path}:{number}: the line is longer than {VERIFY_LINE.high:,} bytes")
                if number > VERIFY_LINES.high:
                    raise DataError(f"{path}: has more than {VERIFY_LINES.high:,} lines; split it")
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); expected JSON lines") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged, its gzip stream ends or breaks ({error}); copy it again") from error


def _open(path: Path) -> Any:
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a file; expected JSON lines")
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8")) if is_shallow(line) else None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}); expected one object a line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {shown(value)}; expected one JSON object a line")
    return value


def text_field(record: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of `names` that the object has. DataError where it has none, or no text there."""
    name = next((name for name in names if record.get(name) is not None), None)
    if name is None:
        raise DataError(f"{where}: has no {' or '.join(repr(name) for name in names)}; it has {shown(sorted(record))}")
    if not isinstance(record[name], str):
        raise DataError(f"{where}: {name!r} is {shown(record[name])}; expected text")
    return record[name]


def task_id(record: Mapping[str, Any], where: str, key: str = "task_id") -> str:
    """A text, or a whole number as MBPP has."""
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(record, [key], where)


def read_tasks(path: Path, make: Callable[[dict[str, Any], str, str], Task], key: str = "task_id") -> dict[str, Task]:
    """id → make(object, id, where). DataError for an id that is there twice, and for a file without tasks."""
    tasks, lines = dict[str, Task](), dict[str, int]()
    for number, record in read_lines(path):
        where = f"{path}:{number}"
        name = task_id(record, where, key)
        if name in tasks:
            raise DataError(f"{where}: {key} {shown(name)} is there twice, first in line {lines[name]}; remove one")
        tasks[name], lines[name] = make(record, name, where), number
    if not tasks:
        raise DataError(f"{path}: has no tasks; expected JSON lines with {key!r}")
    return tasks


def read_samples(path: Path, tasks: Mapping[str, object], fields: Sequence[str], key: str = "task_id") -> list[Sample]:
    """The samples, of which a task may have several, equal ones too. DataError for one of an unknown task, for one
    without a text, and for a file without samples."""
    samples = []
    for number, record in read_lines(path):
        where = f"{path}:{number}"
        name = task_id(record, where, key)
        if name not in tasks:
            raise DataError(f"{where}: {key} {shown(name)} is none of the {len(tasks):,} tasks")
        samples.append(Sample(number, name, text_field(record, fields, where)))
    if not samples:
        raise DataError(
            f"{path}: has no samples; expected JSON lines with {key!r} and {' or '.join(map(repr, fields))}"
        )
    return samples


def key_of(*parts: object) -> str:
    """A hash of everything that a verdict depends on: of `parts`, and of the program that judges."""
    text = json.dumps([_verifiers(), *parts], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _verifiers() -> str:
    """A hash of the source of foundling/verify and of what reads fences, so that no verdict outlives the rules that it
    was made by."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in [*sorted((folder / "verify").rglob("*.py")), folder / "text" / "fences.py"]:
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


# --- verdicts --------------------------------------------------------------------------------------------------------


UNSETTLED = ("time", "undecided", "math-verify is not installed")
"""reasons of a verdict that another run may change: a quieter machine, another installation. It is made again then"""


@dataclass
class Verdicts:
    """A file of verdicts: a line for each sample, {"line", "task_id", "key", …}, and another one where its verdict was
    made again; the last one counts. A line is whole or not there."""

    path: Path
    file: IO[bytes]
    by_key: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: set[tuple[int, str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, sample: Sample, key: str, verdict: Mapping[str, Any]) -> None:
        record = {"line": sample.line, "task_id": sample.task_id, "key": key, **verdict}
        with self.lock:
            self.by_key[key] = dict(verdict)
            if (sample.line, key) not in self.lines:
                self.lines.add((sample.line, key))
                with output_errors(self.path):
                    self.file.write(json.dumps(record).encode() + b"\n")
                    self.file.flush()


@contextmanager
def open_verdicts(path: Path) -> Iterator[Verdicts]:
    """The verdicts of earlier runs, and a place for more. What a killed process wrote of a last line is removed.
    BusyError where another process writes there; DataError where the file is something else."""
    with output_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    with open(handle, "r+b", buffering=0) as file:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{path}: another process is writing here; wait for it or choose another --out") from None
        except OSError:  # a file system without locks
            pass
        verdicts = Verdicts(path, file)  # pyright: ignore[reportArgumentType]
        cut_torn_line(path, begin=_BEGIN, what="verdict", max_bytes=VERIFY_LINE.high)
        for number, record in read_lines(path):
            key, line, name = (record.pop(field, None) for field in ("key", "line", "task_id"))
            if not isinstance(key, str) or not isinstance(line, int) or not isinstance(name, str):
                raise DataError(f"{path}:{number}: is no verdict with 'line', 'task_id', 'key'; choose another --out")
            if record.get("reason") not in UNSETTLED:
                verdicts.by_key[key] = record
                verdicts.lines.add((line, key))
        yield verdicts
        with output_errors(path):
            os.fsync(handle)


_BEGIN = b'{"line": '
"""of each line that `Verdicts.add` writes"""


def judge_all(
    samples: Sequence[Sample], keys: Sequence[str], judge: Callable[[Sample], Mapping[str, Any]], verdicts: Verdicts,
    workers: int, on_verdict: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A verdict for each sample, in their order: from the file where its key is there, else judged by `workers`
    threads. Equal samples are judged once. `on_verdict`: (verdicts, samples) after each."""
    of_key = dict[str, list[Sample]]()
    for sample, key in zip(samples, keys, strict=True):
        of_key.setdefault(key, []).append(sample)
    done = 0

    def note(key: str, verdict: Mapping[str, Any]) -> None:
        nonlocal done
        for sample in of_key[key]:
            verdicts.add(sample, key, verdict)
        done += len(of_key[key])
        on_verdict(done, len(samples))

    for key in [key for key in of_key if key in verdicts.by_key]:
        note(key, verdicts.by_key[key])
    todo = iter([key for key in of_key if key not in verdicts.by_key])
    pool, running = ThreadPoolExecutor(workers), dict[Future[Mapping[str, Any]], str]()
    try:
        while True:
            while len(running) < 2 * workers and (key := next(todo, None)) is not None:
                running[pool.submit(judge, of_key[key][0])] = key
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                note(running.pop(future), future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [verdicts.by_key[key] for key in keys]
