# SPDX-License-Identifier: Apache-2.0
"""A task as a small YAML file beside its data.

name: capitals
kind: choice
data: capitals.jsonl
prompt: "Question: {question}\nAnswer:"
options: "{options}"
answer: "{answer}"
few_shot: {n: 3, data: examples.jsonl}
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from foundling.config import from_dict, load_yaml
from foundling.data.datasets import BUILTIN
from foundling.data.rows import LIKE, SUFFIXES, read_rows
from foundling.data.sources import Source
from foundling.data.streams import Skip
from foundling.errors import ConfigError, DataError
from foundling.evaluate.calibration import calibration_figures
from foundling.evaluate.kinds import classify_task
from foundling.evaluate.pictures import DIGEST, builtin_rows, picture_of, with_digest
from foundling.evaluate.retrieval import MEASURES, retrieval_task
from foundling.evaluate.scoring import SCORES, inside, scorer
from foundling.evaluate.subject import Decoding, Prompt
from foundling.evaluate.task import Task, best, per_byte
from foundling.limits import CLASSES, ITEMS, MAX_TOKENS, SEED, SHOTS
from foundling.runtime.files import sha256
from foundling.text.templates import LETTERS, fields_of, fill, letter_of

Row = dict[str, Any]


@dataclass(frozen=True)
class FewShot:
    n: int = 0
    """solved examples before each item"""
    data: str | None = None
    """their file; by default the task's own, whose chosen ones are then no items"""
    seed: int = 0
    separator: str = "\n\n"
    chosen: Literal["same", "first", "each"] = "same"
    """same: drawn once, for all items, which is fastest; first: the first of their file; each: drawn for each item"""


@dataclass(frozen=True)
class TaskSpec:
    name: str
    data: str
    """a file of rows beside this one: .jsonl, .json, .csv, .tsv, .parquet; of pictures also builtin:digits or
    builtin:glyphs"""
    kind: Literal["choice", "classify", "generate", "perplexity", "retrieve", "images"] = "generate"
    """choice: the likeliest of some options; classify: the likeliest label of a text; generate: a text is written;
    perplexity: whole texts are scored; retrieve: documents are ranked for a query; images: the likeliest of some texts
    for a picture"""
    prompt: str = "{prompt}"
    """what stands before the answer, with the fields of a row in braces"""
    system: str | None = None
    """a system message: prompt and answer then are turns of a conversation"""
    answer: str = "{answer}"
    """what is right: a text; of a choice the text, the letter or the number (from 0) of the right option"""
    options: str | list[str] = ""
    """of a choice: a field with a list, in braces, or templates; of classify by default the labels of all rows"""
    letters: bool = False
    """of a choice: options are answered by their letters, and the prompt shows them"""
    separator: str = " "
    """between prompt and answer"""
    corpus: str = ""
    """of retrieve: a file of documents beside this one, with ids"""
    document: str = "{text}"
    """of retrieve: what is read of a document, with its fields in braces"""
    relevant: str = "{relevant}"
    """of retrieve: the field with the ids of the documents that are relevant"""
    image: str = "{image}"
    """of images: the file of a picture, beside this file"""
    score: str = ""
    """how an answer is scored; by default accuracy of a choice, exact of a text, nDCG@10 of documents"""
    few_shot: FewShot = field(default_factory=FewShot)
    stop: list[str] = field(default_factory=list)
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    about: str = ""
    licence: str = ""
    source: str = ""


def load_task(
    path: str | Path,
    *,
    shots: int | None = None,
    seed: int | None = None,
    limit: int | None = None,
    named: bool = False,
) -> Task[Row]:
    """The task of a file; `shots`, `seed` and `limit` (the first items) instead of what it says. `named`: its name
    tells the seed. ConfigError or DataError, with the file and the line, for what is wrong in it or its data."""
    path = Path(path)
    spec = from_dict(TaskSpec, load_yaml(path), where=str(path))
    if shots is not None or seed is not None:
        few = spec.few_shot
        few = replace(few, n=few.n if shots is None else shots, seed=few.seed if seed is None else seed)
        spec = replace(spec, few_shot=few, seed=spec.seed if seed is None else seed)
        if named:
            spec = replace(spec, name=f"{spec.name}, seed {seed}")
    _check(spec, path)
    builtin = spec.kind == "images" and spec.data.startswith(BUILTIN)
    items = builtin_rows(spec.data) if builtin else read_items(inside(path.parent, spec.data))
    if spec.kind == "classify" and not spec.options:
        spec = replace(spec, options=labels_of(spec, items))
    few = spec.few_shot
    pool = read_items(inside(path.parent, few.data)) if few.data and few.n else items
    return build_task(spec, items, pool, limit=limit, folder=path.parent)


