# SPDX-License-Identifier: Apache-2.0
"""Data sets that need no download: one registry, and `open_data`, which opens one of them or the user's own data.

Some are texts or pictures. The others are tasks that can be checked (docs/tasks.md): generated rows in parts, such as
demonstrations and comparisons, which `open_rows` opens by a name such as `builtin:arithmetic:comparisons:held-out`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from foundling.config import nearest
from foundling.data.datasets.draws import HELD_OUT, Row
from foundling.data.formats import DEFAULT_FIELD
from foundling.data.sources import Document, Source
from foundling.errors import DataError
from foundling.limits import BUILTIN_ITEMS, shown

BUILTIN = "builtin:"
PartKind = Literal["text", "chats", "comparisons", "prompts"]
"""text: {"text"} · chats: {"messages"} · comparisons: {"prompt", "chosen", "rejected"} · prompts: {"prompt", and what a
checker reads}"""
SPLITS = ("train", HELD_OUT)
"""of tasks"""


@dataclass(frozen=True)
class Part:
    kind: PartKind
    n: int = BUILTIN_ITEMS.high
    """rows of the training split, unless another number is asked for; a quarter of it are held out. A task with fewer
    has no more."""


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before it is loaded."""

    kind: Literal["text", "images", "image-text", "task"]
    licence: str  # SPDX expression
    origin: str  # how it is obtained
    loader: str  # module:function; takes the name of a split where there are splits, and of a task a Choice
    splits: tuple[str, ...] = ()  # empty: foundling/data/split.py holds some documents out
    language: str | None = None  # of text that can be checked by a parser, such as "python"
    parts: dict[str, Part] = field(default_factory=dict)  # of a task; the first is the default
    levels: tuple[str, ...] = ()  # of a task; the first is the default


def _task(name: str, levels: Sequence[str], **parts: Part) -> Dataset:
    return Dataset(
        kind="task",
        licence="CC0-1.0",
        origin="generated from a seed",
        loader=f"foundling.data.datasets.{name}:load",
        splits=SPLITS,
        parts={part.replace("_", "-"): about for part, about in parts.items()},
        levels=tuple(levels),
    )


DATASETS = {
    "stdlib": Dataset(
        kind="text",
        licence="PSF-2.0",
        origin="the source files of the standard library of the running Python",
        loader="foundling.data.datasets.stdlib:load",
        language="python",
    ),
    "digits": Dataset(
        kind="images",
        licence="CC-BY-4.0",
        origin="the installed package scikit-learn",
        loader="foundling.data.datasets.digits:load",
        splits=("train", "test"),
    ),
    "glyphs": Dataset(
        kind="image-text",
        licence="Bitstream-Vera AND public domain (DejaVu fonts), Unicode-3.0 (names)",
        origin="drawn from the fonts of the installed package matplotlib",
        loader="foundling.data.datasets.glyphs:load",
        splits=("train", "test"),
    ),
    "arithmetic": _task(
        "arithmetic", ("easy", "plain"), demonstrations=Part("chats", 4_000), comparisons=Part("comparisons", 4_000),
        prompts=Part("prompts", 4_000), documents=Part("text", 4_000),
    ),
    "facts": _task(
        "facts", ("easy", "plain"), demonstrations=Part("chats"), comparisons=Part("comparisons"),
        prompts=Part("prompts"), documents=Part("text"), unknown=Part("prompts"), abstention=Part("chats"),
        mismatch=Part("chats"), false_premises=Part("prompts"), delusions=Part("prompts"),
        counterfactual=Part("chats"),
    ),
    "formats": _task(
        "formats", ("easy", "plain"), demonstrations=Part("chats", 4_000), comparisons=Part("comparisons", 4_000),
        prompts=Part("prompts", 4_000), documents=Part("text", 4_000),
    ),
    "refusals": _task(
        "refusals", ("plain",), demonstrations=Part("chats"), prompts=Part("prompts"),
    ),
    "sentiment": _task(
        "sentiment", ("exact", "noisy"), demonstrations=Part("chats", 2_000), comparisons=Part("comparisons", 4_000),
        prompts=Part("prompts", 1_000), documents=Part("text", 4_000),
    ),
}  # fmt: skip


