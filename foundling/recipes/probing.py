# SPDX-License-Identifier: Apache-2.0
"""What is measured before a run: a first look at the text, what a token costs here, how long evaluation takes."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from foundling.data import ingest
from foundling.data.loader import PackedBatches, evaluation_batches
from foundling.data.shards import TokenArray
from foundling.evaluate.perplexity import score
from foundling.models import family
from foundling.objectives.causal import Causal
from foundling.plan.flops import skeleton, training_flops_per_token
from foundling.plan.law import Corpus, compressibility
from foundling.plan.probe import LOOK_SIZE, LOOK_STEP_TOKENS, LOOK_STEPS, RandomBatches, proxy_run, step_seconds
from foundling.recipes.corpus import bytes_per_token, pieces, scale_sample, slices
from foundling.recipes.recipe import Recipe
from foundling.runtime.device import Runtime
from foundling.text import Tokenizer
from foundling.train.optim import OptimOptions
from foundling.train.schedule import Schedule

LOOK_BYTES = 1_000_000
"""Text that the windows of a first look are taken from."""
JUDGED_BYTES = 200_000
"""Held-out text that it is judged on."""
EVALUATE_ROWS, EVALUATE_STRIDE = 16, 2
"""Held-out windows overlap by half: each token is predicted with at least half a window before it."""


def look(found: ingest.Corpus, tokenizer: Tokenizer, name: str, seq_len: int, runtime: Runtime) -> tuple[Corpus, float]:
    """What a prediction needs to know of the text, and the seconds of a step of LOOK_SIZE. Reads no clock but for the
    seconds. DataError if the sample holds no window.

    The small model is judged on held-out text, which may be less like the rest than the rest is like itself. Nothing is
    chosen by it: the scale of a corpus is the same for all sizes."""
    per_token, optim = bytes_per_token(found, tokenizer), OptimOptions()
    sample = list(pieces(found, LOOK_BYTES)) or list(pieces(found, found.train_bytes))
    tokens, rows = TokenArray(sample, tokenizer), max(1, LOOK_STEP_TOKENS // seq_len)
    batches = PackedBatches(tokens, seq_len=min(seq_len, tokens.n_tokens // 2), batch_size=rows, seed=0)
    fields = family(name).module.sized(tokenizer.vocab_size, seq_len, *LOOK_SIZE)
    schedule = Schedule(LOOK_STEPS, decay_share=Recipe.decay_share)
    model, seconds = proxy_run(name, fields, Causal(), runtime, batches, optim, schedule)
    judged = list(slices(found.held_out, JUDGED_BYTES / found.held_out_bytes))
    text = evaluation_batches(TokenArray(judged, tokenizer), seq_len=seq_len, batch_size=EVALUATE_ROWS, stride=seq_len)
    bits = score(model, Causal(), text, sum(len(t.encode()) for t in judged), runtime).bits_per_byte
    return Corpus(found.train_bytes, per_token, compressibility(scale_sample(found)), bits), seconds


def anchors(
    name: str, vocab_size: int, seq_len: int, runtime: Runtime, optim: OptimOptions, look_seconds: float
) -> tuple[float, float]:
    """Seconds a token = slope · FLOPs + per_width · d_model · layers: products, and what passes through memory."""
    rows = max(1, LOOK_STEP_TOKENS // seq_len)
    measured = []
    for d_model, n_layers in (LOOK_SIZE, (256, 2)):
        fields = family(name).module.sized(vocab_size, seq_len, d_model, n_layers)
        seconds = look_seconds
        if (d_model, n_layers) != LOOK_SIZE:
            seconds = step_seconds(name, fields, Causal(), runtime, rows, rows, optim, least_seconds=0.2)
        flops = training_flops_per_token(skeleton(name, fields), seq_len)
        measured.append((flops, d_model * n_layers, seconds / (rows * seq_len)))
    matrix = torch.tensor([[f, w] for f, w, _ in measured], dtype=torch.float64)
    slope, per_width = torch.linalg.solve(matrix, torch.tensor([s for *_, s in measured], dtype=torch.float64)).tolist()
    return max(slope, 1e-15), max(per_width, 0.0)


def evaluation_seconds(model: Any, tokens: float, seq_len: int, vocab_size: int, runtime: Runtime) -> float:
    """Of so many held-out tokens, by two batches."""
    batch = RandomBatches(EVALUATE_ROWS, seq_len, vocab_size)[0]
    score(model, Causal(), [batch], 1, runtime)
    begin = time.perf_counter()
    score(model, Causal(), [batch] * 2, 1, runtime)
    return (time.perf_counter() - begin) / 2 * math.ceil(tokens * EVALUATE_STRIDE / seq_len / EVALUATE_ROWS)
