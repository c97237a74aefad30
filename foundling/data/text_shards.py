# SPDX-License-Identifier: Apache-2.0
"""Documents on disk: numbered Arrow IPC files of (name, text), written once and read by every later pass.

A record batch holds about BATCH_BYTES of text, or one document that is larger. This bounds the memory of both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from foundling.data.sources import Document
from foundling.errors import DataError
from foundling.runtime.files import sha256

BATCH_BYTES = 4 * 2**20
BATCH_DOCUMENTS = 4096
SHARD_BYTES = 256 * 2**20
_SCHEMA = pa.schema([("name", pa.large_string()), ("text", pa.large_string())])
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")  # zstd is half the size, but makes ingesting slower


@dataclass(frozen=True)
class ShardFile:
    """One file: its name in the directory, its SHA-256, and the number of documents in each record batch."""

    file: str
    sha256: str
    batches: list[int]


def write_text_shards(directory: Path, stem: str, documents: Iterable[Document]) -> list[ShardFile]:
    """Write `documents` to directory/STEM-00000.arrow and so on; return what an index needs to know of the files."""
    files: list[ShardFile] = []
    batches = _batches(documents)
    batch = next(batches, None)
    while batch is not None:
        path = directory / f"{stem}-{len(files):05d}.arrow"
        counts, written = [], 0
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA, options=_OPTIONS) as writer:
            while batch is not None and written < SHARD_BYTES:
                writer.write_batch(batch)
                counts.append(batch.num_rows)
                written += batch.nbytes
                batch = next(batches, None)
        files.append(ShardFile(path.name, sha256(path), counts))
    return files


def _batches(documents: Iterable[Document]) -> Iterator[pa.RecordBatch]:
    names: list[str] = []
    texts: list[str] = []
    size = 0
    for document in documents:
        if names and (size + len(document.text) > BATCH_BYTES or len(names) == BATCH_DOCUMENTS):
            yield pa.record_batch([names, texts], schema=_SCHEMA)
            names, texts, size = [], [], 0
        names.append(document.name)
        texts.append(document.text)
        size += len(document.text)
    if names:
        yield pa.record_batch([names, texts], schema=_SCHEMA)


class TextShards:
    """The documents of some shard files, re-iterable. A document's place is its number over all files, from 0."""

    def __init__(self, directory: Path, files: list[ShardFile]):
        self.directory, self.files = directory, files

    def __len__(self) -> int:
        return sum(sum(file.batches) for file in self.files)

    def __iter__(self) -> Iterator[Document]:
        for file in self.files:
            with self._open(file) as reader:
                for number in range(len(file.batches)):
                    yield from _documents(self._batch(reader, file, number))

    def take(self, places: Collection[int]) -> dict[int, Document]:
        """The documents at `places`; only the record batches that hold one are read."""
        found, wanted, start = {}, set(places), 0
        for file in self.files:
            with self._open(file) as reader:
                for number, count in enumerate(file.batches):
                    here = wanted & set(range(start, start + count)) if wanted else set()
                    if here:
                        batch = self._batch(reader, file, number)
                        found |= {place: next(_documents(batch.slice(place - start, 1))) for place in here}
                    start += count
        return found

    def batch(self, number: int) -> list[Document]:
        """The documents of record batch `number`, counted over all files."""
        for file in self.files:
            if number < len(file.batches):
                with self._open(file) as reader:
                    return list(_documents(self._batch(reader, file, number)))
            number -= len(file.batches)
        raise IndexError(number)

    def verify(self) -> None:
        """Compare the SHA-256 of every file. Raises DataError that names the first damaged one."""
        for file in self.files:
            path = self.directory / file.file
            try:
                damage = "" if sha256(path) == file.sha256 else "its SHA-256 is not the one in the index"
            except OSError as error:
                damage = error.strerror or str(error)
            if damage:
                raise _damaged(path, damage)

    def _open(self, file: ShardFile) -> pa.ipc.RecordBatchFileReader:
        path = self.directory / file.file
        try:
            return pa.ipc.open_file(pa.OSFile(str(path)))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, _first_line(error)) from error

    def _batch(self, reader: pa.ipc.RecordBatchFileReader, file: ShardFile, number: int) -> pa.RecordBatch:
        try:
            batch = reader.get_batch(number)
        except (OSError, ValueError) as error:  # pyarrow's errors are among these
            raise _damaged(self.directory / file.file, _first_line(error)) from error
        if batch.num_rows != file.batches[number]:
            raise _damaged(self.directory / file.file, f"record batch {number} has {batch.num_rows} documents")
        return batch


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["unreadable"])[0]


def _documents(batch: pa.RecordBatch) -> Iterator[Document]:
    return map(Document, batch.column(0).to_pylist(), batch.column(1).to_pylist())


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path}: damaged ({why}); remove the directory {path.parent} and ingest the data again")
