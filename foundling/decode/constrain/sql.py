# SPDX-License-Identifier: Apache-2.0
"""A grammar of SELECT statements over the tables and columns of one SQLite database.

White space and case have one form, so that what the schema fixes is forced: keywords in capitals, one space,
identifiers as the schema spells them. Every scope, a table or a pair of joined tables, has rules of its own, so that a
column is only written where a table of its own FROM clause has it.

Not enforced: that columns beside an aggregate are grouped (SQLite does not ask for it), that a subquery compared with
a value has one row (SQLite takes the first), that a query is quick, and that its arithmetic does not overflow.
Not in the grammar: aliases, joins of more than two tables or of a table with itself, correlated subqueries, UNION,
WITH, window functions, CASE, CAST, and functions but for the aggregates and LENGTH.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import NamedTuple

from foundling.decode.constrain.constraint import Constraint, grammar, quote
from foundling.errors import GenerationError
from foundling.limits import PATTERN_CHARS, SQL_COLUMNS, SQL_TABLES, shown

Schema = Mapping[str, Mapping[str, str]]
"""table -> {column: declared type, "" for none}"""
MAX_JOINED = 6
"""tables up to which every pair has rules of its own; of more, none are joined"""
ITEMS, CONDITIONS, VALUES, OPERATIONS = 8, 4, 10, 2
"""how many at most: selected columns and columns of GROUP BY and ORDER BY · conditions of a WHERE or HAVING, those in
parentheses apart · values of an IN · operations of an arithmetic expression, parentheses apart"""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYWORDS = """
abort action add after all alter always analyze and as asc attach autoincrement before begin between by cascade
case cast check collate column commit conflict constraint create cross current current_date current_time
current_timestamp database default deferrable deferred delete desc detach distinct do drop each else end escape except
exclude exclusive exists explain fail false filter first following for foreign from full generated glob group groups
having if ignore immediate in index indexed initially inner insert instead intersect into is isnull join key last left
like limit match materialized natural no not nothing notnull null nulls of offset on or order others outer over
partition plan pragma preceding primary query raise range recursive references regexp reindex release rename replace
restrict returning right rollback row rows savepoint select set table temp temporary then ties to transaction trigger
true unbounded union unique update using vacuum values view virtual when where window with within without
"""
"""of SQLite, true and false among them (https://sqlite.org/lang_keywords.html)"""
_COMMON = rf"""
CMP: " = " | " <> " | " < " | " <= " | " > " | " >= "
OP: " + " | " - " | " * " | " / "
NUMBER: /-?(0|[1-9][0-9]{{0,11}})(\.[0-9]{{1,6}})?/
TEXT_VALUE: /'([^'\x00-\x1f\x7f]|''){{0,80}}'/
COUNTED: /[1-9][0-9]{{0,3}}/
numbers: NUMBER (", " NUMBER){{0,{VALUES - 1}}}
texts: TEXT_VALUE (", " TEXT_VALUE){{0,{VALUES - 1}}}
limit: " LIMIT " COUNTED (" OFFSET " COUNTED)?
AND_OR: " AND " | " OR "
IS_NULL: " IS NULL" | " IS NOT NULL"
LIKE: " LIKE " | " NOT LIKE "
IN: " IN (" | " NOT IN ("
BETWEEN: " BETWEEN " | " NOT BETWEEN "
DIRECTION: " ASC" | " DESC"
"""


class Scope(NamedTuple):
    """What a FROM clause gives: the names of its columns by what they hold. A column whose type says nothing of its
    values, such as a date's, is in both."""

    tables: tuple[str, ...]
    source: str
    """the FROM clause as a rule's right side"""
    numbers: list[str]
    texts: list[str]


def sql_select(schema: Schema) -> Constraint:
    """One SELECT of SQLite over these tables and views (`read_schema` of verify/sql.py): DISTINCT, aggregates,
    arithmetic, WHERE with AND, OR, NOT, comparisons, LIKE, IN, BETWEEN, IS NULL, subqueries of one table, a join of two
    tables on two of their columns, GROUP BY, HAVING, ORDER BY, LIMIT. It can write nothing. GenerationError for a
    schema without tables, with a name that no text can hold, or that is too large."""
    _check(schema)
    scopes = [_single(table, columns) for table, columns in schema.items()]
    n_tables = len(scopes)
    if n_tables <= MAX_JOINED:
        pairs = [_pair(a, b, schema) for a, b in itertools.combinations(schema, 2)]
        scopes += [pair for pair in pairs if pair]
    rules = [f'start: ({" | ".join(f"query_{i}" for i in range(len(scopes)))}) ";"?', _COMMON]
    for i, scope in enumerate(scopes):
        rules += _rules(i, scope)
    rules += _subqueries(scopes[:n_tables])
    text = "\n".join([*rules, ""])
    if len(text) > PATTERN_CHARS.high:
        raise GenerationError(
            f"the grammar of {n_tables} tables has {len(text):,} characters; allowed are {PATTERN_CHARS.high:,}: give "
            "only the tables and columns that queries need"
        )
    return grammar(text)


def identifier(name: str) -> str:
    """As SQLite reads it: in double quotes where it is no plain word, or a keyword."""
    if _PLAIN.fullmatch(name) and name.lower() not in _KEYWORDS.split():
        return name
    return '"' + name.replace('"', '""') + '"'


def _check(schema: Schema) -> None:
    if not isinstance(schema, Mapping) or not schema or not all(isinstance(c, Mapping) and c for c in schema.values()):
        raise GenerationError(
            f"the schema is {shown(schema)}; expected {{table: {{column: type}}}}, at least one of each"
        )
    SQL_TABLES.check(len(schema), "the number of tables", GenerationError)
    SQL_COLUMNS.check(sum(map(len, schema.values())), "the number of columns", GenerationError)
    for name in itertools.chain(schema, *schema.values()):
        if not isinstance(name, str) or not name or any(ord(character) < 32 for character in name):
            raise GenerationError(
                f"the name {shown(name)} of a table or column is empty, not a text, or has a control character"
            )
        quote(name)  # refuses half of a surrogate pair


def _affinity(declared: str) -> str:
    """ "number", "text" or "any", by SQLite's rules for column affinity (datatype3, section 3.1). Its NUMERIC, the
    affinity of what matches no rule, is "any" unless the type says that it is a number: DATE has it, of texts."""
    name = declared.upper()
    if "INT" in name:
        return "number"
    if any(part in name for part in ("CHAR", "CLOB", "TEXT")):
        return "text"
    return "number" if any(part in name for part in ("REAL", "FLOA", "DOUB", "NUM", "DEC")) else "any"


def _single(table: str, columns: Mapping[str, str]) -> Scope:
    kinds = {identifier(column): _affinity(declared) for column, declared in columns.items()}
    return Scope((table,), quote(identifier(table)), _of_kind(kinds, "number"), _of_kind(kinds, "text"))


def _pair(a: str, b: str, schema: Schema) -> Scope | None:
    """Columns by their own name where only one of the tables has it, and all by table and name. None where no two
    columns hold the same kind of value, by which the tables could be joined."""
    kinds, names = dict[str, str](), [column.lower() for table in (a, b) for column in schema[table]]
    sides = {a: dict[str, str](), b: dict[str, str]()}
    for table, side in sides.items():
        for column, declared in schema[table].items():
            if names.count(column.lower()) == 1:
                kinds[identifier(column)] = _affinity(declared)
            side[f"{identifier(table)}.{identifier(column)}"] = _affinity(declared)
    kinds |= sides[a] | sides[b]
    on = list[str]()
    for kind in ("number", "text"):
        left, right = _names(_of_kind(sides[a], kind)), _names(_of_kind(sides[b], kind))
        if left and right:
            on += [f'({left}) " = " ({right})', f'({right}) " = " ({left})']
    if not on:
        return None
    join, first, second = '(" JOIN " | " LEFT JOIN ")', quote(identifier(a)), quote(identifier(b))
    source = f'({first} {join} {second} | {second} {join} {first}) " ON " ({" | ".join(on)})'
    return Scope((a, b), source, _of_kind(kinds, "number"), _of_kind(kinds, "text"))


def _of_kind(kinds: Mapping[str, str], kind: str) -> list[str]:
    return [name for name, holds in kinds.items() if holds in (kind, "any")]


def _names(names: list[str]) -> str:
    return " | ".join(map(quote, names))


def _rules(i: int, scope: Scope) -> list[str]:
    """The rules of the statement over one scope, and of its conditions; the names of those without subqueries end in
    `_plain`."""
    every = list(dict.fromkeys([*scope.numbers, *scope.texts]))
    more = f"{{0,{ITEMS - 1}}}"
    rules = [
        f"query_{i}: " + f'"SELECT " "DISTINCT "? items_{i} " FROM " {scope.source} (" WHERE " where_{i})? '
        f"(group_{i} order_groups_{i}? | order_{i})? limit?",
        f"COLUMN_{i}: {_names(every)}",
        f'items_{i}: "*" | item_{i} (", " item_{i}){more}',
        f"item_{i}: value_{i}" + (f' | TEXT_{i} | ("MIN(" | "MAX(") TEXT_{i} ")"' if scope.texts else ""),
        *([f"TEXT_{i}: {_names(scope.texts)}"] if scope.texts else []),
        *([f"NUMBER_{i}: {_names(scope.numbers)}"] if scope.numbers else []),
        *_numeric(i, scope),
        f'group_{i}: " GROUP BY " COLUMN_{i} (", " COLUMN_{i}){more} (" HAVING " having_{i} (AND_OR having_{i}){{0,'
        f"{CONDITIONS - 1}}})?",
        f'having_{i}: aggregate_{i} CMP (NUMBER | aggregate_{i}) | aggregate_{i} BETWEEN NUMBER " AND " NUMBER',
        f'order_{i}: " ORDER BY " ordered_{i} (", " ordered_{i}){more}',
        f"ordered_{i}: (COLUMN_{i}{f' | NUMBER_{i} OP part_{i}' if scope.numbers else ''}) DIRECTION?",
        # without a GROUP BY, SQLite takes an aggregate here only where one is selected
        f'order_groups_{i}: " ORDER BY " (ordered_{i} | aggregate_{i} DIRECTION?) (", " (ordered_{i} | aggregate_{i} '
        f"DIRECTION?)){more}",
        *_conditions(i, scope, ""), *_conditions(i, scope, "_plain"),
    ]  # fmt: skip
    return rules


def _numeric(i: int, scope: Scope) -> list[str]:
    """Numbers of a row (`term`, `sum`), of a group (`aggregate`), and of either (`value`, for what is selected)."""
    column = f"NUMBER_{i} | " if scope.numbers else ""
    length = f' | "LENGTH(" TEXT_{i} ")"' if scope.texts else ""
    rules = [
        f"term_{i}: {column}NUMBER{length}",
        f"sum_{i}: part_{i} (OP part_{i}){{0,{OPERATIONS}}}",
        f'part_{i}: term_{i} | "(" term_{i} OP term_{i} ")"',
        f'aggregate_{i}: "COUNT(" ("*" | "DISTINCT "? COLUMN_{i}) ")" | ("AVG(" | "SUM(" | "MIN(" | "MAX(") '
        f'"DISTINCT "? sum_{i} ")"',
        f"value_{i}: factor_{i} (OP factor_{i}){{0,{OPERATIONS}}}",
        f'factor_{i}: atom_{i} | "(" atom_{i} OP atom_{i} ")"',
        f"atom_{i}: term_{i} | aggregate_{i}",
    ]
    return rules


def _conditions(i: int, scope: Scope, level: str) -> list[str]:
    """`where`: conditions joined by AND and OR, and once in parentheses. `level`: "" with subqueries, or "_plain"."""
    tests = [f"COLUMN_{i} IS_NULL"]
    with_subqueries = level == ""
    tests += [
        f"sum_{i} CMP (sum_{i}{' | one_number' if with_subqueries else ''})",
        f'sum_{i} BETWEEN sum_{i} " AND " sum_{i}',
    ]
    if scope.numbers:
        tests.append(f'NUMBER_{i} IN (numbers{" | some_numbers" if with_subqueries else ""}) ")"')
    if scope.texts:
        tests += [
            f"TEXT_{i} CMP (TEXT_VALUE | TEXT_{i}{' | one_text' if with_subqueries else ''})",
            f"TEXT_{i} LIKE TEXT_VALUE",
            f'TEXT_{i} BETWEEN TEXT_VALUE " AND " TEXT_VALUE',
            f'TEXT_{i} IN (texts{" | some_texts" if with_subqueries else ""}) ")"',
        ]
    more = f"{{0,{CONDITIONS - 1}}}"
    rules = [f"test{level}_{i}: " + " | ".join(tests)]
    if with_subqueries:
        rules += [
            f"where_{i}: condition_{i} (AND_OR condition_{i}){more}",
            f'condition_{i}: test_{i} | "NOT "? "(" inner_{i} ")"',
            f"inner_{i}: test_{i} (AND_OR test_{i}){more}",
        ]
    else:
        rules.append(f"where_plain_{i}: test_plain_{i} (AND_OR test_plain_{i}){more}")
    return rules


def _subqueries(scopes: list[Scope]) -> list[str]:
    """The rules of subqueries: of one table each, without subqueries of their own."""

    def each(begin: str, tables: list[int], end: str = "") -> str:
        return " | ".join(
            f'"SELECT " {begin}_{i} " FROM " {scopes[i].source} (" WHERE " where_plain_{i})?{end.replace("@", str(i))}'
            for i in tables
        )

    first = ' (" ORDER BY " ordered_@)? " LIMIT 1"'
    with_numbers = [i for i, scope in enumerate(scopes) if scope.numbers]
    with_texts = [i for i, scope in enumerate(scopes) if scope.texts]
    rules = [
        f'one_number: "(" (only_number{" | first_number" if with_numbers else ""}) ")"',
        "only_number: " + each("aggregate", [*range(len(scopes))]),
    ]
    if with_numbers:
        rules += [
            "first_number: " + each("NUMBER", with_numbers, first),
            "some_numbers: " + each("NUMBER", with_numbers),
        ]
    if with_texts:
        rules += [
            'one_text: "(" first_text ")"',
            "first_text: " + each("TEXT", with_texts, first), "some_texts: " + each("TEXT", with_texts),
        ]  # fmt: skip
    return rules
