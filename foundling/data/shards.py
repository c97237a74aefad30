# SPDX-License-Identifier: Apache-2.0
"""Tokens on disk, memory-mapped: numbered files of raw integers and an index with their hashes.

A document is stored as eos, then its tokens, framed as its tokenizer frames a text; one eos closes the last. So eos
alone marks every border.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from foundling.config import from_dict
from foundling.errors import ConfigError, DataError, WeightsError
from foundling.runtime.files import read_json, sha256
from foundling.text import Tokenizer

SHARD_TOKENS = 1 << 26
ENCODE_AT_ONCE = 64
INDEX = "index.json"
DTYPES = ("<u2", "<u4")


@dataclass(frozen=True)
class TokenFile:
    file: str
    sha256: str


@dataclass(frozen=True)
class TokenIndex:
    """The content of index.json. `hash` is the SHA-256 of all tokens; `made_from` states what they were made from."""

    dtype: str
    eos: int
    n_tokens: int
    n_documents: int
    n_bytes: int
    hash: str
    shards: list[TokenFile]
    made_from: dict[str, Any] = field(default_factory=dict)


class TokenShards:
    """All tokens of a corpus as one long array that is never read whole.

    With `verify` the SHA-256 of every file is compared. Raises DataError for a damaged index, and for a file that is
    missing, of another length or damaged.
    """

    def __init__(self, directory: Path, *, verify: bool = False) -> None:
        again = f"remove the directory {directory} and start again"
        try:
            index = from_dict(TokenIndex, read_json(directory / INDEX), where=str(directory / INDEX))
        except (WeightsError, ConfigError) as error:
            raise DataError(f"{error}; {again}") from error
        if index.dtype not in DTYPES:
            raise DataError(f"{directory / INDEX}: dtype {index.dtype!r}, expected one of {', '.join(DTYPES)}; {again}")
        self.eos, self.n_tokens, self.hash = index.eos, index.n_tokens, index.hash
        self.n_documents, self.n_bytes, self.made_from = index.n_documents, index.n_bytes, index.made_from
        self.arrays: list[np.ndarray] = []
        for shard in index.shards:
            path = directory / shard.file
            try:
                digest = sha256(path) if verify else shard.sha256
                self.arrays.append(np.memmap(path, dtype=index.dtype, mode="r"))
            except (OSError, ValueError) as error:  # ValueError: an empty file, or half a token
                raise DataError(f"{path}: damaged ({getattr(error, 'strerror', None) or error}); {again}") from error
            if digest != shard.sha256:
                raise DataError(f"{path}: damaged, its SHA-256 is not the one in the index; {again}")
        if sum(len(array) for array in self.arrays) != self.n_tokens:
            raise DataError(f"{directory}: damaged, the files do not have {self.n_tokens:,} tokens; {again}")

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop − start,) int64, the tokens [start, stop), across files."""
        parts, base = [], 0
        for array in self.arrays:
            low, high = max(start - base, 0), min(stop - base, len(array))
            if low < high:
                parts.append(array[low:high])
            base += len(array)
        return np.concatenate(parts).astype(np.int64)


class TokenArray:
    """The tokens of a sample of texts, in memory; read like TokenShards."""

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        documents = [[*tokenizer.opening, *ids] for ids in tokenizer.encode_batch(list(texts))]
        self.tokens = np.array([token for ids in documents for token in ids] + [tokenizer.eos])
        self.eos, self.n_tokens = tokenizer.eos, len(self.tokens)
        self.hash = hashlib.sha256(self.tokens.tobytes()).hexdigest()

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]


def write_shards(
    directory: Path,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    encode: Callable[[list[str]], list[list[int]]] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> TokenShards:
    """Encode all texts (by default as the tokenizer does) and write them into an existing directory.

    The index is written last, so an interrupted call leaves none.
    """
    encode = encode or tokenizer.encode_batch
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    n_documents = n_bytes = n_tokens = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal n_documents, n_bytes
        source = iter(texts)
        while group := list(islice(source, ENCODE_AT_ONCE)):
            for text, ids in zip(group, encode(group), strict=True):
                n_documents += 1
                n_bytes += len(text.encode())
                yield np.array([*tokenizer.opening, *ids], dtype=dtype)
        yield np.array([tokenizer.eos], dtype=dtype)

    whole, shards = hashlib.sha256(), []
    for parts in _files(stream()):
        name, digest = f"{len(shards):05d}.tokens", hashlib.sha256()
        with open(directory / name, "wb") as file:
            for part in parts:
                data = part.tobytes()
                file.write(data)
                digest.update(data)
                whole.update(data)
                n_tokens += len(part)
        shards.append(TokenFile(name, digest.hexdigest()))
    index = TokenIndex(
        dtype=dtype.str,
        eos=tokenizer.eos,
        n_tokens=n_tokens,
        n_documents=n_documents,
        n_bytes=n_bytes,
        hash=whole.hexdigest(),
        shards=shards,
        made_from=dict(made_from or {}),
    )
    (directory / INDEX).write_text(json.dumps(asdict(index)), encoding="utf-8")
    return TokenShards(directory)


def _files(arrays: Iterator[np.ndarray]) -> Iterator[Iterator[np.ndarray]]:
    """Divide a stream of tokens into files of SHARD_TOKENS each; every inner iterator must be read to its end."""
    rest = next(arrays, None)

    def one_file() -> Iterator[np.ndarray]:
        nonlocal rest
        space = SHARD_TOKENS
        while rest is not None and space:
            part, rest = rest[:space], rest[space:]
            space -= len(part)
            yield part
            if not len(rest):
                rest = next(arrays, None)

    while rest is not None:
        yield one_file()