def dataset(name: str) -> Dataset:
    """Return the entry of the registry. Raises DataError for an unknown name."""
    if name not in DATASETS:
        raise DataError(f"there is no data set {name[:60]!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


@dataclass(frozen=True)
class Choice:
    """Which rows of a task: the words behind its name, in any order, such as `comparisons:easy:held-out:n=100`."""

    part: str
    level: str
    split: str = "train"
    seed: int = 0
    n: int = 0

    @classmethod
    def parse(cls, name: str, words: Sequence[str] = ()) -> Choice:
        """Raises DataError, listing what there is, for a word that is no part, level, split or number of `name`, and
        for two of a kind."""
        entry = dataset(name)
        if not entry.parts:
            raise DataError(f"the data set {name!r} has no parts: leave out {':'.join(words)[:60]!r}")
        ways = {"part": tuple(entry.parts), "level": entry.levels, "split": entry.splits}
        chosen: dict[str, Any] = {}
        for word in words:
            key, sign, number = word.partition("=")
            kind = key if sign and key in ("n", "seed") else next((k for k in ways if word in ways[k]), None)
            if kind is None or kind in chosen:
                listed = "; ".join(f"a {key}: {', '.join(values)}" for key, values in ways.items())
                why = f"has no {shown(word)}" if kind is None else f"is asked for two of one kind, {kind}"
                near = f" ({nearest(word, [v for values in ways.values() for v in values])})" if kind is None else ""
                raise DataError(f"{BUILTIN}{name} {why}{near}; it takes {listed}; seed=NUMBER and n=NUMBER")
            chosen[kind] = _number(word, number) if sign else word
        part = chosen.setdefault("part", next(iter(entry.parts)))
        split = chosen.get("split", cls.split)
        n = chosen.get("n", entry.parts[part].n // (4 if split == HELD_OUT else 1))
        BUILTIN_ITEMS.check(n, f"n of {BUILTIN}{name}", DataError)
        return cls(part, chosen.get("level", entry.levels[0]), split, chosen.get("seed", cls.seed), n)


def _number(word: str, number: str) -> int:
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise DataError(f"{shown(word)}: expected a whole number")
    return int(number)


def load_dataset(name: str, split: str | None = None) -> Any:
    """Load a data set: documents for text, rows of its first part for a task, else what the loader returns. `split` is
    needed where there are splits.

    Raises DataError for an unknown name or split, and where the package that contains it is not installed.
    """
    entry = dataset(name)
    if split not in (entry.splits or (None,)):
        allowed = f"expected one of {', '.join(entry.splits)}" if entry.splits else "it has no splits"
        raise DataError(f"data set {name!r} has no split {split!r}: {allowed}")
    if entry.parts:
        return load_rows(name, [split or ""])
    return _loader(entry)(split) if split else _loader(entry)()


def _loader(entry: Dataset) -> Any:
    module, _, function = entry.loader.partition(":")
    return getattr(import_module(module), function)


def load_rows(name: str, words: Sequence[str] = ()) -> list[Row]:
    """The rows of a task that `words` choose (Choice). Raises DataError as Choice, and where the task has too few."""
    return list(_loader(dataset(name))(Choice.parse(name, words)))


def part_of(data: str) -> Part | None:
    """What `builtin:NAME[:WORD…]` chooses of a task; None for a path and for other data sets. Raises DataError for an
    unknown name or word."""
    name, *words = data.removeprefix(BUILTIN).split(":")
    if not data.startswith(BUILTIN) or not (entry := dataset(name)).parts:
        return None
    return entry.parts[Choice.parse(name, words).part]


def open_rows(data: str) -> list[Row]:
    """The rows of a task: `builtin:NAME[:PART][:LEVEL][:SPLIT][:seed=N][:n=N]`, in any order of the words.

    Raises DataError for an unknown name or word, and for a data set that is no task.

    >>> open_rows("builtin:arithmetic:prompts:n=1")[0]["answer"]
    '9'
    """
    if part_of(data) is None:
        tasks = ", ".join(name for name, entry in DATASETS.items() if entry.parts)
        raise DataError(f"{shown(data)} is no task: expected {BUILTIN} and one of {tasks}")
    name, *words = data.removeprefix(BUILTIN).split(":")
    return load_rows(name, words)


def open_data(data: str, field: str = DEFAULT_FIELD, exclude: Path | None = None) -> Iterable[Document]:
    """Open text to read: `builtin:NAME`, of a task its documents, or the path of a file or folder (see Source).

    The directory `exclude` is not read, for the output of a run may lie inside its data. The result is re-iterable.
    Raises DataError for an unknown or textless data set and a path that cannot be read.
    """
    if not data.startswith(BUILTIN):
        return Source(data, field, exclude)
    name, *words = data.removeprefix(BUILTIN).split(":")
    entry = dataset(name)
    if field != DEFAULT_FIELD:
        raise DataError(f"the data set {name!r} has no field {field!r}: leave out --field")
    texts = [part for part, about in entry.parts.items() if about.kind == "text"]
    if entry.parts and not set(words) & {*entry.parts} and texts:
        words.append(texts[0])
    kind = (part_of(":".join([BUILTIN + name, *words])) or entry).kind
    if kind != "text":
        kind = f"the data set {name!r} is not text but {kind}" if kind != "task" else f"{shown(data)} has no text"
        text = ", ".join(name for name, entry in DATASETS.items() if entry.kind == "text" or "documents" in entry.parts)
        raise DataError(f"{kind}: expected one of {text}")
    if not entry.parts:
        if words:
            Choice.parse(name, words)
        return load_dataset(name)
    return [Document(f"{name}#{n}", row["text"]) for n, row in enumerate(load_rows(name, words), 1)]


def describe_data(data: str) -> Dataset | None:
    """The entry of the registry for `builtin:NAME` with or without words behind it; None for a path."""
    return dataset(data.removeprefix(BUILTIN).split(":")[0]) if data.startswith(BUILTIN) else None
