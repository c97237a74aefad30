# SPDX-License-Identifier: Apache-2.0
"""Gemma (Gemma team 2024, version 1): Llama with wide heads, GELU in its gates, and embeddings scaled by √d_model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.layer import Block
from foundling.blocks.mlp import GatedMLP, gelu_tanh
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE, RopeScaling
from foundling.blocks.stack import Decoder
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class GemmaConfig:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    head_dim: int = 256
    max_seq_len: int = 8192
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)


class Gemma(Decoder):
    def __init__(self, config: GemmaConfig) -> None:
        c = config

        def norm() -> RMSNorm:
            return RMSNorm(c.d_model, c.norm_eps, offset=1.0)

        super().__init__(
            c,
            [
                Block(
                    norm(),
                    Attention(c.d_model, c.n_heads, c.n_kv_heads, c.head_dim),
                    norm(),
                    GatedMLP(c.d_model, c.d_ff, gelu_tanh),
                )
                for _ in range(c.n_layers)
            ],
            norm(),
            rope=RoPE(c.head_dim, c.rope_theta, c.rope_scaling, max_positions=c.max_seq_len),
        )

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return x * torch.tensor(self.config.d_model**0.5, dtype=x.dtype)


sized = llama.sized

PRESETS: dict[str, dict[str, Any]] = {
    "gemma-2b": dict(vocab_size=256000, d_model=2048, n_layers=18, n_heads=8, n_kv_heads=1, d_ff=16384),
    "gemma-7b": dict(vocab_size=256000, d_model=3072, n_layers=28, n_heads=16, n_kv_heads=16, d_ff=24576),
}

KEYS = llama.KEYS
CONFIG = replace(
    llama.CONFIG,
    model_type="gemma",
    architecture="GemmaForCausalLM",
    derived=llama.CONFIG.derived
    | {
        **published.key_value_heads(16),
        "head_dim": lambda c: 256,
        "max_position_embeddings": lambda c: 8192,
        "tie_word_embeddings": lambda c: True,
    },
    # transformers reads the "gelu" of early files as the tanh approximation too
    only={
        "hidden_act": ("gelu_pytorch_tanh", "gelu"),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "use_bidirectional_attention": False,
    },
)
