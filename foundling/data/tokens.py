# SPDX-License-Identifier: Apache-2.0
"""From a corpus to a tokenizer and to tokens on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from foundling.data.ingest import Corpus
from foundling.data.sampling import sample_documents, subsample_docs
from foundling.data.shards import TokenShards, write_shards
from foundling.data.transforms import fim
from foundling.errors import MismatchError
from foundling.runtime.files import write_directory
from foundling.text import Tokenizer

TOKENIZER_BYTES = 12_000_000
"""Text that a tokenizer is trained on; more changes its merges little."""
SCALE_BYTES = 400_000
RATIO_DOCUMENTS, RATIO_CHARS = 64, 20_000


@dataclass(frozen=True)
class Tokens:
    train: TokenShards
    held_out: TokenShards


def tokenize_corpus(
    directory: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    share: float = 1.0,
    fim_rate: float = 0.0,
    seq_len: int = 0,
) -> Tokens:
    """Write directory/train and directory/held_out, each complete or absent; what exists is verified and used.

    Training takes `share` of the text, and rearranges `fim_rate` of it for fill-in-the-middle in windows of `seq_len`
    tokens; held-out text is encoded whole, as it is. Raises DataError for a damaged file, and MismatchError where the
    existing tokens were made from other data, by another tokenizer, or with other options.
    """
    made_from = {"data_hash": corpus.data_hash, "tokenizer": tokenizer_hash(tokenizer)}
    options = {"share": share, "fim_rate": fim_rate, "seq_len": seq_len if fim_rate else 0}

    def training() -> Iterator[str]:
        return (document.text for document in subsample_docs(corpus.train(), share, corpus.train_bytes))

    def held_out() -> Iterator[str]:
        return (document.text for document in corpus.held_out)

    encode = partial(fim.encode, tokenizer=tokenizer, rate=fim_rate, seq_len=seq_len) if fim_rate else None
    return Tokens(
        _tokens(directory / "train", training, tokenizer, encode, made_from | options),
        _tokens(directory / "held_out", held_out, tokenizer, None, made_from),
    )


def _tokens(
    directory: Path,
    texts: Callable[[], Iterable[str]],
    tokenizer: Tokenizer,
    encode: Callable[[list[str]], list[list[int]]] | None,
    made_from: dict[str, Any],
) -> TokenShards:
    if directory.exists():
        shards = TokenShards(directory, verify=True)
        for name, value in made_from.items():
            if shards.made_from.get(name) != value:
                raise MismatchError(
                    f"{directory}: these tokens were made with {name} {str(shards.made_from.get(name))[:12]}, "
                    f"not {str(value)[:12]}; remove the directory and start again"
                )
        return shards

    def fill(aside: Path) -> None:
        write_shards(aside, texts(), tokenizer, encode, made_from)

    write_directory(directory, fill)
    return TokenShards(directory)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of all that decides how a text is encoded, and of the token that closes a document."""
    return hashlib.sha256(f"{tokenizer.eos}\n{tokenizer.backend.to_str()}".encode()).hexdigest()


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE on about TOKENIZER_BYTES of the training text; vocab_size as Tokenizer.train has it."""
    return Tokenizer.train((text[:TOKENIZER_BYTES] for text in sample_documents(corpus, TOKENIZER_BYTES)), vocab_size)


def bytes_per_token(corpus: Corpus, tokenizer: Tokenizer) -> float:
    """Bytes of UTF-8 a token of held-out text, its frame included, estimated from the beginnings of some documents."""
    sample = [document.text[:RATIO_CHARS] for document in corpus.held_out[:RATIO_DOCUMENTS]]
    n_tokens = sum(len(ids) + len(tokenizer.opening) for ids in tokenizer.encode_batch(sample))
    return sum(len(text.encode()) for text in sample) / max(1, n_tokens)


def scale_sample(corpus: Corpus) -> bytes:
    """At most SCALE_BYTES of training text in whole documents, to measure how well the corpus compresses."""
    return "".join(sample_documents(corpus, SCALE_BYTES)).encode()[:SCALE_BYTES]
