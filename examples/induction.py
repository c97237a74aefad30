# SPDX-License-Identifier: Apache-2.0
"""Induction heads: they appear in a 2-layer attention-only model within a few steps, and with them in-context learning
(Olsson et al. 2022, "In-context Learning and Induction Heads"). Then the same scores on SmolLM2-135M.

python -m examples.induction [--steps 1200] [--layers 1,2] [--repeated 0.1] [--minutes 5] [--real]

The text is the standard library of Python, in tokens of a BPE of VOCAB tokens; a share of the rows is random tokens
that are repeated. Along training, on held-out text: the loss, and the in-context score (the loss of the LATE-th token
minus that of the EARLY-th one); on random tokens that are repeated once: the prefix-matching score of each head.
A model of one layer, which cannot compose heads, is trained beside it.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.corpora import corpus_of
from benchmarks.runs import Results, causal_batch
from foundling.blocks.attention import Attention
from foundling.blocks.init import initialise
from foundling.blocks.layer import MixerBlock
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE
from foundling.blocks.stack import Decoder
from foundling.contracts.data import Batch
from foundling.interpret import in_context_score, induction_scores
from foundling.interpret.circuits import token_losses
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime, available_threads
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState

VOCAB, T, ROWS = 512, 128, 24
EARLY, LATE = 10, 100
TEXT_BYTES, TOKENIZER_TEXTS = 3_000_000, 200


@dataclass(frozen=True)
class AttentionOnlyConfig:
    vocab_size: int = VOCAB
    d_model: int = 128
    n_layers: int = 2
    n_heads: int = 4
    head_dim: int = 32
    max_seq_len: int = T
    tie_embeddings: bool = False


def attention_only(c: AttentionOnlyConfig) -> Decoder:
    """Attention and nothing else in every layer (Elhage et al. 2021), with rotary positions."""
    layers = [
        MixerBlock(RMSNorm(c.d_model, 1e-5), Attention(c.d_model, c.n_heads, c.n_heads, c.head_dim))
        for _ in range(c.n_layers)
    ]
    return Decoder(c, [*layers], RMSNorm(c.d_model, 1e-5), rope=RoPE(c.head_dim, 10_000.0))


class Rows:
    """Rows of T + 1 tokens: spans of text, and in a share of them random tokens and the same again."""

    def __init__(self, tokens: torch.Tensor, repeated: float) -> None:
        self.tokens, self.n_repeated = tokens, round(repeated * ROWS)

    def __getitem__(self, n: int) -> Batch:
        draw = generator("rows", 0, n)
        at = torch.randint(len(self.tokens) - T - 1, (ROWS, 1), generator=draw)
        rows = self.tokens[at + torch.arange(T + 1)]
        for row in range(self.n_repeated):
            length = int(torch.randint(10, T // 2, (), generator=draw))
            rows[row] = torch.randint(VOCAB, (length,), generator=draw).repeat(T // length + 2)[: T + 1]
        return causal_batch(rows)


def text_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Of training and held-out files of the standard library."""
    corpus = corpus_of("stdlib")
    texts, size = [], 0
    for document in corpus.train():
        texts.append(document.text)
        size += len(document.text)
        if size > TEXT_BYTES:
            break
    tokenizer = Tokenizer.train(texts[:TOKENIZER_TEXTS], VOCAB)
    held_out = [document.text for document in corpus.held_out][:40]
    train_ids, test_ids = (
        torch.tensor([i for ids in tokenizer.encode_batch(some) for i in [tokenizer.eos, *ids]])
        for some in (texts, held_out)
    )
    return train_ids, test_ids
