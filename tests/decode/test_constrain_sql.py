# SPDX-License-Identifier: Apache-2.0
"""Queries that are constrained to a database: whatever a model samples executes, and all that is needed can be said."""

import hashlib
import json
import sqlite3
from pathlib import Path

import pytest

import foundling
from benchmarks.movies_questions import TEMPLATES, Pick, Values
from foundling.decode.constrain.constrainer import Constrainer
from foundling.decode.constrain.sql import identifier, sql_select
from foundling.decode.engine.engine import Engine, EngineOptions
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.errors import DataError, GenerationError, QueryError
from foundling.text import Tokenizer
from foundling.verify.sql import execute, read_schema
from foundling.verify.structured import matches_constraint
from tests.contract.cases import case
from tests.e2e.tools import foundling as command
from tests.text.kinds import tokenizer

SCRIPT = """
CREATE TABLE film (id INTEGER PRIMARY KEY, title VARCHAR(80), year INT, score REAL, released DATE, data BLOB, any);
CREATE TABLE "order" ("select" TEXT, "a b" NUMERIC, [say "hi"] FLOAT, film INTEGER, Naïve TEXT, title TEXT,
                      doubled INTEGER GENERATED ALWAYS AS (film * 2));
CREATE TABLE "1st" (only_text TEXT);
CREATE VIEW recent AS SELECT id, title FROM film WHERE year > 2000;
CREATE VIEW broken AS SELECT missing FROM film;
CREATE INDEX by_year ON film (year);
INSERT INTO film VALUES (1, 'Ann''s Film', 1999, 7.5, '1999-01-02', x'00ff', 3), (2, NULL, 2003, NULL, NULL, NULL, 'x');
INSERT INTO "order" VALUES ('x', 1, 2.5, 1, 'ü', 'Ann''s Film'), ('%', NULL, -1, 7, NULL, '');
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "films.db"
    connection = sqlite3.connect(path)
    connection.executescript(SCRIPT)
    connection.close()
    return path


# ----------------------------------------------------------------------------------------------- what a model may write


_FIRST = {b"'", *(bytes([byte]) for byte in b"ABDGHILNOW;")}


def sampled_queries(database: Path, n: int, n_tokens: int) -> list[str]:
    """Of a random model, at temperature 1, that ended by themselves. The ends of texts are likelier than the model has
    them, and where the queries may be long, so are keywords."""
    words = tokenizer("gpt2")
    model = case("llama").tiny(vocab_size=words.vocab_size, max_seq_len=n_tokens + 8)
    processor = Constrainer(words, words.vocab_size, [words.eos]).processor(sql_select(read_schema(database)))
    keywords = 2.0 if n_tokens > 200 else 0.0
    bias = {i: 3.0 if text == b"'" else keywords for i, text in enumerate(words.spellings()) if text in _FIRST}
    engine, queries = Engine(model, EngineOptions(native=False)), list[str]()
    for seed in range(0, 10 * n, 32):
        completions = engine.generate([
            Request([5, 6, 7], n_tokens, Sampling(1.0, logit_bias=bias), seed=seed + k, stop=[words.eos],
                    decode=words.decode, processors=[processor])
            for k in range(min(32, n + 4))
        ])  # fmt: skip
        assert {each.finish_reason for each in completions} <= {"end", "length"}, completions
        queries += [each.text or "" for each in completions if each.finish_reason == "end"]
        if len(queries) >= n:
            return queries
    raise AssertionError(f"only {len(queries)} of {10 * n} queries end within {n_tokens} tokens")


def check_execute(database: Path, queries: list[str]) -> None:
    before = hashlib.sha256(database.read_bytes()).digest()
    for query in queries:
        try:
            execute(database, query)
        except QueryError as error:
            # what depends on the rows, and not on the query's form and names
            assert str(error) == "integer overflow", f"{query!r}: {error}"
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert len(set(queries)) > len(queries) / 2


def test_what_a_random_model_samples_executes(database: Path) -> None:
    check_execute(database, sampled_queries(database, 20, 120))


@pytest.mark.slow
def test_two_hundred_samples_execute_and_use_all_that_there_is(database: Path) -> None:
    queries = sampled_queries(database, 200, 400)
    check_execute(database, queries)
    text = "\n".join(queries)
    clauses = ["WHERE", "JOIN", "GROUP", "ORDER", "LIMIT", "DISTINCT", "NOT", "BETWEEN", "IN", "AND", "OR"]
    assert [clause for clause in clauses if f"{clause} " not in text] == []
    assert all(name in text for name in ("film", '"order"', '"1st"', "recent", "doubled", '"say ""hi"""'))


