# SPDX-License-Identifier: Apache-2.0
"""Disk space of a run, checked before its first step: a disk that fills up after hours stops it."""

from __future__ import annotations

from pathlib import Path

from foundling.data.ingest import Corpus
from foundling.recipes.recipe import Recipe
from foundling.runtime.files import require_space
from foundling.train.checkpoint import KEEP

BYTES_PER_TOKEN = 2
"""of text, at least; tokenizers in use reach three or four"""


def run_bytes(recipe: Recipe, corpus: Corpus, params: int) -> int:
    """Bytes that a run still writes: tokens, the checkpoints that exist at once (one more than are kept, while it is
    written), and the model twice, since it is published from a copy aside."""
    text = corpus.train_bytes * recipe.data.share + corpus.held_out_bytes
    vocab_size = recipe.data.vocab_size or 1 << 17  # a parent's tokenizer may have as many
    tokens = int(text / BYTES_PER_TOKEN) * (2 if vocab_size <= 1 << 16 else 4)
    copies = 3 + (recipe.train.ema_decay is not None)  # weights and two moments
    return tokens + 4 * params * (copies * (KEEP + 1) + 2)


def check_space(out: Path, recipe: Recipe, corpus: Corpus, params: int) -> None:
    """OutputError, with the figures, where the disk of `out` has not enough."""
    require_space(out, run_bytes(recipe, corpus, params))