def _check(spec: TaskSpec, path: Path) -> None:
    SHOTS.check(spec.few_shot.n, "few_shot.n", ConfigError)
    SEED.check(spec.seed, "seed", ConfigError)
    MAX_TOKENS.check(spec.max_tokens, "max_tokens", ConfigError)
    if spec.kind in ("choice", "images") and not spec.options:
        raise ConfigError(f"{path}: kind {spec.kind} needs options, a field such as '{{options}}' or a list")
    if spec.kind == "retrieve" and not spec.corpus:
        raise ConfigError(f"{path}: kind retrieve needs corpus, a file of documents with ids")
    if spec.kind in ("retrieve", "images", "perplexity") and (spec.few_shot.n or spec.system is not None):
        raise ConfigError(f"{path}: kind {spec.kind} has no solved examples and no system message; leave them out")
    scores = _SCORES.get(spec.kind, tuple(SCORES))
    if spec.kind != "perplexity" and spec.score and spec.score not in scores:
        raise ConfigError(f"{path}: score {spec.score!r} is unknown; use {', '.join(scores)}")


def read_items(path: Path) -> list[Row]:
    """The rows of a file, each with an `id`: its own, or its number. DataError for a bad row or a repeated id."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; a task's data is a file beside it ({', '.join(SUFFIXES)})")
    rows, ids = list[Row](), set[str]()
    for row in read_rows(path, like=LIKE):
        if isinstance(row, Skip):
            raise DataError(f"{path}: {row.detail or row.reason}")
        fields = dict(row.fields)
        fields["id"] = str(fields.get("id", len(rows)))
        if fields["id"] in ids:
            raise DataError(f"{path}, {row.where}: the id {fields['id']!r} comes twice; make ids unique")
        ids.add(fields["id"])
        rows.append(fields)
        ITEMS.check(len(rows), f"the number of rows of {path}", DataError)
    if not rows:
        raise DataError(f"{path}: no rows; give at least one")
    return rows


def build_task(
    spec: TaskSpec, items: Sequence[Row], pool: Sequence[Row], *, limit: int | None = None, folder: Path | None = None
) -> Task[Row]:
    """The task of these items, whose solved examples come from `pool`. A row that is shown, or equal to one that is, is
    no item."""
    few = spec.few_shot
    if few.n > len(pool) - (few.chosen == "each" and pool is items):
        raise DataError(f"task {spec.name!r}: {few.n} examples of {len(pool)} rows are too many; lower few_shot.n")
    shown = list(pool[: few.n]) if few.chosen == "first" else random.Random(few.seed).sample(list(pool), few.n)
    if few.n and few.chosen != "each":
        solved = [_content(row) for row in shown]
        items = [row for row in items if _content(row) not in solved]
    items = list(items)[:limit]
    if not items:
        raise DataError(f"task {spec.name!r}: no items are left beside its {few.n} examples; lower few_shot.n")
    if spec.score == "sql":
        items = _with_databases(items, folder or Path())
    if spec.kind == "images":
        items = [_with_picture(spec, row, folder or Path()) for row in items]
    rules = scorer(spec.score or "exact") if spec.kind == "generate" else None
    check = rules.make(folder) if rules and rules.reads_item and spec.score != "code" else None
    for i, row in enumerate([*shown, *items]):  # every template is filled once, before anything is computed
        try:
            if spec.kind != "images":
                fill(spec.prompt, _fields(spec, row))
            _right(spec, row)
            if check is not None and i >= len(shown):  # what is shown is not scored
                check(row, _right(spec, row), "")
        except DataError as error:
            raise DataError(f"task {spec.name!r}, row {row.get('id', i)!r}: {error}") from None

    contents = {row["id"]: _content(row) for row in pool} if few.chosen == "each" else {}

    def examples(row: Row) -> Sequence[Row]:
        if few.chosen != "each":
            return shown
        own = _content(row)
        others = [other for other in pool if contents[other["id"]] != own]
        if len(others) < few.n:
            raise DataError(f"task {spec.name!r}, row {row['id']!r}: {few.n} examples of {len(others)} other rows")
        return random.Random(f"{few.seed} {row['id']}").sample(others, few.n)

    return _TASKS[spec.kind](spec, items, lambda row: _prompt(spec, row, examples(row)), folder)


def _choice(spec: TaskSpec, items: list[Row], prompt: Callable[[Row], Prompt], folder: Path | None) -> Task[Row]:
    scale = per_byte if spec.score == "accuracy_per_byte" else None
    return Task(
        spec.name, items, prompt,
        lambda row, options: float(best(options, scale) == _right_option(spec, row)),
        continuations=lambda row: [_separator(spec) + text for text in _continuations(spec, row)],
        metric="accuracy", target=lambda row: _separator(spec) + _right(spec, row), scale=scale, rule=spec.score,
        packages=("foundling.evaluate.task",), fields=_read_by(spec),
        figures=calibration_figures(lambda row: _right_option(spec, row)),
    )  # fmt: skip


def _generate(spec: TaskSpec, items: list[Row], prompt: Callable[[Row], Prompt], folder: Path | None) -> Task[Row]:
    rules = scorer(spec.score or "exact")
    score, stop = rules.make(folder), spec.stop
    if not stop and spec.few_shot.n and spec.system is None:
        stop = [spec.few_shot.separator]  # else an answer goes on with examples of its own
    decoding = Decoding(spec.max_tokens, tuple(stop), spec.temperature, seed=spec.seed)
    return Task(
        spec.name, items, prompt, lambda row, answer: score(row, _right(spec, row), answer.text),
        metric=rules.metric, decoding=decoding, target=lambda row: _right(spec, row), rule=spec.score or "exact",
        packages=("foundling.evaluate.scoring", "foundling.evaluate.task", *rules.packages), fields=_read_by(spec),
    )  # fmt: skip


def _perplexity(spec: TaskSpec, items: list[Row], prompt: Callable[[Row], Prompt], folder: Path | None) -> Task[Row]:
    return text_task(spec.name, items, lambda row: fill(spec.prompt, row))


def _classify(spec: TaskSpec, items: list[Row], prompt: Callable[[Row], Prompt], folder: Path | None) -> Task[Row]:
    return classify_task(
        spec.name, items, prompt, lambda row: [spec.separator + text for text in _continuations(spec, row)],
        lambda row: _right_option(spec, row),
    )  # fmt: skip


def _images(spec: TaskSpec, items: list[Row], prompt: Callable[[Row], Prompt], folder: Path | None) -> Task[Row]:
    return classify_task(
        spec.name, items, lambda row: picture_of(row, fill(spec.image, row), folder or Path()),
        lambda row: _options(spec, row), lambda row: _right_option(spec, row), pictures=True,
    )  # fmt: skip


def _retrieve(spec: TaskSpec, items: list[Row], prompt: Callable[[Row], Prompt], folder: Path | None) -> Task[Row]:
    corpus = read_items(inside(folder or Path(), spec.corpus))
    documents = list[tuple[str, str]]()
    for row in corpus:
        try:
            documents.append((row["id"], fill(spec.document, row)))
        except DataError as error:
            raise DataError(f"task {spec.name!r}, document {row['id']!r}: {error}") from None
    measure = spec.score or next(iter(MEASURES))
    return retrieval_task(spec.name, items, documents, prompt, lambda row: _relevant(spec, row), measure)


def _relevant(spec: TaskSpec, row: Row) -> list[str]:
    name = spec.relevant.strip("{}")
    value = row.get(name)
    if value is None or isinstance(value, dict):
        raise DataError(f"the row has no list {name!r} of ids of documents")
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _with_databases(items: Sequence[Row], folder: Path) -> list[Row]:
    """With the hash of each item's database, on which its score depends."""
    hashes = dict[str, str]()
    for row in items:
        name = row.get("database")
        if isinstance(name, str) and name not in hashes and inside(folder, name).is_file():
            hashes[name] = sha256(folder / name)
    return [row | {"database_sha256": hashes.get(str(row.get("database")), "")} for row in items]


