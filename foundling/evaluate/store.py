# SPDX-License-Identifier: Apache-2.0
"""The directory of an evaluation.

    evaluation.json      the EvaluationRecord without items; format_version; SHA-256 of each file of items
    items/NAME.jsonl     the items of one task, one JSON object a line
    answers.jsonl        every answer of the model (evaluate/recorded.py), by which an evaluation resumes and replays
    index.html           for a reader

A score stands once, with its item; a result without items has its scores in evaluation.json. A number that is none
(a log-probability of −∞) is null.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from foundling.contracts.records import EvaluationRecord, Item
from foundling.errors import DataError, WeightsError, render
from foundling.limits import EVALUATION_ITEMS, ITEMS_BYTES, MAX_LINE_BYTES
from foundling.report.evaluation import evaluation_html
from foundling.runtime.files import output_errors, read_json, sha256, write_bytes, write_json

FORMAT_VERSION = 1
RECORD, ITEMS, ANSWERS, PAGE = "evaluation.json", "items", "answers.jsonl", "index.html"
_NAME = re.compile(r"items/[a-z0-9][a-z0-9._-]{0,99}\.jsonl")
_AGAIN = "run foundling evaluate again with the same --out (answers that are recorded there are not asked for again)"


def write_evaluation(record: EvaluationRecord, directory: str | Path, *, page: bool = True) -> Path:
    """Writes evaluation.json, items and, with `page`, index.html; each file whole or not at all, evaluation.json last.
    An evaluation that is there already is replaced; answers.jsonl stays. Returns the directory. OutputError where it
    cannot be written."""
    directory = Path(directory)
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / RECORD).unlink(missing_ok=True)  # it would not fit the items that follow
        names = _names(record)
        for old in directory.glob(f"{ITEMS}/*.jsonl"):
            if f"{ITEMS}/{old.name}" not in names.values():
                old.unlink()
        files = dict[str, dict[str, Any]]()
        for task, name in names.items():
            lines = [json.dumps(_finite(item), ensure_ascii=False, allow_nan=False) for item in record.items[task]]
            write_bytes(directory / name, "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))
            files[name] = {"task": task, "n": len(lines), "sha256": sha256(directory / name)}
        if page:
            write_bytes(directory / PAGE, evaluation_html(record).encode())
        results = [
            replace(result, scores=[]) if scores_of(record.items.get(result.task)) == result.scores else result
            for result in record.results
        ]
        about = asdict(replace(record, items={}, results=results))
        del about["items"]
        write_json(directory / RECORD, _finite({"format_version": FORMAT_VERSION, **about, "files": files}))
    return directory


def read_evaluation(directory: str | Path) -> EvaluationRecord:
    """The record with its items, each file compared with its hash. `directory` may name evaluation.json itself.

    DataError for a directory without an evaluation, damaged or missing files, more than a machine should read, and an
    evaluation of a newer version."""
    directory = Path(directory)
    directory = directory.parent if directory.name == RECORD else directory
    values = _read_record(directory)
    files = values.pop("files", None)
    if not isinstance(files, dict):
        raise DataError(f"{directory / RECORD}: damaged, no list of files; {_AGAIN}")
    items = dict[str, list[Item]]()
    for name, about in files.items():
        if not _NAME.fullmatch(name) or not isinstance(about, dict) or not isinstance(about.get("task"), str):
            raise DataError(
                f"{directory / RECORD}: damaged, {render.message(repr(name))} names no file of items; {_AGAIN}"
            )
        items[about["task"]] = list(_read_items(directory / name, about))
    try:
        record = EvaluationRecord.from_dict({**values, "items": items})
        _check(record)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise DataError(f"{directory / RECORD}: damaged ({error}); {_AGAIN}") from None
    results = [replace(r, scores=r.scores or scores_of(items.get(r.task)) or []) for r in record.results]
    results = [replace(r, scores=[math.nan if score is None else score for score in r.scores]) for r in results]
    return replace(record, results=results)


def scores_of(items: list[Item] | None) -> list[float] | None:
    """Of each item; None where there are no items."""
    return [item["score"] for item in items] if items else None


def _read_record(directory: Path) -> dict[str, Any]:
    if not (directory / RECORD).is_file():
        what = f"no {RECORD}" if directory.is_dir() else "no such directory"
        raise DataError(f"{directory}: {what}; name the directory that foundling evaluate --out wrote")
    try:
        values = read_json(directory / RECORD)
    except WeightsError as error:
        raise DataError(f"{error}; {_AGAIN}") from None
    version = values.pop("format_version", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DataError(f"{directory / RECORD}: damaged, no format_version; {_AGAIN}")
    if version > FORMAT_VERSION:
        raise DataError(
            f"{directory}: format_version {version} is newer than {FORMAT_VERSION}; upgrade foundling to read it"
        )
    return values


def _read_items(path: Path, about: dict[str, Any]) -> Iterator[Item]:
    try:
        size = path.stat().st_size
        if size > ITEMS_BYTES.high:
            raise DataError(f"{path}: {size:,} bytes; at most {ITEMS_BYTES.high:,} are read; evaluate fewer items")
        digest = sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None
    if digest != about.get("sha256"):
        wrong = f"sha256 {digest[:12]}…, expected {str(about.get('sha256'))[:12]}…"
        raise DataError(f"{path}: damaged or edited ({wrong}); {_AGAIN}")
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if number > EVALUATION_ITEMS.high:
                raise DataError(f"{path}: more than {EVALUATION_ITEMS.high:,} items; evaluate fewer")
            try:
                yield _item(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: no item of an evaluation ({error}); {_AGAIN}") from None


def _item(value: Any) -> Item:
    texts: dict[str, Any] = {key: value[key] for key in ("id", "prompt", "target", "answer")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("id, prompt, target and answer are texts")
    item = Item(**texts, score=_number(value["score"], math.nan))
    if "choices" in value:
        item["choices"] = [(str(text), _number(logprob, -math.inf)) for text, logprob in value["choices"]]
    if "cut" in value:
        item["cut"] = bool(value["cut"])
    return item


def _number(value: Any, absent: float) -> float:
    if value is None:
        return absent
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a score or a log-probability is no number")
    return float(value)


def _check(record: EvaluationRecord) -> None:
    """TypeError for what a reader of the record could not show or compare."""
    fields: list[tuple[Any, Any, str]] = [
        (record.subject, str, "subject"), (record.created, str, "created"), (record.command, str, "command"),
        (record.settings, dict, "settings"), (record.machine, dict, "machine"), (record.about, dict, "about"),
        (record.notes, list, "notes"),
    ]  # fmt: skip
    for r in record.results:
        fields += [(r.task, str, "task"), (r.metric, str, "metric"), (r.n, int, "n"), (r.scores, list, "scores"),
                   (r.hashes, dict, "hashes"), (r.figures, dict, "figures"), (r.cost, dict, "cost"),
                   (r.weights, list, "weights"), (r.subject, str, "subject")]  # fmt: skip
        fields += [(number, int | float | None, "a figure") for number in (r.value, r.low, r.high)]
        fields += [(number, int | float, "a score") for number in (*r.weights, *r.cost.values())]
        fields += [(number, int | float | None, "a score") for number in r.scores]
        fields += [(text, str, "a hash") for text in r.hashes.values()]
        fields += [(figure, list | tuple, "a figure") for figure in r.figures.values()]
        fields += [(number, int | float | None, "a figure") for figure in r.figures.values() for number in figure]
    for value, kind, name in fields:
        if not isinstance(value, kind):
            raise TypeError(f"{name} is {type(value).__name__}")


def _names(record: EvaluationRecord) -> dict[str, str]:
    """task -> its file, by a name that every file system takes"""
    names, taken = dict[str, str](), set[str]()
    for task in record.items:
        plain = re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:60] or "task"
        name = next(n for n in _candidates(plain) if n not in taken)
        taken.add(name)
        names[task] = f"{ITEMS}/{name}.jsonl"
    return names


def _candidates(plain: str) -> Iterator[str]:
    yield plain
    yield from (f"{plain}-{n}" for n in range(2, 1 << 20))


def _finite(value: Any) -> Any:
    """The value with None in the place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
