# SPDX-License-Identifier: Apache-2.0
"""From a path to tokens on disk: held-out split, tokenizer, shards."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from foundling.data import fim
from foundling.data.corpora import corpus
from foundling.data.shards import TokenShards, write_shards
from foundling.data.sources import Document, Source
from foundling.data.split import Split, split
from foundling.runtime.files import output_errors, write_directory
from foundling.text import Tokenizer

BUILTIN = "builtin:"
TOKENIZER_BYTES = 12_000_000
"""Text that the tokenizer is trained on: more changes its merges little."""
SCALE_DOCUMENTS_BYTES = 400_000
LEAST_PIECE = 1000


def open_source(data: str, field: str) -> Iterable[Document]:
    return corpus(data.removeprefix(BUILTIN)) if data.startswith(BUILTIN) else Source(data, field)


def read(data: str, field: str) -> tuple[Split, dict[str, int]]:
    """The split, and how many files or rows were passed over, by reason."""
    source = open_source(data, field)
    return split(source), dict(getattr(source, "skipped", {}))


def thinned(documents: Iterable[Document], share: float) -> Iterator[Document]:
    """The documents whose hash falls below `share`: the same ones whatever the order."""
    limit = int(share * (1 << 64))
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        if share >= 1 or int.from_bytes(digest[8:16], "little") < limit:
            yield document


def some_text(found: Split, n_bytes: int) -> Iterator[str]:
    """Training text of about n_bytes, from all over the corpus; of few long documents their beginnings."""
    share = min(1.0, n_bytes / max(1, found.train_bytes))
    left = n_bytes * 2
    for document in thinned(found.train(), share):
        yield document.text[:left]
        left -= len(document.text)
        if left <= 0:
            return


def slices(documents: Iterable[Document], share: float) -> Iterator[str]:
    """`share` of each document, but LEAST_PIECE characters at least, from somewhere inside that its hash chooses."""
    for document in documents:
        length = min(len(document.text), max(LEAST_PIECE, int(len(document.text) * share)))
        digest = hashlib.sha256(document.text.encode()).digest()
        start = int.from_bytes(digest[16:24], "little") % (len(document.text) - length + 1)
        yield document.text[start : start + length]


def pieces(found: Split, n_bytes: int) -> Iterator[str]:
    """Training text of about n_bytes: an eighth of each of eight times as many documents."""
    share = min(1.0, n_bytes / max(1, found.train_bytes))
    some, left = min(1.0, 8 * share), 2 * n_bytes
    for text in slices(thinned(found.train(), some), share / some):
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def train_tokenizer(found: Split, vocab_size: int) -> Tokenizer:
    def texts() -> Iterator[str]:
        empty = True
        for text in some_text(found, TOKENIZER_BYTES):
            empty = False
            yield text
        if empty:  # no hash fell below the share: few, large documents
            yield next(found.train()).text[:TOKENIZER_BYTES]

    return Tokenizer.train(texts(), vocab_size)


def bytes_per_token(found: Split, tokenizer: Tokenizer) -> float:
    texts = [d.text for d in found.held_out][:64]
    sample = [t[:20_000] for t in texts]
    return sum(len(t.encode()) for t in sample) / max(1, sum(len(ids) + 1 for ids in tokenizer.encode_batch(sample)))


@dataclass
class Tokens:
    train: TokenShards
    held_out: TokenShards


def write_tokens(
    directory: Path, found: Split, tokenizer: Tokenizer, share: float, fim_rate: float = 0.0, seq_len: int = 0
) -> Tokens:
    """directory/train and directory/held_out, each whole or not there; `fim_rate` of the training texts rearranged to
    learn to fill in the middle."""
    if not (directory / "train").exists():
        texts = (d.text for d in thinned(found.train(), share))
        encode = partial(fim.encode, tokenizer=tokenizer, rate=fim_rate, seq_len=seq_len) if fim_rate else None
        write_directory(directory / "train", lambda aside: _discard(write_shards(aside, texts, tokenizer, encode)))
    if not (directory / "held_out").exists():
        texts = (d.text for d in found.held_out)
        write_directory(directory / "held_out", lambda aside: _discard(write_shards(aside, texts, tokenizer)))
    return Tokens(TokenShards(directory / "train"), TokenShards(directory / "held_out"))


def _discard(_: Any) -> None:
    """write_directory wants nothing back: the memory maps would keep the old names open."""


def clear(directory: Path) -> None:
    with output_errors(directory):
        if directory.exists():
            shutil.rmtree(directory)


def scale_sample(found: Split) -> bytes:
    """Training text for the corpus's compressibility: whole documents, pooled, as xz sees them alone."""
    return "".join(some_text(found, SCALE_DOCUMENTS_BYTES)).encode()[:SCALE_DOCUMENTS_BYTES]
