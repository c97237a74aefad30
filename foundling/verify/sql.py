# SPDX-License-Identifier: Apache-2.0
"""Is a query right? By execution on a SQLite database that it can only read, in a process whose memory and time are
bounded, and by comparison with the rows of a reference query."""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foundling.errors import DataError, QueryError
from foundling.limits import QUERY_BYTES, QUERY_CHARS, QUERY_MEMORY, QUERY_ROWS, check_number, shown
from foundling.runtime.limited import LimitedProcess, LimitError
from foundling.verify.samples import key_of, text_field

TIMEOUT, MAX_ROWS, MAX_BYTES, MEMORY = 5.0, 100_000, 16 << 20, 256 << 20
RELATIVE = 1e-9
"""how far two numbers may be from each other: sums of floats depend on the order of the rows"""
Value = int | float | str | bytes | None


class Rows(NamedTuple):
    """The answer to a query. `seconds`: of wall-clock time."""

    columns: list[str]
    rows: list[tuple[Value, ...]]
    seconds: float


@dataclass(frozen=True)
class SqlTask:
    """`query`: the reference. `database`: a file, "" where the caller has one for all tasks."""

    task_id: str
    question: str
    query: str
    database: str = ""


@dataclass(frozen=True)
class SqlResult:
    """`reason`: "passed", "wrong" (other rows than the reference's), or "error" (refused, ill-formed, or over a limit)
    with the line of it in `detail`."""

    task_id: str
    passed: bool
    reason: str
    detail: str
    seconds: float


def execute(
    database: str | Path, query: str, *, timeout: float = TIMEOUT, max_rows: int = MAX_ROWS, max_bytes: int = MAX_BYTES,
    memory: int = MEMORY,
) -> Rows:  # fmt: skip
    """The rows of one query that only reads. `timeout` in seconds; `max_bytes` of the answer, and of any value on the
    way; `memory` in bytes. Any thread may call. QueryError for what the query is refused or fails for, in one line;
    DataError for a file that is no SQLite database."""
    order = {
        "database": str(require_database(Path(database))), "query": query,
        "timeout": check_number(timeout, "timeout", 0.01, 3600.0), "max_rows": QUERY_ROWS.check(max_rows, "max_rows"),
        "max_bytes": QUERY_BYTES.check(max_bytes, "max_bytes"), "memory": QUERY_MEMORY.check(memory, "memory"),
    }  # fmt: skip
    QUERY_CHARS.check(max(1, len(query)), "the length of the query", QueryError)
    begun = time.monotonic()
    try:
        answer = _process(memory, math.ceil(timeout), max_bytes).call(order)
    except LimitError as error:
        raise QueryError(f"the query was stopped: {error}") from None
    rows = [tuple(bytes.fromhex(v["blob"]) if isinstance(v, dict) else v for v in row) for row in answer["rows"]]
    return Rows(answer["columns"], rows, time.monotonic() - begun)


_own = threading.local()


def _process(memory: int, seconds: int, max_bytes: int) -> LimitedProcess:
    """One for each thread, so that queries run side by side."""
    kept = _own.__dict__.setdefault("processes", {})
    key = (memory, seconds, max_bytes)
    if key not in kept:
        for other in list(kept):  # one at a time: another budget is another evaluation
            kept.pop(other).close()
        kept[key] = LimitedProcess(
            "foundling.verify.sql_process:answer", memory=2 * memory, seconds=seconds + 1,
            # JSON writes a byte of a text with six characters in the worst case, one of a blob with two
            answer=6 * max_bytes + (1 << 20), modules=["foundling.verify.sql_process", "sqlite3"],
        )  # fmt: skip
    return kept[key]


