# SPDX-License-Identifier: Apache-2.0
"""Ingest examples once: read them to shards on disk, hold some out, and read only the shards from then on.

An examples directory has `text-NNNNN.arrow` (the distinct examples in the order of the source), `held_out-NNNNN.arrow`
and `index.json`. It is written aside and renamed, so it is complete or absent.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from foundling.data.convert import as_number
from foundling.data.example_rows import ExampleRows
from foundling.data.ingest import FORMAT_VERSION, INDEX, load_index, require_space
from foundling.data.kinds import PREFERENCE, PROMPT, Columns, Example, Kind
from foundling.data.sources import Document
from foundling.data.survey import Survey
from foundling.data.text_shards import ShardFile, TextShards, write_text_shards
from foundling.errors import ConfigError, DataError
from foundling.limits import CLASSES
from foundling.runtime.files import write_directory, write_json

LEAST_EXAMPLES = 8
SHARE, MAX_HELD_OUT = 0.2, 1_000
HELD_OUT_PROMPT = "example of a prompt that is held out"
UNKNOWN_LABEL = "held-out label that training does not have"


@dataclass(frozen=True)
class ExampleIndex:
    """The content of index.json. Sizes are in bytes of UTF-8 of the fields as JSON."""

    format_version: int
    kind: Kind
    seed: int
    share: float
    max_held_out: int
    data_hash: str
    source_bytes: int
    train_bytes: int
    held_out_bytes: int
    removed: dict[str, int]
    skipped: dict[str, int]
    note: str
    labels: list[str]
    label_counts: list[int]
    cut_places: list[int]
    text: list[ShardFile]
    held_out: list[ShardFile]


class ExampleList(Sequence[Example]):
    """The examples of some shards but those at `without`. Reading in order decodes each record batch once."""

    def __init__(self, shards: TextShards, without: Sequence[int] = ()) -> None:
        self._shards = shards
        self._places = np.setdiff1d(np.arange(len(shards)), np.array(without, dtype=np.int64))
        counts = [count for file in shards.files for count in file.batches]
        self._starts = np.cumsum([0, *counts])
        self._batch: tuple[int, list[Document]] = (-1, [])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        place = int(self._places[at])
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        if self._batch[0] != number:
            self._batch = number, self._shards.batch(number)
        document = self._batch[1][place - int(self._starts[number])]
        return Example(document.name, json.loads(document.text))


@dataclass(frozen=True)
class Examples:
    """Examples on disk, split into training and held-out ones."""

    directory: Path
    kind: Kind
    train: Sequence[Example] = dataclasses.field(repr=False)
    held_out: Sequence[Example] = dataclasses.field(repr=False)
    labels: list[str]
    """classify, tag: the classes of training, in numeric or alphabetical order; a class's id is its place"""
    label_counts: dict[str, int]
    """of training: examples, or words that are tagged"""
    data_hash: str
    """SHA-256 over the parameters of the split and the examples in order; names do not count"""
    source_bytes: int
    """read from the source, once"""
    train_bytes: int
    held_out_bytes: int
    skipped: Counter[str]
    """files and rows that are no examples, by reason"""
    removed: Counter[str]
    """examples that are left out, by reason"""
    note: str
    """for progress and report: what is read as what, and what is held out"""

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True) -> Examples:
        """Open what `ingest_examples` wrote. DataError for a missing index or a damaged file, which it names."""
        directory = Path(directory)
        index = load_index(directory, ExampleIndex)
        shards, held_out = TextShards(directory, index.text), TextShards(directory, index.held_out)
        for part in (shards, held_out) if verify else ():
            part.verify()
        return cls(
            directory=directory,
            kind=index.kind,
            train=ExampleList(shards, index.cut_places),
            held_out=ExampleList(held_out),
            labels=index.labels,
            label_counts=dict(zip(index.labels, index.label_counts, strict=True)),
            data_hash=index.data_hash,
            source_bytes=index.source_bytes,
            train_bytes=index.train_bytes,
            held_out_bytes=index.held_out_bytes,
            skipped=Counter(index.skipped),
            removed=Counter(index.removed),
            note=index.note,
        )


def ingest_examples(
    source: str | Path | Iterable[Document],
    directory: str | Path,
    *,
    kind: Kind | None = None,
    columns: Columns | None = None,
    seed: int = 0,
    share: float = SHARE,
    max_held_out: int = MAX_HELD_OUT,
    held_out_source: str | Path | None = None,
    exclude: Path | None = None,
) -> Examples:
    """Read `source` once, write its distinct examples to `directory`, hold some out by the hash of their contents.

    The held-out ones are `share` of all, at least one and at most `max_held_out`, or the examples of
    `held_out_source`, which are taken out of training. No class is held out whole. Raises ConfigError for unclear
    columns and a share outside (0, 0.5], DataError where there are fewer than LEAST_EXAMPLES, one class or one value,
    OutputError where `directory` is taken or the disk is too small.
    """
    if not 0 < share <= 0.5 or max_held_out < 1:
        raise ConfigError(f"share={share}, max_held_out={max_held_out}: expected 0 < share <= 0.5, max_held_out >= 1")
    rows = ExampleRows(source, kind, columns, exclude)
    held_out = None
    if held_out_source is not None:
        held_out = ExampleRows(held_out_source, rows.layout.kind, columns, exclude, rows.layout)
    directory = Path(directory)
    require_space(rows, directory)

    def fill(aside: Path) -> None:
        index = _write(rows, held_out, aside, seed, share, max_held_out)
        write_json(aside / INDEX, dataclasses.asdict(index))

    write_directory(directory, fill)
    return Examples.load(directory, verify=False)