def test_what_a_query_needs_can_be_said(database: Path) -> None:
    constraint = sql_select(read_schema(database))
    for query in (
        "SELECT * FROM film",
        "SELECT DISTINCT title, year FROM film WHERE NOT (year < 2000 OR score IS NULL) AND title LIKE '%''s %';",
        "SELECT COUNT(*), AVG(score), MIN(title), SUM(DISTINCT year) FROM film WHERE year BETWEEN 1990 AND 2000",
        "SELECT year, COUNT(*) FROM film GROUP BY year HAVING COUNT(*) > 1 OR AVG(score) BETWEEN 1 AND 2 ORDER BY "
        "COUNT(*) DESC, year LIMIT 5 OFFSET 1",
        "SELECT 100.0 * (score + 1) / year FROM film WHERE released >= '1999-01-01' AND released < 5",
        "SELECT title FROM film WHERE score > (SELECT AVG(score) FROM film WHERE year = 1999)",
        "SELECT title FROM film WHERE score = (SELECT score FROM film ORDER BY score DESC LIMIT 1)",
        'SELECT title FROM film WHERE id IN (SELECT film FROM "order" WHERE "a b" IS NOT NULL) AND year IN (1999, 3)',
        "SELECT title FROM film WHERE title NOT IN ('a', 'b') AND title = (SELECT title FROM recent LIMIT 1)",
        'SELECT film.title, "select" FROM film JOIN "order" ON film.id = "order".film WHERE year > 1990',
        'SELECT "order"."say ""hi""" FROM "order" LEFT JOIN film ON film.title = "order".title ORDER BY year ASC',
        'SELECT "Naïve" FROM "order" WHERE LENGTH("Naïve") = 1 ORDER BY film / doubled',
        'SELECT only_text FROM "1st"',
    ):
        verdict = matches_constraint(query, constraint)
        assert verdict, f"{query}: {verdict.reason}"
        execute(database, query)


def test_what_is_not_of_the_database_cannot_be_said(database: Path) -> None:
    constraint = sql_select(read_schema(database))
    for query in (
        "SELECT name FROM film", "SELECT title FROM films", 'SELECT "select" FROM film', "SELECT year FROM recent",
        "SELECT id FROM film WHERE film = 1", "SELECT rowid FROM film", "SELECT * FROM sqlite_master",
        'SELECT title FROM film JOIN "order" ON film.id = "order".film',  # of which table?
        'SELECT only_text FROM film JOIN "order" ON film.id = "order".film', "SELECT missing FROM broken",
        "SELECT title FROM film WHERE id IN (SELECT only_text FROM recent)",
        # refused by SQLite, or not only reading
        "SELECT title FROM film WHERE COUNT(*) > 1", "SELECT title FROM film HAVING COUNT(*) > 1",
        "SELECT title FROM film ORDER BY 9", "SELECT id FROM film; SELECT id FROM film", "SELECT id FROM film -- x",
        "DELETE FROM film", "PRAGMA table_info(film)", "ATTACH 'x' AS y", "SELECT load_extension('x') FROM film",
        "SELECT title FROM film WHERE title = 'a", "", "SELECT", "SELECT year FROM film WHERE year LIKE '1%'",
    ):  # fmt: skip
        assert not matches_constraint(query, constraint), query


def test_the_queries_of_the_benchmark_can_be_said() -> None:
    """Of movies.db, whose columns these are."""
    omdb = {
        "ID": "INTEGER", "Title": "TEXT", "Year": "INTEGER", "Rating": "TEXT", "Runtime": "REAL", "Genre": "TEXT",
        "Director": "TEXT", "Metacritic": "INTEGER", "Cast": "TEXT",
    }  # fmt: skip
    tomatoes = {"ID": "INTEGER", "Rating": "REAL", **dict.fromkeys(["Meter", "Reviews", "Fresh", "Rotten"], "INTEGER")}
    constraint = sql_select({"omdb": omdb, "tomatoes": tomatoes | {"BoxOffice": "REAL"}})
    values = Values(["Ocean's Eleven"], ["Joel Coen"], [1999], ["Sci-Fi"], ["USA"])
    for template, fill in TEMPLATES.items():
        query = fill(Pick(values, template, 0))[1]
        verdict = matches_constraint(query, constraint)
        assert verdict, f"{query}: {verdict.reason}"


# ------------------------------------------------------------------------------------------------------------- schemas


