# SPDX-License-Identifier: Apache-2.0
"""How a generated text is scored: 1 for right, 0 for wrong, or a share between."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from foundling.errors import ConfigError, DataError
from foundling.limits import shown

Score = Callable[[dict[str, Any], str, str], float]
"""(the item, what is right, the generated text) -> score. DataError for an item without the fields that it needs."""


class Scorer(NamedTuple):
    metric: str
    make: Callable[[Path | None], Score]
    """of the task's folder"""
    packages: tuple[str, ...] = ()
    """whose files decide as well"""
    reads_item: bool = False
    """it needs fields of the item: an empty text is scored once for each, before anything is asked"""


def scorer(name: str) -> Scorer:
    """ConfigError for a name that is none of SCORES."""
    if name not in SCORES:
        raise ConfigError(f"score {name!r} is unknown; use {', '.join(SCORES)}")
    return SCORES[name]


def inside(folder: Path, name: str) -> Path:
    """A file in the folder of a task, or below it. DataError for another path: a task may be somebody else's."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{shown(name)} lies outside the task's folder; put the file beside the task")
    return path


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space (SQuAD's evaluation, Rajpurkar et al. 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _exact(folder: Path | None) -> Score:
    return lambda item, right, text: float(text.strip() == right.strip())


def _normalised(folder: Path | None) -> Score:
    return lambda item, right, text: float(normalised(text) == normalised(right))


def _contains(folder: Path | None) -> Score:
    return lambda item, right, text: float(bool(right.strip()) and normalised(right) in normalised(text))


def _f1(folder: Path | None) -> Score:
    """Of words, as in SQuAD."""

    def score(item: dict[str, Any], right: str, text: str) -> float:
        expected, words = normalised(right).split(), normalised(text).split()
        if not expected or not words:
            return float(expected == words)
        same = sum((Counter(expected) & Counter(words)).values())
        return 2 * same / (len(expected) + len(words))

    return score


def _maths(folder: Path | None) -> Score:
    """The final answer, equal by value (verify/maths.py)."""
    from foundling.verify.final_answers import final_answer
    from foundling.verify.maths import equal

    def score(item: dict[str, Any], right: str, text: str) -> float:
        expected, answer = final_answer(right), final_answer(text)
        return float(answer is not None and equal(answer, right if expected is None else expected))

    return score


def _code(folder: Path | None) -> Score:
    """The tests of HumanEval's or MBPP's fields of the item pass in the sandbox (verify/code.py)."""
    from foundling.verify import code

    def score(item: dict[str, Any], right: str, text: str) -> float:
        task = code.parse_task(item, str(item["id"]), f"item {item['id']!r}")
        return float(code.check(task, text).passed)

    return score


def _sql(folder: Path | None) -> Score:
    """The query answers as the right one does, on the item's `database`, a file beside the task (verify/sql.py)."""
    from foundling.verify import sql

    @functools.cache
    def rows(query: str, database: Path) -> sql.Rows:
        return sql.execute(database, query)

    def score(item: dict[str, Any], right: str, text: str) -> float:
        name = str(item["id"])
        task = sql.parse_task({**item, "query": right}, name, f"item {name!r}")
        if not isinstance(item.get("database"), str):
            raise DataError("expected database, the name of a file beside the task")
        database = sql.require_database(inside(folder or Path(), item["database"]))
        return float(sql.check(task, text, rows(task.query, database), database).passed)

    return score


def _instructions(folder: Path | None) -> Score:
    """Each instruction of IFEval's or IFBench's fields of the item is followed (verify/instructions.py)."""
    from foundling.verify.instructions import check

    def score(item: dict[str, Any], right: str, text: str) -> float:
        prompt, kinds, arguments = (item.get(name) for name in ("prompt", "instruction_id_list", "kwargs"))
        if not (isinstance(prompt, str) and isinstance(kinds, list) and isinstance(arguments, list)):
            raise DataError("expected prompt, instruction_id_list and kwargs, as IFEval has them")
        return float(all(check(text, prompt, kinds, arguments).strict))

    return score


def _json(folder: Path | None) -> Score:
    """The text is JSON, and as the item's `schema` says where it has one (verify/structured.py)."""
    from foundling.verify.structured import json_value, matches_schema

    def score(item: dict[str, Any], right: str, text: str) -> float:
        schema = item.get("schema", True)
        if not isinstance(schema, dict | bool):
            raise DataError(f"schema is {shown(schema)}; expected a JSON Schema")
        verdict = json_value(text)
        return float(verdict.follows and matches_schema(verdict.value, schema).follows)

    return score


_VERIFY = ("foundling.verify", "foundling.text.fences")
SCORES: dict[str, Scorer] = {
    "exact": Scorer("accuracy", _exact),
    "normalised": Scorer("accuracy", _normalised),
    "contains": Scorer("accuracy", _contains),
    "f1": Scorer("F1 of words", _f1),
    "maths": Scorer("accuracy", _maths, _VERIFY),
    "code": Scorer("tests passed", _code, _VERIFY, True),
    "sql": Scorer("execution accuracy", _sql, _VERIFY, True),
    "instructions": Scorer("prompts followed", _instructions, _VERIFY, True),
    "json": Scorer("valid", _json, _VERIFY, True),
}