def _with_picture(spec: TaskSpec, row: Row, folder: Path) -> Row:
    try:
        name = fill(spec.image, row)
        return row if name.startswith(BUILTIN) and DIGEST in row else with_digest(row, name, folder)
    except DataError as error:
        raise DataError(f"task {spec.name!r}, row {row.get('id')!r}: {error}") from None


def labels_of(spec: TaskSpec, items: Sequence[Row]) -> list[str]:
    """The different answers of all rows, as templates."""
    labels = sorted({fill(spec.answer, row) for row in items})
    CLASSES.check(len(labels), f"the number of labels of task {spec.name!r}", DataError)
    return [label.replace("{", "{{").replace("}", "}}") for label in labels]


_TASKS = {
    "choice": _choice, "classify": _classify, "generate": _generate, "perplexity": _perplexity,
    "retrieve": _retrieve, "images": _images,
}  # fmt: skip
_SCORES = {
    "choice": ("accuracy", "accuracy_per_byte"), "classify": ("accuracy",), "images": ("accuracy",),
    "retrieve": tuple(MEASURES),
}  # fmt: skip
_WITH_OPTIONS = ("choice", "classify", "images")
_LN2 = 0.6931471805599453


def text_task(name: str, items: Sequence[Row], text: Callable[[Row], str]) -> Task[Row]:
    """Bits per byte of whole texts, each weighted by its bytes."""

    def n_bytes(row: Row) -> float:
        return max(1, len(text(row).encode()))

    return Task(
        name, items, text, lambda row, answer: -answer.logprob / _LN2 / n_bytes(row),
        metric="bits per byte", lower_is_better=True, rolling=True, weight=n_bytes,
    )  # fmt: skip