def test_sqlite_reads_each_identifier_as_the_column() -> None:
    """Also of what is no keyword here and might be one there: SQLite itself says."""
    plain = ["year", "Year", "_x1", "count", "avg", "rowid", "true", "window", "key", "offset", "a"]
    odd = ["a b", "1a", 'q"q', '"', "'", "é", "x.y", "a-b", "`", "[a]", ";", "--", "/*", "\\", "\U0001f600"]
    keywords = """ABORT ACTION ALL ALWAYS AND AS ASC BEGIN BETWEEN BY CASE CAST CHECK COLLATE COLUMN COMMIT CONSTRAINT
        CREATE CROSS CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DEFAULT DELETE DESC DISTINCT DO DROP ELSE END ESCAPE
        EXCEPT EXISTS FALSE FOR FROM FULL GLOB GROUP HAVING IF IN INDEX INNER INSERT INTERSECT INTO IS ISNULL JOIN
        LEFT LIKE LIMIT MATCH NATURAL NOT NOTNULL NULL ON OR ORDER OUTER OVER PRAGMA PRIMARY REFERENCES REGEXP
        REPLACE RETURNING RIGHT ROW SELECT SET TABLE THEN TO TRANSACTION TRUE UNION UNIQUE UPDATE USING
        VALUES VIEW WHEN WHERE WITH"""
    connection = sqlite3.connect(":memory:")
    for name in [*plain, *odd, *keywords.split()]:
        quoted = '"' + name.replace('"', '""') + '"'
        connection.execute(f"CREATE TABLE {quoted} ({quoted} TEXT)")
        connection.execute(f"INSERT INTO {quoted} VALUES ('the value')")
        rows = connection.execute(f"SELECT {identifier(name)} FROM {identifier(name)}").fetchall()
        assert rows == [("the value",)], name
        connection.execute(f"DROP TABLE {quoted}")
    connection.close()
    assert identifier("year") == "year"


def test_the_schema_of_a_database_is_read(database: Path) -> None:
    schema = read_schema(database)
    assert schema == {
        "1st": {"only_text": "TEXT"},
        "film": {
            "id": "INTEGER", "title": "VARCHAR(80)", "year": "INT", "score": "REAL", "released": "DATE", "data": "BLOB",
            "any": "",
        },
        "order": {
            "select": "TEXT", "a b": "NUMERIC", 'say "hi"': "FLOAT", "film": "INTEGER", "Naïve": "TEXT",
            "title": "TEXT", "doubled": "INTEGER",
        },
        "recent": {"id": "INTEGER", "title": "VARCHAR(80)"},
    }  # fmt: skip


def test_a_file_without_tables_is_refused_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    connection = sqlite3.connect(empty)
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="the database has no tables"):
        read_schema(empty)
    (tmp_path / "text.db").write_text("no database at all")
    with pytest.raises(DataError, match="is no SQLite database"):
        read_schema(tmp_path / "text.db")
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(empty.read_bytes()[:100] + b"\xff" * 4000)
    with pytest.raises((QueryError, DataError)) as raised:
        read_schema(damaged)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, "expected {table: {column: type}}"), ({"t": {}}, "expected {table: {column: type}}"),
        ({"t": {"a\nb": ""}}, "control character"), ({"t": {"": ""}}, "is empty"),
        ({"t": {"\ud800": ""}}, "surrogate"), ({f"t{i}": {"a": ""} for i in range(257)}, "number of tables"),
        ({"t": {f"c{i}": "" for i in range(4097)}}, "number of columns"),
        ({f"t{i}": {f"column_{i}_{j}": "TEXT" for j in range(60)} for i in range(60)}, "the grammar of 60 tables has"),
    ],
    ids=["empty", "no columns", "line break", "no name", "surrogate", "tables", "columns", "grammar"],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(GenerationError, match=message.replace("{", r"\{").replace("}", r"\}")):
        sql_select(schema)


@pytest.mark.parametrize("declared", ["INTEGER", "TEXT", "DATE"])
def test_columns_of_one_kind_are_enough(declared: str) -> None:
    constraint = sql_select({"t": {"a": declared}, "u": {"b": declared}})
    assert matches_constraint("SELECT a FROM t JOIN u ON t.a = u.b WHERE a IS NULL", constraint)
    assert matches_constraint("SELECT LENGTH(a) FROM t", constraint).follows == (declared != "INTEGER")


def test_of_many_tables_none_are_joined() -> None:
    constraint = sql_select({f"t{i}": {f"c{i}": "TEXT"} for i in range(7)})
    assert matches_constraint("SELECT c3 FROM t3 WHERE c3 IN (SELECT c6 FROM t6)", constraint)
    assert not matches_constraint("SELECT c3 FROM t3 JOIN t4 ON t3.c3 = t4.c4", constraint)


# -------------------------------------------------------------------------------------------------------- command line


def test_the_command_answers_with_a_query_of_the_database(database: Path, tmp_path: Path) -> None:
    words: Tokenizer = tokenizer("gpt2")
    model = case("llama").tiny(vocab_size=words.vocab_size, max_seq_len=128)
    foundling.save(model, tmp_path / "model", tokenizer=words)
    done = command(
        "generate", tmp_path / "model", "--prompt", "a", "--sql", database, "--max-tokens", 100, "--n", 4, "--json",
        "--temperature", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    whole = [answer for answer in answers if answer["finish_reason"] == "end"]
    assert whole
    assert all(answer["valid"] and ("rows" in answer) != ("query_error" in answer) for answer in whole)
    assert all(answer["text"].startswith("SELECT ") for answer in answers)
    done = command("generate", tmp_path / "model", "--sql", tmp_path / "none.db")
    assert done.returncode == 2 and "no such file; expected a SQLite database" in done.stderr
