# SPDX-License-Identifier: Apache-2.0
"""Names that the recipes still use for what foundling/data does now."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from foundling.data.datasets import BUILTIN, open_data
from foundling.data.ingest import Corpus, ingest
from foundling.data.sampling import sample_spans as slices
from foundling.data.sampling import sample_text as pieces
from foundling.data.tokens import Tokens, bytes_per_token, scale_sample, tokenize_corpus, train_tokenizer
from foundling.runtime.files import output_errors
from foundling.text import Tokenizer

__all__ = [
    "BUILTIN",
    "Corpus",
    "Tokens",
    "bytes_per_token",
    "clear",
    "pieces",
    "read",
    "scale_sample",
    "slices",
    "train_tokenizer",
    "write_tokens",
]


def read(data: str, field: str, exclude: Path | None = None) -> tuple[Corpus, dict[str, int]]:
    """The corpus, in a temporary directory that lives as long as the process, and what was skipped, by reason."""
    import atexit

    directory = tempfile.mkdtemp(prefix="foundling-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    corpus = ingest(open_data(data, field, exclude), directory)
    return corpus, dict(corpus.skipped)


def write_tokens(
    directory: Path, corpus: Corpus, tokenizer: Tokenizer, share: float, fim_rate: float = 0.0, seq_len: int = 0
) -> Tokens:
    return tokenize_corpus(directory, corpus, tokenizer, share=share, fim_rate=fim_rate, seq_len=seq_len)


def clear(directory: Path) -> None:
    with output_errors(directory):
        if directory.exists():
            shutil.rmtree(directory)
