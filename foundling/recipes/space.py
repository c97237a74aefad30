# SPDX-License-Identifier: Apache-2.0
"""Disk space of a run, checked before its first step: a disk that fills up after hours stops it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundling.adapt.method import SAVED_ALONE
from foundling.data.examples import Examples
from foundling.data.ingest import Corpus
from foundling.recipes.recipe import Recipe
from foundling.runtime.files import require_space
from foundling.train.checkpoint import KEEP
from foundling.train.optim import count_state

BYTES_PER_TOKEN = 2
"""of text, at least; tokenizers in use reach three or four"""


def run_bytes(recipe: Recipe, corpus: Corpus | Examples, model: Any) -> int:
    """Bytes that a run still writes: tokens, the checkpoints that exist at once (one more than are kept, while it is
    written), and the model. It is written once: what is complete aside is published by renaming it."""
    text = corpus.train_bytes * recipe.data.share + corpus.held_out_bytes
    vocab_size = recipe.data.vocab_size or 1 << 17  # a parent's tokenizer may have as many
    tokens = int(text / BYTES_PER_TOKEN) * (2 if vocab_size <= 1 << 16 else 4)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    averages = trained if recipe.train.ema_decay is not None else 0
    checkpoint = trained + averages + count_state(model, recipe.optim)
    best = trained if recipe.train.evaluate_every else 0
    alone = recipe.adapt.method in SAVED_ALONE and not recipe.adapt.merged
    published = trained if alone else sum(p.numel() for p in model.parameters())
    return tokens + 4 * (checkpoint * (KEEP + 1) + best + published)


def check_space(out: Path, recipe: Recipe, corpus: Corpus | Examples, model: Any) -> None:
    """OutputError, with the figures, where the disk of `out` has not enough."""
    require_space(out, run_bytes(recipe, corpus, model))