def require_database(path: Path) -> Path:
    """The whole path of a SQLite database. DataError for what is none."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected a SQLite database")
        with open(path, "rb") as file:
            begin = file.read(16)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if begin != b"SQLite format 3\0":
        raise DataError(f"{path}: is no SQLite database: it begins with {shown(begin)}")
    return path.resolve()


# --- comparison ------------------------------------------------------------------------------------------------------


def equal(gold_rows: Sequence[Sequence[Value]], rows: Sequence[Sequence[Value]], ordered: bool) -> bool:
    """Whether two answers are the same: execution accuracy, as Spider (Yu et al. 2018; test suites of Zhong et al.
    2020) and BIRD (Li et al. 2023) mean it. Rows are compared as a multiset, or as a list where `ordered`; names of
    columns do not count, their order does. Numbers are equal by value, 1 and 1.0 and floats within RELATIVE; a text is
    no number; NULL equals NULL. (BIRD's script compares sets, which forgives repeated rows; Spider's tries other orders
    of the columns. Neither is done here.)"""
    if len(gold_rows) != len(rows):
        return False
    pairs = zip(gold_rows, rows) if ordered else zip(sorted(gold_rows, key=_order), sorted(rows, key=_order))
    return all(len(a) == len(b) and all(map(_same, a, b)) for a, b in pairs)


def _same(a: Value, b: Value) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or math.isclose(a, b, rel_tol=RELATIVE)
    return type(a) is type(b) and a == b


def _order(row: Sequence[Value]) -> list[tuple[int, Any]]:
    """Sorts equal rows alike: numbers come by their first digits."""
    return [
        (0, 0) if value is None
        else (1, float(f"{value:.6g}")) if isinstance(value, int | float)
        else (2, value) if isinstance(value, str) else (3, value)
        for value in row
    ]  # fmt: skip


_TOKEN = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|\w+|\S", re.DOTALL
)


def is_ordered(query: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY: those of subqueries do not order the answer."""
    depth, words = 0, list[str]()
    for token in _TOKEN.findall(query):
        depth += (token == "(") - (token == ")")
        if depth == 0:
            words.append(token.upper())
    return any(pair == ("ORDER", "BY") for pair in itertools.pairwise(words))


# --- tasks -----------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_BEGIN = re.compile(
    r"\b(?:SELECT|WITH(?:\s+RECURSIVE)?\s+[\w\"`\[\]]+\s*(?:\([^)]*\))?\s+AS\b|VALUES\s*\()", re.IGNORECASE
)


def extract_query(text: str) -> str:
    """The query in what a model wrote: the first fenced block that is SQL or of no language; else from the first
    SELECT, WITH or VALUES. It ends at its semicolon, or at an empty line. Without any of these, the text itself."""
    block = next(
        (body for _, language, body in _FENCE.findall(text) if language.lower() in ("", "sql", "sqlite")), None
    )
    if block is not None:
        return _first_statement(block)
    begin = _BEGIN.search(text)
    if begin is None:
        return text.strip()
    return _first_statement(re.split(r"\n[ \t]*\n", text[begin.start() :], maxsplit=1)[0])


def _first_statement(text: str) -> str:
    for token in _TOKEN.finditer(text):
        if token[0] == ";" and text[: token.start()].strip():
            return text[: token.start()].strip()
    return text.strip()


def parse_task(record: dict[str, Any], task_id: str, where: str) -> SqlTask:
    """A line of a task file: question, query, and database where tasks have several."""
    database = record.get("database") or ""
    if not isinstance(database, str):
        raise DataError(f"{where}: 'database' is {shown(database)}; expected a path")
    question = record.get("question") or ""
    return SqlTask(task_id, str(question), text_field(record, ["query"], where), database)


def check(task: SqlTask, completion: str, gold: Rows, database: str | Path, **limits: Any) -> SqlResult:
    """Compares the answer to the query in `completion` with the rows of the reference. `limits`: as of `execute`."""
    begun = time.monotonic()
    try:
        answer = execute(database, extract_query(completion), **limits)
    except QueryError as error:
        return SqlResult(task.task_id, False, "error", str(error)[:300], round(time.monotonic() - begun, 3))
    passed = equal(gold.rows, answer.rows, is_ordered(task.query))
    detail = "" if passed else f"{len(answer.rows):,} rows, the reference has {len(gold.rows):,}"
    return SqlResult(task.task_id, passed, "passed" if passed else "wrong", detail, round(answer.seconds, 3))


def sample_key(task: SqlTask, completion: str, database: str | Path, **limits: Any) -> str:
    """Of everything that a verdict depends on; a database counts by its path, size and time of change."""
    about = Path(database).stat()
    return key_of("sql", task.query, completion, str(database), about.st_size, about.st_mtime_ns, limits)
