# SPDX-License-Identifier: Apache-2.0
"""Is a query right? By execution on a SQLite database that it can only read, in a process whose memory and time are
bounded, and by comparison with the rows of a reference query."""

from __future__ import annotations

import itertools
import math
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from foundling.errors import DataError, QueryError
from foundling.limits import QUERY_BYTES, QUERY_CHARS, QUERY_MEMORY, QUERY_ROWS, check_number, shown
from foundling.runtime.limited import LimitedProcess, LimitError
from foundling.text.fences import fences
from foundling.verify.samples import key_of, text_field

TIMEOUT, MAX_ROWS, MAX_BYTES, MEMORY = 5.0, 100_000, 16 << 20, 256 << 20
RELATIVE = 1e-9
"""how far two numbers may be from each other: sums of floats depend on the order of the rows"""
Value = int | float | str | bytes | None


class SlowQueryError(QueryError):
    """A query that the clock or its budget of processor time ended: on a quieter machine it may have an answer."""


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
    """`reason`: "passed", "wrong" (other rows than the reference's), "time", or "error" (refused, ill-formed, or over
    another limit) with the line of it in `detail`."""

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
        raise SlowQueryError(f"the query was stopped: {error}") from None
    if "late" in answer:
        raise SlowQueryError(answer["late"])
    rows = [tuple(bytes.fromhex(v["blob"]) if isinstance(v, dict) else v for v in row) for row in answer["rows"]]
    return Rows(answer["columns"], rows, time.monotonic() - begun)


def read_schema(database: str | Path, *, timeout: float = TIMEOUT, memory: int = MEMORY) -> dict[str, dict[str, str]]:
    """{table or view: {column: its declared type, "" for none}} of a SQLite database, as decode/constrain/sql.py takes
    it, without virtual tables. DataError for a file that is none, or has no tables; QueryError for one that cannot be
    read."""
    order = {
        "database": str(require_database(Path(database))),
        "timeout": check_number(timeout, "timeout", 0.01, 3600.0), "max_bytes": MAX_BYTES,
        "memory": QUERY_MEMORY.check(memory, "memory"),
    }  # fmt: skip
    process = LimitedProcess(
        "foundling.verify.sql_process:read_schema", memory=2 * memory, seconds=math.ceil(timeout) + 1, answer=MAX_BYTES,
        modules=["foundling.verify.sql_process", "sqlite3"],
    )  # fmt: skip
    try:
        schema = process.call(order)
    except LimitError as error:
        raise SlowQueryError(f"reading the schema was stopped: {error}") from None
    finally:
        process.close()
    if not schema:
        raise DataError(f"{database}: the database has no tables")
    return schema


_own = threading.local()


def _process(memory: int, seconds: int, max_bytes: int) -> LimitedProcess:
    """One for each thread, so that queries run side by side."""
    processes = _own.__dict__.setdefault("processes", {})
    key = (memory, seconds, max_bytes)
    if key not in processes:
        for other in list(processes):  # one at a time: another budget is another evaluation
            processes.pop(other).close()
        processes[key] = LimitedProcess(
            "foundling.verify.sql_process:answer", memory=2 * memory, seconds=seconds + 1,
            # JSON writes a byte of a text with six characters in the worst case, one of a blob with two
            answer=6 * max_bytes + (1 << 20), modules=["foundling.verify.sql_process", "sqlite3"],
        )  # fmt: skip
    return processes[key]


