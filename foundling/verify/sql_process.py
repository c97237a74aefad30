# SPDX-License-Identifier: Apache-2.0
"""The process in which one query at a time is answered (foundling.runtime.limited). SQLite may read one file there."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

from foundling.errors import QueryError, render

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_NOT_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"}
_MODULE = re.compile(r"\bUSING\s+(?:fts[345]|rtree|rtree_i32)\b", re.IGNORECASE)
_TABLES = 100
"""virtual tables of a database that are loaded"""
_STEPS = 1000
"""instructions of SQLite's machine between two looks at the clock"""
_FAILED = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError)


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """{"columns", "rows"}, {"late": message} where time is over; QueryError where there is no answer."""
    end = time.monotonic() + order["timeout"]
    try:
        connection = _connect(order, end)
        try:
            return _read(connection, order)
        finally:
            connection.close()
    except MemoryError:
        raise QueryError(_too_much(order)) from None
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return {"late": f"the query takes over {order['timeout']:g} s"}
        raise QueryError(_refused(error)) from None
    except _FAILED as error:
        raise QueryError(_refused(error)) from None


def read_schema(order: dict[str, Any]) -> dict[str, dict[str, str]]:
    """{table or view: {column: declared type}}, without virtual tables, what they keep, and SQLite's own."""
    try:
        connection = _connect(order, time.monotonic() + order["timeout"], guarded=False)
        try:
            listed = connection.execute("PRAGMA main.table_list").fetchall()
            names = [
                row[1] for row in listed if row[2] in ("table", "view") and not row[1].lower().startswith("sqlite_")
            ]
            schema = dict[str, dict[str, str]]()
            for name in sorted(names):
                # a view whose tables are gone has no columns; `hidden` 1 is a column of a virtual table
                with contextlib.suppress(sqlite3.OperationalError):
                    quoted = name.replace('"', '""')
                    rows = connection.execute(f'PRAGMA main.table_xinfo("{quoted}")').fetchall()
                    schema[name] = {row[1]: row[2] or "" for row in rows if row[6] != 1}
            return {name: columns for name, columns in schema.items() if columns}
        finally:
            connection.close()
    except (MemoryError, *_FAILED) as error:
        raise QueryError(_too_much(order) if isinstance(error, MemoryError) else _refused(error)) from None


def _too_much(order: dict[str, Any]) -> str:
    return f"the query takes over {order['memory']:,} bytes of memory"


def _refused(error: BaseException) -> str:
    line = render.message(str(error) or type(error).__name__, limit=300)
    forbidden = any(word in line for word in ("prohibited", "not authorized", "authorization denied"))
    return f"the query may read and nothing else: {line}" if forbidden else line


def _connect(order: dict[str, Any], end: float, guarded: bool = True) -> sqlite3.Connection:
    """Read-only and immutable, so that neither a journal nor a lock is written beside the file; everything temporary in
    memory, and that bounded."""
    connection = sqlite3.connect(f"{Path(order['database']).as_uri()}?mode=ro&immutable=1", uri=True)
    connection.isolation_level = None
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    for setting in ("query_only=1", "trusted_schema=0", "cell_size_check=1", "temp_store=2", "mmap_size=0", "threads=0",
                    f"hard_heap_limit={order['memory']}"):  # fmt: skip
        connection.execute(f"PRAGMA {setting}").fetchall()
    for name, value in {
        "LENGTH": order["max_bytes"], "SQL_LENGTH": 1 << 20, "COLUMN": 2000, "EXPR_DEPTH": 500, "COMPOUND_SELECT": 100,
        "VDBE_OP": 1 << 20, "FUNCTION_ARG": 100, "ATTACHED": 0, "LIKE_PATTERN_LENGTH": 1000, "TRIGGER_DEPTH": 1,
        "WORKER_THREADS": 0,
    }.items():  # fmt: skip
        connection.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), value)
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    _load_virtual_tables(connection)
    if guarded:
        connection.set_authorizer(_authorize)
    return connection


def _load_virtual_tables(connection: sqlite3.Connection) -> None:
    """A virtual table declares its columns as CREATE TABLE when it is first read, which the authorizer refuses: those
    that only read are loaded before there is one. The others (dbstat, pragma_…) stay refused."""
    tables = ["json_each", "json_tree"]
    with contextlib.suppress(*_FAILED):  # a damaged database: the query says so
        select = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%'"
        tables += [name for name, sql in connection.execute(select).fetchmany(_TABLES) if _MODULE.search(sql)]
    for name in tables:
        with contextlib.suppress(*_FAILED):
            connection.execute('SELECT * FROM "{}" LIMIT 1'.format(name.replace('"', '""'))).fetchall()


def _authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action == sqlite3.SQLITE_PRAGMA:  # what FTS5 asks itself whether the file has changed
        return sqlite3.SQLITE_OK if first == "data_version" and second is None else sqlite3.SQLITE_DENY
    allowed = action in _ALLOWED and not (
        action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _NOT_FUNCTIONS
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def _read(connection: sqlite3.Connection, order: dict[str, Any]) -> dict[str, Any]:
    cursor = connection.execute(order["query"])
    if cursor.description is None:
        raise QueryError("there is no query; expected one SELECT")
    rows, size = list[list[Any]](), 0
    for row in cursor:
        if len(rows) == order["max_rows"]:
            raise QueryError(f"the answer has over {order['max_rows']:,} rows")
        # eight bytes for a number
        size += sum(len(value.encode("utf-8", "replace")) if isinstance(value, str) else
                    len(value) if isinstance(value, bytes) else 8 for value in row)  # fmt: skip
        if size > order["max_bytes"]:
            raise QueryError(f"the answer has over {order['max_bytes']:,} bytes")
        rows.append([{"blob": value.hex()} if isinstance(value, bytes) else value for value in row])
    return {"columns": [column[0] for column in cursor.description], "rows": rows}
