# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 (Gemma team 2024): norms before and after each sublayer, local attention in every other layer, soft-caps on
scores and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foundling.blocks.attention import Attention
from foundling.blocks.layer import SandwichBlock
from foundling.blocks.mlp import GatedMLP, gelu_tanh
from foundling.blocks.norm import RMSNorm
from foundling.blocks.position import RoPE
from foundling.blocks.stack import Decoder
from foundling.contracts.checkpoint_map import CLASSIFY, TAG, ConfigMap, Key
from foundling.errors import ConfigError
from foundling.models import published
from foundling.models.decoder import llama


@dataclass(frozen=True)
class Gemma2Config:
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    window: int = 4096
    """Window of layers 0, 2, 4, …"""
    query_scale: int = 256
    """Scores are divided by its square root."""
    score_cap: float | None = 50.0
    logit_cap: float | None = 30.0
    max_seq_len: int = 8192
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        published.check_heads(self, self.head_dim)
        if min(self.window, self.query_scale, *(c for c in (self.score_cap, self.logit_cap) if c is not None)) <= 0:
            raise ConfigError("window, query_scale, score_cap and logit_cap must be above 0")


class Gemma2(Decoder):
    def __init__(self, config: Gemma2Config) -> None:
        c = config

        def norm(start: float = 1.0) -> RMSNorm:
            return RMSNorm(c.d_model, c.norm_eps, offset=1.0, start=start)

        layers = [
            SandwichBlock(
                norm(),
                Attention(
                    c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, scale=c.query_scale**-0.5, softcap=c.score_cap,
                    window=c.window if index % 2 == 0 else None,
                ),
                norm(0.0),
                norm(),
                GatedMLP(c.d_model, c.d_ff, gelu_tanh),
                norm(0.0),
            )
            for index in range(c.n_layers)
        ]  # fmt: skip
        super().__init__(c, [*layers], norm(), rope=RoPE(c.head_dim, c.rope_theta))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return x * torch.tensor(self.config.d_model**0.5, dtype=x.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        logits, cap = self.head(hidden), self.config.logit_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def sized(vocab_size: int, max_seq_len: int, d_model: int, n_layers: int) -> dict[str, Any]:
    """Llama's proportions; the window is half of max_seq_len."""
    fields = llama.sized(vocab_size, max_seq_len, d_model, n_layers)
    return fields | {"window": max(1, max_seq_len // 2), "query_scale": fields["head_dim"]}


PRESETS: dict[str, dict[str, Any]] = {
    "gemma-2-2b": dict(
        vocab_size=256000, d_model=2304, n_layers=26, n_heads=8, n_kv_heads=4, head_dim=256, d_ff=9216,
    ),
    "gemma-2-9b": dict(
        vocab_size=256000, d_model=3584, n_layers=42, n_heads=16, n_kv_heads=8, head_dim=256, d_ff=14336,
    ),
    "gemma-2-27b": dict(
        vocab_size=256000, d_model=4608, n_layers=46, n_heads=32, n_kv_heads=16, head_dim=128, d_ff=36864,
        query_scale=144,
    ),
}  # fmt: skip

KEYS = [
    *[key for key in llama.KEYS if "post_attention" not in key.theirs],
    Key("model.layers.{i}.post_attention_layernorm.weight", "layers.{i}.mixer_post_norm.weight"),
    Key("model.layers.{i}.pre_feedforward_layernorm.weight", "layers.{i}.ffn_norm.weight"),
    Key("model.layers.{i}.post_feedforward_layernorm.weight", "layers.{i}.ffn_post_norm.weight"),
]
CONFIG = ConfigMap(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    heads={"classify": CLASSIFY, "tag": TAG},
    fields=llama.PLAIN_ROPE.fields
    | {
        "sliding_window": "window",
        "query_pre_attn_scalar": "query_scale",
        "attn_logit_softcapping": "score_cap",
        "final_logit_softcapping": "logit_cap",
    },
    derived={
        **published.key_value_heads(4),
        "head_dim": lambda c: 256,
        "max_position_embeddings": lambda c: 8192,
        "rope_theta": lambda c: 10_000.0,
        "rms_norm_eps": lambda c: 1e-6,
        "tie_word_embeddings": lambda c: True,
        "sliding_window": lambda c: 4096,
        "query_pre_attn_scalar": lambda c: 256,
        "attn_logit_softcapping": lambda c: 50.0,
        "final_logit_softcapping": lambda c: 30.0,
    },
    only={"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "rope_scaling": None},
    implied={
        "layer_types": lambda c: ["full_attention" if i % 2 else "sliding_attention" for i in range(c["n_layers"])],
    },
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq", "lm_head.weight"),
)