def require_database(path: Path) -> Path:
    """The whole path of a SQLite database. DataError for what is none, and for one whose last changes stand in a file
    beside it, which a connection that writes nothing cannot read."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected a SQLite database")
        with open(path, "rb") as file:
            begin = file.read(16)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if begin != b"SQLite format 3\0":
        raise DataError(f"{path}: is no SQLite database: it begins with {shown(begin)}")
    path = path.resolve()
    if _size(path.with_name(path.name + "-wal")) or _begin(path.with_name(path.name + "-journal")) == _HOT:
        raise DataError(
            f"{path}: has changes in a file beside it, its journal, and would be read without them; close the programs "
            "that use it, or run PRAGMA wal_checkpoint(TRUNCATE) in it"
        )
    return path


_HOT = bytes.fromhex("d9d505f920a163d7")
"""begins a rollback journal that is in use or was left behind (SQLite's file format, section 3)"""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _begin(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(len(_HOT))
    except OSError:
        return b""


# --- comparison ------------------------------------------------------------------------------------------------------


def equal(gold_rows: Sequence[Sequence[Value]], rows: Sequence[Sequence[Value]], ordered: bool) -> bool:
    """Whether two answers are the same: execution accuracy, as Spider (Yu et al. 2018; test suites of Zhong et al.
    2020) and BIRD (Li et al. 2023) mean it. Rows are compared as a multiset, or as a list where `ordered`; names of
    columns do not count, their order does. Numbers are equal by value, 1 and 1.0, whole numbers exactly and floats
    within RELATIVE; a text is no number; NULL equals NULL. (BIRD's script compares sets, which forgives repeated rows;
    Spider's tries other orders of the columns. Neither is done here.)"""
    if len(gold_rows) != len(rows):
        return False
    if ordered:
        return all(map(_same_row, gold_rows, rows))
    left = Counter(map(tuple, gold_rows))
    right = Counter(map(tuple, rows))
    both = left & right
    a, b = list((left - both).elements()), list((right - both).elements())
    groups = _groups(a), _groups(b)
    return groups[0].keys() == groups[1].keys() and all(_match(groups[0][key], groups[1][key]) for key in groups[0])


def _same(a: Value, b: Value) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b or (not (isinstance(a, int) and isinstance(b, int)) and math.isclose(a, b, rel_tol=RELATIVE))
    return type(a) is type(b) and a == b


def _same_row(a: Sequence[Value], b: Sequence[Value]) -> bool:
    return len(a) == len(b) and all(map(_same, a, b))


def _groups(rows: list[tuple[Value, ...]]) -> dict[tuple[Any, ...], list[tuple[Value, ...]]]:
    """Rows by what must be identical: everything but their numbers."""
    groups: dict[tuple[Any, ...], list[tuple[Value, ...]]] = {}
    for row in rows:
        groups.setdefault(tuple(("",) if isinstance(v, int | float) else v for v in row), []).append(row)
    return groups


MAX_TIES = 200
"""rows whose numbers are all near each other, which are matched in every way"""


def _match(a: list[tuple[Value, ...]], b: list[tuple[Value, ...]]) -> bool:
    """Whether the rows of both, which differ by numbers alone, can be paired. Rows are first put into clusters: in each
    column, neighbours in the order of values that are the same to within RELATIVE are in one. Only rows of one cluster
    in every column can be a pair."""
    if len(a) != len(b):
        return False
    columns = [column for column, value in enumerate(a[0]) if isinstance(value, int | float)]
    cluster = {column: _clusters({row[column] for row in [*a, *b]}) for column in columns}

    def clustered(rows: list[tuple[Value, ...]]) -> dict[tuple[int, ...], list[tuple[Value, ...]]]:
        result: dict[tuple[int, ...], list[tuple[Value, ...]]] = {}
        for row in rows:
            result.setdefault(tuple(cluster[column][row[column]] for column in columns), []).append(row)
        return result

    left, right = clustered(a), clustered(b)
    if {key: len(group) for key, group in left.items()} != {key: len(group) for key, group in right.items()}:
        return False
    return all(_pair(group, right[key], columns) for key, group in left.items())


def _clusters(values: set[Any]) -> dict[Any, int]:
    result, previous, n = dict[Any, int](), None, 0
    for value in sorted(values):
        n += previous is not None and not math.isclose(previous, value, rel_tol=RELATIVE)
        result[value], previous = n, value
    return result


def _pair(a: list[tuple[Value, ...]], b: list[tuple[Value, ...]], columns: list[int]) -> bool:
    def numbers(row: tuple[Value, ...]) -> list[Any]:
        return [row[column] for column in columns]

    if all(map(_same_row, sorted(a, key=numbers), sorted(b, key=numbers))):
        return True
    if len(columns) < 2 or len(a) > MAX_TIES:  # of one number, no other pairs can succeed
        return False
    partner = dict[int, int]()

    def find(row: int, tried: set[int]) -> bool:  # an augmenting path (Kuhn 1955)
        for other in range(len(b)):
            if other not in tried and _same_row(a[row], b[other]):
                tried.add(other)
                if other not in partner or find(partner[other], tried):
                    partner[other] = row
                    return True
        return False

    return all(find(row, set()) for row in range(len(a)))


_TOKEN = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|\w+|\S", re.DOTALL
)


def is_ordered(query: str) -> bool:
    """Whether the outermost SELECT has an ORDER BY: those of subqueries do not order the answer."""
    depth, words = 0, list[str]()
    for token in _TOKEN.findall(query):
        if token.startswith(("--", "/*")):
            continue
        depth += (token == "(") - (token == ")")
        if depth == 0:
            words.append(token.upper())
    return any(pair == ("ORDER", "BY") for pair in itertools.pairwise(words))


# --- tasks -----------------------------------------------------------------------------------------------------------