def _write(
    rows: ExampleRows, held_out: ExampleRows | None, directory: Path, seed: int, share: float, max_held_out: int
) -> ExampleIndex:
    kind = rows.layout.kind
    parameters = f"foundling-examples-1 kind={kind} seed={seed} share={share!r} max_held_out={max_held_out}\n"
    survey, labels, prompts, n_first = Survey(seed, parameters.encode()), list[Counter[str]](), list[str](), 0

    def distinct() -> Iterator[Document]:
        nonlocal n_first
        for document in chain(held_out or (), (None,), rows):
            if document is None:
                n_first = len(labels)
            elif survey.add(document.text):
                labels.append(_labels(kind, document.text))
                prompts.extend([_prompt(document.text)] if kind in (PREFERENCE, PROMPT) else [])
                yield document

    text = write_text_shards(directory, "text", distinct())
    n = len(labels) - n_first
    if not labels or not n:
        raise DataError(rows.nothing())
    counts = sum(labels[n_first:], Counter[str]()) if kind != "regress" else Counter[str]()
    _check(kind, n, counts, labels, rows)
    removed = Counter(survey.removed)
    if held_out is None:
        chosen = _choose(survey.order.tolist(), labels, counts, min(max(1, round(share * n)), max_held_out))
        cut = set(chosen)
        note = f"{len(chosen):,} of {n:,} examples are held out"
    else:
        chosen = [place for place in range(n_first) if labels[place].keys() <= counts.keys() or kind == "regress"]
        cut = set(range(n_first))
        removed[UNKNOWN_LABEL] += n_first - len(chosen)
        if not chosen:
            raise DataError(f"{held_out.nothing() if not n_first else f'{held_out.name}: every {UNKNOWN_LABEL}'}")
        note = f"{len(chosen):,} examples of {held_out.name} are held out"
    removed[HELD_OUT_PROMPT] += len(shared := _sharing(prompts, chosen) - cut)
    cut |= shared
    for place in chosen if held_out is None else ():
        counts -= labels[place]
    names, sizes = _sorted(counts), survey.sizes
    taken = TextShards(directory, text).take(chosen)
    return ExampleIndex(
        format_version=FORMAT_VERSION,
        kind=kind,
        seed=seed,
        share=share,
        max_held_out=max_held_out,
        data_hash=survey.data_hash,
        source_bytes=rows.bytes_read + (held_out.bytes_read if held_out else 0),
        train_bytes=int(sizes.sum() - sizes[sorted(cut)].sum()),
        held_out_bytes=int(sizes[chosen].sum()),
        removed=dict(+removed),
        skipped=dict(rows.skipped + (held_out.skipped if held_out else Counter[str]())),
        note=f"{rows.layout.sentence}; {note}",
        labels=names,
        label_counts=[counts[name] for name in names],
        cut_places=sorted(cut),
        text=text,
        held_out=write_text_shards(directory, "held_out", (taken[place] for place in chosen)),
    )


def _prompt(text: str) -> str:
    """What is asked in an example with messages alone before its answers."""
    return json.dumps(json.loads(text)["messages"])


def _sharing(prompts: Sequence[str], chosen: Sequence[int]) -> set[int]:
    """Examples of the prompts of those that are held out: no completion of these is learnt from."""
    asked = {prompts[place] for place in chosen} if prompts else set[str]()
    return {place for place, prompt in enumerate(prompts) if prompt in asked}


def _labels(kind: Kind, text: str) -> Counter[str]:
    """The classes of one example with their numbers; of regress its value."""
    if kind not in ("classify", "tag", "regress"):
        return Counter()
    fields = json.loads(text)
    return (
        Counter(fields["tags"]) if kind == "tag" else Counter([str(fields["label" if kind == "classify" else "value"])])
    )


def _check(kind: Kind, n: int, counts: Counter[str], labels: Sequence[Counter[str]], rows: ExampleRows) -> None:
    if n < LEAST_EXAMPLES:
        skipped = ", ".join(f"{reason}: {number:,}" for reason, number in rows.skipped.most_common())
        less = f" (skipped: {skipped})" if skipped else ""
        raise DataError(
            f"{rows.name} has {n} example{'s' * (n != 1)}{less}, too few to learn from and hold some out: "
            f"give {LEAST_EXAMPLES} or more"
        )
    if kind in ("classify", "tag") and len(counts) == 1:
        (name,) = counts
        raise DataError(f"all {n:,} examples have the label {name[:60]!r}: give examples of two classes or more")
    if kind == "regress" and len({name for label in labels for name in label}) == 1:
        raise DataError(f"all {n:,} examples have the value {next(iter(labels[0]))}: there is nothing to learn")
    if kind == "classify" and (2 * len(counts) > max(n, 4 * LEAST_EXAMPLES) or len(counts) > CLASSES.high):
        raise DataError(
            f"{len(counts):,} labels for {n:,} examples are too many to learn: name the column of the classes with "
            "--label, or use --as regress for numbers"
        )


def _choose(order: Sequence[int], labels: Sequence[Counter[str]], counts: Counter[str], n: int) -> list[int]:
    """The first `n` places of `order` that leave of each class some for training."""
    left, chosen = Counter(counts), list[int]()
    for place in order:
        if all(left[name] > number for name, number in labels[place].items() if name in left):
            chosen.append(place)
            left.subtract({name: number for name, number in labels[place].items() if name in left})
            if len(chosen) == n:
                break
    if not chosen:
        raise DataError("every class has one example only, so none can be held out: give two or more of a class")
    return chosen


def _sorted(names: Iterable[str]) -> list[str]:
    """In the order of the numbers, where all are numbers, else in that of their letters."""
    plain = list(names)
    numbers = {name: as_number(name) for name in plain}
    if all(number is not None for number in numbers.values()):
        return sorted(plain, key=lambda name: (numbers[name] or 0.0, name))
    return sorted(plain)