# --- rendering --------------------------------------------------------------------------------------------------------


def _prompt(spec: TaskSpec, row: Row, examples: Sequence[Row]) -> Prompt:
    """The examples with their answers, then the item; with a system message a conversation."""
    if spec.system is None:
        solved = [fill(spec.prompt, _fields(spec, e)) + spec.separator + _right(spec, e) for e in examples]
        return spec.few_shot.separator.join([*solved, fill(spec.prompt, _fields(spec, row))])
    turns = [("system", spec.system)]
    for example in examples:
        turns += [("user", fill(spec.prompt, _fields(spec, example))), ("assistant", _right(spec, example))]
    turns.append(("user", fill(spec.prompt, _fields(spec, row))))
    return [{"role": role, "content": content} for role, content in turns if content]


def _fields(spec: TaskSpec, row: Row) -> Row:
    return row | {"options": _options(spec, row)} if spec.kind in _WITH_OPTIONS else row


def _options(spec: TaskSpec, row: Row) -> list[str]:
    if isinstance(spec.options, list):
        return [fill(template, row) for template in spec.options]
    name = spec.options.strip("{}")
    values = row.get(name)
    if not isinstance(values, list) or not values:
        raise DataError(f"options is {spec.options!r}, and the row has no list {name!r}")
    return [str(value) for value in values]


def _read_by(spec: TaskSpec) -> tuple[str, ...]:
    """The fields of a row that its templates read."""
    options = spec.options if isinstance(spec.options, list) else [spec.options]
    return tuple(dict.fromkeys(name for text in (spec.prompt, *options, spec.answer) for name in fields_of(text)))


def _separator(spec: TaskSpec) -> str:
    """Before an answer: in a conversation it is a turn of its own."""
    return spec.separator if spec.system is None else ""


def _content(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "id"}


def _continuations(spec: TaskSpec, row: Row) -> list[str]:
    options = _options(spec, row)
    return [letter_of(i) for i in range(len(options))] if spec.letters else options


def _right(spec: TaskSpec, row: Row) -> str:
    if spec.kind == "perplexity":
        return ""
    if spec.kind == "retrieve":
        return ", ".join(_relevant(spec, row))
    return _continuations(spec, row)[_right_option(spec, row)] if spec.kind in _WITH_OPTIONS else fill(spec.answer, row)


def _right_option(spec: TaskSpec, row: Row) -> int:
    """The number of the right option, whose text, letter or number the answer is."""
    options, name = _options(spec, row), spec.answer.strip("{}")
    value = row[name] if name in row else fill(spec.answer, row)
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if spec.kind == "choice" and number is not None and str(number) in options[:number] + options[number + 1 :]:
        raise DataError(f"the answer {number} is the text of one option and the number of another; give its letter")
    if str(value) in options and (number is None or spec.kind != "choice"):
        at = options.index(str(value))
    elif number is not None:
        at = number
    elif len(text := str(value).strip()) == 1 and text in LETTERS:
        at = LETTERS.index(text)
    else:
        at = int(text) if text.isdecimal() else -1
    if not 0 <= at < len(options):
        raise DataError(f"the answer {value!r} is none of the {len(options)} options, their letters or numbers")
    return at


def texts_of(path: str | Path, *, limit: int | None = None) -> Task[Row]:
    """Bits per byte of the documents of a file or folder, as `foundling raise` reads it. DataError where there are
    none."""
    documents = list(itertools.islice(Source(path), limit))
    rows = [{"id": document.name or str(i), "text": document.text} for i, document in enumerate(documents)]
    return text_task(Path(path).name, rows, lambda row: row["text"])