_BEGIN = re.compile(
    r"\b(?:SELECT|WITH(?:\s+RECURSIVE)?\s+[\w\"`\[\]]+\s*(?:\([^)]*\))?\s+AS\b|VALUES\s*\()", re.IGNORECASE
)


_COMMENTS = re.compile(r"(?:\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*+", re.DOTALL)
_THOUGHTS_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)


def extract_query(text: str) -> str:
    """The query in what a model wrote, what it thinks up to `</think>` left out: the first fenced block that is SQL or
    of no language, or begins with SELECT, WITH or VALUES; else from one of these words on, best at the beginning of a
    line, or behind a colon where it is in capitals or "SQL" or "query" stands before the colon, then behind a backtick,
    then in capitals; never from one that goes on with a query begun before it. It ends at its semicolon, at that
    backtick, or at an empty line. Without any of these, the text itself."""
    text = _THOUGHTS_END.split(text)[-1]
    for fence in fences(text):
        begin = _COMMENTS.match(fence.body)
        if fence.language in ("", "sql", "sqlite") or (begin and _BEGIN.match(fence.body, begin.end())):
            return _first_statement(fence.body)
    matches = list(_BEGIN.finditer(text))
    if not matches:
        return text.strip()
    inner = _inner(text, [match.start() for match in matches])
    begin = min((match for match in matches if match.start() not in inner), key=lambda match: _rank(text, match))
    rest = re.split(r"\n[ \t]*\n", text[begin.start() :], maxsplit=1)[0]
    if text[: begin.start()].endswith("`") and not text[: begin.start()].endswith("``"):
        rest = rest.split("`", 1)[0]
    return _first_statement(rest)


_LABEL = re.compile(r"\w[*_]*:[*_]*\s*$")
_SQL_LABEL = re.compile(r"(?:\bSQL|\bquery)[*_]*:[*_]*\s*$", re.IGNORECASE)


def _rank(text: str, match: re.Match[str]) -> int:
    """0 for the likeliest beginning of a query. "Select the films with:" is prose."""
    at = match.start()
    before = text[max(0, at - 200) : at].rpartition("\n")[2]  # enough for a label, and bounded: a text may have many
    end = text.find("\n", at) % (len(text) + 1)  # -1: the end of the text
    labelled = _LABEL.search(before) if match[0][:4].isupper() else _SQL_LABEL.search(before)
    if (labelled or not before.strip()) and not text[max(at, end - 200) : end].rstrip().endswith(":"):
        return 0
    return 1 if before.endswith("`") else 2 if match[0][:4].isupper() else 3


def _inner(text: str, begins: list[int]) -> set[int]:
    """Those of `begins` that go on with a query begun before them: a subquery, the other side of a UNION, the SELECT
    behind the tables of a WITH. A semicolon, an empty line, or a colon at the end of a line ends a query."""
    result, starts, depth, inside, tables = set[int](), set(begins), 0, False, False
    end, before = begins[0], ["", ""]
    for token in _TOKEN.finditer(text, begins[0]):
        if token[0].startswith(("--", "/*")):
            continue
        gap, end = text[end : token.start()], token.end()
        if re.search(r"\n[ \t]*\n", gap) or before[1] == ";" or (before[1] == ":" and "\n" in gap):
            depth, inside, tables = 0, False, False
        if token.start() in starts:
            united = before[1] in _UNITES or (before[0] in _UNITES and before[1] in ("ALL", "DISTINCT"))
            behind_tables = tables and depth == 0 and before[1] == ")"
            if inside and (depth or united or behind_tables):
                result.add(token.start())
            else:
                inside = True
            tables = (tables and not behind_tables) or (depth == 0 and token[0].upper() == "WITH")
        depth = max(0, depth + (token[0] == "(") - (token[0] == ")")) if inside else 0
        before = [before[1], token[0].upper()]
    return result


_UNITES = ("UNION", "EXCEPT", "INTERSECT")


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
        reason = "time" if isinstance(error, SlowQueryError) else "error"
        return SqlResult(task.task_id, False, reason, str(error)[:300], round(time.monotonic() - begun, 3))
    passed = equal(gold.rows, answer.rows, is_ordered(task.query))
    detail = "" if passed else f"{len(answer.rows):,} rows, the reference has {len(gold.rows):,}"
    return SqlResult(task.task_id, passed, "passed" if passed else "wrong", detail, round(answer.seconds, 3))


def sample_key(task: SqlTask, completion: str, database: str | Path, **limits: Any) -> str:
    """Of everything that a verdict depends on; a database counts by its path, size and time of change."""
    about = Path(database).stat()
    version = sqlite3.sqlite_version
    return key_of("sql", version, task.query, completion, str(database), about.st_size, about.st_mtime_ns, limits)
