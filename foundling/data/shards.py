# SPDX-License-Identifier: Apache-2.0
"""Tokens on disk, memory-mapped: numbered files of raw integers and an index that names their hashes.

A document is stored as eos, then its tokens; one eos closes the last. So eos alone marks every border.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from foundling.errors import DataError
from foundling.text import Tokenizer

SHARD_TOKENS = 1 << 26
ENCODE_AT_ONCE = 64
INDEX = "index.json"


class TokenShards:
    """All tokens of a corpus as one long array that is never read whole."""

    def __init__(self, directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        self.eos: int = index["eos"]
        self.n_tokens: int = index["n_tokens"]
        self.n_documents: int = index["n_documents"]
        self.n_bytes: int = index["n_bytes"]
        self.hash: str = index["hash"]
        self.arrays = [np.memmap(directory / s["file"], dtype=index["dtype"], mode="r") for s in index["shards"]]
        if sum(len(a) for a in self.arrays) != self.n_tokens:
            raise DataError(f"{directory}: token shards are damaged; remove the directory and start again")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int64, across files."""
        parts, base = [], 0
        for array in self.arrays:
            low, high = max(start - base, 0), min(stop - base, len(array))
            if low < high:
                parts.append(array[low:high])
            base += len(array)
        return np.concatenate(parts).astype(np.int64)


class TokenArray:
    """The same in memory, for a sample."""

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        documents = [[tokenizer.eos, *ids] for ids in tokenizer.encode_batch(list(texts))]
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
) -> TokenShards:
    """Encodes (by default as the tokenizer does) and writes all texts into an existing directory; the index comes last,
    so a broken run leaves none."""
    encode = encode or tokenizer.encode_batch
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    digest, shards = hashlib.sha256(), []
    n_documents = n_bytes = n_tokens = 0

    def stream() -> Iterator[np.ndarray]:
        nonlocal n_documents, n_bytes
        source = iter(texts)
        while group := list(islice(source, ENCODE_AT_ONCE)):
            for text, ids in zip(group, encode(group), strict=True):
                n_documents += 1
                n_bytes += len(text.encode())
                yield np.array([tokenizer.eos, *ids], dtype=dtype)
        yield np.array([tokenizer.eos], dtype=dtype)

    file, room = None, 0
    for array in stream():
        while len(array):
            if room == 0:
                if file:
                    file.close()
                name, room = f"{len(shards):05d}.tokens", SHARD_TOKENS
                file = open(directory / name, "wb")  # noqa: SIM115
                shards.append({"file": name})
            assert file is not None
            part, array = array[:room], array[room:]
            data = part.tobytes()
            file.write(data)
            digest.update(data)
            room -= len(part)
            n_tokens += len(part)
    if file:
        file.close()
    index = {
        "dtype": dtype.str,
        "eos": tokenizer.eos,
        "n_tokens": n_tokens,
        "n_documents": n_documents,
        "n_bytes": n_bytes,
        "hash": digest.hexdigest(),
        "shards": shards,
    }
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return TokenShards(directory)
