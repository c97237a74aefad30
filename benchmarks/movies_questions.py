# SPDX-License-Identifier: Apache-2.0
"""Questions about the films of movies.db (PyPI bokeh-sampledata), each with a query and its answer, from templates:
tasks for `foundling verify sql`.

python -m benchmarks.movies_questions OUT.jsonl                every question; field `split` is "test" for a fifth
python -m benchmarks.movies_questions OUT.jsonl --split test
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fetch import fetch
from foundling.verify import sql

EACH = 20
"""questions of a template"""
MAX_ANSWER = 30
"""rows of an answer"""
SCHEMA = (
    "omdb(ID, imdbID, Title, Year, Rating, Runtime, Genre, Released, Director, Writer, Cast, Metacritic, imdbRating, "
    "imdbVotes, Language, Country, Awards, lastUpdated, Oscars), tomatoes(ID, Image, Rating, Meter, Reviews, Fresh, "
    "Rotten, "
    "Consensus, userMeter, userRating, userReviews, DVD, BoxOffice, Production, Website, lastUpdated); omdb.ID = "
    "tomatoes.ID"
)


class Values(NamedTuple):
    """What the templates are filled with, from the database, sorted."""

    titles: list[str]
    directors: list[str]
    years: list[int]
    genres: list[str]
    countries: list[str]


def database() -> Path:
    return fetch("bokeh-sampledata") / "bokeh_sampledata" / "_data" / "movies.db"


def read_values(path: Path) -> Values:
    """Titles that one film has, directors of several films, years with many films, single genres and countries."""
    with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True) as connection:

        def column(query: str) -> list[Any]:
            return [row[0] for row in connection.execute(query)]

        titles = column(
            "SELECT Title FROM omdb JOIN tomatoes USING (ID) WHERE Director <> '' AND Reviews >= 20 AND Meter IS "
            "NOT NULL "
            "AND Runtime IS NOT NULL AND Title IN (SELECT Title FROM omdb GROUP BY Title HAVING COUNT(*) = 1) ORDER "
            "BY 1"
        )
        directors = column(
            "SELECT Director FROM omdb JOIN tomatoes USING (ID) WHERE Director <> '' AND Director NOT LIKE '%,%' "
            "AND Runtime IS NOT NULL "
            "AND BoxOffice IS NOT NULL AND Meter IS NOT NULL GROUP BY Director HAVING COUNT(*) >= 5 ORDER BY 1"
        )
        years = column(
            "SELECT Year FROM omdb WHERE Year IS NOT NULL GROUP BY Year HAVING COUNT(Metacritic) > 20 ORDER BY 1"
        )
        genres = column(
            "SELECT Genre FROM omdb WHERE Genre NOT LIKE '%,%' AND Genre <> '' GROUP BY Genre HAVING COUNT(*) > 40 "
            "ORDER BY 1"
        )
        countries = column(
            "SELECT Country FROM omdb WHERE Country NOT LIKE '%,%' AND Country <> '' GROUP BY Country HAVING "
            "COUNT(*) > 40 ORDER BY 1"
        )
    return Values(titles, directors, years, genres, countries)


class Pick:
    """Values for the n-th question of a template: a hash chooses, so that no two templates ask about the same."""

    def __init__(self, values: Values, template: str, n: int) -> None:
        self.values, self.seed = values, f"{template} {n}"

    def number(self, what: str, count: int) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {what}".encode()).digest()[:8], "big") % count

    def of(self, name: str) -> Any:
        options = getattr(self.values, name)
        return options[self.number(name, len(options))]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


Template = Callable[[Pick], tuple[str, str]]


def _title(question: str, query: str) -> Template:
    def fill(pick: Pick) -> tuple[str, str]:
        title = pick.of("titles")
        return question.format(title=title), query.replace("{title}", quoted(title))

    return fill


def _director(question: str, query: str) -> Template:
    def fill(pick: Pick) -> tuple[str, str]:
        director = pick.of("directors")
        return question.format(director=director), query.replace("{director}", quoted(director))

    return fill


def _year(question: str, query: str) -> Template:
    def fill(pick: Pick) -> tuple[str, str]:
        numbers = {
            "year": pick.of("years"),
            "reviews": 10 * (1 + pick.number("reviews", 6)),
            "low": 70 + 5 * pick.number("low", 5),
        }
        numbers |= {
            "high": numbers["low"] + 20,
            "later": numbers["year"] + 3,
            "letter": "ABCDFGHLMST"[pick.number("letter", 11)],
        }
        text = re.sub(r"\{(\w+)\}", lambda found: str(numbers[found[1]]), query)
        return question.format(**numbers), text

    return fill


def _genre(question: str, query: str) -> Template:
    def fill(pick: Pick) -> tuple[str, str]:
        genre, year = pick.of("genres"), pick.of("years")
        return question.format(genre=genre, year=year), query.replace("{genre}", genre.replace("'", "''")).replace(
            "{year}", str(year)
        )

    return fill


JOINED = "omdb JOIN tomatoes ON omdb.ID = tomatoes.ID"
TEMPLATES: dict[str, Template] = {
    "lookup": _title('In which year was the film "{title}" released?', "SELECT Year FROM omdb WHERE Title = {title}"),
    "lookup two": _title(
        'Who directed "{title}", and how many minutes does it take?',
        "SELECT Director, Runtime FROM omdb WHERE Title = {title}",
    ),
    "join": _title(
        'What is the Tomatometer (Meter) of the film "{title}"?', f"SELECT Meter FROM {JOINED} WHERE Title = {{title}}"
    ),
    "arithmetic": _title(
        'What percentage of the reviews of "{title}" is fresh?',
        f"SELECT 100.0 * Fresh / Reviews FROM {JOINED} WHERE Title = {{title}}",
    ),
    "average": _director(
        "How many minutes do the films directed by {director} alone take on average?",
        "SELECT AVG(Runtime) FROM omdb WHERE Director = {director}",
    ),
    "join and sum": _director(
        "What is the total box office of the films directed by {director} alone?",
        f"SELECT SUM(BoxOffice) FROM {JOINED} WHERE Director = {{director}}",
    ),
    "list": _director(
        "List the titles of the films directed by {director} alone that have a Metacritic score.",
        "SELECT Title FROM omdb WHERE Director = {director} AND Metacritic IS NOT NULL",
    ),
    "join and filter": _director(
        "Which films directed by {director} alone have a Tomatometer (Meter) of at least 60?",
        f"SELECT Title FROM {JOINED} WHERE Director = {{director}} AND Meter >= 60",
    ),
    "span": _director(
        "What are the first and the last year of the films directed by {director} alone?",
        "SELECT MIN(Year), MAX(Year) FROM omdb WHERE Director = {director}",
    ),
    "nested": _director(
        "How many films directed by {director} alone take longer than the average of all films?",
        "SELECT COUNT(*) FROM omdb WHERE Director = {director} AND Runtime > (SELECT AVG(Runtime) FROM omdb)",
    ),
    "count": _year("How many films are from the year {year}?", "SELECT COUNT(*) FROM omdb WHERE Year = {year}"),
    "maximum": _year(
        "What is the highest Metacritic score among the films of {year} that take at most {high} minutes?",
        "SELECT MAX(Metacritic) FROM omdb WHERE Year = {year} AND Runtime <= {high}",
    ),
    "minimum": _year(
        "How many minutes does the shortest film of {year} with at least {reviews} reviews take?",
        f"SELECT MIN(Runtime) FROM {JOINED} WHERE Year = {{year}} AND Reviews >= {{reviews}}",
    ),
    "distinct": _year(
        "How many different directors (values of Director) do the films of {year} have?",
        "SELECT COUNT(DISTINCT Director) FROM omdb WHERE Year = {year} AND Director <> ''",
    ),
    "between": _year(
        "How many films of {year} take between {low} and {high} minutes, both included?",
        "SELECT COUNT(*) FROM omdb WHERE Year = {year} AND Runtime BETWEEN {low} AND {high}",
    ),
    "like": _year(
        "How many films of {year} have a title that begins with {letter}?",
        "SELECT COUNT(*) FROM omdb WHERE Year = {year} AND Title LIKE '{letter}%'",
    ),
    "missing": _year(
        "How many films of {year} have no Metacritic score?",
        "SELECT COUNT(*) FROM omdb WHERE Year = {year} AND Metacritic IS NULL",
    ),
    "group": _year(
        "How many films of {year} are there for each rating (Rating of omdb) that is not empty?",
        "SELECT Rating, COUNT(*) FROM omdb WHERE Year = {year} AND Rating <> '' GROUP BY Rating",
    ),
    "order and limit": _year(
        "Which five films of {year} have the most reviews? Give the titles, most reviews first, ties by title.",
        f"SELECT Title FROM {JOINED} WHERE Year = {{year}} ORDER BY Reviews DESC, Title LIMIT 5",
    ),
    "having": _year(
        "Which directors (values of Director that are not empty) have at least 4 films from {year} to {later}? Give "
        "each with the count.",
        "SELECT Director, COUNT(*) FROM omdb WHERE Year BETWEEN {year} AND {later} AND Director <> '' GROUP BY "
        "Director "
        "HAVING COUNT(*) >= 4",
    ),
    "pattern": _genre(
        "How many films of {year} have {genre} among their genres?",
        "SELECT COUNT(*) FROM omdb WHERE Year = {year} AND Genre LIKE '%{genre}%'",
    ),
    "group and join": _genre(
        "What is the average Tomatometer (Meter) of the films of {year} that have {genre} among their genres?",
        f"SELECT AVG(Meter) FROM {JOINED} WHERE Year = {{year}} AND Genre LIKE '%{{genre}}%'",
    ),
}


def is_telling(rows: list[tuple[Any, ...]]) -> bool:
    """Not empty, not only NULL and zeros, and short enough to be looked at."""
    return 0 < len(rows) <= MAX_ANSWER and any(value not in (None, 0, "") for row in rows for value in row)


def questions(path: Path) -> Iterator[dict[str, Any]]:
    """EACH of every template, where there are as many; the same ones every time."""
    values = read_values(path)
    for template, fill in TEMPLATES.items():
        seen = set[str]()
        for n in range(20 * EACH):
            question, query = fill(Pick(values, template, n))
            if len(seen) == EACH or question in seen:
                continue
            rows = sql.execute(path, query).rows
            if is_telling(rows):
                seen.add(question)
                task_id = f"movies/{template.replace(' ', '-')}/{len(seen)}"
                digest = hashlib.sha256(question.encode()).digest()
                yield {
                    "task_id": task_id, "template": template, "question": question, "query": query, "answer": rows,
                    "ordered": sql.is_ordered(query), "split": "train" if digest[0] % 5 else "test",
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=("train", "test"))
    args = parser.parse_args()
    tasks = [task for task in questions(database()) if args.split in (None, task["split"])]
    args.out.write_text("".join(json.dumps(task, ensure_ascii=False) + "\n" for task in tasks), encoding="utf-8")
    print(
        f"{args.out}: {len(tasks)} questions from {len({task['template'] for task in tasks})} templates on {database()}"
    )


if __name__ == "__main__":
    main()
