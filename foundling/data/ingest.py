# SPDX-License-Identifier: Apache-2.0
"""Ingest a source once: stream it into shards on disk, hold out some of it, and read only the shards from then on.

A corpus directory has `text-NNNNN.arrow` (the distinct documents in the order of the source), `held_out-NNNNN.arrow`
and `index.json` (sizes, hashes, the split). It is written aside and renamed, so it is complete or absent.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from foundling.config import from_dict
from foundling.data.sources import Document
from foundling.data.split import Cut, check_parameters, split
from foundling.data.survey import Survey, n_bytes
from foundling.data.text_shards import ShardFile, TextShards, write_text_shards
from foundling.errors import ConfigError, DataError, OutputError, WeightsError
from foundling.runtime.files import read_json, write_directory, write_json

INDEX = "index.json"
FORMAT_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Index:
    """The content of index.json. Sizes of text are in bytes of UTF-8."""

    format_version: int
    seed: int
    share: float
    max_bytes: int
    data_hash: str
    source_bytes: int
    train_bytes: int
    held_out_bytes: int
    removed_bytes: int
    train_documents: int
    removed: dict[str, int]
    skipped: dict[str, int]
    note: str
    cut_places: list[int]
    cut_place: int
    cut_at: int
    text: list[ShardFile]
    held_out: list[ShardFile]


@dataclass(frozen=True)
class Corpus:
    """Text on disk, split into training and held-out documents. Sizes are in bytes of UTF-8.

    The text of the source is train_bytes + held_out_bytes + removed_bytes; its documents are train_documents +
    len(held_out) + removed, except that where a tail is held out `removed` also counts the blocks and lines that
    were taken out of the tail.
    """

    directory: Path
    held_out: list[Document] = field(repr=False)
    train_bytes: int
    held_out_bytes: int
    removed_bytes: int
    train_documents: int
    removed: Counter[str]  # documents, blocks and lines by reason
    skipped: Counter[str]  # files and rows that are not text, by reason
    data_hash: str  # SHA-256 over the parameters of the split and the contents in order; names do not count
    source_bytes: int  # read from the source, once
    note: str  # for the report: what is held out, and why
    _shards: TextShards = field(repr=False)
    _cut: Cut = field(repr=False)

    @classmethod
    def load(cls, directory: str | Path, *, verify: bool = True) -> Corpus:
        """Open what `ingest` wrote. Raises DataError for a missing index or a damaged file, which it names."""
        directory = Path(directory)
        index = load_index(directory, Index)
        shards, held_out = TextShards(directory, index.text), TextShards(directory, index.held_out)
        if verify:
            shards.verify()
            held_out.verify()
        return cls(
            directory=directory,
            held_out=list(held_out),
            train_bytes=index.train_bytes,
            held_out_bytes=index.held_out_bytes,
            removed_bytes=index.removed_bytes,
            train_documents=index.train_documents,
            removed=Counter(index.removed),
            skipped=Counter(index.skipped),
            data_hash=index.data_hash,
            source_bytes=index.source_bytes,
            note=index.note,
            _shards=shards,
            _cut=Cut(frozenset(index.cut_places), index.cut_place, index.cut_at),
        )

    def train(self) -> Iterator[Document]:
        """Yield the training documents, read from the shards."""
        return self._cut.training(self._shards)


def load_index(directory: Path, kind: type[T]) -> T:
    """index.json of a directory, as the dataclass `kind`. DataError where it is missing, damaged or of another
    version."""
    try:
        values = read_json(directory / INDEX)
        index = from_dict(kind, values, where=str(directory / INDEX))
    except (WeightsError, ConfigError) as error:
        raise DataError(f"{error}; remove {directory} and ingest the data again") from error
    if values["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{directory / INDEX}: format_version {values['format_version']}, expected {FORMAT_VERSION}; "
            f"remove {directory} and ingest the data again"
        )
    return index


def ingest(
    source: Iterable[Document],
    directory: str | Path,
    *,
    seed: int = 0,
    share: float = 0.05,
    max_bytes: int = 500_000,
) -> Corpus:
    """Read `source` once, write its distinct documents to `directory`, hold some out (foundling/data/split.py).

    `directory` must not exist or be empty. A source that changes afterwards does not matter. Raises ConfigError for a
    share outside (0, 0.5) or max_bytes below 100, DataError for a source without enough text, OutputError where
    `directory` is taken or the disk is too small.
    """
    check_parameters(share, max_bytes)
    directory = Path(directory)
    require_space(source, directory)

    def fill(aside: Path) -> None:
        index = _write(source, aside, seed, share, max_bytes)
        write_json(aside / INDEX, dataclasses.asdict(index))

    write_directory(directory, fill)
    return Corpus.load(directory, verify=False)


def _write(source: Iterable[Document], directory: Path, seed: int, share: float, max_bytes: int) -> Index:
    parameters = f"foundling-split-1 seed={seed} share={share!r} max_bytes={max_bytes}\n"
    survey, read_before = Survey(seed, parameters.encode()), getattr(source, "bytes_read", 0)
    text = write_text_shards(directory, "text", (document for document in source if survey.add(document.text)))
    single_file = getattr(source, "single_file", False)
    made = split(TextShards(directory, text), survey, share=share, max_bytes=max_bytes, single_file=single_file)
    held_out_bytes = n_bytes(made.held_out)
    text_bytes = survey.n_bytes + survey.removed_bytes
    return Index(
        format_version=FORMAT_VERSION,
        seed=seed,
        share=share,
        max_bytes=max_bytes,
        data_hash=survey.data_hash,
        source_bytes=getattr(source, "bytes_read", text_bytes) - read_before,
        train_bytes=survey.n_bytes - made.cut_bytes,
        held_out_bytes=held_out_bytes,
        removed_bytes=survey.removed_bytes + made.cut_bytes - held_out_bytes,
        train_documents=len(survey.sizes) - len(made.cut.places),
        removed=dict(survey.removed + made.removed),
        skipped=dict(getattr(source, "skipped", {})),
        note=made.note,
        cut_places=sorted(made.cut.places),
        cut_place=made.cut.place,
        cut_at=made.cut.at,
        text=text,
        held_out=write_text_shards(directory, "held_out", made.held_out),
    )


def require_space(source: Any, directory: Path) -> None:
    """Compare the size of the source, where it tells one, with what the disk has left."""
    if not hasattr(source, "file_bytes"):
        return
    needed, parent = source.file_bytes(), directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise OutputError(
            f"{directory}: the data takes up to {needed:,} bytes, the disk has {free:,} left; "
            "free some space or choose another directory"
        )
